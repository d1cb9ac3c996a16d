"""The program of the llama.cpp engine's own process: several requests in one batch, as sequences of one context.

A step decodes one token of every answer, and a chunk of the prompts that have not been read yet. All sequences share
the context's cells. Where these run out, the youngest request gives up its own, waits, and is read again later; so the
oldest always goes on, and nobody is refused for somebody else's length. A text to embed is read a chunk a step too, and
goes before them all. Source: `llama.h` of llama.cpp.
"""

from __future__ import annotations

import inspect
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ctypes import create_string_buffer
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_type_hints

# Read when the library is loaded. Its threads wait for each other at every step, and spin meanwhile; where other
# processes want the cores too, as long as the default has it: 12 tokens/s instead of 51 on two busy cores. Never to
# spin halves the speed on two that are free.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

import llama_cpp
import numpy
from jinja2 import TemplateError
from llama_cpp import llama_chat_format
from llama_cpp import llama_cpp as api
from pydantic import Field, TypeAdapter, ValidationError

from comps.core.errors import InvalidRequest, ModelServerError, SettingsError
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.decoding import Answer, check_sampling, check_settings, chunk_for, greedy, room_for
from comps.model_servers.embedded.engine_program import Part, serve
from comps.model_servers.embedded.gguf import gguf_window
from comps.model_servers.embedded.text import ControlTokens
from comps.model_servers.embedded.vectors import Texts, check_texts

_WINDOW = 16_384
"""The context, if nothing else is said and the model's own is larger: its cells take memory from the start, 2 GB of it
for a model of 8 billion parameters."""
_AT_ONCE = 8
"""Requests in a batch, if nothing else is said."""
_OBJECTS = {"model_path", "chat_handler", "draft_model", "tokenizer"}
_LOST = {"logits_all", "spm_infill", "vocab_only", "kwargs"}
"""What nothing here looks at."""
_NO_SETTINGS = _OBJECTS | _LOST
"""Arguments of `llama_cpp.Llama` that cannot be set."""
_LEAST = {"n_ctx": 0, "n_batch": 1, "n_ubatch": 1, "n_threads": 0, "n_threads_batch": 0}
_NO_ROOM = 1
"""What `llama_decode` says when it finds no cells."""

Rendered: TypeAlias = tuple[str, list[str], bool]
"""A conversation as text, what ends a turn in it, and whether a BOS is still to be put before it."""


@dataclass
class _Row:
    """What one request has in a batch."""

    tokens: Sequence[int]
    sequence: int
    position: int
    """Of the first token."""
    wanted: bool
    """Whether a result is wanted for the last token."""


