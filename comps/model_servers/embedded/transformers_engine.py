"""The program of the transformers engine: requests take turns, a token each.

A long prompt is read in chunks, between which the other requests have their turns. Every request has a KV cache of its
own, so its answer does not depend on the others. Source: https://huggingface.co/docs/transformers
"""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jinja2 import TemplateError

from comps.core.errors import InvalidRequest, ModelServerError, SettingsError
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.constraints import Constraint
from comps.model_servers.embedded.decoding import (
    STEP_SECONDS,
    Chunks,
    Completion,
    check_sampling,
    max_new_tokens,
)
from comps.model_servers.embedded.engine_program import EnginePrompt, Messages, Part, last_line, serve
from comps.model_servers.embedded.logprobs import PromptRecords, Wanted
from comps.model_servers.embedded.text import ControlTokens
from comps.model_servers.embedded.transformers_grammars import Grammars
from comps.model_servers.embedded.transformers_loading import end_tokens, load_model, model_window
from comps.model_servers.embedded.transformers_sampling import TokenChooser, scores
from comps.model_servers.embedded.vectors import Texts, check_texts

_AT_ONCE = 16
"""The default of `at_once`: the KV caches of more requests would take memory without more tokens a second."""
_LARGEST_CHUNK, _LEAST_CHUNK = 2048, 16
_CHUNK_ALONE = 256
"""The least of a chunk while nothing else is answered. A request that comes meanwhile waits for the end of one."""
_WIDTH = 512
"""The hidden size of a model that does not say."""


@dataclass
class _Request:
    """One request, and its KV cache."""

    completion: Completion
    tokens: list[int]
    """The prompt, and what has been generated so far."""
    chooser: TokenChooser
    cache: Any
    read: int = 0
    """How many of `tokens` are in the KV cache."""


