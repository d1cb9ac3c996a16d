"""The program of the OpenVINO engine: all requests in one batch, which a step gives a token each."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comps.core.errors import InvalidRequest
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.constraints import REGEX, Constraint
from comps.model_servers.embedded.decoding import Chunks, check_sampling, is_greedy, max_new_tokens
from comps.model_servers.embedded.engine_program import EnginePrompt, Messages, Part, last_line, serve
from comps.model_servers.embedded.gguf import gguf_number, openable
from comps.model_servers.embedded.logprobs import Records, Wanted
from comps.model_servers.embedded.openvino_embedder import Embedder
from comps.model_servers.embedded.openvino_grammars import COMPILE_SECONDS, Grammars, structured_output
from comps.model_servers.embedded.openvino_options import configure, properties_of, reads_in_pieces
from comps.model_servers.embedded.openvino_prompts import PieceAdder, PromptReader
from comps.model_servers.embedded.text import ControlTokens, IncrementalDecoder
from comps.model_servers.embedded.vectors import check_texts

_THREAD_WAIT = 0.05
"""Seconds that a step waits for a constraint or an embedding when no answer is being generated."""
_NO_REQUEST = 2**63
"""The number of what goes through the pipeline and is no request."""
_UNKNOWN_WINDOW = 2**31 - 1
"""The context window in tokens of a model that does not say."""
_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_WIDTH_FIELDS = ("hidden_size", "n_embd", "d_model")
_WIDTH = 512
"""The hidden size of a model that does not say."""
_PIECES = re.compile(r"(?s).{1,4000}(?=\s|\Z)|.{1,4000}")
_LOOKS_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass
class _Request:
    """One request: in the batch, or before it while its constraint is compiled or its long prompt is read."""

    ids: Any
    config: Any
    decoder: IncrementalDecoder
    stops: StopStrings
    compiled: Future[None] | None = None
    """Done when the constraint is compiled; None: there is none, or it is in the batch."""
    constraint_field: str | None = None
    compiled_by: float = 0.0
    """When it waits for that no longer, on the monotonic clock."""
    handle: Any = None
    """OpenVINO's, in the batch."""
    completion_tokens: int = 0
    records: Records | None = None
    """What makes the logprobs; None: there are none."""

    def added(self, output: Any) -> str:
        """The text that OpenVINO's `GenerationOutput` adds."""
        ids: list[int] = output.generated_ids
        self.completion_tokens += len(ids)
        if self.records is None:
            return self.decoder.push(ids) if ids else ""
        ends = {self.config.eos_token_id, *self.config.stop_token_ids}
        scored = [one for one in zip(ids, output.generated_log_probs, strict=True) if one[0] not in ends]
        return "".join([self.records.push(token, (logprob, ())) for token, logprob in scored])

    @property
    def usage(self) -> list[int]:
        """The tokens of the prompt and of the answer so far."""
        return [len(self.ids), self.completion_tokens]