class Context:
    """A llama.cpp model and its context.

    Args:
        model: A GGUF file.
        sequences: How many it can hold.
        options: Arguments of `llama_cpp.Llama`.
    """

    def __init__(self, model: Path, sequences: int, options: Mapping[str, JSON]) -> None:
        self.llama = _open(model, sequences, options)
        self._context = self.llama._ctx.ctx  # There is no public way to decode several sequences.
        self._vocabulary = self.llama._model.vocab
        self._memory = api.llama_get_memory(self._context)
        self.cells = int(api.llama_n_ctx(self._context))
        self.batch_size = int(api.llama_n_batch(self._context))
        self._batch = api.llama_batch_init(self.batch_size, 0, 1)
        self._defaults = inspect.signature(llama_cpp.Llama.create_completion).parameters
        self.embeds = bool(options.get("embedding"))
        self._seed = int(options.get("seed", -1))
        """Of requests that have none; -1, or what llama.cpp has for it: each is drawn anew."""
        last = int(options.get("last_n_tokens_size", -1))
        self._penalised = last if last >= 0 else self.cells
        """How many of the last tokens penalties look at."""
        words = [api.llama_vocab_get_text(self._vocabulary, token) for token in range(self.llama.n_vocab())]
        self.longest_token = max(map(len, words))
        self.ends = {token for token in range(len(words)) if api.llama_vocab_is_eog(self._vocabulary, token)}
        self.controls = [
            word.decode("utf-8", "replace")
            for token, word in enumerate(words)
            if token in self.ends or api.llama_vocab_is_control(self._vocabulary, token)
        ]
        bos = self.llama.token_bos()
        self.bos = [bos] if bos >= 0 and self.llama._model.add_bos_token() else []
        """What the model wants before a text."""

    @property
    def most_at_once(self) -> int | None:
        """The most tokens of a text to embed that can be read, as one that cannot be taken apart: a model that does not
        remember what it has read, or pools it, must have all of it before it. None: any text can be read in chunks."""
        in_chunks = self.generates and self.llama.pooling_type() == api.LLAMA_POOLING_TYPE_NONE
        return None if in_chunks else int(api.llama_n_ubatch(self._context))

    @property
    def generates(self) -> bool:
        """Whether it remembers what it has read: a model that only embeds does not."""
        return self._memory is not None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The tokens of `text`; `special`: control tokens in it are read as such."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=special))

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens leave none."""
        array = (api.llama_token * len(tokens))(*tokens)
        size = 16 * len(tokens)
        while True:
            buffer = create_string_buffer(size)
            length = api.llama_detokenize(self._vocabulary, array, len(tokens), buffer, size, False, False)
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", "replace")
            size = -length

    def decode(self, rows: Sequence[_Row]) -> list[int | None] | None:
        """Read the tokens of every row; together they are at most `batch_size`.

        Returns:
            For each row the place of its result, None if none was wanted; None if there is no room in the context.
        """
        if self.embeds:
            api.llama_set_embeddings(self._context, False)
        places, said = self._put(rows, False)
        if said == _NO_ROOM:
            return None
        _check(said)
        return places

    def _put(self, rows: Sequence[_Row], every: bool) -> tuple[list[int | None], int]:
        batch, at = self._batch, 0
        places: list[int | None] = []
        for row in rows:
            for position, token in enumerate(row.tokens, row.position):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, every
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row.sequence
                at += 1
            if row.wanted:
                batch.logits[at - 1] = True
            places.append(at - 1 if row.wanted else None)
        batch.n_tokens = at
        return places, int(api.llama_decode(self._context, batch))

    def forget(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        if self._memory is not None:
            api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def total(self, tokens: Sequence[int], sequence: int, before: int) -> Any:
        """The sum of the last hidden states of a text's tokens, of which `before` were read just before; a model that
        pools them has its own way instead.

        Returns:
            float64, shape (hidden size,).
        """
        api.llama_set_embeddings(self._context, True)
        _, said = self._put([_Row(tokens, sequence, before, True)], True)
        _check(said)
        length = self.llama.n_embd()
        if self.llama.pooling_type() == api.LLAMA_POOLING_TYPE_NONE:
            rows = [api.llama_get_embeddings_ith(self._context, at)[:length] for at in range(len(tokens))]
            return numpy.array(rows).sum(axis=0, dtype=numpy.float64)
        return numpy.array(api.llama_get_embeddings_seq(self._context, sequence)[:length], numpy.float64)

    def sampler(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        """llama.cpp's samplers in its own order; what is not said is as in `llama_cpp.Llama.create_completion`."""
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        self._add_penalties(chain, prompt, sampling)
        temperature = self._value("temperature", sampling.temperature)
        if greedy(sampling):
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
            return chain
        seed = self._seed if sampling.seed is None else sampling.seed
        if sampling.seed is None and seed in (-1, api.LLAMA_DEFAULT_SEED):
            seed = random.getrandbits(32)
        for sampler in (
            api.llama_sampler_init_top_k(self._value("top_k", sampling.top_k)),
            api.llama_sampler_init_typical(self._value("typical_p", sampling.typical_p), 1),
            api.llama_sampler_init_top_p(self._value("top_p", sampling.top_p), 1),
            api.llama_sampler_init_min_p(self._value("min_p", None), 1),
            api.llama_sampler_init_temp(temperature),
            # The greatest seed means to llama.cpp that there is none.
            api.llama_sampler_init_dist(seed % (2**32 - 1)),
        ):
            api.llama_sampler_chain_add(chain, sampler)
        return chain

    def _add_penalties(self, chain: Any, prompt: Sequence[int], sampling: Sampling) -> None:
        words = self.llama.n_vocab()
        repetition = self._value("repeat_penalty", sampling.repetition_penalty)
        frequency = self._value("frequency_penalty", sampling.frequency_penalty)
        presence = self._value("presence_penalty", sampling.presence_penalty)
        if repetition != 1:
            penalty = api.llama_sampler_init_penalties(words, self._penalised, repetition, 0.0, 0.0)
            for token in prompt:  # What stands in the prompt is repeated as well; the other two look at the answer.
                api.llama_sampler_accept(penalty, token)
            api.llama_sampler_chain_add(chain, penalty)
        if frequency or presence:
            api.llama_sampler_chain_add(
                chain, api.llama_sampler_init_penalties(words, self._penalised, 1.0, frequency, presence)
            )

    def _value(self, name: str, given: Any) -> Any:
        return self._defaults[name].default if given is None else given

    def sample(self, sampler: Any, place: int) -> int:
        """The next token, from the result at `place`."""
        return int(api.llama_sampler_sample(sampler, self._context, place))

    def seconds_per_token(self) -> float:
        """Measured on a prompt of a few tokens."""
        tokens = (self.bos or [0]) * min(32, self.batch_size)
        took = 0.0
        for _ in range(2):  # The first time, the weights are fetched from the disk as well.
            started = time.perf_counter()
            self.decode([_Row(tokens, 0, 0, True)])
            took = time.perf_counter() - started
            self.forget(0)
        return took / len(tokens)


