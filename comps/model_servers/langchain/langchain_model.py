"""Any LangChain chat model as a model server: the class and its arguments are settings."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr, ValidationError

from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Refused,
    SettingsError,
    Timeout,
    Unreachable,
)
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Event, Finished, ModelInfo, Prompt, Sampling, TextDelta, only
from comps.model_servers.langchain.chat_model import FOR_MESSAGES, events_of, to_langchain
from comps.model_servers.target import Access, Target

_SAMPLING = tuple(field.name for field in fields(Sampling))
_OTHER_NAMES = {
    "max_tokens": ("max_output_tokens", "max_new_tokens", "num_predict"),
    "repetition_penalty": ("repeat_penalty",),
    "seed": ("random_seed",),
    "model": ("model_name",),
    "api_key": ("api_token",),
    "base_url": ("api_base", "endpoint_url", "endpoint"),
}
"""What classes call a field as well; `openai_api_key` ends in one of the names, which is as good."""
_SECRET = re.compile("key|token|secret|password|auth", re.IGNORECASE)
_URL = re.compile(r"\w+://[^\s'\"<>)]+")


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
        self._class = _class_at(self._path)
        self._of_calls = _names(given.pop("honours", ())) - {"stop"}
        self._arguments = _arguments(self._class, self._path, given, target)
        self._fields = {
            name: field
            for name in _SAMPLING
            if name not in self._of_calls | {"stop"} and (field := _field(self._class, name))
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
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise SettingsError(f"{self._path}: {name or 'arguments'}: {self._brief(first['msg'])}") from None
        except Exception as error:
            raise SettingsError(f"{self._path} cannot be made: {type(error).__name__}: {self._brief(error)}") from None

    async def describe(self) -> ModelInfo:
        if self._model is None:
            raise Unreachable(f"{self._path} is still being made")
        window = self._target.context_window
        if window is None and isinstance(said := (self._model.profile or {}).get("max_input_tokens"), int):
            window = said
        honoured = FOR_MESSAGES | {"stop", *self._fields, *self._of_calls}
        return ModelInfo(self._target.model_name, window, honoured)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        if self._model is None:
            raise Unreachable(f"{self._path} is still being made")
        given = {name: value for name in _SAMPLING if (value := getattr(sampling, name)) is not None}
        own = {field: given[name] for name, field in self._fields.items() if name in given}
        model = self._model.model_copy(update=own) if own else self._model
        call = {name: value for name, value in {**options, **given}.items() if name in self._of_calls}
        most = sampling.max_tokens if {"max_tokens"} & (self._fields.keys() | self._of_calls) else None
        with self._translated():
            messages = model.astream(to_langchain(prompt), stop=list(sampling.stop) or None, **call)
            async with aclosing(events_of(messages)) as events:
                async for event in _ended(events, StopStrings(sampling.stop), most):
                    yield event

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        told = {name: value for name, value in options.items() if name in self._of_calls}
        return prompt, only(sampling, {"stop", *self._fields, *self._of_calls}), told

    async def aclose(self) -> None:
        """LangChain knows no way to close a chat model; most keep a client that can be closed."""
        held = list(vars(self._model).values()) if self._model else []
        self._model = None
        for one in held:
            for name in ("aclose", "close"):
                if iscoroutinefunction(close := getattr(one, name, None)):
                    await close()
                    break

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of whatever package into ours, by what they have in common."""
        try:
            yield
        except LLMError:
            raise
        except Exception as error:
            chain = list(_causes(error))
            raise next((ours for one in chain if (ours := self._ours(one))), None) or ModelServerError(
                f"{self._path} failed: {type(error).__name__}: {self._brief(error)}"
            ) from error

    def _ours(self, error: BaseException) -> LLMError | None:
        if isinstance(error, LLMError):
            return error
        response = getattr(error, "response", None)
        for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (error, "code")):
            if isinstance(status := getattr(holder, name, None), int) and 400 <= status < 600:
                return self._of_status(status, error, getattr(response, "headers", None) or {})
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        if "Timeout" in names and not re.search("Connect(ion)?Timeout", names):
            return Timeout("the model server did not answer in time")
        if "Connect" in names:
            return Unreachable("the model server cannot be reached")
        return None

    def _of_status(self, status: int, error: BaseException, headers: Mapping[str, str]) -> LLMError:
        if status in (401, 403):  # What it says of our key is not for a caller.
            return Refused(status, "it does not accept this service's key")
        if status in (400, 413, 422):
            return InvalidRequest(f"the model server refused it: {self._brief(error)}")
        wait = str(headers.get("retry-after", ""))
        if status == 429:
            return Overloaded(f"the model server is busy: {self._brief(error)}", int(wait) if wait.isdigit() else 1)
        if status == 503:
            return Unreachable(
                f"the model server is not ready: {self._brief(error)}", int(wait) if wait.isdigit() else 1
            )
        return Refused(status, self._brief(error))

    def _brief(self, error: object) -> str:
        """What it says, shortened, without URLs and the secrets that the chat model has."""
        said = " ".join(str(error).split())
        for secret in (*_secrets(self._arguments), *_secrets(vars(self._model) if self._model else {})):
            said = said.replace(secret, "***")
        return _URL.sub("***", said)[:300]


