"""Text Generation Inference (TGI): its own API, and its Messages API for requests that need it.

Source: its router, https://github.com/huggingface/text-generation-inference, router/src.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import TypeVar

from comps.core.answers import Forwarding, broken_off, collect
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, PromptTooLong, Refused
from comps.core.finish_reasons import finish_reason
from comps.core.ports import Answer
from comps.core.prompts import plain_roles, text_of
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, MANY, Finished, Generation, ModelInfo, Prompt, Sampling, TextDelta, Usage, only
from comps.core.unread import left_out
from comps.model_servers.chat_templates.token_strings import in_characters
from comps.model_servers.remote.chunks import ChunkReader, parse_chunk, raise_reported, whole_answer
from comps.model_servers.remote.failures import WRONG_STRUCTURE, checked_answer, error_message
from comps.model_servers.remote.openai_api import OpenAIAPI, wire_message
from comps.model_servers.remote.parsing import parse_json

T = TypeVar("T")

_OPTIONS = frozenset(("tools", "tool_choice", "tool_prompt", "response_format", "logprobs", "top_logprobs"))
"""The options that only the Messages API supports."""
_READ = ("tools", "tool_choice", "tool_prompt")
"""The options of these that change the rendered prompt."""
_NOT_IN_MESSAGES = {"top_k": MANY, "typical_p": 1, "repetition_penalty": 1}
"""The parameters that the Messages API does not know, with their neutral values."""
_WARPERS = ("temperature", "top_k", "top_p", "typical_p")
"""The parameters that turn sampling on."""
_OFF: dict[str, float] = {"top_p": 1.0, "typical_p": 1.0}
"""The neutral values of parameters that TGI refuses; they are left out."""
_LONGEST_NUMBER = 16
_UNSAID = "unsaid"
_TOTAL = re.compile(r"must be <= (\d+)\. Given: (\d+) `inputs` tokens and \d+ `max_new_tokens`")
_INPUT = re.compile(r"`inputs` must have less than (\d+) tokens\. Given: (\d+)")
_FIELD = re.compile(r"`(\w+)`|type: (?:parameters\.)?(\w+)")
"""The field in TGI's errors: for an invalid value, and for an invalid body."""
_OURS = {"max_new_tokens": "max_tokens", "grammar": "response_format"}


