"""Structured output of the llama.cpp engine: constraints as grammars in GBNF, llama.cpp's form of EBNF.

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import json

from llama_cpp.llama_grammar import json_schema_to_gbnf

from comps.core.errors import InvalidRequest
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
    escaped = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return '"' + "".join(escaped.get(character, character) for character in text) + '"'