class Engine:
    """The pipeline and the requests that are in it; see `engine_program.Engine`.

    Args:
        model: A GGUF file, or a folder in OpenVINO's own format.
        device: By OpenVINO's name: CPU, GPU, NPU … in any case.
        settings: Fields of `SchedulerConfig`, such as `cache_size`; all others are properties of OpenVINO's.
        window: In tokens; None takes the model's own.

    Raises:
        SettingsError: OpenVINO cannot take a value.
    """

    def __init__(
        self, model: Path, device: str, settings: Mapping[str, JSON] | None = None, window: int | None = None
    ) -> None:
        device = device.upper()
        # Without this package, OpenVINO sends no usage reports.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import numpy
        import openvino
        import openvino_genai

        self._concatenate, self._tensor = numpy.concatenate, openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        properties = configure(scheduler, settings or {}, properties_of(openvino.Core()))
        # In bf16, OpenVINO's default on CPUs that have it, an answer whose prefix is cached differs from the first one,
        # so a seed would not repeat it. In f32 it does, and decoding is faster.
        if device == "CPU":
            properties.setdefault("INFERENCE_PRECISION_HINT", "f32")
        with openable(model) as path:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, device, properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        self.longest_token = max(map(len, vocabulary))
        self._controls = ControlTokens(_control_tokens(self._tokenizer, vocabulary))
        self.chat_template = str(self._tokenizer.chat_template)
        self._requests: dict[int, _Request] = {}
        self._grammars = Grammars(self._tokenizer, len(vocabulary), self._compile_any)
        self._embedder = Embedder(model, self._tokenizer, device, properties)
        self.context_window = window or context_window(model)
        pieces = PieceAdder(self._pipeline, self._tensor)
        in_pieces = "max_num_batched_tokens" not in (settings or {}) and reads_in_pieces(scheduler)
        seconds = pieces.seconds_per_token() if in_pieces else 0.0
        chunks = Chunks(seconds, scheduler.max_num_batched_tokens, hidden_size(model) or _WIDTH)
        self._reader = PromptReader(pieces.add, chunks)

    @property
    def busy(self) -> bool:
        return self._generating or self._reader.busy or self._embedder.busy or any(self._compiling())

    @property
    def _generating(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def cancel(self, number: int) -> None:
        self._embedder.cancel(number)
        request = self._requests.pop(number, None)
        if request and request.compiled:
            request.compiled.cancel()
        elif request and request.handle:
            request.handle.cancel()
        else:
            self._reader.cancel(number)

    def count(self, text: str) -> int:
        return len(self._encode(text, special=False))

    def tokenize(self, text: str) -> list[int]:
        return list(map(int, self._tokens_of(text)))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    def name_of(self, token: int) -> str:
        return str(self._tokenizer.decode([token], False))

    def start(
        self,
        number: int,
        prompt: EnginePrompt,
        sampling: Sampling,
        constraint: Constraint | None = None,
        tools: Sequence[JSON] = (),
        logprobs: Wanted | None = None,
    ) -> None:
        check_sampling(sampling)
        ids = self._tokens_of(prompt, tools)
        if not len(ids):
            raise InvalidRequest("there is nothing to continue", "prompt")
        most = max_new_tokens(len(ids), sampling, self.context_window or _UNKNOWN_WINDOW)
        try:
            config = self._config(sampling, most)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(last_line(error), _field_named_in(error)) from None
        decoder, stops = IncrementalDecoder(self._tokenizer.decode), StopStrings(sampling.stop)
        self._requests[number] = request = _Request(ids, config, decoder, stops)
        if logprobs:
            config.logprobs, request.records = 1, Records(decoder, self._tokenizer.decode)
        if constraint:
            self._compile(request, constraint)
        else:
            self._read(number, request)

    def _compile(self, request: _Request, constraint: Constraint) -> None:
        request.config.structured_output_config = structured_output(constraint)
        request.compiled, request.constraint_field = self._grammars.compile(constraint), constraint.field
        request.compiled_by = time.monotonic() + COMPILE_SECONDS

    def _read(self, number: int, request: _Request) -> None:
        """Have the prompt read: a long one in pieces, before the request is in the batch."""
        request.compiled = None
        if self._reader.takes(request.ids):
            self._reader.add(number, request.ids)
        else:
            self._add_to_batch(number, request)

    def _add_to_batch(self, number: int, request: _Request) -> None:
        request.handle = self._pipeline.add_request(number, self._tensor(request.ids[None, :]), request.config)

    def _compiling(self) -> Iterator[tuple[int, _Request]]:
        """The requests that wait for their constraints."""
        return ((number, request) for number, request in self._requests.items() if request.compiled)

    def _compile_any(self) -> None:
        """Have the pipeline compile a constraint, which sets up its compiler for as many logits as the model has."""
        config = self._pipeline.get_config()
        config.max_new_tokens = 1
        config.structured_output_config = structured_output(Constraint(REGEX, ".", ""))
        handle = self._pipeline.add_request(_NO_REQUEST, self._tensor(self._encode(".", special=True)[None, :]), config)
        while not handle.can_read():
            self._pipeline.step()

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        tokenized = [self._encode(text, special=True) for text in texts]
        check_texts(tokenized, self.context_window)
        self._embedder.start(number, tokenized)

    def count_prompt(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> int:
        return len(self._tokens_of(prompt, tools))

    def _tokens_of(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> Any:
        """The tokens of a prompt, in an array."""
        text = prompt if isinstance(prompt, str) else self.render(prompt, tools)
        return self._encode(text, special=isinstance(prompt, str))

    def _encode(self, text: str, special: bool) -> Any:
        """The tokens of all of `text`, in an array. The tokenizer may truncate it, so pieces are tokenized too."""
        pieces = [self._ids(piece, special and not number) for number, piece in enumerate(_PIECES.findall(text))]
        count = sum(map(len, pieces))
        if len(pieces) > 1 and self.context_window and count > 2 * self.context_window:
            return self._concatenate(pieces)  # Far too long, so the whole need not be tokenized as well.
        whole = self._ids(text, special)
        # A piece may end within a token, so one token more for each is no sign of truncation.
        return self._concatenate(pieces) if count > len(whole) + len(pieces) else whole

    def _ids(self, text: str, special: bool) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].copy()

    def render(self, messages: Messages, tools: Sequence[JSON] = ()) -> str:
        turns, tools = self._controls.escaped(messages), self._controls.escaped(tools)
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tools=tools or None))

    def _config(self, sampling: Sampling, most: int) -> Any:
        """OpenVINO's `GenerationConfig` for an answer of so many tokens at most."""
        config = self._pipeline.get_config()  # A copy, with the model's own end-of-sequence tokens and defaults.
        config.max_new_tokens = most
        if sampling.temperature is not None or sampling.top_p is not None:
            config.do_sample = not is_greedy(sampling)
        if config.do_sample:
            for name in ("temperature", "top_p", "top_k"):
                self._set(config, name, sampling)
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            self._set(config, name, sampling)
        # OpenVINO's default seed is a constant.
        config.rng_seed = random.getrandbits(63) if sampling.seed is None else sampling.seed % 2**64
        config.validate()
        return config

    @staticmethod
    def _set(config: Any, name: str, sampling: Sampling) -> None:
        if (value := getattr(sampling, name)) is not None:
            setattr(config, name, value)

    def step(self) -> list[Part]:
        """Add a token to every answer; returns what each gained, and the texts that are embedded."""
        if self._reader.busy:
            self._read_on()
        generating = self._generating
        if generating:
            self._pipeline.step()
        parts = self._compiled_constraints(0 if generating else _THREAD_WAIT)
        parts += [part] if (part := self._embedder.step(0 if generating or parts else _THREAD_WAIT)) else []
        for number, request in list(self._requests.items()):
            if request.handle and (part := self._progress(number, request)):
                parts.append(part)
                if part.get("last"):
                    del self._requests[number]
        return parts

    def _read_on(self) -> None:
        """Have the next piece of a long prompt read."""
        alone = not any(request.handle for request in self._requests.values())
        if (number := self._reader.step(alone)) is not None:
            self._add_to_batch(number, self._requests[number])

    def _compiled_constraints(self, wait_seconds: float) -> list[Part]:
        """Add requests to the batch whose constraints are compiled; returns the errors of the others.

        Args:
            wait_seconds: How long to wait for the first one.
        """
        parts: list[Part] = []
        if waiting := list(self._compiling()):
            idle = self._grammars.wait(0 if self._embedder.busy else wait_seconds)
            for number, request in waiting:
                if part := self._after_compiling(number, request, idle):
                    del self._requests[number]
                    parts.append(part)
        return parts

    def _after_compiling(self, number: int, request: _Request, idle: bool) -> Part | None:
        """Add a request to the batch if its constraint is compiled; returns its error if it cannot be."""
        compiled = request.compiled
        if compiled and compiled.done() and compiled.exception():
            error = compiled.exception()
            field = error.field if isinstance(error, InvalidRequest) else None
            return {"id": number, "error": str(error and error.args[0]), "field": field, "last": True}
        if compiled and compiled.done() and idle:
            self._read(number, request)
        elif time.monotonic() > request.compiled_by:
            said = f"no constraint could be compiled within {COMPILE_SECONDS:.0f} s; a simpler one may be"
            return {"id": number, "error": said, "field": request.constraint_field, "last": True}
        return None

    def _progress(self, number: int, request: _Request) -> Part | None:
        """The part of a request after a step, if it gained any text or ended."""
        outputs = _new_outputs(request.handle)
        finish = outputs[-1].finish_reason.name if outputs else "NONE"
        text = request.stops.push("".join(map(request.added, outputs)))
        if finish != "NONE" and not request.stops.hit:
            text += request.stops.push((request.records or request.decoder).flush()) + request.stops.flush()
        part: Part = {"id": number, "text": text}
        if request.stops.hit:
            request.handle.cancel()
            part.update(reason="stop", usage=request.usage, stop_string=request.stops.found, last=True)
        elif finish != "NONE":
            part.update(reason=finish.lower(), usage=request.usage, last=True)
        elif request.handle.get_status().name == "IGNORED":
            return {"id": number, "error": "the model's cache has no room for this prompt", "last": True}
        elif not text:
            return None
        return request.records.whole(part, request.stops.hit) if request.records else part