class TGI(OpenAIAPI):
    """Client of TGI: https://huggingface.co/docs/text-generation-inference

    The model's name is `tgi` or the name of the server's model; any other name is that of an adapter.
    `presence_penalty` is not supported, because the Messages API uses it as a repetition penalty.
    """

    stops_whole = True
    honoured = (OpenAIAPI.honoured | set(_NOT_IN_MESSAGES)) - {"presence_penalty"}
    embed = None  # type: ignore[assignment]  # TGI has no embeddings; None removes the ability.

    _max_stops = 4
    _base = "tgi"
    """The name of the server's model."""
    _special: tuple[int, ...] | None = None
    """The special tokens that the server adds in front of any text."""

    async def _facts(self) -> ModelInfo:
        await self._helper(self.http.get("/health"))
        info = await self._helper(self.http.get("/info")) or {}
        self._max_stops = int(info.get("max_stop_sequences") or self._max_stops)
        self._base = str(info.get("model_id") or self._base)
        window = info.get("max_total_tokens")
        return ModelInfo(
            self.model_name,
            self._context_window or (int(window) if window else None),
            self.honoured | _OPTIONS | {"messages.tool_calls"},  # A message's `name` is accepted, but has no effect.
            base=self._base,
        )

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        prompt, wanted = plain_roles(prompt), _wanted(options)
        stopped = Stopped(answer, sampling.stop)
        with checked_answer(), _refusals():
            inputs = await self._inputs(prompt, sampling, wanted)
            if inputs is not None:
                await self._continue(inputs, sampling, stopped)
                return
            path, body = self.request(prompt, sampling, wanted)
            reader = _MessagesReader(stopped)
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
            await self.http.stream(path, body, reader)
            reader.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        if not self.asks_whole:
            return await collect(self.generate, prompt, sampling, options)
        prompt, wanted = plain_roles(prompt), _wanted(options)
        with checked_answer(), _refusals():
            inputs = await self._inputs(prompt, sampling, wanted)
            if inputs is not None:
                return await self._continue_whole(inputs, sampling)
            path, body = self.request(prompt, sampling, wanted)
            generation = whole_answer(await self.http.response(path, body))
        called = bool((generation.extra or {}).get("tool_calls"))
        text, reason = _cut(generation.text, _chat_reason(generation.reason, called), sampling.stop)
        return replace(generation, text=text, reason=reason)

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
        if ends and ends[-1] != len(text):  # A tokenizer without offsets.
            raise ModelServerError("it does not say where in a text its tokens are")
        return ends

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        if isinstance(prompt, str):
            with checked_answer():
                return len(await self._tokenize(prompt))
        return (await self._read(prompt, options))[1]

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """Returns the text that is sent to the server; see `Renders`."""
        return prompt if isinstance(prompt, str) else (await self._read(prompt, options))[0]

    async def _read(self, conversation: Prompt, options: Mapping[str, JSON]) -> tuple[str, int]:
        """Returns the rendered conversation and its tokens; see `_templated`."""
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
        conversing = await self._inputs(prompt, sampling, wanted) is None
        sent = {*(self._sampling(sampling) if conversing else self._parameters(sampling)), "max_tokens"}
        if sampling.temperature == 0:
            sent.add("temperature")
        return prompt, replace(only(sampling, sent), stop=tuple(self._stops(sampling))), wanted

    async def _continue(self, inputs: str, sampling: Sampling, answer: Stopped) -> None:
        """Write the continuation of a text, with TGI's own API."""
        reader = _TokenReader(answer)
        await self.http.stream("/generate_stream", self._asked(inputs, sampling), reader)
        if reader.ended:
            return
        if not (reader.reason or answer.stops.hit):
            raise broken_off()
        answer.finished(Finished(reader.reason or "stop", await self._usage(inputs, reader.generated)))

    async def _continue_whole(self, inputs: str, sampling: Sampling) -> Generation:
        """Returns the whole continuation of a text, with TGI's own API."""
        response = await self.http.response("/generate", self._asked(inputs, sampling))
        said = parse_json(response.body)
        said = said[0] if isinstance(said, list) else said
        if not isinstance(said.get("generated_text"), str):
            _raise_reported(said, b"", begun=False)
        details = _details(said) or {}
        text, reason = _cut(str(said["generated_text"]), finish_reason(details.get("finish_reason")), sampling.stop)
        generated, counted = details.get("generated_tokens"), response.headers.get(b"x-prompt-tokens", b"")
        if type(generated) is not int:
            left_out("usage")
            return Generation(text, reason)
        usage = (
            Usage(int(counted), generated)
            if counted.isdigit() and len(counted) < _LONGEST_NUMBER
            else await self._usage(inputs, generated)
        )
        return Generation(text, reason, usage)

    async def _usage(self, inputs: str, generated: int) -> Usage | None:
        """Returns the usage of a continuation; None if the server does not count the prompt."""
        try:
            return Usage(len(await self._tokenize(inputs)), generated)
        except (LLMError, *WRONG_STRUCTURE):
            left_out("usage")
            return None

    async def _helper(self, answer: Awaitable[T]) -> T | None:
        """Returns the answer of a route that no answer depends on; None if there is no such route."""
        try:
            return await answer
        except Refused as refused:
            if refused.status in (401, 403):
                raise
        except ValueError:  # It is no JSON.
            pass
        return None

    def _asked(self, inputs: str, sampling: Sampling) -> dict[str, JSON]:
        return {"inputs": inputs, "parameters": self._parameters(sampling)}

    def _parameters(self, sampling: Sampling) -> dict[str, JSON]:
        """Returns the parameters of TGI's own API. It samples unless the temperature is 0, like the Messages API."""
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
        """The adapter's name; None for `tgi` and for the name of the server's model."""
        return None if self.model_name in ("tgi", self._base) else self.model_name

    def _sampling(self, sampling: Sampling) -> dict[str, JSON]:
        """The sampling fields of the Messages API."""
        fields = _told({**super()._sampling(sampling), "stop": self._stops(sampling)})
        if sampling.temperature == 0:
            fields = {name: value for name, value in fields.items() if name not in _WARPERS} | {"temperature": 0}
        if lost := _lost_in_messages(sampling):
            raise InvalidRequest("the model server does not know it together with tools and the like", lost[0])
        return {name: value for name, value in fields.items() if name not in _NOT_IN_MESSAGES}

    def _stops(self, sampling: Sampling) -> list[str]:
        """Returns as many stop strings as the server accepts; `Stopped` searches for all of them."""
        return [stop for stop in sampling.stop if stop][: self._max_stops]

    async def _inputs(self, prompt: Prompt, sampling: Sampling, wanted: Mapping[str, JSON]) -> str | None:
        """Returns the prompt as text for TGI's own API; None if the Messages API is needed.

        A server that does not render conversations (TGI before 2.2, tgi-gaudi) gets the text of a single question as it
        is, if the Messages API would lose parameters.

        Raises:
            InvalidRequest: The prompt is text, with options that only the Messages API supports.
        """
        if isinstance(prompt, str):
            if wanted:
                raise InvalidRequest("the model server knows it for conversations only, not for text", min(wanted))
            return prompt
        if wanted or _has_other_parts(prompt):
            return None
        if templated := await self._templated(prompt):
            return templated[0]
        (first, *others) = prompt
        return text_of(first.content) if not others and _lost_in_messages(sampling) else None

    async def _templated(
        self, conversation: Prompt, read: Mapping[str, JSON] = MappingProxyType({})
    ) -> tuple[str, int] | None:
        """Returns the rendered conversation and its number of tokens; None if the server does not render.

        Special tokens from the chat template are removed, because the server adds its own in front of any text.
        """
        assert not isinstance(conversation, str)
        body = {"messages": [wire_message(message) for message in conversation], **read}
        with checked_answer():
            try:
                rendered = await self._helper(self.http.post("/chat_tokenize", body))
            except InvalidRequest as error:
                raise InvalidRequest(str(error), "messages") from None
            if rendered is None:
                return None
            text: str = rendered["templated_text"]
            tokens, specials = rendered["tokenize_response"], await self._specials()
            pairs = zip(tokens, specials, strict=False)
            double = [token["text"] for token, _ in takewhile(lambda pair: pair[0]["id"] == pair[1], pairs)]
            if not all(double):  # A tokenizer without the texts of its tokens.
                return None
            return text.removeprefix("".join(double)), len(specials) + len(tokens) - len(double)

    async def _specials(self) -> tuple[int, ...]:
        if self._special is None:
            self._special = tuple(await self._helper(self._tokenize("")) or ())
        return self._special

    async def _tokenize(self, text: str) -> list[int]:
        return [token["id"] for token in await self.http.post("/tokenize", {"inputs": text})]