class Engine:
    """The model and the requests that take turns; see `engine_program.Engine`.

    Args:
        model: A folder, a GGUF file, a file of weights in a folder, or a Hugging Face repository, or a file of weights
            in one.
        device: CPU; GPU for whatever accelerator PyTorch finds; or a device by PyTorch's name.
        settings: Arguments of `from_pretrained`, and `at_once`, the most requests that take turns; `tokenizer`, where
            that is if not where the model is; `config_params`, attributes of the model's configuration, of which
            objects are merged into what is there; `cuda_visible_devices`, CUDA's variable.
        window: In tokens; None takes the model's own.

    Raises:
        SettingsError: A setting is unknown or has a wrong value, or the model cannot be loaded.
    """

    def __init__(self, model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> None:
        transformers.utils.logging.set_verbosity_error()
        self._at_once = settings.get("at_once", _AT_ONCE)
        if not isinstance(self._at_once, int) or self._at_once < 1:
            raise SettingsError(f"at_once = {self._at_once}: a number from 1 on")
        self._model, self._tokenizer = load_model(model, device, settings)
        accepted = inspect.signature(self._model.forward).parameters
        if "past_key_values" not in accepted:
            raise SettingsError(f"{type(self._model).__name__} keeps no past_key_values, without which it cannot serve")
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._ends = end_tokens(self._model.generation_config, self._tokenizer)
        self.chat_template = str(self._tokenizer.chat_template or "")
        self._grammars = Grammars(self._tokenizer, set(self._ends))
        self.longest_token = max(map(len, self._tokenizer.get_vocab()))
        added = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        self._controls = ControlTokens({*self._tokenizer.all_special_tokens, *added})
        self._window = window or model_window(self._model.config, self._tokenizer)
        self.context_window: int | None = self._window
        self._running: deque[_Request] = deque()
        """The one whose turn is next comes first."""
        self._waiting: deque[_Request] = deque()
        self._texts: deque[Texts] = deque()
        self._text_cache: Any = None
        """The KV cache of the text that is being embedded."""
        width = getattr(self._model.config.get_text_config(), "hidden_size", None) or _WIDTH
        self._chunks = Chunks(self._seconds_per_token(), min(_LARGEST_CHUNK, self._window), width, _LEAST_CHUNK)

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
        tokens = self._tokens_of(prompt, tools)
        if not tokens:
            raise InvalidRequest("there is nothing to continue", "prompt")
        most = max_new_tokens(len(tokens), sampling, self._window)
        continues = isinstance(prompt, str)
        completion = Completion(number, tokens, most, sampling.stop, self.decode, self._ends, continues)
        if logprobs:
            bos = [] if self._tokenizer.bos_token is None else [self._tokenizer.bos_token_id]
            completion.add_logprobs(logprobs, self._named, logprobs.of_prompt(prompt, tokens, bos, self._named))
        matcher = self._grammars.matcher(constraint, self._logits) if constraint else None
        chooser = TokenChooser(len(tokens), sampling, self._model.generation_config, self._model.device, matcher)
        self._waiting.append(_Request(completion, tokens, chooser, self._new_cache()))

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        if self._model.base_model is self._model:
            raise ModelServerError(f"{type(self._model).__name__} makes no embeddings")
        tokenized = [self._encode_with_bos(text) for text in texts]
        check_texts(tokenized, self._window)
        self._texts.append(Texts(number, tokenized))

    def cancel(self, number: int) -> None:
        self._texts = deque(texts for texts in self._texts if texts.number != number)
        for requests in (self._running, self._waiting):
            for request in [request for request in requests if request.completion.number == number]:
                requests.remove(request)

    def count(self, text: str) -> int:
        return len(self._encode(text, special=False))

    def tokenize(self, text: str) -> list[int]:
        return self._tokens_of(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def name_of(self, token: int) -> str:
        return self._named([token])

    def count_prompt(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> int:
        return len(self._tokens_of(prompt, tools))

    def render(self, messages: Messages, tools: Sequence[JSON] = ()) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequest(
                "the model has no chat template, so it continues texts and answers no conversation", "messages"
            )
        turns, functions = self._controls.escaped(messages), self._controls.escaped(tools) or None
        render = self._tokenizer.apply_chat_template
        try:
            return str(render(turns, tools=functions, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:  # The template raises it for what it does not take.
            raise InvalidRequest(str(error), "messages") from None

    def step(self) -> list[Part]:
        """Give every request a turn, or those that there is time for, and one to the texts to embed."""
        parts = [part] if (part := self._embed()) else []
        started = time.perf_counter()
        while self._waiting and len(self._running) < self._at_once:
            self._running.append(self._waiting.popleft())
        for _ in range(len(self._running)):
            request = self._running.popleft()
            part = self._take_turn(request)
            if part:
                parts.append(part)
            if not (part and part.get("last")):
                self._running.append(request)
            if time.perf_counter() - started > STEP_SECONDS:
                break
        return parts

    def _take_turn(self, request: _Request) -> Part | None:
        """Read a chunk of the prompt, or generate the next token."""
        if records := request.completion.prompt_records:
            self._score_prompt(request, records)
            return request.completion.prompt_part()
        tokens = request.tokens[request.read : request.read + self._chunk(request)]
        logits = self._forward(tokens, request.cache)[:, -1]
        request.read += len(tokens)
        if request.read < len(request.tokens):
            return None
        try:
            token = request.chooser.choose(request.tokens, logits)
        except (RuntimeError, ValueError) as error:  # The fault of its own sampling, and of no other request.
            return {"id": request.completion.number, "error": last_line(error), "last": True}
        request.tokens.append(token)
        most = request.completion.alternatives
        return request.completion.push(token, None if most is None else scores(logits[0], token, most))

    def _chunk(self, request: _Request) -> int:
        """How many tokens of the request whose turn it is to read."""
        chunk = self._chunks.after(request.read)
        return chunk if self._running or self._waiting or self._texts else max(chunk, _CHUNK_ALONE)

    def _score_prompt(self, request: _Request, records: PromptRecords) -> None:
        """Read a chunk of a prompt whose tokens have logprobs."""
        tokens = request.tokens[request.read : request.read + min(records.next_chunk, self._chunks.after(request.read))]
        if tokens:
            logits = self._forward(tokens, request.cache, all_logits=True)[0]
            request.read += len(tokens)
            records.push(lambda at, token: scores(logits[at], token, records.alternatives), len(tokens))

    def _forward(self, tokens: Sequence[int], cache: Any, all_logits: bool = False) -> Any:
        """The logits of the tokens that follow, in float32, shape (1, tokens, vocabulary).

        Args:
            tokens: What is read.
            cache: The KV cache.
            all_logits: Whether they are wanted behind each token; else those behind the last one are there.
        """
        with torch.inference_mode():
            ids, which = torch.tensor([tokens], device=self._model.device), {} if all_logits else self._last_logits_only
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **which)
            return (output.logits if all_logits else output.logits[:, -1:]).float()

    def _embed(self) -> Part | None:
        """Read a chunk of the texts to embed, if there are any; returns the part of a request that is done."""
        if not self._texts:
            return None
        texts = self._texts[0]
        if not texts.done:
            tokens, before = texts.chunk(self._chunks.after(texts.read))
            texts.add(len(tokens), self._hidden_sum(tokens, before))
        if not texts.done:
            return None
        self._texts.popleft()
        return texts.part

    def _hidden_sum(self, tokens: Sequence[int], before: int) -> Any:
        """The sum of the last hidden states of a chunk of a text, in float64, shape (hidden size,).

        Args:
            tokens: The chunk.
            before: How many tokens of the text were read before.
        """
        if before == 0:
            self._text_cache = self._new_cache()
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._model.device)
            output = self._model.base_model(input_ids=ids, past_key_values=self._text_cache, use_cache=True)
            return output.last_hidden_state[0].cpu().sum(0, dtype=torch.float64)

    def _new_cache(self) -> Any:
        return transformers.DynamicCache(config=self._model.config)

    def _tokens_of(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> list[int]:
        if isinstance(prompt, str):
            return self._encode_with_bos(prompt)
        return self._encode(self.render(prompt, tools), special=False)

    def _encode_with_bos(self, text: str) -> list[int]:
        """The tokens of a text, with BOS before it unless the text has it already."""
        bos = self._tokenizer.bos_token
        return self._encode(text, special=not (bos and text.startswith(bos)))

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _named(self, tokens: Sequence[int]) -> str:
        """Their text, special tokens too."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _seconds_per_token(self) -> float:
        """How long a token of a prompt takes, measured on a short prompt; it also finds how many logits there are."""
        tokens = [0] * min(32, self._window)
        took = 0.0
        for _ in range(2):  # The first run also sets things up that stay.
            started = time.perf_counter()
            self._logits = self._forward(tokens, self._new_cache()).cpu().shape[-1]
            took = time.perf_counter() - started
        return took / len(tokens)


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(model, device, settings, window)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    serve(load)