def _new_outputs(handle: Any) -> list[Any]:
    """OpenVINO's `GenerationOutput`s since the last call; mostly one, of one token."""
    outputs: list[Any] = []
    while handle.can_read():
        outputs.extend(handle.read().values())
    return outputs


def _field_named_in(error: Exception) -> str | None:
    """The field of `Sampling` that an error of OpenVINO's names, if it names one."""
    text = str(error)
    return next((name for name in Sampling.__dataclass_fields__ if name in text), None)


def _control_tokens(tokenizer: Any, vocabulary: dict[bytes, int]) -> list[str]:
    """The vocabulary's control tokens as text: those that look like one and are decoded into nothing."""
    texts = [(text.decode("utf-8", "replace"), number) for text, number in vocabulary.items()]
    return [text for text, number in texts if _LOOKS_SPECIAL.fullmatch(text) and not tokenizer.decode([number])]


def context_window(model: Path) -> int | None:
    """The context window in tokens, by the model's own files; None if they do not say."""
    return _number_in(model, "context_length", _WINDOW_FIELDS)


def hidden_size(model: Path) -> int | None:
    """The size of a hidden state, by the model's own files; None if they do not say."""
    return _number_in(model, "embedding_length", _WIDTH_FIELDS)


def _number_in(model: Path, in_gguf: str, fields: Sequence[str]) -> int | None:
    """A number that a GGUF file has under that name, and the configuration of a folder in one of these fields."""
    if model.is_file():
        with model.open("rb") as file:
            return gguf_number(file, in_gguf)
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return next((config[name] for name in fields if isinstance(config.get(name), int)), None)


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(Path(model), device, settings, window)


if __name__ == "__main__":
    serve(load)