def _told(fields: dict[str, JSON]) -> dict[str, JSON]:
    """Returns the fields that are set to a value other than the neutral one."""
    return {
        name: value
        for name, value in fields.items()
        if value not in (None, [], ()) and (name not in _OFF or value != _OFF[name])
    }


def _lost_in_messages(sampling: Sampling) -> list[str]:
    """Returns the parameters that have an effect, and that the Messages API does not know."""
    greedy = sampling.temperature == 0
    return [
        name
        for name, off in _NOT_IN_MESSAGES.items()
        if getattr(sampling, name) not in (None, off) and not (greedy and name in _WARPERS)
    ]


def _details(said: Mapping[str, JSON]) -> dict[str, JSON] | None:
    """Returns the `details` of an answer, or of its last token."""
    details = said.get("details")
    if details is not None and not isinstance(details, dict):
        left_out("details")
    return details if isinstance(details, dict) else None


def _has_other_parts(prompt: Prompt) -> bool:
    """Returns whether a conversation has content parts that are not text."""
    return not isinstance(prompt, str) and any(
        part.get("type") != "text"
        for message in prompt
        if not isinstance(message.content, str)
        for part in message.content
    )


def _wanted(options: Mapping[str, JSON]) -> dict[str, JSON]:
    """Returns the options that the server supports, in its own form."""
    return _in_its_words({name: value for name, value in options.items() if name in _OPTIONS and value})


def _in_its_words(options: dict[str, JSON]) -> dict[str, JSON]:
    """Converts `response_format`: TGI has the schema in `value`, OpenAI in `json_schema`."""
    form = options.get("response_format")
    if not isinstance(form, dict):
        return options
    if form.get("type") == "text":
        return {name: value for name, value in options.items() if name != "response_format"}
    if form.get("type") == "json_schema" and "value" not in form:
        return {**options, "response_format": {"type": "json_schema", "value": form.get("json_schema")}}
    return options


