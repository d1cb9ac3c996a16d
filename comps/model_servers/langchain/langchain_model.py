"""Any LangChain chat model as a model server: the class and its arguments are settings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr, ValidationError

from comps.core.answers import Collector
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, SettingsError, Unreachable
from comps.core.ports import Answer
from comps.core.stop_strings import Stopped
from comps.core.types import JSON, SAMPLING_FIELDS, Finished, Generation, ModelInfo, Prompt, Sampling, only
from comps.model_servers.langchain.chunks import MessageReader
from comps.model_servers.langchain.class_arguments import (
    address_of,
    arguments_of,
    class_at,
    field_of,
    names_in,
    secrets_in,
)
from comps.model_servers.langchain.failures import translated
from comps.model_servers.langchain.messages import FOR_MESSAGES, to_langchain
from comps.model_servers.remote.failures import brief
from comps.model_servers.target import Target

_URL = re.compile(r"(?<!\w)\w+://[^\s'\"<>)]+")


class LangChainModel:
    """A LangChain chat model named by its class: `langchain_openai:ChatOpenAI`, `langchain_ollama:ChatOllama` …

    The engine's settings are `class`, optionally `honours`, and the arguments of the class. The model's name, its
    endpoint and the key become arguments as well, where the class has such a one and the settings do not give it.

    A sampling field is honoured if the class has a field for it, which then has another value for the request, or if
    `honours` names it (or an option), in which case it is an argument of the call. `stop` always is: stop strings are
    looked for here as well, since not every class does. Text to continue is asked as a question: a chat model knows
    nothing else.

    Many a class does not say why its answer ended. If it ended without an error, that is `length` where the usage has
    come to `max_tokens`, and `stop` otherwise.

    Args:
        target: What the settings say.

    Raises:
        SettingsError: The class cannot be had, is no chat model, or does not know an argument.
    """

    def __init__(self, target: Target) -> None:
        given = dict(target.engine)
        self._path = str(given.pop("class", ""))
        self._class = class_at(self._path)
        self._of_calls = names_in(given.pop("honours", ())) - {"stop"}
        self._arguments = arguments_of(self._class, self._path, given, target)
        self._address = address_of(self._class, self._arguments)
        self._fields = {
            name: field
            for name in SAMPLING_FIELDS
            if name not in self._of_calls | {"stop"} and (field := field_of(self._class, name))
        }
        """Sampling fields, and the fields of the class for them."""
        self._target = target
        self._model: BaseChatModel | None = None
        self._loading = asyncio.Lock()

    @classmethod
    def open(cls, target: Target) -> LangChainModel:
        return cls(target)

    async def load(self) -> None:
        """Make the chat model; some classes load their model at this moment.

        Raises:
            SettingsError: The class refuses an argument, or lacks a package.
        """
        async with self._loading:
            if self._model is None:
                self._model = await asyncio.to_thread(self._make)

    def _make(self) -> BaseChatModel:
        arguments: dict[str, Any] = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self._arguments.items()
        }
        try:
            return self._class(**arguments)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            wrong = [(".".join(map(str, one["loc"])) or "arguments", self._brief(one["msg"])) for one in found]
            raise SettingsError(*(f"{self._path}: {name}: {why}" for name, why in wrong)) from None
        except Exception as error:
            raise SettingsError(f"{self._path} cannot be made: {type(error).__name__}: {self._brief(error)}") from None

    async def describe(self) -> ModelInfo:
        if self._model is None:
            raise Unreachable(f"{self._path} is still being made")
        window = self._target.context_window
        if window is None and isinstance(said := (self._model.profile or {}).get("max_input_tokens"), int):
            window = said
        honoured = FOR_MESSAGES | {"stop", *self._fields, *self._of_calls}
        return ModelInfo(self._target.model_name, window, honoured, has_chat_template=True)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        model, call, most = self._asked(sampling, options)
        ended = _Ended(answer, sampling.stop, most)
        reader = MessageReader(ended)
        begun = False
        with self._translated(lambda: begun):
            messages: Any = model.astream(to_langchain(prompt), **call)
            async with aclosing(messages):
                async for message in messages:
                    reader.read(message)
                    begun = True
                    if ended.stops.hit:  # How many tokens there were, nobody will tell.
                        answer.finished(Finished("stop", stop_string=ended.stops.found))
                        return
                    if answer.full:
                        await answer.drain()
            reader.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        model, call, most = self._asked(sampling, options)
        collector = Collector()
        reader = MessageReader(_Ended(collector, sampling.stop, most))
        with self._translated():
            reader.read(await model.ainvoke(to_langchain(prompt), **call))
            reader.close()
            return collector.generation()

    def _asked(
        self, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[BaseChatModel, dict[str, Any], int | None]:
        """The chat model for a request, the arguments of the call, and the most tokens of the answer, if the class
        keeps to them."""
        if self._model is None:
            raise Unreachable(f"{self._path} is still being made")
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(sampling, name)) is not None}
        own = {field: given[name] for name, field in self._fields.items() if name in given}
        model = self._model.model_copy(update=own) if own else self._model
        call = {name: value for name, value in {**options, **given}.items() if name in self._of_calls}
        most = sampling.max_tokens if {"max_tokens"} & (self._fields.keys() | self._of_calls) else None
        return model, {**call, "stop": list(sampling.stop) or None}, most

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        told = {name: value for name, value in options.items() if name in self._of_calls}
        return prompt, only(sampling, {"stop", *self._fields, *self._of_calls}), told

    async def aclose(self) -> None:
        """LangChain knows no way to close a chat model; the fields of most have a client that can be closed.

        One that a class caches outside its fields, as `langchain_anthropic` does, may be shared, and is left open.
        """
        model, self._model = self._model, None
        held = [getattr(model, name) for name in type(model).model_fields] if model else []
        for one in held:
            for name in ("aclose", "close"):
                if iscoroutinefunction(close := getattr(one, name, None)):
                    await close()
                    break

    @contextmanager
    def _translated(self, begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Errors of whatever package into ours, by what they have in common; an answer that has begun is not refused
        any more."""
        try:
            yield
        except LLMError:
            raise
        except Exception as error:
            ours = translated(error, self._path, self._brief, self._address)
            is_late = begun() and isinstance(ours, InvalidRequest)
            raise (ModelServerError(str(ours)) if is_late else ours) from error

    def _brief(self, error: object) -> str:
        """What it says, shortened, without URLs and the secrets that the chat model has."""
        said = brief(str(error))
        for secret in (*secrets_in(self._arguments), *secrets_in(vars(self._model) if self._model else {})):
            said = said.replace(secret, "***")
        return _URL.sub("***", said)[:300]


class _Ended(Stopped):
    """Writes an answer on up to a stop string, with the reason for the end where none is given.

    Args:
        answer: Where it is written to.
        stops: The stop strings.
        most: The most tokens that it may have.
    """

    def __init__(self, answer: Answer, stops: Sequence[str], most: int | None) -> None:
        super().__init__(answer, stops)
        self._most = most

    def finished(self, end: Finished) -> None:
        full = self._most is not None and end.usage is not None and end.usage.completion_tokens >= self._most
        super().finished(replace(end, reason=end.reason or ("length" if full else "stop")))
