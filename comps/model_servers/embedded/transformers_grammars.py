"""Structured output of the transformers engine, by llguidance: which tokens a constraint allows next.

llguidance computes them anew for each token, so that no constraint takes long to compile. A JSON document has no white
space between its parts, which a small model may repeat without end. Source: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import json
from typing import Any

import llguidance
import torch
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.hf import from_tokenizer

from comps.core.errors import InvalidRequest
from comps.model_servers.embedded.constraints import CHOICE, JSON_SCHEMA, REGEX, Constraint
from comps.model_servers.embedded.engine_program import last_line


class Grammars:
    """Makes the matchers of constraints.

    Args:
        tokenizer: The model's, of transformers.
        ends: The end-of-sequence tokens.
    """

    def __init__(self, tokenizer: Any, ends: set[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = sorted(ends)
        self._known: dict[int, Any] = {}
        """The vocabulary as llguidance has it, by the number of logits; made for the first constraint."""

    def matcher(self, constraint: Constraint, logits: int) -> Matcher:
        """The matcher of a constraint.

        Args:
            constraint: What the answer matches.
            logits: How many the model has for each token.

        Raises:
            InvalidRequest: The constraint is none, or llguidance has none such.
        """
        if logits not in self._known:
            self._known[logits] = from_tokenizer(self._tokenizer, n_vocab=logits, eos_token=self._ends or None)
        try:
            grammar = _grammar(constraint)
        except Exception as error:  # The converter raises whatever comes, for what it does not expect.
            raise InvalidRequest(last_line(error), constraint.field) from None
        matcher = llguidance.LLMatcher(self._known[logits], grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(_first_line(matcher.get_error()), constraint.field)
        return Matcher(matcher)


class Matcher:
    """Follows one answer through its constraint."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, logits: Any) -> Any:
        """The logits, shape (1, vocabulary), with minus infinity for tokens that the constraint does not allow."""
        biases = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        return logits.masked_fill(biases.to(logits.device)[None, : logits.shape[-1]] == 0, float("-inf"))

    def accept(self, token: int) -> None:
        """Go on behind a token."""
        self._matcher.consume_token(token)


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    if constraint.kind == JSON_SCHEMA:
        compact = {"whitespace_flexible": False}
        return str(llguidance.LLMatcher.grammar_from_json_schema(constraint.value, overrides=compact))
    if constraint.kind == REGEX:
        return str(llguidance.LLMatcher.grammar_from_regex(constraint.value))
    if constraint.kind == CHOICE:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.value)
        return str(llguidance.LLMatcher.grammar_from_lark(f"start: {texts}"))
    return str(llguidance.LLMatcher.grammar_from_lark(any_to_lark(constraint.value)))


def _first_line(error: str) -> str:
    return next((line.strip() for line in error.splitlines() if line.strip()), "it cannot be compiled")
