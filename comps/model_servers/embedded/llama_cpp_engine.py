"""The program of the llama.cpp engine: several requests in one batch, as sequences of one context.

A step decodes one token of every answer, and a chunk of the prompts that have not been read yet. All sequences share
the cells of the KV cache. When these run out, the youngest request is preempted: it gives up its cells, waits, and its
tokens are read again later. So the oldest always goes on, and no request is refused for the length of others. A text to
embed is read in chunks too, and takes precedence over all answers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comps.core.errors import InvalidRequest, ModelServerError
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.constraints import Constraint
from comps.model_servers.embedded.decoding import Chunks, Completion, check_sampling, max_new_tokens
from comps.model_servers.embedded.engine_program import EnginePrompt, Messages, Part, serve
from comps.model_servers.embedded.logprobs import Wanted
from comps.model_servers.embedded.text import ControlTokens
from comps.model_servers.embedded.vectors import Texts, check_texts

# Read when llama.cpp is loaded, so it is set before the imports below. Its threads wait for each other at every step
# and spin meanwhile, by default even where other processes want the cores: 12 tokens/s instead of 51 on two busy cores.
# Without any spinning, the speed on two free cores is halved.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

from comps.model_servers.embedded.llama_cpp_chat_formats import Rendered, chat_format, own_template
from comps.model_servers.embedded.llama_cpp_context import Context, Row
from comps.model_servers.embedded.llama_cpp_grammars import Sampler
from comps.model_servers.embedded.llama_cpp_options import read_options

_LEAST_CHUNK = 16
"""The fewest tokens of prompts to read in a step. A token takes hardly longer in a small batch than in a large one."""


@dataclass
class _Request:
    """One request, running or waiting."""

    completion: Completion
    tokens: list[int]
    """The prompt, and what has been generated so far."""
    sampler: Sampler
    sequence: int = -1
    """Its number while it runs."""
    read: int = 0
    """How many of `tokens` are in the KV cache."""

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read

    @property
    def chunk(self) -> int:
        """The most tokens to read next."""
        records = self.completion.prompt_records
        if records is None:
            return self.unread
        return records.read - self.read or records.next_chunk  # What a preemption removed needs no scores again.

    def row(self, count: int) -> Row:
        """The next tokens, so many, for a batch."""
        records = self.completion.prompt_records
        scored = records is not None and records.read == self.read and count > 0
        tokens = self.tokens[self.read : self.read + count]
        return Row(tokens, self.sequence, self.read, scored or count == self.unread, scored)


class Engine:
    """The context and the requests that are in it; see `engine_program.Engine`.

    Args:
        model: A GGUF file.
        device: CPU, or GPU: then the whole model is there, unless `settings` has `n_gpu_layers`.
        settings: Arguments of `llama_cpp.Llama`, and `n_seq_max`, the most requests in a batch.
        window: In tokens, unless `settings` has `n_ctx` (0 there takes the model's own, however large it is).

    Raises:
        SettingsError: A setting is unknown, has a wrong value, or does not fit this machine.
    """

    def __init__(self, model: Path, device: str, settings: Mapping[str, JSON], window: int | None) -> None:
        options = read_options(model, device, settings, window)
        self._context = Context(model, options.sequences, options.arguments)
        self._render = chat_format(self._context.llama, options.chat_format)
        self.chat_template = "" if options.chat_format else own_template(self._context.llama) or ""
        self._controls = ControlTokens(self._context.controls)
        # llama.cpp may round the number of cells up; what was asked for counts.
        self._window = min(options.arguments["n_ctx"] or self._context.cells, self._context.cells)
        self.context_window: int | None = self._window
        self.longest_token = self._context.longest_token
        self._free = list(range(options.sequences))
        """The numbers of sequences that no request has."""
        self._running: list[_Request] = []
        """Oldest first."""
        self._waiting: list[_Request] = []
        self._texts: list[Texts] = []
        self._text_cells = 0
        """Cells for the whole text that is being embedded; 0 between texts."""
        self._text_sequence = options.sequences
        """The sequence of a text to embed: with `embedding`, `llama_cpp.Llama` adds sequences to those asked for."""
        measured = "n_batch" not in settings and self._context.generates
        seconds = self._context.seconds_per_token() if measured else 0.0
        self._chunks = Chunks(seconds, self._context.batch_size, self._context.width, _LEAST_CHUNK)
        self._whole_text_limit = self._context.whole_text_limit

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._texts)

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
        if not self._context.generates:
            raise ModelServerError("this model makes embeddings, and no answers")
        continues = isinstance(prompt, str)
        tokens, stops = self._tokens_of(prompt, tools)
        if not tokens:
            raise InvalidRequest("there is nothing to continue", "prompt")
        most = max_new_tokens(len(tokens), sampling, self._window)
        decode, ends = self._context.detokenize, self._context.ends
        completion = Completion(number, tokens, most, (*sampling.stop, *stops), decode, ends, continues)
        if logprobs:
            named = partial(decode, special=True)
            completion.add_logprobs(logprobs, named, logprobs.of_prompt(prompt, tokens, self._context.bos, named))
        self._waiting.append(_Request(completion, tokens, self._context.sampler(tokens, sampling, constraint)))

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        if not self._context.embeds:
            raise ModelServerError("it makes embeddings only if the setting embedding is true")
        llama = self._context.llama
        tokenized = [list(llama.tokenize(text.encode(), add_bos=True, special=False)) for text in texts]
        check_texts(tokenized, self._whole_text_limit or self._window)
        self._texts.append(Texts(number, tokenized))

    def cancel(self, number: int) -> None:
        for request in [*self._running, *self._waiting]:
            if request.completion.number == number:
                self._finish(request)
        if self._texts and self._texts[0].number == number:
            self._free_text()
        self._texts = [texts for texts in self._texts if texts.number != number]

    def count(self, text: str) -> int:
        return len(self._context.tokenize(text, special=True))

    def tokenize(self, text: str) -> list[int]:
        return self._tokens_of(text)[0]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._context.detokenize(tokens)

    def name_of(self, token: int) -> str:
        return self._context.detokenize([token], special=True)

    def count_prompt(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> int:
        return len(self._tokens_of(prompt, tools)[0])

    def render(self, messages: Messages, tools: Sequence[JSON] = ()) -> str:
        return self._rendered(messages, tools)[0]

    def _rendered(self, messages: Messages, tools: Sequence[JSON]) -> Rendered:
        return self._render(self._controls.escaped(messages), self._controls.escaped(tools))

    def _tokens_of(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> tuple[list[int], list[str]]:
        """The tokens of a prompt, and the stop strings of its chat format."""
        text, stops, needs_bos = (prompt, [], True) if isinstance(prompt, str) else self._rendered(prompt, tools)
        tokens, bos = self._context.tokenize(text, special=True), self._context.bos
        return (bos + tokens if needs_bos and tokens[:1] != bos else tokens), stops

    def step(self) -> list[Part]:
        """Add a token to every answer, and read a chunk of the prompts and of a text to embed; returns the parts."""
        parts = [part] if (part := self._embed()) else []
        while self._waiting and self._free and self._has_room(len(self._waiting[0].tokens) + 1):
            request = self._waiting.pop(0)
            request.sequence = self._free.pop(0)
            self._running.append(request)
        parts.extend(part for request in self._running if (part := request.completion.prompt_part()))
        if self._running:
            parts.extend(self._run_batch())
        return parts

    def _has_room(self, tokens: int) -> bool:
        """Whether so many more tokens fit beside the running requests and their next ones. Alone, any request does."""
        return self._used_cells() == 0 or tokens + self._used_cells() <= self._context.cells

    def _used_cells(self) -> int:
        return self._text_cells + sum(len(request.tokens) + 1 for request in self._running)

    @property
    def _read_cells(self) -> int:
        """The tokens in the KV cache. llama.cpp's attention goes over all of them, whatever their sequence."""
        return sum(request.read for request in self._running)

    @property
    def _can_preempt(self) -> bool:
        """The oldest request is preempted only for a text to embed."""
        return len(self._running) > (0 if self._text_cells else 1)

    def _run_batch(self) -> list[Part]:
        while self._can_preempt and self._used_cells() > self._context.cells + len(self._running):
            self._preempt()
        indices = None
        while self._running and (indices := self._context.decode(rows := self._rows())) is None:
            if not self._can_preempt:
                raise RuntimeError("the model's context has no room for this prompt")
            self._preempt()
        if indices is None:
            return []
        parts = []
        for request, row, index in zip(list(self._running), rows, indices, strict=True):
            request.read += len(row.tokens)
            if row.scored:
                self._score_prompt(request, row, index)
            elif index is not None and (part := self._add_token(request, index)):
                parts.append(part)
        return parts

    def _rows(self) -> list[Row]:
        """The next batch: one token of each answer, and an equal share of the chunk for each prompt."""
        answers = sum(request.unread == 1 for request in self._running)
        left = max(min(self._chunks.after(self._read_cells), self._context.batch_size - answers), 0)
        shares = dict.fromkeys((id(request) for request in self._running), 1)
        prompts = sorted((request for request in self._running if request.unread > 1), key=lambda it: it.unread)
        for others, request in zip(range(len(prompts), 0, -1), prompts, strict=True):
            shares[id(request)] = min(request.chunk, left // others)
            left -= shares[id(request)]
        return [request.row(shares[id(request)]) for request in self._running]

    def _score_prompt(self, request: _Request, row: Row, last: int | None) -> None:
        """Add the logprobs of the prompt's tokens that follow those of a row.

        Args:
            request: With `prompt_records`.
            row: The row.
            last: The index of its last token in the batch.
        """
        records = request.completion.prompt_records
        assert records
        assert last is not None
        first, alternatives = last - len(row.tokens) + 1, records.alternatives
        records.push(lambda at, token: self._context.scores(token, first + at, alternatives), len(row.tokens))

    def _add_token(self, request: _Request, index: int) -> Part | None:
        token = self._context.sample(request.sampler, index)
        request.tokens.append(token)
        most = request.completion.alternatives
        part = request.completion.push(token, None if most is None else self._context.scores(token, index, most))
        if part and part.get("last"):
            self._finish(request)
        return part

    def _preempt(self) -> None:
        """Take the youngest request out of the batch; its tokens are read again when there is room."""
        youngest = self._running[-1]
        self._stop_running(youngest)
        self._waiting.insert(0, youngest)

    def _stop_running(self, request: _Request) -> None:
        self._running.remove(request)
        self._context.remove(request.sequence)
        self._free.append(request.sequence)
        request.sequence, request.read = -1, 0

    def _finish(self, request: _Request) -> None:
        if request in self._running:
            self._stop_running(request)
        else:
            self._waiting.remove(request)
        request.sampler.free()

    def _embed(self) -> Part | None:
        """Read a chunk of the texts to embed, if there are any; returns the part of a request that is done."""
        if not self._texts:
            return None
        texts = self._texts[0]
        if not texts.done:
            self._read_text(texts)
        if not texts.done:
            return None
        self._texts.pop(0)
        return texts.part

    def _read_text(self, texts: Texts) -> None:
        self._text_cells = len(texts.text)
        while self._running and self._used_cells() > self._context.cells:
            self._preempt()
        most = self._whole_text_limit or self._chunks.after(self._read_cells + texts.read)
        tokens, before = texts.chunk(most)
        texts.add(len(tokens), self._context.hidden_sum(tokens, self._text_sequence, before))
        if before + len(tokens) == self._text_cells:
            self._free_text()

    def _free_text(self) -> None:
        """Free the cells of the text that is being embedded."""
        self._context.remove(self._text_sequence)
        self._text_cells = 0


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(Path(model), device, settings, window)


if __name__ == "__main__":
    serve(load)
