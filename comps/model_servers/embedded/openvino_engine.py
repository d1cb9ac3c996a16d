"""The program of the OpenVINO engine's own process: all requests in one batch, a token for each of them a step.

What it is told and what it says are in `engine_program`.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comps.core.errors import InvalidRequest, SettingsError
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.decoding import check_sampling, greedy, room_for
from comps.model_servers.embedded.engine_program import Part, reason, serve
from comps.model_servers.embedded.gguf import gguf_window, openable
from comps.model_servers.embedded.openvino_embedder import Embedder
from comps.model_servers.embedded.text import ControlTokens, IncrementalDecoder
from comps.model_servers.embedded.vectors import check_texts

_PATIENCE = 0.05
"""Seconds that a step waits for a text's vector, where there is no answer to go on with."""
_ENDLESS = 2**31 - 1
"""Tokens in the window of a model that does not say."""
_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_PIECES = re.compile(r"(?s).{1,4000}(?=\s|\Z)|.{1,4000}")
_LOOKS_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass
class _Running:
    """One request in the batch."""

    handle: Any
    decoder: IncrementalDecoder
    stops: StopStrings
    prompt_tokens: int
    completion_tokens: int = 0


class Engine:
    """The pipeline and the requests that are in it.

    Args:
        model: A GGUF file, or a folder of OpenVINO's own format.
        device: As OpenVINO names it: CPU, GPU, NPU …
        settings: Fields of `SchedulerConfig`, such as `cache_size`; whatever else is there is a property of OpenVINO's.
        window: In tokens; None takes the model's own.

    Raises:
        SettingsError: OpenVINO cannot take a value.
    """

    def __init__(
        self, model: Path, device: str, settings: Mapping[str, JSON] | None = None, window: int | None = None
    ) -> None:
        # OpenVINO's usage reports stay off: without this package it takes its own silent stand-in.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import numpy
        import openvino
        import openvino_genai

        self._concatenate, self._tensor = numpy.concatenate, openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        properties = _schedule(scheduler, settings or {})
        # In bf16, which OpenVINO prefers where a CPU has it, an answer whose beginning is cached comes out differently:
        # no seed would repeat it. f32 does repeat, and is the faster of the two for one token after another.
        if device == "CPU":
            properties.setdefault("INFERENCE_PRECISION_HINT", "f32")
        with openable(model) as path:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, device, properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        self.longest_token = max(map(len, vocabulary))
        self._controls = ControlTokens(_control_tokens(self._tokenizer, vocabulary))
        self._running: dict[int, _Running] = {}
        self._embedder = Embedder(model, self._tokenizer, device, properties)
        self.context_window = window or context_window(model)

    @property
    def busy(self) -> bool:
        return self._answering or self._embedder.busy

    @property
    def _answering(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def cancel(self, number: int) -> None:
        self._embedder.cancel(number)
        if running := self._running.pop(number, None):
            running.handle.cancel()

    def count(self, text: str) -> int:
        return len(self._encode(text, special=False))

    def start(self, number: int, prompt: str | list[dict[str, str]], sampling: Sampling) -> None:
        check_sampling(sampling)
        ids = self._read(prompt)
        length = len(ids)
        if not length:
            raise InvalidRequest("there is nothing to continue", "prompt")
        room = room_for(length, sampling, self.context_window or _ENDLESS)
        try:
            config = self._config(sampling, room)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(reason(error), _named(error)) from None
        self._running[number] = _Running(
            self._pipeline.add_request(number, self._tensor(ids[None, :]), config),
            IncrementalDecoder(self._tokenizer.decode),
            StopStrings(sampling.stop),
            prompt_tokens=length,
        )

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        tokenized = [self._encode(text, special=True) for text in texts]
        check_texts(tokenized, self.context_window)
        self._embedder.start(number, tokenized)

    def measure(self, prompt: str | list[dict[str, str]]) -> int:
        return len(self._read(prompt))

    def _read(self, prompt: str | list[dict[str, str]]) -> Any:
        """The tokens of a prompt, in an array."""
        text = prompt if isinstance(prompt, str) else self.render(prompt)
        return self._encode(text, special=isinstance(prompt, str))

    def _encode(self, text: str, special: bool) -> Any:
        """The tokens of all of `text`, in an array; a tokenizer may carry a length at which it drops the rest."""
        pieces = [self._ids(piece, special and not number) for number, piece in enumerate(_PIECES.findall(text))]
        count = sum(map(len, pieces))
        if len(pieces) > 1 and self.context_window and count > 2 * self.context_window:
            return self._concatenate(pieces)  # Far too long, so the whole need not be looked at once more.
        whole = self._ids(text, special)
        # Where two pieces meet, a token may have come apart: one more each is no sign of a cut.
        return self._concatenate(pieces) if count > len(whole) + len(pieces) else whole

    def _ids(self, text: str, special: bool) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].copy()

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation in the model's own chat template."""
        turns = self._controls.escaped(messages)
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True))

    def _config(self, sampling: Sampling, room: int) -> Any:
        config = self._pipeline.get_config()  # A copy, with the model's own end tokens and defaults.
        config.max_new_tokens = room
        if sampling.temperature is not None or sampling.top_p is not None:
            config.do_sample = not greedy(sampling)
        if config.do_sample:
            for name in ("temperature", "top_p", "top_k"):
                self._set(config, name, sampling)
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            self._set(config, name, sampling)
        # Without a seed of its own, OpenVINO would draw the same answer every time.
        config.rng_seed = random.getrandbits(63) if sampling.seed is None else sampling.seed % 2**64
        config.validate()
        return config

    @staticmethod
    def _set(config: Any, name: str, sampling: Sampling) -> None:
        if (value := getattr(sampling, name)) is not None:
            setattr(config, name, value)

    def step(self) -> list[Part]:
        """Let every running request grow by a token, and say what each gained, and which texts are embedded."""
        answering = self._answering
        if answering:
            self._pipeline.step()
        parts = [part] if (part := self._embedder.step(0 if answering else _PATIENCE)) else []
        for number, running in list(self._running.items()):
            if part := self._progress(number, running):
                parts.append(part)
                if part.get("last"):
                    del self._running[number]
        return parts

    def _progress(self, number: int, running: _Running) -> Part | None:
        ids, finish = _read(running.handle)
        running.completion_tokens += len(ids)
        text = running.stops.push(running.decoder.push(ids)) if ids else ""
        if finish != "NONE" and not running.stops.hit:
            text += running.stops.push(running.decoder.flush()) + running.stops.flush()
        usage = [running.prompt_tokens, running.completion_tokens]
        if running.stops.hit:
            running.handle.cancel()
            return {"id": number, "text": text, "reason": "stop", "usage": usage, "last": True}
        if finish != "NONE":
            return {"id": number, "text": text, "reason": finish.lower(), "usage": usage, "last": True}
        if running.handle.get_status().name == "IGNORED":
            return {"id": number, "error": "the model's cache has no room for this prompt", "last": True}
        return {"id": number, "text": text} if text else None


