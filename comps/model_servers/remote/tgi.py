"""Text Generation Inference: its own API for answers, and its Messages API where a request needs that.

What is known here of TGI is read in its router: https://github.com/huggingface/text-generation-inference, router/src.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType

import orjson

from comps.core.answers import Forwarding, broken_off, collect
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, PromptTooLong, Refused
from comps.core.ports import Answer
from comps.core.prompts import plain_roles
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Finished, Generation, ModelInfo, Prompt, Sampling, TextDelta, Usage, only
from comps.model_servers.chat_templates.token_strings import in_characters
from comps.model_servers.remote.chunks import ChunkReader, whole_answer
from comps.model_servers.remote.failures import checked_answer, error_message
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

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        prompt, wanted = plain_roles(prompt), _wanted(options)
        stopped = Stopped(answer, sampling.stop)
        with checked_answer(), _refusals():
            inputs = await self._inputs(prompt, wanted)
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
        if self.access.streams_whole:
            return await collect(self.generate, prompt, sampling, options)
        prompt, wanted = plain_roles(prompt), _wanted(options)
        with checked_answer(), _refusals():
            inputs = await self._inputs(prompt, wanted)
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

    async def _continue(self, inputs: str, sampling: Sampling, answer: Stopped) -> None:
        """Write the answer to a text, over TGI's own API."""
        reader = _TokenReader(answer)
        await self.http.stream("/generate_stream", self._asked(inputs, sampling), reader)
        if reader.ended:
            return
        if not answer.stops.hit:
            raise broken_off()
        answer.finished(Finished("stop", Usage(len(await self._tokenize(inputs)), reader.generated)))

    async def _continue_whole(self, inputs: str, sampling: Sampling) -> Generation:
        """The same, whole."""
        response = await self.http.response("/generate", self._asked(inputs, sampling))
        said = orjson.loads(response.body)
        details = said["details"]
        reason = _REASONS.get(details["finish_reason"], "unknown")
        text, reason = _cut(str(said["generated_text"]), reason, sampling.stop)
        counted = response.headers.get(b"x-prompt-tokens", b"")
        prompt_tokens = int(counted) if counted.isdigit() else len(await self._tokenize(inputs))
        return Generation(text, reason, Usage(prompt_tokens, int(details["generated_tokens"])))

    def _asked(self, inputs: str, sampling: Sampling) -> dict[str, JSON]:
        return {"inputs": inputs, "parameters": self._parameters(sampling)}

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


class Stopped(Forwarding):
    """Writes an answer on up to the first stop string: TGI shows it, or what of it stands in a token.

    Args:
        answer: Where it is written to.
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
    """A whole text up to the first stop string, and why it ended."""
    found = StopStrings(stops)
    text = found.push(text)
    return text + found.flush(), "stop" if found.hit else reason


class _TokenReader:
    """Reads the events of `/generate_stream`, a token each.

    Args:
        answer: Where the text is written to.
    """

    def __init__(self, answer: Stopped) -> None:
        self._answer = answer
        self.generated = 0
        """Tokens so far."""
        self.ended = False
        """Whether the last one has come."""

    @property
    def full(self) -> bool:
        return self._answer.full

    async def drain(self) -> None:
        await self._answer.drain()

    def event(self, data: bytes) -> bool:
        said = orjson.loads(data)
        if "error" in said:  # Under a status of 200.
            raise _failure(error_message(said["error"]))
        token, details = said["token"], said.get("details")
        self.generated += 1
        if token["text"] and not token["special"]:
            self._answer.text(token["text"])
        if details:
            self.ended = True
            reason = _REASONS.get(details["finish_reason"], "unknown")
            usage = Usage(details["input_length"], details["generated_tokens"])
            self._answer.finished(Finished(reason, usage))
        return self._answer.stops.hit and not self.ended


class _MessagesReader(ChunkReader):
    """Reads the chunks of the Messages API, which does not say how a whole tool call ended, only what it used."""

    def __init__(self, answer: Stopped) -> None:
        super().__init__(answer)
        self._stops = answer.stops

    def event(self, data: bytes) -> bool:
        # Within text this would have backslashes.
        if b'"error"' in data and (error := orjson.loads(data).get("error")):
            raise _failure(error_message(error))
        super().event(data)
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
    """Refusals, with the fields that TGI's messages name."""
    try:
        yield
    except InvalidRequest as error:
        if error.field or isinstance(error, PromptTooLong):
            raise
        raise _refused(str(error)) from None


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
