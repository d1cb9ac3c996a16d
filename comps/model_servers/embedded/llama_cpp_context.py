"""A llama.cpp model and its context: tokens, batches over several sequences, samplers and hidden states.

llama-cpp-python has no public way to decode several sequences, so its ctypes functions are called directly. Source:
`llama.h` of llama.cpp.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Mapping, Sequence
from ctypes import create_string_buffer
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy
from llama_cpp import llama_cpp as api

from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.constraints import Constraint
from comps.model_servers.embedded.decoding import is_greedy
from comps.model_servers.embedded.llama_cpp_grammars import Sampler, grammar_sampler
from comps.model_servers.embedded.logprobs import Scores

_NO_CELLS = 1
"""What `llama_decode` returns when the KV cache has no room."""


@dataclass
class Row:
    """The tokens of one sequence in a batch."""

    tokens: Sequence[int]
    sequence: int
    position: int
    """Of the first token."""
    wanted: bool
    """Whether the logits of the last token are wanted."""
    scored: bool = False
    """Whether those of all tokens are wanted."""


class Context:
    """A llama.cpp model and its context.

    Args:
        model: A GGUF file.
        sequences: How many it can hold at once.
        arguments: Those of `llama_cpp.Llama` beside the model.
    """

    def __init__(self, model: Path, sequences: int, arguments: Mapping[str, JSON]) -> None:
        self.llama = _open(model, sequences, arguments)
        self._context = self.llama._ctx.ctx
        self._vocabulary = self.llama._model.vocab
        self._memory = api.llama_get_memory(self._context)
        self.cells = int(api.llama_n_ctx(self._context))
        """Tokens that the KV cache holds, of all sequences together."""
        self.batch_size = int(api.llama_n_batch(self._context))
        self.width = self.llama.n_embd()
        """The model's hidden size."""
        self._batch = api.llama_batch_init(self.batch_size, 0, 1)
        self._defaults = inspect.signature(llama_cpp.Llama.create_completion).parameters
        self.embeds = bool(arguments.get("embedding"))
        self._seed = int(arguments.get("seed", -1))
        """Of requests that have none. With -1, or llama.cpp's constant for it, each draws another one."""
        last = int(arguments.get("last_n_tokens_size", -1))
        self._penalty_window = last if last >= 0 else self.cells
        """How many of the last tokens penalties look at."""
        texts = [api.llama_vocab_get_text(self._vocabulary, token) for token in range(self.llama.n_vocab())]
        self.longest_token = max(map(len, texts))
        self.ends = {token for token in range(len(texts)) if api.llama_vocab_is_eog(self._vocabulary, token)}
        """The end-of-generation tokens."""
        self.controls = [
            text.decode("utf-8", "replace")
            for token, text in enumerate(texts)
            if token in self.ends or api.llama_vocab_is_control(self._vocabulary, token)
        ]
        """The control tokens as text."""
        bos = self.llama.token_bos()
        self.bos = [bos] if bos >= 0 and self.llama._model.add_bos_token() else []
        """The BOS token, if the model wants it before a text."""

    @property
    def whole_text_limit(self) -> int | None:
        """The most tokens of a text to embed, where it must be in one batch: a model without a KV cache, or one that
        pools its hidden states, needs the whole text at once. None: texts can be read in chunks."""
        in_chunks = self.generates and self.llama.pooling_type() == api.LLAMA_POOLING_TYPE_NONE
        return None if in_chunks else int(api.llama_n_ubatch(self._context))

    @property
    def generates(self) -> bool:
        """Whether it has a KV cache; a model that only embeds has none."""
        return self._memory is not None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The tokens of `text`, without BOS; `special`: control tokens in it are read as such."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=special))

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of tokens; control tokens have none, unless `special` is true."""
        array = (api.llama_token * len(tokens))(*tokens)
        size = 16 * len(tokens)
        while True:
            buffer = create_string_buffer(size)
            length = api.llama_detokenize(self._vocabulary, array, len(tokens), buffer, size, False, special)
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", "replace")
            size = -length

    def decode(self, rows: Sequence[Row]) -> list[int | None] | None:
        """Run the model over a batch of at most `batch_size` tokens.

        Returns:
            For each row the index of its logits in the batch, None where they are not wanted; None if the KV cache has
            no room for the batch.
        """
        if self.embeds:
            api.llama_set_embeddings(self._context, False)
        indices, status = self._run(rows, False)
        if status == _NO_CELLS:
            return None
        _check(status)
        return indices

    def _run(self, rows: Sequence[Row], all_outputs: bool) -> tuple[list[int | None], int]:
        """The indices of the rows' last tokens, as for `decode`, and the status of `llama_decode`."""
        batch, at = self._batch, 0
        indices: list[int | None] = []
        for row in rows:
            for position, token in enumerate(row.tokens, row.position):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, all_outputs or row.scored
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row.sequence
                at += 1
            if row.wanted:
                batch.logits[at - 1] = True
            indices.append(at - 1 if row.wanted else None)
        batch.n_tokens = at
        return indices, int(api.llama_decode(self._context, batch))

    def remove(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        if self._memory is not None:
            api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def hidden_sum(self, tokens: Sequence[int], sequence: int, before: int) -> Any:
        """The sum of the last hidden states of a text's tokens; of a model that pools them, what its pooling makes.

        Args:
            tokens: A chunk of the text.
            sequence: Where the text is in the KV cache.
            before: How many tokens of the text were read before.

        Returns:
            float64, shape (hidden size,).
        """
        api.llama_set_embeddings(self._context, True)
        _, status = self._run([Row(tokens, sequence, before, True)], True)
        _check(status)
        length = self.llama.n_embd()
        if self.llama.pooling_type() == api.LLAMA_POOLING_TYPE_NONE:
            states = [api.llama_get_embeddings_ith(self._context, at)[:length] for at in range(len(tokens))]
            return numpy.array(states).sum(axis=0, dtype=numpy.float64)
        return numpy.array(api.llama_get_embeddings_seq(self._context, sequence)[:length], numpy.float64)

    def sampler(self, prompt: Sequence[int], sampling: Sampling, constraint: Constraint | None = None) -> Sampler:
        """A chain of llama.cpp's samplers in its own order. Defaults are those of `Llama.create_completion`.

        Raises:
            InvalidRequest: The constraint is no grammar.
        """
        grammar = grammar_sampler(self._vocabulary, constraint) if constraint else None
        return Sampler(self._chain(prompt, sampling), grammar)

    def _chain(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        self._add_penalties(chain, prompt, sampling)
        temperature = self._value("temperature", sampling.temperature)
        if is_greedy(sampling):
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
        tokens = self.llama.n_vocab()
        repetition = self._value("repeat_penalty", sampling.repetition_penalty)
        frequency = self._value("frequency_penalty", sampling.frequency_penalty)
        presence = self._value("presence_penalty", sampling.presence_penalty)
        if repetition != 1:
            penalty = api.llama_sampler_init_penalties(tokens, self._penalty_window, repetition, 0.0, 0.0)
            for token in prompt:  # This penalty is for the prompt's tokens too; the other two are for the answer's.
                api.llama_sampler_accept(penalty, token)
            api.llama_sampler_chain_add(chain, penalty)
        if frequency or presence:
            api.llama_sampler_chain_add(
                chain, api.llama_sampler_init_penalties(tokens, self._penalty_window, 1.0, frequency, presence)
            )

    def _value(self, name: str, given: Any) -> Any:
        return self._defaults[name].default if given is None else given

    def sample(self, sampler: Sampler, index: int) -> int:
        """The next token, from the logits at `index` of the batch."""
        if sampler.grammar is None:
            return int(api.llama_sampler_sample(sampler.chain, self._context, index))
        logits = api.llama_get_logits_ith(self._context, index)
        return sampler.sample_allowed(logits, self.llama.n_vocab(), api.llama_vocab_eos(self._vocabulary))

    def scores(self, token: int, index: int, alternatives: int) -> Scores:
        """The logprobs at `index` of the batch: of this token, and of so many of the likeliest."""
        tokens = self.llama.n_vocab()
        logits = numpy.ctypeslib.as_array(api.llama_get_logits_ith(self._context, index), (tokens,))
        logprobs = logits.astype(numpy.float64) - logits.max()
        logprobs -= numpy.log(numpy.exp(logprobs).sum())
        count = min(alternatives, tokens)
        likeliest = numpy.argpartition(-logprobs, count - 1)[:count] if count else ()
        sorted_ids = sorted(map(int, likeliest), key=lambda one: (-logprobs[one], one))
        return float(logprobs[token]), [(one, float(logprobs[one])) for one in sorted_ids]

    def seconds_per_token(self) -> float:
        """How long a token of a prompt takes, measured on a short prompt."""
        tokens = (self.bos or [0]) * min(32, self.batch_size)
        took = 0.0
        for _ in range(2):  # The first run also reads the weights from the disk.
            started = time.perf_counter()
            self.decode([Row(tokens, 0, 0, True)])
            took = time.perf_counter() - started
            self.remove(0)
        return took / len(tokens)


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"llama.cpp cannot go on: llama_decode says {status}")


def _open(model: Path, sequences: int, arguments: Mapping[str, JSON]) -> Any:
    """A `llama_cpp.Llama` whose context holds several sequences, for which it has no argument."""
    default_parameters = api.llama_context_default_params

    def parameters_with_sequences() -> Any:
        parameters = default_parameters()
        parameters.n_seq_max, parameters.kv_unified = sequences, True
        return parameters

    api.llama_context_default_params = parameters_with_sequences
    try:
        return llama_cpp.Llama(str(model), **arguments)
    finally:
        api.llama_context_default_params = default_parameters
