"""A model embedded in this service: the side of it that the service sees, whatever the engine.

The engine runs in a process of its own (see `engine`). Each kind is a subclass that says which engine that is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import asdict
from typing import ClassVar, TypeVar

from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    PromptTooLong,
    SettingsError,
    TextTooLong,
    Unreachable,
    no_room,
)
from comps.core.prompts import only_text, plain_roles, text_of
from comps.core.types import JSON, Embeddings, Event, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.embedded.engine_process import EngineProcess
from comps.model_servers.embedded.model_files import find_model
from comps.model_servers.target import Target, need

log = logging.getLogger("opea_llm")

Kind = TypeVar("Kind", bound="Embedded")


class Embedded:
    """A model in this service. A subclass says which engine runs it.

    Args:
        model_name: The bundled model, a path, or a Hugging Face repository; see `find`.
        device: CPU, GPU, NPU … or as the engine names it.
        settings: The engine's own, under its own names.
        context_window: In tokens; None takes the model's, or what the engine makes of it.

    Raises:
        SettingsError: A package that the engine needs is not installed.
    """

    kind: ClassVar[str]
    called: ClassVar[str]
    """The engine's name in errors."""
    program: ClassVar[str]
    """The module that is the program of its process."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What the program imports that comes with the extra named like the kind, and not with this service itself."""
    honoured: ClassVar[frozenset[str]] = frozenset(Sampling.__dataclass_fields__)
    """The fields of Sampling that it does not ignore."""
    takes_local_dir: ClassVar[bool] = False
    """Whether the setting `local_dir` is for `find`, and not for the engine."""

    def __init__(
        self,
        model_name: str,
        device: str = "CPU",
        settings: Mapping[str, JSON] | None = None,
        context_window: int | None = None,
    ) -> None:
        need(self.packages, self.kind, f"model_server = {self.kind}")
        self._model_name = model_name
        own = dict(settings or {})
        self._local_dir = str(own.pop("local_dir", "") if self.takes_local_dir else "")
        self._load = {"device": device, "settings": own, "window": context_window}
        self._engine: EngineProcess | None = None
        self._info: ModelInfo | None = None
        self._longest_token = 1
        self._loading = asyncio.Lock()
        self._reloading: asyncio.Future[None] | None = None
        self._loaded_once = False
        self._closed = False

    @classmethod
    def open(cls: type[Kind], target: Target) -> Kind:
        if target.endpoint:
            raise SettingsError(
                f"model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT): {cls.kind} takes no endpoint, it runs the model; "
                "model_server (MODEL_SERVER) says which kind of server that is: vllm, tgi or openai_api"
            )
        return cls(target.model_name, target.device, target.engine, target.context_window)

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        """What the engine loads for a model's name, fetched if need be; it may take long, and runs in a thread.

        Args:
            model_name: The bundled model, a path, or a Hugging Face repository.
            local_dir: The folder that a named file of a repository may be in already; empty: none.

        Raises:
            SettingsError: There is no such model, or it is not here and cannot be fetched.
        """
        return str(find_model(model_name))

    async def load(self) -> None:
        """Find the model, fetching it if need be, and start the engine; see `Loads.load`."""
        async with self._loading:
            if self._engine and self._info and not self._engine.ended:
                return
            await self._end()
            model = await _aside(lambda: self.find(self._model_name, self._local_dir))
            self._engine = await asyncio.to_thread(EngineProcess, self.program)
            loaded = await _one(self._engine.ask({"load": {"model": model, **self._load}}))
            if "setting" in loaded:
                raise SettingsError(f"model_server = {self.kind}: {loaded['error']}")
            if "error" in loaded:
                raise ModelServerError(f"{self.called} cannot load {self._model_name}: {loaded['error']}")
            self._longest_token = loaded["longest_token"]
            self._loaded_once = True
            self._info = ModelInfo(self._model_name, loaded["context_window"], self.honoured)

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._engine.pid if self._engine else None

    async def describe(self) -> ModelInfo:
        self._answering()
        assert self._info
        return self._info

    def _answering(self) -> EngineProcess:
        """The engine, if it can answer."""
        if self._engine and self._info and not self._engine.ended:
            return self._engine
        if not self._loaded_once:
            raise Unreachable(f"the model {self._model_name} is still loading")
        if not self._closed and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.ensure_future(self._load_again())
        raise Unreachable(f"the process of the model {self._model_name} has ended; it is being started again", 5)

    async def _load_again(self) -> None:
        try:
            await self.load()
        except LLMError as error:  # Whoever asks next tries again.
            log.error("the model could not be started again: %s", error)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        engine = self._answering()
        self._refuse_far_too_long(prompt, sampling.max_total_tokens)
        body = {"prompt": _plain(plain_roles(prompt)), "sampling": asdict(sampling)}
        async with aclosing(engine.ask({"generate": body})) as parts:
            async for part in parts:
                if "error" in part:
                    raise _error(part, PromptTooLong)
                if part["text"]:
                    yield TextDelta(part["text"])
                if part.get("last"):
                    yield Finished(part["reason"], Usage(*part["usage"]))

    def _refuse_far_too_long(self, prompt: Prompt, total: int | None) -> None:
        """Refuse what cannot fit whatever its tokens are: counting a book's would hold up everybody's next token."""
        texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
        at_least, window = self._at_least(texts), self._window
        if window and at_least > window:
            raise PromptTooLong(at_least, window, at_least=True)
        if total and at_least > total:
            raise no_room(at_least, total, at_least=True)

    def _refuse_long_texts(self, texts: Sequence[str]) -> None:
        """The same for texts that are not answered."""
        for text in texts:
            if self._window and (at_least := self._at_least([text])) > self._window:
                raise TextTooLong(at_least, self._window, at_least=True)

    def _at_least(self, texts: Sequence[str]) -> int:
        """How many tokens they have together, whatever these are."""
        return sum(map(len, texts)) // self._longest_token

    @property
    def _window(self) -> int | None:
        return self._info.context_window if self._info else None

    async def count_tokens(self, text: str) -> int:
        """See `CountsTokens`; a text that is sure to have more tokens than the window holds is refused."""
        self._refuse_long_texts([text])
        return int((await self._ask({"count": text}))["count"])

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """See `CountsPrompts`."""
        self._refuse_far_too_long(prompt, None)
        return int((await self._ask({"measure": _plain(plain_roles(prompt))}))["count"])

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        return plain_roles(prompt), sampling, {}

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """See `Renders`."""
        if isinstance(prompt, str):
            return prompt
        self._refuse_far_too_long(prompt, None)
        return str((await self._ask({"render": _plain(plain_roles(prompt))}))["text"])

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """See `Embeds`; a vector is the mean of the last hidden states over a text's tokens, of length 1."""
        self._refuse_long_texts(texts)
        part = await self._ask({"embed": list(texts)})
        return Embeddings(tuple(part["vectors"]), part["prompt_tokens"])

    async def _ask(self, message: Mapping[str, JSON]) -> dict[str, JSON]:
        """The engine's answer to what has one of a single part."""
        part = await _one(self._answering().ask(message))
        if "error" in part:
            raise _error(part, TextTooLong)
        return part

    async def aclose(self) -> None:
        self._closed = True
        if self._reloading:
            self._reloading.cancel()
        await self._end()

    async def _end(self) -> None:
        """End the engine, if there is one; while it loads it hears nothing, and has nothing to finish."""
        engine, loaded = self._engine, self._info is not None
        self._engine = self._info = None
        if engine:
            await asyncio.to_thread(engine.close, *(() if loaded else (0.0,)))


async def _aside(work: Callable[[], str]) -> str:
    """Do something long in a thread that nobody waits for at the end of the process, as is done for asyncio's own."""
    done: Future[str] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # Handed on as it is.
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)


async def _one(parts: AsyncGenerator[JSON]) -> dict[str, JSON]:
    """The only part of an answer that has one."""
    async with aclosing(parts):
        return dict(await anext(parts))


def _plain(prompt: Prompt) -> JSON:
    """The prompt as the engine's chat template takes it: text contents only."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": only_text(message)} for message in prompt]


def _error(part: dict[str, JSON], too_long: type[PromptTooLong]) -> Exception:
    if "too_long" in part:
        return too_long(*part["too_long"])
    if field := part.get("field"):
        return InvalidRequest(part["error"], field)
    return ModelServerError(f"the model failed: {part['error']}")