@dataclass
class _Request:
    """One request, in the batch or waiting for a place in it."""

    answer: Answer
    tokens: list[int]
    """The prompt, and what has been generated so far."""
    sampler: Any
    sequence: int = -1
    read: int = 0
    """How many of `tokens` the context holds."""

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read


class Engine:
    """The context and the requests that are in it.

    Args:
        model: A GGUF file.
        device: CPU, or GPU: then the whole model is there, unless `settings` has `n_gpu_layers`.
        settings: Arguments of `llama_cpp.Llama`, and `n_seq_max`, the most requests in a batch.
        window: In tokens, unless `settings` has `n_ctx` (0 there takes the model's own, however large it is).

    Raises:
        SettingsError: A setting is unknown, or does not fit this machine.
    """

    def __init__(self, model: Path, device: str, settings: Mapping[str, JSON], window: int | None) -> None:
        known = {*inspect.signature(llama_cpp.Llama).parameters, "n_seq_max"} - _NO_SETTINGS
        check_settings(settings, known, "llama_cpp")
        settings = _typed(settings)
        cores = physical_cores()
        options = {
            "n_threads": cores,
            "n_threads_batch": settings.get("n_threads", cores),
            "verbose": False,
            **settings,
        }
        options.setdefault("n_gpu_layers", _layers(device))
        options.setdefault("n_ctx", window or _window(model))
        format_name = options.pop("chat_format", None)
        at_once = _at_once(options)
        self._context = Context(model, at_once, options)
        self._in_template = _chat_template(self._context.llama, format_name)
        self._controls = ControlTokens(self._context.controls)
        # llama.cpp rounds the cells up, and an answer that went on into what is over would not be what was asked for.
        self._window = min(options["n_ctx"] or self._context.cells, self._context.cells)
        self.context_window: int | None = self._window
        self.longest_token = self._context.longest_token
        self._free = list(range(at_once))
        self._running: list[_Request] = []
        """Oldest first."""
        self._waiting: list[_Request] = []
        self._texts: list[Texts] = []
        self._kept = 0
        """Cells for the text that is being read, all of it; 0 between texts."""
        self._for_texts = at_once
        """The sequence of a text to embed: with `embedding`, llama_cpp.Llama makes room for as many as there can be."""
        self._chunk = self._context.batch_size
        if "n_batch" not in settings and self._context.generates:
            self._chunk = chunk_for(self._context.seconds_per_token(), self._chunk)
        self._most_at_once = self._context.most_at_once

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._texts)

    def start(self, number: int, prompt: str | list[dict[str, str]], sampling: Sampling) -> None:
        check_sampling(sampling)
        if not self._context.generates:
            raise ModelServerError("this model makes embeddings, and no answers")
        continues = isinstance(prompt, str)
        tokens, stops = self._read(prompt)
        if not tokens:
            raise InvalidRequest("there is nothing to continue", "prompt")
        room = room_for(len(tokens), sampling, self._window)
        decode, ends = self._context.decode_text, self._context.ends
        answer = Answer(number, tokens, room, (*sampling.stop, *stops), decode, ends, continues)
        self._waiting.append(_Request(answer, tokens, self._context.sampler(tokens, sampling)))

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        if not self._context.embeds:
            raise ModelServerError("it makes embeddings only if the setting embedding is true")
        llama = self._context.llama
        tokenized = [list(llama.tokenize(text.encode(), add_bos=True, special=False)) for text in texts]
        check_texts(tokenized, self._most_at_once or self._window)
        self._texts.append(Texts(number, tokenized))

    def cancel(self, number: int) -> None:
        for request in [*self._running, *self._waiting]:
            if request.answer.number == number:
                self._end(request)
        if self._texts and self._texts[0].number == number:
            self._put_away()
        self._texts = [texts for texts in self._texts if texts.number != number]

    def count(self, text: str) -> int:
        return len(self._context.tokenize(text, special=True))

    def measure(self, prompt: str | list[dict[str, str]]) -> int:
        return len(self._read(prompt)[0])

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation in the chat template, without the token that the model wants before every text."""
        return self._in_template(self._controls.escaped(messages))[0]

    def _read(self, prompt: str | list[dict[str, str]]) -> tuple[list[int], list[str]]:
        """The tokens of a prompt, and what its answer ends before."""
        text, stops, begin = (
            (prompt, [], True) if isinstance(prompt, str) else self._in_template(self._controls.escaped(prompt))
        )
        tokens = self._context.tokenize(text, special=True)
        return (self._context.bos + tokens if begin and tokens[:1] != self._context.bos else tokens), stops

    def step(self) -> list[Part]:
        """Let every answer grow by a token, and read on in the prompts and in a text to embed."""
        parts = [part] if (part := self._embed()) else []
        while self._waiting and self._free and self._has_room(len(self._waiting[0].tokens) + 1):
            request = self._waiting.pop(0)
            request.sequence = self._free.pop(0)
            self._running.append(request)
        if self._running:
            parts.extend(self._advance())
        return parts

    def _has_room(self, tokens: int) -> bool:
        """Whether so many more fit beside what is running and its next tokens; alone, every request does."""
        return self._taken() == 0 or tokens + self._taken() <= self._context.cells

    def _taken(self) -> int:
        return self._kept + sum(len(request.tokens) + 1 for request in self._running)

    @property
    def _can_put_back(self) -> bool:
        """The oldest goes on, unless a text needs its place."""
        return len(self._running) > (0 if self._kept else 1)

    def _advance(self) -> list[Part]:
        while self._can_put_back and self._taken() > self._context.cells + len(self._running):
            self._put_back()
        places = None
        while self._running and (places := self._context.decode(rows := self._rows())) is None:
            if not self._can_put_back:
                raise RuntimeError("the model's context has no room for this prompt")
            self._put_back()
        if places is None:
            return []
        grown = []
        for request, row, place in zip(list(self._running), rows, places, strict=True):
            request.read += len(row.tokens)
            if place is not None and (part := self._grow(request, place)):
                grown.append(part)
        return grown

    def _rows(self) -> list[_Row]:
        """What each request has in the next batch: one token of an answer, an equal part of the chunk for a prompt."""
        answers = sum(request.unread == 1 for request in self._running)
        left = max(min(self._chunk, self._context.batch_size - answers), 0)
        shares = dict.fromkeys((id(request) for request in self._running), 1)
        prompts = sorted((request for request in self._running if request.unread > 1), key=lambda it: it.unread)
        for others, request in zip(range(len(prompts), 0, -1), prompts, strict=True):
            shares[id(request)] = min(request.unread, left // others)
            left -= shares[id(request)]
        return [
            _Row(
                request.tokens[request.read : request.read + shares[id(request)]],
                request.sequence,
                request.read,
                request.unread == shares[id(request)],
            )
            for request in self._running
        ]

    def _grow(self, request: _Request, place: int) -> Part | None:
        token = self._context.sample(request.sampler, place)
        request.tokens.append(token)
        part = request.answer.push(token)
        if part and part.get("last"):
            self._end(request)
        return part

    def _put_back(self) -> None:
        """Take the youngest request out of the batch, to be read again when there is room."""
        youngest = self._running[-1]
        self._leave(youngest)
        self._waiting.insert(0, youngest)

    def _leave(self, request: _Request) -> None:
        self._running.remove(request)
        self._context.forget(request.sequence)
        self._free.append(request.sequence)
        request.sequence, request.read = -1, 0

    def _end(self, request: _Request) -> None:
        if request in self._running:
            self._leave(request)
        else:
            self._waiting.remove(request)
        api.llama_sampler_free(request.sampler)

    def _embed(self) -> Part | None:
        """Read on in the texts, if there are any; the part for whoever asked, once all of theirs are read."""
        if not self._texts:
            return None
        texts = self._texts[0]
        if not texts.done:
            self._read_on(texts)
        if not texts.done:
            return None
        self._texts.pop(0)
        return texts.part

    def _read_on(self, texts: Texts) -> None:
        self._kept = len(texts.text)
        while self._running and self._taken() > self._context.cells:
            self._put_back()
        tokens, before = texts.chunk(self._most_at_once or self._chunk)
        texts.add(len(tokens), self._context.total(tokens, self._for_texts, before))
        if before + len(tokens) == self._kept:
            self._put_away()

    def _put_away(self) -> None:
        """Free the cells of the text that is being read."""
        self._context.forget(self._for_texts)
        self._kept = 0


def _check(said: int) -> None:
    if said != 0:
        raise RuntimeError(f"llama.cpp cannot go on: llama_decode says {said}")


def _open(model: Path, sequences: int, options: Mapping[str, JSON]) -> Any:
    """A `llama_cpp.Llama` whose context holds several sequences, for which it has no argument of its own."""
    usual = api.llama_context_default_params

    def several() -> Any:
        parameters = usual()
        parameters.n_seq_max, parameters.kv_unified = sequences, True
        return parameters

    api.llama_context_default_params = several
    try:
        return llama_cpp.Llama(str(model), **options)
    finally:
        api.llama_context_default_params = usual


def _typed(settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """The settings as `llama_cpp.Llama` has their types; for others llama.cpp has failures that name nothing."""
    types = get_type_hints(llama_cpp.Llama.__init__)
    typed = {}
    for name, value in settings.items():
        kind: Any = types.get(name, Any)
        with_range: Any = Annotated[kind, Field(ge=_LEAST[name])] if name in _LEAST else kind
        try:
            typed[name] = TypeAdapter(with_range).validate_python(value)
        except ValidationError as error:
            raise SettingsError(f"{name} = {value}: {error.errors()[0]['msg']}") from None
    return typed


def _layers(device: str) -> int:
    """How many layers of the model go to a GPU; -1: all."""
    if device.upper() == "CPU":
        return 0
    if device.upper() != "GPU":
        raise SettingsError(f"device = {device}: llama_cpp takes CPU or GPU")
    if not llama_cpp.llama_supports_gpu_offload():
        raise SettingsError(f"device = {device}: the llama-cpp-python installed here was built for CPUs only")
    return -1


def _at_once(options: dict[str, JSON]) -> int:
    """Take `n_seq_max` out of the options: a batch holds a token of each, and one place is left for prompts."""
    batch = options.get("n_batch", inspect.signature(llama_cpp.Llama).parameters["n_batch"].default)
    batch = min(batch, options["n_ctx"] or batch)
    most = min(max(batch - 1, 1), api.llama_max_parallel_sequences() - 1)
    said = options.pop("n_seq_max", min(_AT_ONCE, most))
    if not isinstance(said, int) or not 0 < said <= most:
        raise SettingsError(f"n_seq_max = {said}: from 1 to {most}, the tokens in a batch (n_batch, n_ctx) less one")
    return said


def _window(model: Path) -> int:
    with model.open("rb") as file:
        return min(gguf_window(file) or 0, _WINDOW)


def physical_cores() -> int:
    """The cores that this process may use; two threads of one core get in each other's way."""
    cores = set()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    for number in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        with suppress(OSError):
            cores.add(siblings.read_text())
    return len(cores) or len(allowed)


