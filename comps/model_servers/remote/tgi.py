"""Text Generation Inference (TGI): its own API, and its Messages API for requests that need it.

Source: its router, https://github.com/huggingface/text-generation-inference, router/src.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, TypeVar

from comps.core.answers import broken_off, collect
from comps.core.beside import beside_if_long
from comps.core.counting import NO_SUCH_ROUTE
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Refused
from comps.core.finish_reasons import finish_reason
from comps.core.ports import Answer
from comps.core.prompts import plain_roles, text_of
from comps.core.stop_strings import Stopped, cut
from comps.core.types import JSON, Finished, Generation, ModelInfo, Prompt, Sampling, Token, Usage, only
from comps.core.unread import left_out
from comps.model_servers.chat_templates.token_strings import in_characters
from comps.model_servers.remote.failures import WRONG_STRUCTURE, checked_answer
from comps.model_servers.remote.openai_api import NO_ROUTE, OpenAIAPI, wire_message
from comps.model_servers.remote.parsing import parse_answer
from comps.model_servers.remote.tgi_answers import (
    HONOURED,
    NOT_IN_MESSAGES,
    OPTIONS,
    MessagesReader,
    TokenReader,
    chat_reason,
    details_of,
    raise_tgi_error,
    refusals,
)
from comps.model_servers.remote.whole_answers import whole_answer

T = TypeVar("T")

_READ = ("tools", "tool_choice", "tool_prompt")
"""The options of these that change the rendered prompt."""
_WARPERS = ("temperature", "top_k", "top_p", "typical_p")
"""The parameters that turn sampling on."""
_OFF: dict[str, float] = {"top_p": 1.0, "typical_p": 1.0}
"""The neutral values of parameters that TGI refuses; they are left out."""
_LONGEST_NUMBER = 16


class TGI(OpenAIAPI):
    """Client of TGI: https://huggingface.co/docs/text-generation-inference

    The model's name is `tgi` or the name of the server's model; any other name is that of an adapter.
    `presence_penalty` is not supported, because the Messages API uses it as a repetition penalty.
    """

    stops_whole = True
    honoured = HONOURED
    embed = None  # type: ignore[assignment]  # TGI has no embeddings; None removes the ability.

    _max_stops = 4
    _base = "tgi"
    """The name of the server's model."""
    _special: tuple[int, ...] | None = None
    """The special tokens that the server adds in front of any text."""

    async def _facts(self) -> ModelInfo:
        await self._fact("/health")
        info = await self._fact("/info") or {}
        self._max_stops = int(info.get("max_stop_sequences") or self._max_stops)
        self._base = str(info.get("model_id") or self._base)
        window = info.get("max_total_tokens")
        return ModelInfo(
            self.model_name,
            self._context_window or (window if type(window) is int else None),
            self.honoured | OPTIONS | {"messages.tool_calls"},  # A message's `name` is accepted, but has no effect.
            base=self._base,
        )

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        prompt, wanted = plain_roles(prompt), _wanted(options)
        stopped = Stopped(answer, sampling.stop)
        with checked_answer(), refusals():
            inputs = await self._inputs(prompt, sampling, wanted)
            if inputs is not None:
                await self._continue(inputs, sampling, stopped)
                return
            path, body = self.request(prompt, sampling, wanted)
            reader = MessagesReader(stopped)
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
            await self.http.stream(path, body, reader)
            reader.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        if not self.asks_whole:
            return await collect(self.generate, prompt, sampling, options)
        prompt, wanted = plain_roles(prompt), _wanted(options)
        with checked_answer(), refusals():
            inputs = await self._inputs(prompt, sampling, wanted)
            if inputs is not None:
                return await self._continue_whole(inputs, sampling)
            path, body = self.request(prompt, sampling, wanted)
            response = await self.http.response(path, body)
            generation = await whole_answer(response)
        called = bool((generation.extra or {}).get("tool_calls"))
        return cut(replace(generation, reason=chat_reason(generation.reason, called)), sampling.stop)

    async def count_tokens(self, text: str) -> int:
        with checked_answer():
            return len(await self._tokenize(text)) - len(await self._specials())

    async def token_ends(self, text: str) -> Sequence[int]:
        with checked_answer():
            special = len(await self._specials())
            tokens = (await self.http.post("/tokenize", {"inputs": text}))[special:]
            ends = _ends_of(tokens, text)
        if ends is None:
            raise ModelServerError("it does not say where in a text its tokens are")
        return ends

    async def tokenize(self, text: str) -> Sequence[Token]:
        """See `Tokenizes`."""
        with checked_answer():
            tokens = await self.http.post("/tokenize", {"inputs": text})
            return await beside_if_long(text, _tokens_in, tokens, text)

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
        reader = TokenReader(answer)
        await self.http.stream("/generate_stream", self._asked(inputs, sampling), reader)
        if reader.ended:
            return
        if not (reader.reason or answer.stops.hit):
            raise broken_off()
        answer.finished(Finished(reader.reason or "stop", await self._usage(inputs, reader.generated)))

    async def _continue_whole(self, inputs: str, sampling: Sampling) -> Generation:
        """Returns the whole continuation of a text, with TGI's own API."""
        response = await self.http.response("/generate", self._asked(inputs, sampling))
        said: Any = await parse_answer(response.body)
        said = said[0] if isinstance(said, list) else said
        if not isinstance(said.get("generated_text"), str):
            raise_tgi_error(said, b"", begun=False)
        details = details_of(said) or {}
        answer = Generation(str(said["generated_text"]), finish_reason(details.get("finish_reason")))
        generated, counted = details.get("generated_tokens"), response.headers.get(b"x-prompt-tokens", b"")
        if type(generated) is not int:
            left_out("usage")
            return cut(answer, sampling.stop)
        usage = (
            Usage(int(counted), generated)
            if counted.isdigit() and len(counted) < _LONGEST_NUMBER
            else await self._usage(inputs, generated)
        )
        return cut(replace(answer, usage=usage), sampling.stop)

    async def _usage(self, inputs: str, generated: int) -> Usage | None:
        """Returns the usage of a continuation; None if the server does not count the prompt."""
        try:
            return Usage(len(await self._tokenize(inputs)), generated)
        except (LLMError, *WRONG_STRUCTURE):
            left_out("usage")
            return None

    async def _helper(self, answer: Awaitable[T]) -> T | None:
        """Returns the answer of a route that older servers do not have; None if there is no such route."""
        try:
            return await answer
        except Refused as refused:
            if refused.status not in NO_SUCH_ROUTE:
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
        return {name: value for name, value in fields.items() if name not in NOT_IN_MESSAGES}

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
        try:
            templated = await self._templated(prompt)
        except Refused as refused:
            if refused.status not in NO_ROUTE:
                raise
            templated = None  # No answer depends on it.
        if templated:
            return templated[0]
        (first, *others) = prompt
        return text_of(first.content) if not others and _lost_in_messages(sampling) else None

    async def _templated(
        self, conversation: Prompt, read: Mapping[str, JSON] = MappingProxyType({})
    ) -> tuple[str, int] | None:
        """Returns the rendered conversation and its number of tokens; None if the server does not render.

        What fails otherwise may succeed at the next call.

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


def _tokens_in(tokens: Sequence[Mapping[str, JSON]], text: str) -> list[Token]:
    ends: Sequence[int | None] = _ends_of(tokens, text) or [None] * len(tokens)
    return [Token(int(token["id"]), end) for token, end in zip(tokens, ends, strict=True)]


def _ends_of(tokens: Sequence[Mapping[str, JSON]], text: str) -> list[int] | None:
    """Returns where each token ends, in characters; None for a tokenizer without offsets."""
    ends = [int(token["stop"]) for token in tokens]
    if ends and ends[-1] == len(text.encode("utf-8", "replace")):
        return in_characters(ends, text)
    return None if ends and ends[-1] != len(text) else ends


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
        for name, off in NOT_IN_MESSAGES.items()
        if getattr(sampling, name) not in (None, off) and not (greedy and name in _WARPERS)
    ]


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
    return _in_its_words({name: value for name, value in options.items() if name in OPTIONS and value})


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
