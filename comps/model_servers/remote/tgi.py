"""Text Generation Inference: its own API for answers, and its Messages API where a request needs that.

What is known here of TGI is read in its router: https://github.com/huggingface/text-generation-inference, router/src.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import orjson

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, PromptTooLong, Refused
from comps.core.prompts import plain_roles
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Event, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage, only
from comps.model_servers.chat_templates.token_strings import in_characters
from comps.model_servers.remote.client import checked_answer, error_message
from comps.model_servers.remote.openai_api import OpenAIAPI, wire_message

_OPTIONS = frozenset(("tools", "tool_choice", "tool_prompt", "response_format", "logprobs", "top_logprobs"))
"""What only the Messages API knows."""
_READ = ("tools", "tool_choice", "tool_prompt")
"""Of these, what is part of what the model reads."""
_NOT_IN_MESSAGES = ("top_k", "typical_p", "repetition_penalty")
_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
_WARPERS = ("temperature", "top_k", "top_p", "typical_p")
"""Any of these makes the model sample."""
_OFF: dict[str, float] = {"top_p": 1.0, "typical_p": 1.0}
"""Values that TGI refuses, though they stand for what it does without them."""
_UNSAID = "unsaid"
_TOTAL = re.compile(r"must be <= (\d+)\. Given: (\d+) `inputs` tokens and \d+ `max_new_tokens`")
_INPUT = re.compile(r"`inputs` must have less than (\d+) tokens\. Given: (\d+)")
_FIELD = re.compile(r"`(\w+)`|type: (?:parameters\.)?(\w+)")
"""Of a value it refuses, and of a body it cannot read."""
_OURS = {"max_new_tokens": "max_tokens", "grammar": "response_format"}


class TGI(OpenAIAPI):
    """https://huggingface.co/docs/text-generation-inference

    Its model goes by `tgi` or by its own name; any other is an adapter's.
    The Messages API makes a repetition penalty of a presence penalty of OpenAI's, so that one is not known here.
    """

    honoured = (OpenAIAPI.honoured | set(_NOT_IN_MESSAGES)) - {"presence_penalty"}
    embed = None  # type: ignore[assignment]  # It has none; this is how a protocol is told so.

    _max_stops = 4
    _base = "tgi"
    """The name of the model that the server was started with."""
    _special: tuple[int, ...] | None = None
    """The tokens that the server puts before every text."""

    async def _facts(self) -> ModelInfo:
        await self.http.get("/health")
        info = await self.http.get("/info")
        self._max_stops = int(info["max_stop_sequences"])
        self._base = str(info["model_id"])
        return ModelInfo(
            self.model_name,
            self._context_window or int(info["max_total_tokens"]),
            self.honoured | _OPTIONS | {"messages.tool_calls"},  # It reads a message's name, and makes nothing of it.
        )

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        prompt, wanted = plain_roles(prompt), _wanted(options)
        inputs = await self._inputs(prompt, wanted)
        events = self._converse(prompt, sampling, wanted) if inputs is None else self._continue(inputs, sampling)
        with checked_answer():
            async with aclosing(events):
                async for event in events:
                    yield event

    async def count_tokens(self, text: str) -> int:
        with checked_answer():
            return len(await self._tokenize(text)) - len(await self._specials())

    async def token_ends(self, text: str) -> Sequence[int]:
        with checked_answer():
            special = len(await self._specials())
            tokens = (await self.http.post("/tokenize", {"inputs": text}))[special:]
            ends = [int(token["stop"]) for token in tokens]
        length = len(text.encode("utf-8", "replace"))
        if ends and ends[-1] == length:
            return in_characters(ends, text)
        if ends and ends[-1] != len(text):  # A tokenizer that does not say where its tokens are.
            raise ModelServerError("it does not say where in a text its tokens are")
        return ends

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        if isinstance(prompt, str):
            with checked_answer():
                return len(await self._tokenize(prompt))
        return (await self._read(prompt, options))[1]

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """See `Renders`; this is the text that the server is sent."""
        return prompt if isinstance(prompt, str) else (await self._read(prompt, options))[0]

    async def _read(self, conversation: Prompt, options: Mapping[str, JSON]) -> tuple[str, int]:
        """What the model reads of a conversation; see `_templated`."""
        read = {name: options[name] for name in _READ if options.get(name)}
        templated = await self._templated(plain_roles(conversation), read)
        if templated is None:
            raise Refused(404, "this server renders no conversation")
        return templated

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        prompt, wanted = plain_roles(prompt), _wanted(options)
        conversing = await self._inputs(prompt, wanted) is None
        sent = {*(self._sampling(sampling) if conversing else self._parameters(sampling)), "max_tokens"}
        if sampling.temperature == 0:
            sent.add("temperature")
        return prompt, replace(only(sampling, sent), stop=tuple(self._stops(sampling))), wanted

    async def _continue(self, inputs: str, sampling: Sampling) -> AsyncGenerator[Event]:
        """The answer to a text, over TGI's own API."""
        stops = StopStrings(sampling.stop)
        details: dict[str, Any] | None = None
        generated = 0
        body = {"inputs": inputs, "parameters": self._parameters(sampling)}
        async with aclosing(self.stream("/generate_stream", body)) as items:
            async for item in items:
                said = orjson.loads(item)
                token, details = said["token"], said.get("details")
                generated += 1
                text = "" if token["special"] else stops.push(token["text"])
                if details:
                    text += stops.flush()
                if text:
                    yield TextDelta(text)
                if stops.hit and not details:
                    break
        if details:
            reason = "stop" if stops.hit else _REASONS.get(details["finish_reason"], "unknown")
            yield Finished(reason, Usage(details["input_length"], details["generated_tokens"]))
        elif stops.hit:
            yield Finished("stop", Usage(len(await self._tokenize(inputs)), generated))
        else:
            raise ModelServerError("the model server broke off in the middle of the answer")

    async def _converse(self, prompt: Prompt, sampling: Sampling, options: dict[str, JSON]) -> AsyncGenerator[Event]:
        """The answer to a conversation, over the Messages API."""
        stops = StopStrings(sampling.stop)
        called = False
        async with aclosing(super().generate(prompt, sampling, options)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    if rest := stops.flush():
                        yield TextDelta(rest)
                    yield replace(event, reason=_chat_reason(event.reason, called))
                    return
                called = called or "tool_calls" in (event.extra or {})
                text = stops.push(event.text)
                if text or event.extra:
                    yield replace(event, text=text)
                if stops.hit:
                    break
        yield Finished("stop")

    async def stream(self, path: str, body: JSON) -> AsyncGenerator[bytes]:
        """The events of an answer. TGI's errors are among them, under a status of 200, and it does not say how a whole
        tool call ended, only what it used.
        """
        said = False
        try:
            async with aclosing(super().stream(path, body)) as items:
                async for item in items:
                    # Within text these would have backslashes.
                    if b'"error"' in item and (error := orjson.loads(item).get("error")):
                        raise _failure(error_message(error))
                    said = said or b'"finish_reason":"' in item
                    if b'"choices":[]' in item and not said:
                        yield orjson.dumps({"choices": [{"delta": {}, "finish_reason": _UNSAID}]})
                    yield item
        except InvalidRequest as error:
            if error.field or isinstance(error, PromptTooLong):
                raise
            raise _refused(str(error)) from None

    def _parameters(self, sampling: Sampling) -> dict[str, JSON]:
        """The sampling fields of TGI's own API. Without a temperature of 0 it shall sample, as on its Messages API."""
        greedy = sampling.temperature == 0
        fields = {
            "adapter_id": self._adapter,
            "max_new_tokens": sampling.max_tokens,
            "repetition_penalty": sampling.repetition_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": sampling.seed,
            "stop": self._stops(sampling),
            **({} if greedy else {name: getattr(sampling, name) for name in _WARPERS}),
        }
        return {**_told(fields), "do_sample": not greedy, "details": True}

    def asking(
        self, asked: Mapping[str, JSON], sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, dict[str, JSON]]:
        path, body = super().asking(asked, sampling, options)
        return path, {**body, "model": self._adapter or "tgi"}

    @property
    def _adapter(self) -> str | None:
        """TGI takes every name but `tgi` for an adapter's; that of its model itself means the same to people."""
        return None if self.model_name in ("tgi", self._base) else self.model_name

    def _sampling(self, sampling: Sampling) -> dict[str, JSON]:
        """The sampling fields of the Messages API."""
        fields = _told({**super()._sampling(sampling), "stop": self._stops(sampling)})
        if sampling.temperature == 0:
            fields = {name: value for name, value in fields.items() if name not in _WARPERS} | {"temperature": 0}
        for name in _NOT_IN_MESSAGES:
            if fields.get(name, 1) != 1:
                raise InvalidRequest("the model server does not know it together with tools and the like", name)
        return {name: value for name, value in fields.items() if name not in _NOT_IN_MESSAGES}

    def _stops(self, sampling: Sampling) -> list[str]:
        """As many as the server takes; all of them are looked for here."""
        return [stop for stop in sampling.stop if stop][: self._max_stops]

    async def _inputs(self, prompt: Prompt, wanted: Mapping[str, JSON]) -> str | None:
        """A prompt as the text that the server is to continue; None if only the Messages API knows what it says.

        Raises:
            InvalidRequest: It is a text, with options that only the Messages API knows.
        """
        if isinstance(prompt, str):
            if wanted:
                raise InvalidRequest("the model server knows it for conversations only, not for text", min(wanted))
            return prompt
        templated = None if wanted or _has_other_parts(prompt) else await self._templated(prompt)
        return templated and templated[0]

    async def _templated(
        self, conversation: Prompt, read: Mapping[str, JSON] = MappingProxyType({})
    ) -> tuple[str, int] | None:
        """A conversation as the server's model reads it, and how many tokens that is; None if the server cannot say so.

        The server puts its special tokens before every text, so those that the chat template put there are left out.
        """
        assert not isinstance(conversation, str)
        body = {"messages": [wire_message(message) for message in conversation], **read}
        with checked_answer():
            try:
                rendered = await self.http.post("/chat_tokenize", body)
            except InvalidRequest as error:
                raise InvalidRequest(str(error), "messages") from None
            except Refused as refused:
                if refused.status in (404, 405):
                    return None
                raise
            text: str = rendered["templated_text"]
            tokens, specials = rendered["tokenize_response"], await self._specials()
            pairs = zip(tokens, specials, strict=False)
            double = [token["text"] for token, _ in takewhile(lambda pair: pair[0]["id"] == pair[1], pairs)]
            if not all(double):  # A tokenizer that does not say which text a token stands for.
                return None
            return text.removeprefix("".join(double)), len(specials) + len(tokens) - len(double)

    async def _specials(self) -> tuple[int, ...]:
        if self._special is None:
            self._special = tuple(await self._tokenize(""))
        return self._special

    async def _tokenize(self, text: str) -> list[int]:
        return [token["id"] for token in await self.http.post("/tokenize", {"inputs": text})]


def _told(fields: dict[str, JSON]) -> dict[str, JSON]:
    """The fields that say something."""
    return {
        name: value
        for name, value in fields.items()
        if value not in (None, [], ()) and (name not in _OFF or value != _OFF[name])
    }


def _has_other_parts(prompt: Prompt) -> bool:
    """Whether there are parts in a conversation that are not text."""
    return not isinstance(prompt, str) and any(
        part.get("type") != "text"
        for message in prompt
        if not isinstance(message.content, str)
        for part in message.content
    )


def _wanted(options: Mapping[str, JSON]) -> dict[str, JSON]:
    """The options that say something to the server, as it has them."""
    return _in_its_words({name: value for name, value in options.items() if name in _OPTIONS and value})


def _in_its_words(options: dict[str, JSON]) -> dict[str, JSON]:
    """TGI has the schema of a response format under `value`, where OpenAI has it under the format's name."""
    form = options.get("response_format")
    if not isinstance(form, dict):
        return options
    if form.get("type") == "text":
        return {name: value for name, value in options.items() if name != "response_format"}
    if form.get("type") == "json_schema" and "value" not in form:
        return {**options, "response_format": {"type": "json_schema", "value": form.get("json_schema")}}
    return options


def _chat_reason(reason: str, called: bool) -> str:
    """TGI says `stop` of a tool call or nothing; and nothing of one that is cut off before its name."""
    if reason == _UNSAID:
        return "tool_calls" if called else "length"
    reason = _REASONS.get(reason, reason)
    return "tool_calls" if called and reason == "stop" else reason


def _failure(message: str) -> LLMError:
    """What an error within a stream stands for. On the Messages API nothing but its text tells."""
    if message.startswith("Model is overloaded"):
        return Overloaded(f"the model server is busy: {message}")
    if message.startswith(("Input validation error", "Template error", "Tool error", "Missing template")):
        return _refused(f"the model server refused it: {message}")
    return ModelServerError(f"the model server failed: {message}")


def _refused(message: str) -> InvalidRequest:
    if found := _INPUT.search(message):
        # The window that would have the same limit: one token is left for the answer.
        return PromptTooLong(int(found[2]), int(found[1]) + 1)
    if (found := _TOTAL.search(message)) and int(found[2]) >= int(found[1]):
        return PromptTooLong(int(found[2]), int(found[1]))
    if found:
        return InvalidRequest(message, "max_tokens")
    named = [next(filter(None, groups)) for groups in _FIELD.findall(message)]
    ours = [_OURS.get(name, name) for name in named]
    return InvalidRequest(message, next((name for name in ours if name in TGI.honoured | _OPTIONS), None))