def _chat_template(llama: Any, name: JSON) -> Callable[[list[dict[str, str]]], Rendered]:
    """The named chat format, or else the model's own template."""
    if name is not None:
        return _named_format(name)
    template = llama.metadata.get("tokenizer.chat_template")

    def word(token: int) -> str:
        return llama._model.token_get_text(token) if token >= 0 else ""

    if template is None:
        return _no_format
    formatter = llama_chat_format.Jinja2ChatFormatter(
        template, eos_token=word(llama.token_eos()), bos_token=word(llama.token_bos())
    )

    def render(messages: list[dict[str, str]]) -> Rendered:
        try:
            return str(formatter(messages=messages).prompt), [], False
        except (TemplateError, ValueError) as error:  # The template itself says what it does not take.
            raise InvalidRequest(str(error), "messages") from None

    return render


def _no_format(messages: list[dict[str, str]]) -> Rendered:
    raise InvalidRequest(
        "the model has no chat template, so it continues texts and answers no conversation; the setting chat_format "
        "names a template",
        "messages",
    )


class _Noted(Exception):
    """A chat format has come to where it would generate."""


class _Notes:
    """Stands where a chat format expects a `llama_cpp.Llama`, and takes down what it would generate from."""

    verbose = False
    text, begin = "", False
    stop: Sequence[str] = ()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        self.text, self.begin = text.decode(), add_bos
        return []

    def create_completion(self, **asked: Any) -> None:
        self.stop = asked.get("stop") or ()
        raise _Noted


def _named_format(name: JSON) -> Callable[[list[dict[str, str]]], Rendered]:
    known = llama_chat_format.LlamaChatCompletionHandlerRegistry()._chat_handlers
    if name not in known:
        raise SettingsError(f"chat_format = {name}: llama_cpp has {', '.join(sorted(known))}")

    def render(messages: list[dict[str, str]]) -> Rendered:
        notes = _Notes()
        with suppress(_Noted):
            known[name](llama=notes, messages=messages)
        return notes.text, list(notes.stop), notes.begin

    return render


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(Path(model), device, settings, window)


if __name__ == "__main__":
    serve(load)
