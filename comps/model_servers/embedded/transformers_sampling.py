"""How the transformers engine chooses tokens: logits processors in the order and with the defaults of `generate`.

Source: https://huggingface.co/docs/transformers/internal/generation_utils
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from comps.core.types import Sampling
from comps.model_servers.embedded.decoding import is_greedy
from comps.model_servers.embedded.logprobs import Scores
from comps.model_servers.embedded.transformers_grammars import Matcher

LogitsProcessor = Callable[[Any, Any], Any]
"""From the tokens so far, shape (1, length), and the next one's logits, shape (1, vocabulary), to new logits."""


class _AnswerPenalties:
    """Lowers the logits of tokens that are in the answer already, as in OpenAI's API.

    Args:
        prompt_tokens: How many tokens at the beginning are not the answer.
        frequency: Subtracted for each time that a token is there.
        presence: Subtracted once for each token that is there at all.
    """

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self._prompt_tokens = prompt_tokens
        self._frequency = frequency
        self._presence = presence

    def __call__(self, tokens: Any, logits: Any) -> Any:
        counts = torch.bincount(tokens[0, self._prompt_tokens :], minlength=logits.shape[-1])
        return logits - self._frequency * counts - self._presence * (counts > 0)


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        prompt_tokens: The prompt's length.
        sampling: What the request says.
        defaults: The model's `GenerationConfig`, for what it does not say.
        device: Where the logits are.
        matcher: Which tokens are allowed; None: all.
    """

    def __init__(
        self, prompt_tokens: int, sampling: Sampling, defaults: Any, device: Any, matcher: Matcher | None = None
    ) -> None:
        self._matcher = matcher
        self._sampling = sampling
        self._defaults = defaults
        self.processors = self._penalties(prompt_tokens)
        self._generator: Any = None
        """None: the likeliest token is taken."""
        given = [sampling.temperature, sampling.top_p, sampling.top_k, sampling.typical_p]
        samples = any(value is not None for value in given) or bool(defaults.do_sample)
        if samples and not is_greedy(sampling):
            self.processors += self._warpers()
            self._generator = _seeded(sampling.seed, device)

    def choose(self, tokens: list[int], logits: Any) -> int:
        """The next token.

        Args:
            tokens: The prompt and the answer so far.
            logits: Of the next token, shape (1, vocabulary), float32.

        Raises:
            RuntimeError, ValueError: No token can be chosen from what the processors made of the logits.
        """
        with torch.inference_mode():
            if self._matcher:
                logits = self._matcher.mask(logits)
            so_far = torch.tensor([tokens], device=logits.device) if self.processors else None
            for process in self.processors:
                logits = process(so_far, logits)
            if self._generator is None:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
        if self._matcher:
            self._matcher.accept(token)
        return token

    def _penalties(self, prompt_tokens: int) -> list[LogitsProcessor]:
        processors: list[LogitsProcessor] = []
        repetition = self._value("repetition_penalty", 1.0)
        if repetition != 1:
            processors.append(transformers.RepetitionPenaltyLogitsProcessor(float(repetition)))
        frequency, presence = self._sampling.frequency_penalty or 0.0, self._sampling.presence_penalty or 0.0
        if frequency or presence:
            processors.append(_AnswerPenalties(prompt_tokens, frequency, presence))
        return processors

    def _warpers(self) -> list[LogitsProcessor]:
        temperature, top_k = self._value("temperature", 1.0), self._value("top_k", 0)
        top_p, typical_p = self._value("top_p", 1.0), self._value("typical_p", 1.0)
        processors: list[LogitsProcessor] = []
        if temperature != 1:
            processors.append(transformers.TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            processors.append(transformers.TopKLogitsWarper(int(top_k)))
        if top_p < 1:
            processors.append(transformers.TopPLogitsWarper(float(top_p)))
        if 0 < typical_p < 1:
            processors.append(transformers.TypicalLogitsWarper(float(typical_p)))
        return processors

    def _value(self, name: str, neutral: float) -> Any:
        """A value of the request, else of the model, else one that changes nothing."""
        given = getattr(self._sampling, name)
        if given is not None:
            return given
        default = getattr(self._defaults, name, None)
        return neutral if default is None else default


def scores(logits: Any, token: int, alternatives: int) -> Scores:
    """The logprobs of a token, and of so many of the likeliest.

    Args:
        logits: Of the model, shape (vocabulary,), float32.
        token: The token.
        alternatives: How many.
    """
    with torch.inference_mode():
        logprobs = logits.double().log_softmax(-1)
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        return float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True))


def _seeded(seed: int | None, device: Any) -> Any:
    """A random generator of PyTorch's; without a seed, it is seeded at random."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**63)
    return generator
