"""Answers and errors of TGI: parsers of its streams, and the fields that its messages name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from comps.core.errors import InvalidRequest, ModelServerError, Overloaded, PromptTooLong
from comps.core.finish_reasons import finish_reason
from comps.core.stop_strings import Stopped
from comps.core.types import JSON, MANY, Finished, Usage
from comps.core.unread import left_out
from comps.model_servers.remote.chunks import ChunkReader, parse_chunk, raise_reported
from comps.model_servers.remote.exchange import GO_ON, NO_TOKEN, STOP
from comps.model_servers.remote.failures import error_message
from comps.model_servers.remote.openai_api import OpenAIAPI

OPTIONS = frozenset(("tools", "tool_choice", "tool_prompt", "response_format", "logprobs", "top_logprobs"))
"""The options that only the Messages API supports."""
NOT_IN_MESSAGES = {"top_k": MANY, "typical_p": 1, "repetition_penalty": 1}
"""The parameters that the Messages API does not know, with their neutral values."""
_UNSAID = "unsaid"
_TOTAL = re.compile(r"must be <= (\d+)\. Given: (\d+) `inputs` tokens and \d+ `max_new_tokens`")
_INPUT = re.compile(r"`inputs` must have less than (\d+) tokens\. Given: (\d+)")
_FIELD = re.compile(r"`(\w+)`|type: (?:parameters\.)?(\w+)")
"""The field in TGI's errors: for an invalid value, and for an invalid body."""
_OURS = {"max_new_tokens": "max_tokens", "grammar": "response_format"}
HONOURED = (OpenAIAPI.honoured | set(NOT_IN_MESSAGES)) - {"presence_penalty"}
"""The fields of `Sampling` that TGI supports."""


def details_of(said: Mapping[str, JSON]) -> dict[str, JSON] | None:
    """Returns the `details` of an answer, or of its last token."""
    details = said.get("details")
    if details is not None and not isinstance(details, dict):
        left_out("details")
    return details if isinstance(details, dict) else None


class TokenReader:
    """Parses the events of `/generate_stream`, one token each.

    Args:
        answer: The answer to write to.
    """

    def __init__(self, answer: Stopped) -> None:
        self.answer = answer
        self.generated = 0
        """The number of tokens so far."""
        self.reason = ""
        """The finish reason, once the last token has arrived."""
        self.ended = False
        """Whether the end has been written."""

    def event(self, data: bytes, name: bytes = b"") -> int:
        said = parse_chunk(data)
        token = said.get("token")
        if type(token) is not dict:
            if said.get("error") or "generated_text" not in said:  # Errors have the status 200.
                raise_tgi_error(said, name, begun=self.generated > 0)
                return NO_TOKEN
            token = {"text": "" if self.generated else said["generated_text"]}
        self.generated += 1
        if token.get("special") is not True and (text := token.get("text")):
            self.answer.text(str(text))
        if said.get("details") or said.get("generated_text") is not None:
            self._end(details_of(said) or {})
        return STOP if self.answer.stops.hit or self.reason else GO_ON

    @property
    def is_complete(self) -> bool:
        return bool(self.reason)

    def _end(self, details: Mapping[str, JSON]) -> None:
        self.reason = finish_reason(details.get("finish_reason"))
        generated, prompt_tokens = details.get("generated_tokens"), details.get("input_length")
        self.generated = generated if type(generated) is int else self.generated
        if type(prompt_tokens) is int:  # Older versions leave it out.
            self.answer.finished(Finished(self.reason, Usage(prompt_tokens, self.generated)))
            self.ended = True


class MessagesReader(ChunkReader):
    """Parses the chunks of the Messages API. After a tool call they have a usage, but no finish reason."""

    def __init__(self, answer: Stopped) -> None:
        super().__init__(answer)
        self._stops = answer.stops

    def event(self, data: bytes, name: bytes = b"") -> int:
        # Within a JSON string, the quotes would be escaped.
        if b'"error"' in data:
            raise_tgi_error(parse_chunk(data), name, self._begun)
        said = super().event(data, name)
        return STOP if self._stops.hit else said

    def close(self) -> None:
        if self._stops.hit and not self.reasons:
            self.reasons[0] = "stop"
        elif not self.reasons and self.usage is not None:
            self.reasons[0] = _UNSAID
        called = bool(self.calls)
        for number, reason in self.reasons.items():
            self.reasons[number] = chat_reason(reason, called)
        super().close()


@contextmanager
def refusals() -> Iterator[None]:
    """Context manager that adds the field in TGI's message to an InvalidRequest."""
    try:
        yield
    except InvalidRequest as error:
        if error.field or isinstance(error, PromptTooLong):
            raise
        raise _refused(str(error)) from None


def chat_reason(reason: str, called: bool) -> str:
    """Returns the finish reason. TGI gives `stop` or none for a tool call, and none for one that is cut off early."""
    if reason == _UNSAID:
        return "tool_calls" if called else "length"
    return "tool_calls" if called and reason == "stop" else reason


def raise_tgi_error(said: dict[str, JSON], name: bytes, begun: bool) -> None:
    """Raise the error within a stream, if it is one; the Messages API gives only its message. See `raise_reported`."""
    message = error_message(said.get("error"))
    if message.startswith("Model is overloaded"):
        raise Overloaded(f"the model server is busy: {message}")
    if message.startswith(("Input validation error", "Template error", "Tool error", "Missing template")):
        refusal = _refused(f"the model server refused it: {message}")
        raise ModelServerError(str(refusal)) if begun else refusal
    raise_reported(said, name, begun=begun)


def _refused(message: str) -> InvalidRequest:
    if found := _INPUT.search(message):
        # The limit of `inputs` is the window less one token for the answer.
        return PromptTooLong(int(found[2]), int(found[1]) + 1)
    if (found := _TOTAL.search(message)) and int(found[2]) >= int(found[1]):
        return PromptTooLong(int(found[2]), int(found[1]))
    if found:
        return InvalidRequest(message, "max_tokens")
    named = [next(filter(None, groups)) for groups in _FIELD.findall(message)]
    ours = [_OURS.get(name, name) for name in named]
    return InvalidRequest(message, next((name for name in ours if name in HONOURED | OPTIONS), None))