def _read(handle: Any) -> tuple[list[int], str]:
    """The tokens that came since, and NONE, STOP or LENGTH."""
    ids: list[int] = []
    finish = "NONE"
    while handle.can_read():
        for output in handle.read().values():
            ids.extend(output.generated_ids)
            finish = output.finish_reason.name
    return ids, finish


def _named(error: Exception) -> str | None:
    text = str(error)
    return next((name for name in Sampling.__dataclass_fields__ if name in text), None)


def _control_tokens(tokenizer: Any, vocabulary: dict[bytes, int]) -> list[str]:
    """The vocabulary's control tokens: what looks like one and leaves no text behind."""
    texts = [(word.decode("utf-8", "replace"), number) for word, number in vocabulary.items()]
    return [text for text, number in texts if _LOOKS_SPECIAL.fullmatch(text) and not tokenizer.decode([number])]


def context_window(model: Path) -> int | None:
    """How many tokens the model can hold, read from the model itself; None if it does not say."""
    if model.is_file():
        with model.open("rb") as file:
            return gguf_window(file)
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return next((config[name] for name in _WINDOW_FIELDS if isinstance(config.get(name), int)), None)


def _schedule(scheduler: Any, settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """Set what the scheduler knows, and give back the rest."""
    rest = {}
    for name, value in settings.items():
        if not hasattr(scheduler, name):
            rest[name] = value
            continue
        try:
            setattr(scheduler, name, value)
        except TypeError:
            raise SettingsError(f"{name} = {value}: not a value of OpenVINO's SchedulerConfig.{name}") from None
    return rest


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(Path(model), device, settings, window)


if __name__ == "__main__":
    serve(load)
