"""A model embedded in this service, as the service sees it, whatever the engine.

The engine runs in a process of its own; see `engine_process`. Each kind is a subclass that names the engine's program.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import ClassVar, TypeVar

from comps.core.answers import Parts
from comps.core.beside import beside_if_long
from comps.core.errors import (
    LLMError,
    ModelServerError,
    PromptTooLong,
    SettingsError,
    TextTooLong,
    Unreachable,
    for_operator,
    no_room,
)
from comps.core.ports import Answer
from comps.core.prompts import text_of
from comps.core.tasks import at_once, in_daemon_thread
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    Embeddings,
    ModelInfo,
    Prompt,
    Sampling,
    Token,
    Usage,
)
from comps.model_servers.embedded.buffered_answer import BufferedAnswer
from comps.model_servers.embedded.constraints import JSON_SCHEMA, options_for
from comps.model_servers.embedded.engine_process import EngineProcess, error_of, run_check
from comps.model_servers.embedded.logprobs import LOGPROB_IDS, LOGPROBS, TOP_LOGPROBS, form_for, wanted
from comps.model_servers.embedded.model_files import find_model
from comps.model_servers.embedded.questions import Question, question_of
from comps.model_servers.embedded.tool_calls import is_recognised
from comps.model_servers.target import Target, need

log = logging.getLogger("opea_llm")

Kind = TypeVar("Kind", bound="Embedded")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two attempts to start an engine again: after the first one that failed, and at most."""
_OF_TOOLS = frozenset(
    (
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("messages.tool_calls", "messages.tool_call_id", "messages.function_call"),
    )
)
"""The options of functions, and the fields of messages with calls and their results."""


