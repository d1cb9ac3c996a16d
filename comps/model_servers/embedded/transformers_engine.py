"""The program of the transformers engine's own process: requests take turns, a token each.

A long prompt is read in chunks, between which the others have their turns. Every request has a cache of its own, so
what it says does not depend on who else is there. Source: https://huggingface.co/docs/transformers
"""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError

from comps.core.errors import InvalidRequest, ModelServerError, SettingsError
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.decoding import (
    STEP_SECONDS,
    Answer,
    check_sampling,
    check_settings,
    chunk_for,
    greedy,
    room_for,
)
from comps.model_servers.embedded.engine_program import Part, reason, serve
from comps.model_servers.embedded.model_files import WEIGHTS
from comps.model_servers.embedded.text import ControlTokens
from comps.model_servers.embedded.vectors import Texts, check_texts

_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_NO_LIMIT = 1_000_000_000
"""A tokenizer that knows no limit says something far above this."""
_WINDOW = 16_384
"""Where neither the model nor its tokenizer has a limit."""
_AT_ONCE = 16
"""Requests that take turns, if nothing else is said; the caches of more would take memory without making it faster."""
_LARGEST_CHUNK = 2048
_HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "trust_remote_code",
    "code_revision",
)
_ANY_REPOSITORY = ("cache_dir", "force_download", "local_files_only", "trust_remote_code")
"""Those of them that count for another repository as well."""
_SETTINGS = (
    *_HUB,
    "at_once",
    "attn_implementation",
    "config_params",
    "cuda_visible_devices",
    "device_map",
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "tokenizer",
    "torch_dtype",
    "tp_plan",
    "use_safetensors",
    "variant",
    "weights_only",
)

Scores = Callable[[Any, Any], Any]
"""From the tokens so far, shape (1, length), and the next one's scores, shape (1, vocabulary), to new scores."""


class _AnswerPenalties:
    """Lowers the scores of what the answer has said already, as in OpenAI's API.

    Args:
        prompt_tokens: How many tokens at the beginning are not the answer.
        frequency: Taken off once for each time that a token was said.
        presence: Taken off once for each token that was said at all.
    """

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self._prompt_tokens = prompt_tokens
        self._frequency = frequency
        self._presence = presence

    def __call__(self, tokens: Any, scores: Any) -> Any:
        counts = torch.bincount(tokens[0, self._prompt_tokens :], minlength=scores.shape[-1])
        return scores - self._frequency * counts - self._presence * (counts > 0)


@dataclass
class _Request:
    """One request, and its cache."""

    answer: Answer
    tokens: list[int]
    """The prompt, and what has been generated so far."""
    scores: list[Scores]
    generator: Any
    """None takes the likeliest token."""
    cache: Any
    read: int = 0
    """How many of `tokens` the cache holds."""