async def _ended(events: AsyncGenerator[Event], stops: StopStrings, most: int | None) -> AsyncGenerator[Event]:
    """Events up to a stop string, with the reason for the end where none is given."""
    async for event in events:
        if isinstance(event, TextDelta):
            text = stops.push(event.text)
            if text or event.extra:
                yield replace(event, text=text)
            if stops.hit:
                yield Finished("stop")
                return
        else:
            if text := stops.flush():
                yield TextDelta(text)
            full = most is not None and event.usage is not None and event.usage.completion_tokens >= most
            yield replace(event, reason=event.reason or ("length" if full else "stop"))


def _class_at(path: str) -> type[BaseChatModel]:
    """The class that `module:Class` names."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise SettingsError(
            f"class (LLM_ENGINE_CLASS) = {path}: a LangChain chat model is needed, as in langchain_openai:ChatOpenAI"
        )
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        if error.name and module.startswith(f"{package}.") and error.name != package:
            raise SettingsError(f"class = {path}: there is no module {error.name}") from None
        pip = f"{sys.executable} -m pip install {package.replace('_', '-')}"
        raise SettingsError(f"class = {path}: the package {package} is missing: {pip}") from None
    except AttributeError:
        raise SettingsError(f"class = {path}: {module} has no {name}") from None
    except Exception as error:
        raise SettingsError(f"class = {path}: cannot be imported: {type(error).__name__}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, BaseChatModel)):
        raise SettingsError(f"class = {path}: this is no LangChain chat model (a BaseChatModel)")
    return found


def _field(kind: type[BaseChatModel], name: str) -> str | None:
    """The field of a class for what the house calls `name`."""
    by_name = {alias: field for field, info in kind.model_fields.items() for alias in (info.alias, field) if alias}
    for one in (name, *_OTHER_NAMES.get(name, ())):
        if one in by_name:
            return by_name[one]
    return None


def _arguments(kind: type[BaseChatModel], path: str, given: Mapping[str, JSON], target: Target) -> dict[str, Any]:
    """What the class is made with, by the names that it takes."""
    by_field: dict[str, Any] = {}
    for name, value in given.items():
        field = next((field for field, info in kind.model_fields.items() if name in (field, info.alias)), None)
        if field is None and kind.model_config.get("extra") != "allow":
            near = get_close_matches(name, kind.model_fields, n=1, cutoff=0.5)
            raise SettingsError(f"{path} has no argument {name}" + (f"; did you mean {near[0]}?" if near else ""))
        by_field[field or name] = value
    if field := _field(kind, "model"):
        by_field.setdefault(field, target.model_name)
    if target.endpoint:
        field = _field(kind, "base_url") or _ending(kind, "base_url")
        if not field:
            raise SettingsError(f"model_server_endpoint = {target.endpoint}: {path} has no argument for a URL")
        by_field.setdefault(field, target.endpoint)
    if target.access.api_key and (field := _field(kind, "api_key") or _ending(kind, "api_key")):
        by_field.setdefault(field, SecretStr(target.access.api_key))
    for setting in fields(Access):
        if setting.name != "api_key" and getattr(target.access, setting.name) != setting.default:
            raise SettingsError(f"{setting.name}: not known to a LangChain class; set an argument of {path} instead")
    infos = kind.model_fields
    return {(field in infos and infos[field].alias) or field: value for field, value in by_field.items()}


def _ending(kind: type[BaseChatModel], name: str) -> str | None:
    """A field with a longer name, such as `anthropic_api_key`."""
    endings = tuple(f"_{one}" for one in (name, *_OTHER_NAMES[name]))
    return next((field for field in kind.model_fields if field.endswith(endings)), None)


def _names(said: JSON) -> set[str]:
    """Names, given as a list or as text with commas."""
    names = said.split(",") if isinstance(said, str) else said
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise SettingsError(f"honours = {said}: not a list of names")
    return {name.strip() for name in names if name.strip()}


def _secrets(value: Any, key: str = "") -> Iterator[str]:
    """The texts in settings that are nobody else's business."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
        key = "secret"
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _secrets(one, str(name))
    elif isinstance(value, str) and len(value) > 2 and _SECRET.search(key):
        yield value


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