class Embedded:
    """A model in this service. A subclass names the engine that runs it.

    Args:
        model_name: The bundled model, a path, or a Hugging Face repository; see `find`.
        device: CPU, GPU, NPU, or as the engine names it.
        settings: The engine's own settings, by its own names.
        context_window: In tokens; None takes the model's, or the engine's default.

    Raises:
        SettingsError: A package that the engine needs is not installed.
    """

    kind: ClassVar[str]
    display_name: ClassVar[str]
    """The engine's name in errors."""
    program: ClassVar[str]
    """The module that is the program of the engine's process."""
    checker: ClassVar[str] = ""
    """The module whose `check(device, settings)` checks both without a model; see `check_settings`. Empty: none."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What the program imports that the extra of the kind's name installs, and not this service itself."""
    honoured: ClassVar[frozenset[str]] = frozenset(Sampling.__dataclass_fields__)
    """The fields of Sampling that it does not ignore."""
    constraints: ClassVar[frozenset[str]] = frozenset()
    """The kinds of constraints that it has; see `Constraint`."""
    takes_local_dir: ClassVar[bool] = False
    """Whether the setting `local_dir` is for `find`, and not for the engine."""
    alternatives: ClassVar[bool] = True
    """Whether it has logprobs of any token, and not of those alone that it generates."""

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
        self._load_options = {"device": device, "settings": own, "window": context_window}
        self._engine: EngineProcess | None = None
        self._info: ModelInfo | None = None
        self._longest_token = 1
        self._chat_template = ""
        self._loading = asyncio.Lock()
        self._reloading: asyncio.Future[None] | None = None
        self._loaded_once = False
        self._not_loaded = ""
        """What is told once loading has begun and has failed."""
        self._closed = False

    @classmethod
    def open(cls: type[Kind], target: Target) -> Kind:
        if target.endpoint:
            raise SettingsError(
                f"model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT): {cls.kind} takes no endpoint, it runs the model; "
                "model_server (MODEL_SERVER) says which kind of server that is: vllm, tgi or openai_api"
            )
        if changed := target.access.changed():
            log.warning("%s: no effect here: %s runs in this service", ", ".join(changed), target.model_name)
        return cls(target.model_name, target.device, target.engine, target.context_window)

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        """What the engine loads for a model's name: a path or a repository. It may download, and runs in a thread.

        Args:
            model_name: The bundled model, a path, or a Hugging Face repository.
            local_dir: A folder that the named file of a repository may be in already; empty: none.

        Raises:
            SettingsError: There is no such model, or it is not here and cannot be fetched.
        """
        return str(find_model(model_name))

    def check_settings(self) -> None:
        """Check the device and the engine's settings, in a process of its own; the model is neither found nor loaded.

        Raises:
            SettingsError: The device is not here, or a setting is unknown or wrong. It has all that is wrong.
        """
        given = {name: self._load_options[name] for name in ("device", "settings")}
        if self.checker and given != {"device": "CPU", "settings": {}}:
            problems = run_check(self.checker, given)
            if problems:
                raise SettingsError(*problems)

    async def load(self) -> None:
        """Find the model, fetching it if need be, and start the engine; see `Loads.load`."""
        async with self._loading:
            if self._engine and self._info and not self._engine.ended:
                return
            await self._end()
            self._not_loaded = f"the model {self._model_name} could not be loaded; the service's log has the reason"
            model = await in_daemon_thread(lambda: self.find(self._model_name, self._local_dir))
            self._engine = await asyncio.to_thread(EngineProcess, self.program, self._called_at_its_end())
            loaded = await self._engine.ask({"load": {"model": model, **self._load_options}})
            if "setting" in loaded:
                raise SettingsError(f"model_server = {self.kind}: {loaded['error']}")
            if "error" in loaded:
                raise ModelServerError(f"{self.display_name} cannot load {self._model_name}: {loaded['error']}")
            self._longest_token = loaded["longest_token"]
            self._chat_template = loaded["chat_template"]
            self._loaded_once, self._not_loaded = True, ""
            self._info = ModelInfo(
                self._model_name,
                loaded["context_window"],
                self._capabilities(),
                has_chat_template=loaded["has_chat_template"],
            )

    def _capabilities(self) -> frozenset[str]:
        capabilities = self.honoured | {"n", "echo", LOGPROBS, LOGPROB_IDS}
        capabilities |= {TOP_LOGPROBS} if self.alternatives else frozenset()
        if JSON_SCHEMA not in self.constraints:
            return capabilities
        on_demand = frozenset() if is_recognised(self._chat_template) else {CALLS_ON_DEMAND}
        return capabilities | options_for(self.constraints) | _OF_TOOLS | on_demand

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._engine.pid if self._engine else None

    async def describe(self) -> ModelInfo:
        self._loaded_engine()
        assert self._info
        return self._info

    def _loaded_engine(self) -> EngineProcess:
        """The engine with its model loaded. If its process has ended, it is being started again in the background.

        Raises:
            Unreachable: It is loading, has ended, or was closed.
        """
        if self._engine and self._info and not self._engine.ended:
            return self._engine
        if not self._loaded_once:
            failed = self._not_loaded and not self._loading.locked()
            raise Unreachable(self._not_loaded if failed else f"the model {self._model_name} is still loading")
        self._start_again()
        raise Unreachable(f"the process of the model {self._model_name} has ended; it is being started again", 5)

    def _called_at_its_end(self) -> Callable[[], None]:
        """Returns what the engine's process calls at its end, in a thread; if it ended by itself, it is restarted."""
        loop = asyncio.get_running_loop()

        def restart() -> None:
            if self._loaded_once and self._engine and self._engine.ended:
                log.error("the process of the model %s has ended; it is started again", self._model_name)
                self._start_again()

        def ended() -> None:
            with suppress(RuntimeError):  # The loop is closed: nobody asks any more.
                loop.call_soon_threadsafe(restart)

        return ended

    def _start_again(self) -> None:
        """Start the engine again in the background, unless that is under way."""
        if not self._closed and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.ensure_future(self._load_again())

    async def _load_again(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self.load()
            except Exception as error:  # Whatever it is, the next attempt may succeed.
                again = "the model %s could not be started again, next attempt in %.0f s: %s"
                log.error(again, self._model_name, pause, for_operator(error) or type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                log.warning("the model %s has been started again", self._model_name)
                return

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        engine = self._loaded_engine()
        self._check_prompt_length(prompt, sampling.max_total_tokens)
        question, count, answers = self._question(prompt, options), int(options.get("n") or 1), sampling.max_tokens != 0
        logprobs = wanted(prompt, options, self.alternatives)
        asked = {**question.asked, **question.constrained, "logprobs": logprobs and asdict(logprobs)}
        echoed = prompt if options.get("echo") and isinstance(prompt, str) else ""
        choices = Parts(answer, count)
        # The prompt's tokens count once, and each choice draws with a seed of its own.
        seeds = [None if sampling.seed is None else sampling.seed + number for number in range(count)]
        if not answers:  # No engine generates less than a token.
            sampling = replace(sampling, max_tokens=1)
        await at_once(
            [
                self._generate_choice(
                    engine,
                    {**asked, "sampling": asdict(replace(sampling, seed=seed))},
                    BufferedAnswer(
                        choices.part(number) if count > 1 else answer,
                        question.reader(),
                        echoed,
                        form_for(prompt, bool(options.get(LOGPROB_IDS))) if logprobs else None,
                    ),
                    counts_prompt=number == 0,
                    answers=answers,
                )
                for number, seed in enumerate(seeds)
            ]
        )

    async def _generate_choice(
        self,
        engine: EngineProcess,
        body: Mapping[str, JSON],
        answer: BufferedAnswer,
        *,
        counts_prompt: bool,
        answers: bool,
    ) -> None:
        """Have an answer generated.

        Args:
            engine: What generates it.
            body: What the engine is asked.
            answer: Where it is written.
            counts_prompt: Whether its usage has the prompt's tokens.
            answers: Whether the tokens behind the prompt are wanted; else the engine generates one, which is dropped.
        """
        try:
            last = await engine.ask({"generate": body}, lambda part: answer.push(part["text"], part.get(LOGPROBS)))
            if "error" not in last:
                if not answers:
                    last = {"text": "", "reason": "length", "usage": [last["usage"][0], 0]}
                answer.push(last["text"], last.get(LOGPROBS))
                answer.end()
            await answer.flush()
        except LLMError:  # What was generated before comes first.
            await answer.flush()
            raise
        finally:
            answer.close()
        if "error" in last:
            raise error_of(last, PromptTooLong)
        prompt_tokens, completion_tokens = last["usage"]
        usage = Usage(prompt_tokens if counts_prompt else 0, completion_tokens)
        answer.finish(last["reason"], usage, last.get("stop_string"))

    def _question(self, prompt: Prompt, options: Mapping[str, JSON]) -> Question:
        return question_of(prompt, options, self._chat_template, self.constraints)

    def _check_prompt_length(self, prompt: Prompt, total: int | None) -> None:
        """Refuse a prompt that cannot fit, whatever its tokens are: to count a whole book would delay all answers.

        Args:
            prompt: What is to be answered.
            total: The most tokens of prompt and answer together; None: only the context window counts.
        """
        texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
        at_least, window = self._least_tokens(texts), self._window
        if window and at_least > window:
            raise PromptTooLong(at_least, window, at_least=True)
        if total and at_least > total:
            raise no_room(at_least, total, at_least=True)

    def _check_text_lengths(self, texts: Sequence[str]) -> None:
        """Refuse a text to count or embed that cannot fit, whatever its tokens are."""
        for text in texts:
            if self._window and (at_least := self._least_tokens([text])) > self._window:
                raise TextTooLong(at_least, self._window, at_least=True)

    def _least_tokens(self, texts: Sequence[str]) -> int:
        """A lower bound on the number of their tokens together: no token has more characters than the longest."""
        return sum(map(len, texts)) // self._longest_token

    @property
    def _window(self) -> int | None:
        return self._info.context_window if self._info else None

    async def count_tokens(self, text: str) -> int:
        """See `CountsTokens`; a text that is sure to have more tokens than the window holds is refused."""
        self._check_text_lengths([text])
        return int((await self._ask({"count": text}))["count"])

    async def tokenize(self, text: str) -> Sequence[Token]:
        """See `Tokenizes`; a text that is sure to have more tokens than the window holds is refused."""
        self._check_text_lengths([text])
        return await beside_if_long(text, _tokens_in, await self._ask({"tokenize": text}))

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """See `CountsPrompts`."""
        self._check_prompt_length(prompt, None)
        return int((await self._ask({"count_prompt": self._question(prompt, options).asked}))["count"])

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`; functions that the model is told of as text are in the messages."""
        question = self._question(prompt, options)
        told = prompt if isinstance(prompt, str) else question.conversation
        kept = {name: value for name, value in options.items() if question.tools or name not in _OF_TOOLS}
        return told, sampling, kept

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """See `Renders`."""
        if isinstance(prompt, str):
            return prompt
        self._check_prompt_length(prompt, None)
        return str((await self._ask({"render": self._question(prompt, options).asked}))["text"])

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """See `Embeds`; a vector is the mean of the last hidden states over a text's tokens, of length 1."""
        self._check_text_lengths(texts)
        part = await self._ask({"embed": list(texts)})
        return Embeddings(tuple(part["vectors"]), part["prompt_tokens"])

    async def _ask(self, message: Mapping[str, JSON]) -> dict[str, JSON]:
        """The engine's answer to a request that has one part."""
        part = await self._loaded_engine().ask(message)
        if "error" in part:
            raise error_of(part, TextTooLong)
        return part

    async def aclose(self) -> None:
        self._closed = True
        if self._reloading:
            self._reloading.cancel()
        await self._end()

    async def _end(self) -> None:
        """End the engine, if there is one. While it loads it reads no input, so it gets no time to end by itself."""
        engine, loaded = self._engine, self._info is not None
        self._engine = self._info = None
        if engine:
            await asyncio.to_thread(engine.close, *(() if loaded else (0.0,)))


def _tokens_in(part: Mapping[str, JSON]) -> list[Token]:
    ids = part["tokens"]
    return [Token(id, end) for id, end in zip(ids, part["ends"] or [None] * len(ids), strict=True)]