class Engine:
    """The model and the requests that take turns.

    Args:
        model: A folder, a GGUF file, a file of weights in a folder, or a Hugging Face repository, or a file of weights
            in one.
        device: CPU; GPU for whatever accelerator PyTorch sees; or as PyTorch names it.
        settings: Arguments of `from_pretrained`, and `at_once`, the most requests that take turns; `tokenizer`, where
            that is if not where the model is; `config_params`, attributes of the model's configuration, of which
            objects are merged into what is there; `cuda_visible_devices`, CUDA's variable.
        window: In tokens; None takes the model's own.

    Raises:
        SettingsError: A setting is unknown or does not fit, or the model cannot be had.
    """

    def __init__(self, model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> None:
        check_settings(settings, _SETTINGS, "transformers")
        transformers.utils.logging.set_verbosity_error()
        options = dict(settings)
        self._at_once = options.pop("at_once", _AT_ONCE)
        if not isinstance(self._at_once, int) or self._at_once < 1:
            raise SettingsError(f"at_once = {self._at_once}: a number from 1 on")
        self._model, self._tokenizer = _load(model, device, options)
        accepted = inspect.signature(self._model.forward).parameters
        if "past_key_values" not in accepted:
            raise SettingsError(f"{type(self._model).__name__} keeps no past_key_values, without which it cannot serve")
        self._keep_one = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._defaults = self._model.generation_config
        self._ends = _ends(self._defaults, self._tokenizer)
        vocabulary = self._tokenizer.get_vocab()
        self.longest_token = max(map(len, vocabulary))
        added = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        self._controls = ControlTokens({*self._tokenizer.all_special_tokens, *added})
        self._window = window or _window(self._model.config, self._tokenizer)
        self.context_window: int | None = self._window
        self._running: deque[_Request] = deque()
        """Whose turn is next comes first."""
        self._waiting: deque[_Request] = deque()
        self._texts: deque[Texts] = deque()
        self._texts_cache: Any = None
        """Of the text that is being read."""
        self._chunk = chunk_for(self._seconds_per_token(), min(_LARGEST_CHUNK, self._window))

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._texts)

    def start(self, number: int, prompt: str | list[dict[str, str]], sampling: Sampling) -> None:
        check_sampling(sampling)
        continues = isinstance(prompt, str)
        tokens = self._read(prompt)
        if not tokens:
            raise InvalidRequest("there is nothing to continue", "prompt")
        room = room_for(len(tokens), sampling, self._window)
        answer = Answer(number, tokens, room, sampling.stop, self._decode, self._ends, continues)
        scores, generator = self._choice(len(tokens), sampling)
        self._waiting.append(_Request(answer, tokens, scores, generator, self._new_cache()))

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        if self._model.base_model is self._model:
            raise ModelServerError(f"{type(self._model).__name__} makes no embeddings")
        tokenized = [self._continued(text) for text in texts]
        check_texts(tokenized, self._window)
        self._texts.append(Texts(number, tokenized))

    def cancel(self, number: int) -> None:
        self._texts = deque(texts for texts in self._texts if texts.number != number)
        for requests in (self._running, self._waiting):
            for request in [request for request in requests if request.answer.number == number]:
                requests.remove(request)

    def count(self, text: str) -> int:
        return len(self._encode(text, special=False))

    def measure(self, prompt: str | list[dict[str, str]]) -> int:
        return len(self._read(prompt))

    def step(self) -> list[Part]:
        """Give every request its turn, or those that there is time for, and one to the texts to embed."""
        parts = [part] if (part := self._embed()) else []
        started = time.perf_counter()
        while self._waiting and len(self._running) < self._at_once:
            self._running.append(self._waiting.popleft())
        for _ in range(len(self._running)):
            request = self._running.popleft()
            part = self._advance(request)
            if part:
                parts.append(part)
            if not (part and part.get("last")):
                self._running.append(request)
            if time.perf_counter() - started > STEP_SECONDS:
                break
        return parts

    def _advance(self, request: _Request) -> Part | None:
        """Read on in the prompt, or generate the next token."""
        tokens = request.tokens[request.read : request.read + self._chunk]
        logits = self._forward(tokens, request.cache)
        request.read += len(tokens)
        if request.read < len(request.tokens):
            return None
        try:
            token = self._choose(request, logits)
        except (RuntimeError, ValueError) as error:  # Scores that its own sampling has spoilt are no other's.
            return {"id": request.answer.number, "error": reason(error), "last": True}
        request.tokens.append(token)
        return request.answer.push(token)

    def _forward(self, tokens: Sequence[int], cache: Any) -> Any:
        """The scores of the token that follows, in float32, shape (1, vocabulary)."""
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._model.device)
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **self._keep_one)
            return output.logits[:, -1].float()

    def _embed(self) -> Part | None:
        """Read on in the texts, if there are any; the part for whoever asked, once all of theirs are read."""
        if not self._texts:
            return None
        texts = self._texts[0]
        if not texts.done:
            tokens, before = texts.chunk(self._chunk)
            texts.add(len(tokens), self._total_of(tokens, before))
        if not texts.done:
            return None
        self._texts.popleft()
        return texts.part

    def _total_of(self, tokens: Sequence[int], before: int) -> Any:
        """The sum of the last hidden states, in float64, shape (hidden size,); of the same text, `before` were read."""
        if before == 0:
            self._texts_cache = self._new_cache()
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._model.device)
            output = self._model.base_model(input_ids=ids, past_key_values=self._texts_cache, use_cache=True)
            return output.last_hidden_state[0].cpu().sum(0, dtype=torch.float64)

    def _choose(self, request: _Request, scores: Any) -> int:
        with torch.inference_mode():
            so_far = torch.tensor([request.tokens], device=scores.device) if request.scores else None
            for change in request.scores:
                scores = change(so_far, scores)
            if request.generator is None:
                return int(scores.argmax())
            return int(torch.multinomial(scores.softmax(-1), 1, generator=request.generator))

    def _new_cache(self) -> Any:
        return transformers.DynamicCache(config=self._model.config)

    def _choice(self, prompt_tokens: int, sampling: Sampling) -> tuple[list[Scores], Any]:
        """How tokens are chosen: in the order and with the defaults of transformers' own `generate`."""
        scores: list[Scores] = []
        repetition = self._value("repetition_penalty", sampling, 1.0)
        if repetition != 1:
            scores.append(transformers.RepetitionPenaltyLogitsProcessor(float(repetition)))
        frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
        if frequency or presence:
            scores.append(_AnswerPenalties(prompt_tokens, frequency, presence))
        asked = [sampling.temperature, sampling.top_p, sampling.top_k, sampling.typical_p]
        wanted = any(value is not None for value in asked) or bool(self._defaults.do_sample)
        if not wanted or greedy(sampling):
            return scores, None
        temperature = self._value("temperature", sampling, 1.0)
        top_k, top_p = self._value("top_k", sampling, 0), self._value("top_p", sampling, 1.0)
        typical_p = self._value("typical_p", sampling, 1.0)
        if temperature != 1:
            scores.append(transformers.TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            scores.append(transformers.TopKLogitsWarper(int(top_k)))
        if top_p < 1:
            scores.append(transformers.TopPLogitsWarper(float(top_p)))
        if 0 < typical_p < 1:
            scores.append(transformers.TypicalLogitsWarper(float(typical_p)))
        generator = torch.Generator(self._model.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**63)
        return scores, generator

    def _value(self, name: str, sampling: Sampling, neutral: float) -> Any:
        given = getattr(sampling, name)
        if given is not None:
            return given
        default = getattr(self._defaults, name, None)
        return neutral if default is None else default

    def _read(self, prompt: str | list[dict[str, str]]) -> list[int]:
        return self._continued(prompt) if isinstance(prompt, str) else self._encode(self.render(prompt), special=False)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation in the model's own chat template."""
        if not self._tokenizer.chat_template:
            raise InvalidRequest(
                "the model has no chat template, so it continues texts and answers no conversation", "messages"
            )
        turns = self._controls.escaped(messages)
        try:
            return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:  # The template itself says what it does not take.
            raise InvalidRequest(str(error), "messages") from None

    def _continued(self, text: str) -> list[int]:
        bos = self._tokenizer.bos_token
        return self._encode(text, special=not (bos and text.startswith(bos)))

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _seconds_per_token(self) -> float:
        """Measured on a prompt of a few tokens."""
        tokens = [0] * min(32, self._window)
        took = 0.0
        for _ in range(2):  # The first time, much is set up that stays.
            started = time.perf_counter()
            self._forward(tokens, self._new_cache()).cpu()
            took = time.perf_counter() - started
        return took / len(tokens)


def _load(model: str, device: str, options: dict[str, JSON]) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    asked = model
    hub = {name: options.pop(name) for name in _HUB if name in options}
    hub.setdefault("trust_remote_code", False)
    changes = _object(options, "config_params")
    words = options.pop("tokenizer", None)
    if visible := options.pop("cuda_visible_devices", None):
        os.environ["CUDA_VISIBLE_DEVICES"] = str(visible)  # Read by CUDA when it is first used.
    if model.endswith(".gguf"):
        file = Path(model)
        model, hub["gguf_file"] = str(file.parent), file.name
    elif model.endswith(WEIGHTS):
        model, changes["transformers_weights"] = _weights(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model, **hub)
        _change(config, changes)
        _complete(options, device, hasattr(config, "quantization_config"))
        of_words = hub if words in (None, model) else {name: hub[name] for name in _ANY_REPOSITORY if name in hub}
        tokenizer = transformers.AutoTokenizer.from_pretrained(words or model, **of_words)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, config=config, **hub, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        # What is missing stands in the first lines, ways to mend it in the others.
        raise SettingsError(f"{asked} cannot be loaded: {' '.join(str(error).split())[:500]}") from None
    return loaded.eval(), tokenizer


def _weights(model: str) -> tuple[str, str]:
    """The folder or repository of a file of weights, and the file there."""
    if Path(model).is_file():
        return str(Path(model).parent), Path(model).name
    owner, name, *file = model.split("/")
    return f"{owner}/{name}", "/".join(file)


def _object(options: dict[str, JSON], name: str) -> dict[str, JSON]:
    value = options.pop(name, None) or {}
    if not isinstance(value, dict):
        raise SettingsError(f"{name} = {value}: not an object")
    return dict(value)


def _change(config: Any, changes: Mapping[str, JSON]) -> None:
    """Set attributes of a configuration; an object is merged into one that is there."""
    for name, value in changes.items():
        there: Any = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(there, "update"):
            there.update(value)
        else:
            setattr(config, name, value)


def _complete(options: dict[str, JSON], device: str, quantised: bool) -> None:
    """Say where and how precisely, unless the settings do, in the words of today's transformers."""
    on = _device(device)
    said = options.pop("torch_dtype", None) or options.get("dtype")
    # A CPU computes as fast in float32, and a seed repeats an answer; see CONTRIBUTING.md.
    usual = "float32" if on == "cpu" and not quantised else "auto"
    options["dtype"] = said.removeprefix("torch.") if isinstance(said, str) else said or usual
    if isinstance(memory := options.get("max_memory"), dict):  # JSON has no numbers as names, which GPUs have here.
        options["max_memory"] = {int(name) if name.isdigit() else name: most for name, most in memory.items()}
    if on != "cpu":
        options.setdefault("device_map", on)
    bits = {name: options.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in options}
    if any(bits.values()):
        options["quantization_config"] = transformers.BitsAndBytesConfig(**bits)


def _device(name: str) -> str:
    if name.upper() == "GPU":
        if not torch.accelerator.is_available():
            raise SettingsError("device = GPU: PyTorch finds none here")
        return str(torch.accelerator.current_accelerator().type)
    try:
        return str(torch.device(name.lower()))
    except RuntimeError:
        raise SettingsError(f"device = {name}: neither CPU nor GPU, nor a device of PyTorch's") from None


def _ends(defaults: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    said = defaults.eos_token_id
    if said is None:
        said = tokenizer.eos_token_id
    return set(said) if isinstance(said, list) else {said} - {None}


def _window(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    said = [getattr(text, name, None) for name in _WINDOW_FIELDS]
    said.append(tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None)
    return next((int(tokens) for tokens in said if tokens), _WINDOW)


def load(model: str, device: str, settings: Mapping[str, JSON], window: int | None) -> Engine:
    """The engine with its model, ready to answer."""
    return Engine(model, device, settings, window)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    serve(load)
