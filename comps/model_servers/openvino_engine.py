"""The program of the OpenVINO engine's own process: all requests in one batch, a token for each of them a step.

What it is told and what it says are in `engine_program`.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comps.core.types import JSON
from comps.model_servers.engine_program import Part, reason, serve
from comps.model_servers.gguf import gguf_window
from comps.model_servers.text import IncrementalDecoder, StopStrings

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
    """

    def __init__(self, model: Path, device: str) -> None:
        # OpenVINO's usage reports stay off: without this package it takes its own silent stand-in.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import numpy
        import openvino
        import openvino_genai

        self._concatenate, self._tensor = numpy.concatenate, openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        # In bf16, which OpenVINO prefers where a CPU has it, an answer whose beginning is cached comes out differently:
        # no seed would repeat it. f32 does repeat, and is the faster of the two for one token after another.
        properties = {"INFERENCE_PRECISION_HINT": "f32"} if device == "CPU" else {}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, device, properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        self.longest_token = max(map(len, vocabulary))
        self._special = _special_tokens(self._tokenizer, vocabulary)
        self._running: dict[int, _Running] = {}
        self.context_window = context_window(model)

    @property
    def busy(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def handle(self, message: dict[str, JSON]) -> Part | None:
        """Take a message in; what can be answered at once is."""
        if "cancel" in message:
            if running := self._running.pop(message["cancel"], None):
                running.handle.cancel()
            return None
        number = message["id"]
        try:
            if "count" in message:
                return {"id": number, "count": len(self._encode(message["count"], special=False)), "last": True}
            return self._start(number, **message["generate"])
        except Exception as error:  # From OpenVINO and pybind11 anything may come, and nothing may end the engine.
            return {"id": number, "error": reason(error), "last": True}

    def _start(self, number: int, prompt: JSON, sampling: dict[str, JSON]) -> Part | None:
        text = prompt if isinstance(prompt, str) else self._render(prompt)
        ids = self._encode(text, special=isinstance(prompt, str))
        length, window = len(ids), self.context_window
        if window is not None and length >= window:
            return {"id": number, "error": "too long", "too_long": [length, window], "last": True}
        try:
            config = self._config(sampling, None if window is None else window - length)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            return {"id": number, "error": reason(error), "field": _named(error, sampling), "last": True}
        self._running[number] = _Running(
            self._pipeline.add_request(number, self._tensor(ids[None, :]), config),
            IncrementalDecoder(self._tokenizer.decode),
            StopStrings(sampling["stop"]),
            prompt_tokens=length,
        )
        return None

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

    def _render(self, messages: Sequence[dict[str, JSON]]) -> str:
        """The conversation in the model's own chat template; its control tokens in a message are read as text."""
        turns = [{**message, "content": self._plain(message["content"])} for message in messages]
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True))

    def _plain(self, text: str) -> str:
        """`text` with the model's control tokens broken up, so that they are read as the text they are."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if self._special else text

    def _config(self, sampling: dict[str, JSON], room: int | None) -> Any:
        config = self._pipeline.get_config()  # A copy, with the model's own end tokens and defaults.
        limits = [limit for limit in (sampling["max_tokens"], room) if limit is not None]
        if limits:
            config.max_new_tokens = min(limits)
        temperature, top_p = sampling["temperature"], sampling["top_p"]
        if temperature is not None or top_p is not None:
            config.do_sample = temperature != 0 and top_p != 0
        if config.do_sample:
            for name in ("temperature", "top_p", "top_k"):
                if sampling[name] is not None:
                    setattr(config, name, sampling[name])
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            if sampling[name] is not None:
                setattr(config, name, sampling[name])
        # Without a seed of its own, OpenVINO would draw the same answer every time.
        seed = sampling["seed"]
        config.rng_seed = random.getrandbits(63) if seed is None else seed % 2**64
        config.validate()
        return config

    def step(self) -> list[Part]:
        """Let every running request grow by a token, and say what each gained."""
        self._pipeline.step()
        parts: list[Part] = []
        for number, running in list(self._running.items()):
            if part := self._progress(number, running):
                parts.append(part)
                if part.get("last"):
                    del self._running[number]
        return parts

    def fail(self, error: Exception) -> list[Part]:
        """A step failed: so have all its requests."""
        return [{"id": number, "error": reason(error), "last": True} for number in self._running]

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


def _named(error: Exception, sampling: dict[str, JSON]) -> str | None:
    text = str(error)
    return next((name for name in sampling if name in text), None)


def _special_tokens(tokenizer: Any, vocabulary: dict[bytes, int]) -> re.Pattern[str] | None:
    """The vocabulary's control tokens: what looks like one and leaves no text behind."""
    texts = [(word.decode("utf-8", "replace"), number) for word, number in vocabulary.items()]
    found = [text for text, number in texts if _LOOKS_SPECIAL.fullmatch(text) and not tokenizer.decode([number])]
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None


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


def load(model: str, device: str) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(Path(model), device)


if __name__ == "__main__":
    serve(load)
