"""Parser of OpenAI's responses: chunks of a stream, and whole completions.

They are read part by part: what the text does not need is left out if it is not understood, and counted
(`comps.core.unread`). Only what may have been text, and the end, are required.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from comps.core.answers import broken_off
from comps.core.errors import InvalidRequest, LLMError, ModelServerError
from comps.core.finish_reasons import finish_reason
from comps.core.ports import Answer
from comps.core.tool_calls import ToolCalls, function_of
from comps.core.types import JSON, Finished, TextDelta, Usage
from comps.core.unread import left_out
from comps.model_servers.remote.exchange import GO_ON, NO_TOKEN
from comps.model_servers.remote.failures import error_message, reported_failure
from comps.model_servers.remote.parsing import parse_json
from comps.model_servers.remote.sse import keeps_alive

_PLAIN = frozenset(("role", "content"))
"""The fields of a delta or message that do not go into the extra fields."""
_PROMPT_TOKENS = ("prompt_tokens", "input_tokens")
_COMPLETION_TOKENS = ("completion_tokens", "output_tokens")
"""The names of OpenAI's chat API, and those of its Responses API and Anthropic's."""
_TOTAL = ("total_tokens",)
_DETAILS = {"input_tokens_details": "prompt_tokens_details", "output_tokens_details": "completion_tokens_details"}
_DESCRIBED = {"message", "detail", "msg"}
_CODED = {"code", "status", "status_code", "statusCode", "error_type", "detail"}
"""The fields of an object that is an error itself."""
_WAITS = ("retry_after", "headers")
_LONGEST_NUMBER = 15
_MOST = 2**53
"""The largest count that is read."""
_THOUGHT = re.compile("^(think|thought|reason)")
"""The types of content parts that are reasoning."""
_THOUGHTS = ("thinking", "reasoning", "reasoning_content", "think", "text", "content", "summary")
"""The names of their text."""


class ChunkReader:
    """Parses the chunks of a stream and writes them to an answer.

    Args:
        answer: The answer to write to.
    """

    is_complete = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._seen: set[int] = set()
        """The indexes of all choices so far."""
        self._begun = False
        """Whether something has been written."""
        self.calls: dict[int, ToolCalls] = {}
        """The tool calls by choice."""
        self.reasons: dict[int, str] = {}
        """The finish reasons by choice."""
        self._stopped_by: dict[int, JSON] = {}
        """The stop strings before which choices ended, or the ids of tokens, as far as the server says; by choice."""
        self.usage: Usage | None = None
        """The usage of all choices together; None until it arrives."""

    def event(self, data: bytes, name: bytes = b"") -> int:
        """Parse one chunk. It never returns `STOP`, since the usage is in the last chunk.

        A sign of the model is text, a field beside it (reasoning, a tool call, logprobs), the usage, or an end. Chunks
        without any are `NO_TOKEN`, such as the first one of most servers, which has only the role.

        Args:
            data: The chunk.
            name: The event's name, if it has one.

        Raises:
            LLMError: It contains an error.
            ModelServerError: The data is no chunk.
        """
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = parse_chunk(data, name)
        if type(chunk) is not dict:
            chunk = parse_chunk(data)
        if "choices" not in chunk or chunk.get("error") or name == b"error":
            raise_reported(chunk, name, begun=self._begun)
        is_sign = False
        if chunk.get("usage"):
            self.usage = usage_of(chunk["usage"]) or self.usage
            is_sign = True
        choices = chunk.get("choices")
        for place, choice in enumerate(choices if type(choices) is list else objects(choices, "choices")):
            if type(choice) is not dict:
                left_out("choices")
                continue
            number = choice.get("index")
            if type(number) is not int:
                number = count(choice, "index") or place
            delta = choice.get("delta")
            text = delta.get("content") if type(delta) is dict and len(delta) == 1 else None
            if text and type(text) is str and not choice.get("logprobs"):  # As nearly all are.
                self._begun = is_sign = True
                self.answer.text(text, number)
            else:
                is_sign = self._write(choice, number) or is_sign
            self._seen.add(number)
            if reason := choice.get("finish_reason"):
                is_sign = True
                self.reasons[number] = finish_reason(reason)
                # vLLM and SGLang say by what.
                self._stopped_by[number] = choice.get("stop_reason") or choice.get("matched_stop")
        return GO_ON if is_sign else NO_TOKEN

    def _write(self, choice: dict[str, Any], number: int) -> bool:
        """Write a choice's text, from `delta` (chat) or `text` (completion), and its extra fields.

        Returns False if there is nothing in them: logprobs may be there and empty.
        """
        if choice.get("error"):
            raise_reported({"error": choice["error"]}, begun=self._begun)
        said = choice.get("delta") or choice.get("text")
        if said is None and number not in self._seen:  # Some servers send a whole message as one event.
            said = choice.get("message")
        text, extra = said_in(said, choice)
        if "tool_calls" in extra:
            extra["tool_calls"] = self.calls.setdefault(number, ToolCalls()).numbered(extra["tool_calls"])
        if not text and not (extra and any(any(one.values()) if type(one) is dict else one for one in extra.values())):
            return False
        self._begun = True
        if extra:
            self.answer.delta(TextDelta(text, number, extra))
        else:
            self.answer.text(text, number)
        return True

    def close(self) -> None:
        """Write the `Finished` of all choices. They are written at the end of the stream, because the usage comes last.

        Raises:
            ModelServerError: A choice has no finish reason.
        """
        if not self.reasons or self._seen - self.reasons.keys():
            raise broken_off()
        for place, (number, reason) in enumerate(sorted(self.reasons.items())):
            stop = self._stopped_by.get(number)
            stop_string = stop if type(stop) is str else None
            self.answer.finished(Finished(reason, None if place else self.usage, number, stop_string))


def parse_chunk(data: bytes, name: bytes = b"") -> dict[str, Any]:
    """Returns the object in an event; an empty one for data that only keeps the connection open.

    Raises:
        ModelServerError: It is no object, so that text may be lost.
    """
    try:
        chunk = parse_json(data)
    except ValueError:
        if keeps_alive(data.strip(b" \t:")) or data.startswith(b":"):
            return {}
        if name == b"error":
            raise reported_failure(data.decode("utf-8", "replace")) from None
        raise ModelServerError("the model server sent something that is no JSON") from None
    if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict) and chunk[0].get("error"):
        chunk = chunk[0]  # Google's errors.
    if isinstance(chunk, str) and name == b"error":
        return {"error": chunk}
    if not chunk or isinstance(chunk, int | float) or (isinstance(chunk, str) and keeps_alive(chunk.encode())):
        if chunk != {}:
            left_out("event")
        return {}
    if type(chunk) is not dict:
        raise ModelServerError("the model server sent something that is no JSON object")
    return chunk


def raise_reported(said: dict[str, Any], name: bytes = b"", *, begun: bool = False) -> None:
    """Raise the error that an object reports, in `error` or by its kind; return if it reports none.

    Args:
        said: The object.
        name: The name of its event.
        begun: Whether a part of the answer has been written, so that it can only break off.
    """
    error = said.get("error") or said.get("errors") or (said if _is_error(said, name) else None)
    if error is None:
        return
    if isinstance(error, list):
        error = error[0]
    if isinstance(error, str | bool):  # Its kind is beside it.
        error = {**said, "message": error if isinstance(error, str) else error_message({**said, "error": None})}
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict):  # How long to wait may be beside it.
        error = {**{name: said[name] for name in _WAITS if name in said}, **error}
    raise _failure(error, begun)  # In no variable here, to which its traceback would refer: a cycle.


def _failure(error: JSON, begun: bool) -> LLMError:
    failure = reported_failure(error)
    return ModelServerError(str(failure)) if begun and isinstance(failure, InvalidRequest) else failure


def _is_error(said: dict[str, Any], name: bytes) -> bool:
    """Returns whether an object is an error itself."""
    is_error = name == b"error" or any(str(said.get(kind)).lower().endswith("error") for kind in ("object", "type"))
    return is_error or bool("choices" not in said and _DESCRIBED & said.keys() and _CODED & said.keys())


def objects(said: JSON, part: str) -> list[dict[str, Any]]:
    """Returns the objects in a list; others are left out, and counted as `part`."""
    if not isinstance(said, list):
        if said is not None:
            left_out(part)
        return []
    found = [one for one in said if isinstance(one, dict)]
    if len(found) < len(said):
        left_out(part)
    return found


def said_in(said: JSON, choice: dict[str, Any]) -> tuple[str, dict[str, JSON]]:
    """Returns the text of a delta or message, and its extra fields with the logprobs of its choice."""
    fields = said if isinstance(said, dict) else {"content": said}
    text, thoughts = text_and_thoughts(fields.get("content"))
    given = {name: value for name, value in fields.items() if name not in _PLAIN and value not in (None, "", [], {})}
    extra = {name: value for name, value in given.items() if isinstance(value, str) or _can_be_sent(value)}
    if isinstance(reasoning := extra.get("reasoning_content"), list):
        extra["reasoning_content"] = _thoughts_in(reasoning)
    if thoughts:
        extra["reasoning_content"] = thoughts
    if isinstance(call := extra.get("function_call"), dict):
        extra["function_call"] = function_of(call)
    if choice.get("logprobs"):
        extra["logprobs"] = choice["logprobs"]
    return text, extra


def text_and_thoughts(content: JSON) -> tuple[str, str]:
    """Returns the text of a message's content, which may be a list of typed parts, and the reasoning in it.

    Raises:
        ModelServerError: It is neither text nor parts, so that text may be lost.
    """
    if isinstance(content, str) or content is None:
        return content or "", ""
    text: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text.append(part)
        elif part is None:
            left_out("content")
        elif not isinstance(part, dict):
            raise ModelServerError("the model server sent something that is no text in its answer")
        elif part.get("thought") or _THOUGHT.match(str(part.get("type"))):
            thought = next((part[name] for name in _THOUGHTS if part.get(name)), None)
            thoughts.append(_thoughts_in(thought))
        elif isinstance(said := _part_text(part), str):
            text.append(said)
        else:
            left_out("content")
    return "".join(text), "".join(thoughts)


def _thoughts_in(said: JSON) -> str:
    """Returns the text of reasoning, which may be a list of parts; what is none is left out, since no text is lost."""
    try:
        return "".join(text_and_thoughts(said))
    except ModelServerError:
        left_out("reasoning")
        return ""


def _part_text(part: dict[str, Any]) -> JSON:
    """Returns the text of a content part, under any of its names."""
    said = next((part[name] for name in ("text", "content", "value", "refusal") if part.get(name) is not None), None)
    return said.get("value") if isinstance(said, dict) else said


def _can_be_sent(value: JSON) -> bool:
    """Returns whether a value can be sent on as JSON: its numbers and levels have limits."""
    try:
        orjson.dumps(value)
    except TypeError:
        left_out("delta")
        return False
    return True


def usage_of(counted: JSON) -> Usage | None:
    """Parses a `usage` object; None if it says too little."""
    if not isinstance(counted, dict):
        left_out("usage")
        return None
    prompt, completion = counted.get("prompt_tokens"), counted.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:  # As they nearly always are.
        prompt, completion = _counted(counted)
    if prompt is None or completion is None or not (0 <= prompt <= _MOST and 0 <= completion <= _MOST):
        left_out("usage")
        return None
    details = {name: found for name, said in counted.items() if type(said) is dict and (found := _counts(said))}
    return Usage(prompt, completion, {_DETAILS.get(name, name): counts for name, counts in details.items()})


def _counted(counted: dict[str, Any]) -> tuple[int | None, int | None]:
    """Returns the tokens of prompt and completion under any of their names; None for those that are not known."""
    prompt, completion, all_tokens = (count(counted, *names) for names in (_PROMPT_TOKENS, _COMPLETION_TOKENS, _TOTAL))
    if all_tokens is not None and prompt is None and completion is not None:
        prompt = all_tokens - completion
    if all_tokens is not None and completion is None and prompt is not None:
        completion = all_tokens - prompt
    return prompt, completion


def count(counted: dict[str, Any], *names: str) -> int | None:
    """Returns the number under the first of the names that has one."""
    for name in names:
        value = counted.get(name)
        if type(value) is int or (isinstance(value, float) and value.is_integer()):
            return int(value)
        if isinstance(value, str) and value.isdecimal() and len(value) <= _LONGEST_NUMBER:
            return int(value)
    return None


def _counts(said: JSON) -> dict[str, int]:
    """Returns the integer fields of an object; none for any other value."""
    if not isinstance(said, dict):
        return {}
    return {name: value for name, value in said.items() if type(value) is int and abs(value) <= _MOST}
