"""Structured output of the llama.cpp engine: constraints as grammars in GBNF, llama.cpp's form of EBNF.

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ctypes import byref, c_void_p, cast
from dataclasses import dataclass
from typing import Any

import numpy
from llama_cpp import llama_cpp as api
from llama_cpp.llama_grammar import json_schema_to_gbnf

from comps.core.errors import InvalidRequest
from comps.core.types import JSON
from comps.model_servers.embedded.constraints import CHOICE, JSON_SCHEMA, Constraint
from comps.model_servers.embedded.engine_program import last_line


def gbnf(constraint: Constraint) -> str:
    """The grammar of a constraint.

    Raises:
        InvalidRequest: llama-cpp-python converts no such schema.
    """
    if constraint.kind == CHOICE:
        return f"root ::= {' | '.join(map(_literal, constraint.value))}"
    if constraint.kind != JSON_SCHEMA:
        return str(constraint.value)
    try:
        return str(json_schema_to_gbnf(json.dumps(constraint.value)))
    except Exception as error:  # The converter raises whatever comes, for what it does not expect.
        raise InvalidRequest(f"llama.cpp takes no such schema: {last_line(error)}", constraint.field) from None


def _literal(text: str) -> str:
    escaped = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\0": r"\x00"}
    return '"' + "".join(escaped.get(character, character) for character in text) + '"'


def _largest_bound(schema: JSON) -> int:
    """The largest number of items or characters that a schema names; numbers elsewhere in it may count too."""
    if isinstance(schema, Mapping):
        own = [int(schema[name]) for name in _BOUNDS if isinstance(schema.get(name), int)]
        return max([0, *own, *map(_largest_bound, schema.values())])
    return max([0, *map(_largest_bound, schema)]) if isinstance(schema, list) else 0


def _repetitions(grammar: str) -> int:
    """The most repetitions of a part of a grammar, of repetitions within repetitions their product; or the most groups
    within groups, as which llama-cpp-python writes the repetitions of a schema."""
    most, open_groups, last = 1, [1], 1
    for token in _TOKENS.finditer(grammar):
        if token[0] == "(":
            open_groups.append(1)
        elif token[0] == ")" and len(open_groups) > 1:
            last = open_groups.pop()
        elif token[1]:
            last *= max(int(bound) for bound in re.findall(r"\d+", token[0]))
        else:
            last = 1
        open_groups[-1] = max(open_groups[-1], last)
        most = max(most, last, len(open_groups))
    return most


def grammar_sampler(vocabulary: Any, constraint: Constraint) -> Any:
    """llama.cpp's sampler that allows only what a constraint does.

    Raises:
        InvalidRequest: The constraint is no grammar.
    """
    too_many = constraint.kind == JSON_SCHEMA and _largest_bound(constraint.value) > _MOST_REPETITIONS
    text = "" if too_many else gbnf(constraint)
    if too_many or _repetitions(text) > _MOST_REPETITIONS:
        raise InvalidRequest(f"llama.cpp takes no more than {_MOST_REPETITIONS} repetitions", constraint.field)
    grammar = api.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
    if not grammar:
        raise InvalidRequest("it is no grammar in GBNF with a rule root", constraint.field)
    return grammar


_MOST_REPETITIONS = 2000
"""llama.cpp makes a rule of each, and the process has not the stack for many more."""
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[()]|(\{[\d, ]*\d[\d, ]*\})|[^\s()"\[{]+|#[^\n]*')
_CANDIDATE = numpy.dtype([("id", numpy.int32), ("logit", numpy.float32), ("p", numpy.float32)])
"""`llama_token_data`."""


@dataclass
class Sampler:
    """The samplers of one answer.

    Attributes:
        chain: llama.cpp's chain of samplers.
        grammar: Of its constraint; None: all tokens are allowed. It is no part of the chain, since llama.cpp ends the
            process where a token is accepted that the grammar does not allow.
    """

    chain: Any
    grammar: Any

    def sample_allowed(self, logits: Any, tokens: int, end: int) -> int:
        """The next token of those that the grammar allows; `end` if it allows none.

        Args:
            logits: Of the next token, a pointer.
            tokens: How many there are.
            end: The end-of-sequence token.
        """
        candidates = numpy.zeros(tokens, _CANDIDATE)
        candidates["id"] = numpy.arange(tokens)
        candidates["logit"] = numpy.ctypeslib.as_array(logits, (tokens,))
        data = cast(c_void_p(candidates.ctypes.data), api.llama_token_data_p)
        array = api.llama_token_data_array(data, tokens, -1, False)
        api.llama_sampler_apply(self.grammar, byref(array))
        allowed = numpy.isfinite(candidates["logit"])
        if not allowed.any():
            return end
        likeliest = int(numpy.where(allowed, candidates["logit"], -numpy.inf).argmax())
        api.llama_sampler_apply(self.chain, byref(array))
        chosen = array.data[array.selected].id if array.selected >= 0 else likeliest
        token = int(chosen) if allowed[chosen] else likeliest
        api.llama_sampler_accept(self.chain, token)
        api.llama_sampler_accept(self.grammar, token)
        return token

    def free(self) -> None:
        """Free the samplers, which may not be used any more."""
        for sampler in filter(None, (self.chain, self.grammar)):
            api.llama_sampler_free(sampler)