class Stopped(Forwarding):
    """Answer that ends before the first stop string. TGI itself includes stop strings, or parts of them, in its text.

    Args:
        answer: The answer to write to.
        stops: The stop strings.
    """

    def __init__(self, answer: Answer, stops: Sequence[str]) -> None:
        super().__init__(answer)
        self.stops = StopStrings(stops)

    def text(self, text: str, choice: int = 0) -> None:
        if shown := self.stops.push(text):
            self._answer.text(shown, choice)

    def delta(self, delta: TextDelta) -> None:
        text = self.stops.push(delta.text)
        if text or delta.extra:
            self._answer.delta(replace(delta, text=text))

    def finished(self, end: Finished) -> None:
        if rest := self.stops.flush():
            self._answer.text(rest, end.choice)
        self._answer.finished(replace(end, reason="stop") if self.stops.hit else end)


def _cut(text: str, reason: str, stops: Sequence[str]) -> tuple[str, str]:
    """Returns the text up to the first stop string, and the finish reason."""
    found = StopStrings(stops)
    text = found.push(text)
    return text + found.flush(), "stop" if found.hit else reason


class _TokenReader:
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

    def event(self, data: bytes, name: bytes = b"") -> bool:
        said = parse_chunk(data)
        token = said.get("token")
        if type(token) is not dict:
            if said.get("error") or "generated_text" not in said:  # Errors have the status 200.
                _raise_reported(said, name, begun=self.generated > 0)
                return False
            token = {"text": "" if self.generated else said["generated_text"]}
        self.generated += 1
        if token.get("special") is not True and (text := token.get("text")):
            self.answer.text(str(text))
        if said.get("details") or said.get("generated_text") is not None:
            self._end(_details(said) or {})
        return self.answer.stops.hit and not self.reason

    def _end(self, details: Mapping[str, JSON]) -> None:
        self.reason = finish_reason(details.get("finish_reason"))
        generated, prompt_tokens = details.get("generated_tokens"), details.get("input_length")
        self.generated = generated if type(generated) is int else self.generated
        if type(prompt_tokens) is int:  # Older versions leave it out.
            self.answer.finished(Finished(self.reason, Usage(prompt_tokens, self.generated)))
            self.ended = True


class _MessagesReader(ChunkReader):
    """Parses the chunks of the Messages API. After a tool call they have a usage, but no finish reason."""

    def __init__(self, answer: Stopped) -> None:
        super().__init__(answer)
        self._stops = answer.stops

    def event(self, data: bytes, name: bytes = b"") -> bool:
        # Within a JSON string, the quotes would be escaped.
        if b'"error"' in data:
            _raise_reported(parse_chunk(data), name, self._begun)
        super().event(data, name)
        return self._stops.hit

    def close(self) -> None:
        if self._stops.hit and not self.reasons:
            self.reasons[0] = "stop"
        elif not self.reasons and self.usage is not None:
            self.reasons[0] = _UNSAID
        called = bool(self.calls)
        for number, reason in self.reasons.items():
            self.reasons[number] = _chat_reason(reason, called)
        super().close()


@contextmanager
def _refusals() -> Iterator[None]:
    """Context manager that adds the field in TGI's message to an InvalidRequest."""
    try:
        yield
    except InvalidRequest as error:
        if error.field or isinstance(error, PromptTooLong):
            raise
        raise _refused(str(error)) from None


def _chat_reason(reason: str, called: bool) -> str:
    """Returns the finish reason. TGI gives `stop` or none for a tool call, and none for one that is cut off early."""
    if reason == _UNSAID:
        return "tool_calls" if called else "length"
    return "tool_calls" if called and reason == "stop" else reason


def _raise_reported(said: dict[str, JSON], name: bytes, begun: bool) -> None:
    """Raise the error within a stream, if it is one; the Messages API gives only its message. See `raise_reported`."""
    message = error_message(said.get("error"))
    if message.startswith("Model is overloaded"):
        raise Overloaded(f"the model server is busy: {message}")
    if message.startswith(("Input validation error", "Template error", "Tool error", "Missing template")):
        raise _refused(f"the model server refused it: {message}")
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
    return InvalidRequest(message, next((name for name in ours if name in TGI.honoured | _OPTIONS), None))
