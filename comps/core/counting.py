"""Token counts of prompts and texts, by the served model's own tokenizer where it is available, else estimated."""

from __future__ import annotations

import json
import time
from array import array
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain, takewhile
from typing import Any

from comps.core.errors import LLMError, ModelServerError, PromptTooLong, Refused
from comps.core.ports import CountsPrompts, CountsTexts, CountsTokens, FindsTokens, ModelServer
from comps.core.prompts import all_text_of
from comps.core.tasks import at_once
from comps.core.types import JSON, Message, Prompt

_BYTES_PER_TOKEN = 3
"""Of an estimate; English has 4 or more, so that an estimate is too high by a third or more."""
_BYTES_PER_OTHER_TOKEN = 2
"""The same where the text is not ASCII: a Chinese character has 3 bytes, and 1 token or, to an English model, 2."""
_DIGITS = b"0123456789"
"""To many models, each digit is a token."""
_OPTIONS_IN_PROMPT = ("tools", "functions", "documents")
"""Options that a chat template writes into the prompt."""
MESSAGE_OVERHEAD = 8
"""The most tokens that a chat template is expected to write around a message."""
_TEMPLATE_OVERHEAD = 512
"""The most tokens that a chat template is expected to write of its own, such as a default system message."""
_LONGEST_TOKEN = 256
"""In characters; today's vocabularies have none with more than 128 (spaces)."""
_MOST_BYTES_PER_TOKEN = 8
"""On average over a text: English has about 4."""
NO_SUCH_ROUTE = (404, 405, 501)
"""HTTP statuses by which a model server says that it cannot do what it is asked."""
_PAUSE = 30.0
"""Seconds after which a model server that failed to say where tokens end is asked for it again."""
_TEXTS_CACHED, _OFFSETS_CACHED = 20_000, 4_000_000
"""Limits of the cache; an offset takes 4 bytes."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of one text."""

    count: int
    ends: Sequence[int] | None = None
    """Where each token ends, in characters; None: not known."""


class Counter:
    """Counts tokens for one model server, and caches the counts of texts (least recently used first out).

    Attributes:
        can_count: Whether the model server can count tokens; it may turn out that it cannot.
        count_tokens, count_texts: The model server's methods; None where it has none.
        token_ends: The same; it is not asked before the time `ends_from`.
        count_prompt: The same; also None where it turned out that there is no route for it.
    """

    def __init__(self, server: ModelServer) -> None:
        self.can_count = isinstance(server, CountsTokens)
        self.count_tokens = server.count_tokens if isinstance(server, CountsTokens) else None
        self.count_texts = server.count_texts if isinstance(server, CountsTexts) else None
        self.count_prompt = server.count_prompt if isinstance(server, CountsPrompts) else None
        self.token_ends = server.token_ends if isinstance(server, FindsTokens) else None
        self.ends_from = 0.0
        self._cache: OrderedDict[bytes, TextTokens] = OrderedDict()
        self._offsets = 0

    def cached(self, text: str) -> TextTokens | None:
        """What is known of a text; None if it was not counted, or too long ago."""
        key = _key(text)
        if found := self._cache.get(key):
            self._cache.move_to_end(key)
        return found

    def cache(self, text: str, tokens: TextTokens) -> None:
        """Add a text to the cache, or replace it there."""
        before = self._cache.pop(key := _key(text), None)
        self._cache[key] = tokens
        self._offsets += len(tokens.ends or ()) - len((before and before.ends) or ())
        while len(self._cache) > _TEXTS_CACHED or self._offsets > _OFFSETS_CACHED:
            _, oldest = self._cache.popitem(last=False)
            self._offsets -= len(oldest.ends or ())

    def count(self) -> Count:
        """The count for a new request."""
        return Count(self)


class Count:
    """The token counts of one request: either all are the tokenizer's, or, once that has failed, all are estimates.

    Args:
        counter: Of the model server.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.exact = counter.can_count
        """Whether the counts are those of the model's own tokenizer."""

    async def prompt_and_texts(
        self, prompt: Prompt, options: Mapping[str, JSON], texts: Sequence[str]
    ) -> tuple[int, list[int]]:
        """The tokens of a prompt as the model reads it, and those of each text, all asked for at the same time.

        Raises:
            PromptTooLong: Of the prompt alone.
        """
        if self.exact:
            try:
                return await self._exact(prompt, options, texts)
            except PromptTooLong:
                raise
            except LLMError as error:  # No request is to fail because counting fails.
                self._cannot_count(error)
        return estimated_prompt(prompt, options), [estimate(text) for text in texts]

    async def prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """The tokens of a prompt as the model reads it."""
        return (await self.prompt_and_texts(prompt, options, ()))[0]

    async def text(self, text: str) -> int:
        """The tokens of a text."""
        if self.exact:
            try:
                return (await self._texts([text]))[0]
            except LLMError as error:
                self._cannot_count(error)
        return estimate(text)

    def _cannot_count(self, error: LLMError) -> None:
        """Estimate from here on; without a route that counts, in later requests as well."""
        self.exact = False
        if isinstance(error, Refused) and error.status in NO_SUCH_ROUTE:
            self._counter.can_count = False

    async def ends(self, text: str) -> Sequence[int] | None:
        """Where each token of a text that was counted ends, in characters; None if that is not known."""
        tokens = self._counter.cached(text) if self.exact else None
        if tokens and tokens.ends is None and self._counter.count_texts:  # It was counted in a batch.
            tokens = await self._found(text)
        return tokens.ends if tokens else None

    async def _exact(self, prompt: Prompt, options: Mapping[str, JSON], texts: Sequence[str]) -> tuple[int, list[int]]:
        known, missing = self._known(texts)
        (tokens,), *counts = await at_once([self._prompt(prompt, options), *self._asked(missing)])
        known.update(zip(missing, chain.from_iterable(counts), strict=True))
        return tokens, [known[text] for text in texts]

    async def _texts(self, texts: Sequence[str]) -> list[int]:
        known, missing = self._known(texts)
        counts = await at_once(self._asked(missing))
        known.update(zip(missing, chain.from_iterable(counts), strict=True))
        return [known[text] for text in texts]

    def _known(self, texts: Sequence[str]) -> tuple[dict[str, int], list[str]]:
        """The counts that are cached, and the texts whose counts are not."""
        cached = {text: self._counter.cached(text) for text in texts}
        known = {text: tokens.count for text, tokens in cached.items() if tokens}
        return known, [text for text in cached if text not in known]

    def _asked(self, texts: Sequence[str]) -> list[Coroutine[Any, Any, list[int]]]:
        """What to await for the counts of the texts, in their order: the whole batch, or each text."""
        if len(texts) > 1 and self._counter.count_texts:
            return [self._batch(texts)]
        return [self._text(text) for text in texts]

    async def _batch(self, texts: Sequence[str]) -> list[int]:
        assert self._counter.count_texts
        try:
            counts = list(await self._counter.count_texts(texts))
        except PromptTooLong:  # Which of them is too long is found out one by one.
            return [*chain.from_iterable(await at_once([self._text(text) for text in texts]))]
        for text, count in zip(texts, counts, strict=True):
            self._counter.cache(text, TextTokens(count))
        return counts

    async def _text(self, text: str) -> list[int]:
        try:
            found = await self._found(text)
            if found is None:
                assert self._counter.count_tokens
                found = TextTokens(await self._counter.count_tokens(text))
                # The server can count, and nevertheless it could not say where the tokens end.
                self._counter.ends_from = time.monotonic() + _PAUSE
                self._counter.cache(text, found)
        except PromptTooLong as error:  # More than any window holds, so that the number does not matter.
            return [max(error.prompt_tokens, error.context_window + 1)]
        return [found.count]

    async def _found(self, text: str) -> TextTokens | None:
        """The tokens of a text with their ends, which are cached; None if the model server does not say."""
        if self._counter.token_ends is None or time.monotonic() < self._counter.ends_from:
            return None
        try:
            ends = array("I", await self._counter.token_ends(text))
        except ModelServerError:
            return None
        self._counter.cache(text, found := TextTokens(len(ends), ends))
        return found

    async def _prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> list[int]:
        if self._counter.count_prompt:
            try:
                return [await self._counter.count_prompt(prompt, options)]
            except Refused as refused:
                if refused.status not in NO_SUCH_ROUTE:
                    raise
                self._counter.count_prompt = None
        return [with_overhead(await self._texts(prompt_texts(prompt, options)))]


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def prompt_texts(prompt: Prompt, options: Mapping[str, JSON]) -> list[str]:
    """The texts that a model reads of a prompt: a chat template may write something around each."""
    texts = [prompt] if isinstance(prompt, str) else [message_text(message) for message in prompt]
    if options and (read := {name: options[name] for name in _OPTIONS_IN_PROMPT if options.get(name)}):
        texts.append(json.dumps(read))
    return texts


def message_text(message: Message) -> str:
    """The text that a model reads of a message: its content, and its other fields, such as tool calls."""
    text = all_text_of(message.content)
    return f"{text}\n{json.dumps(dict(message.extra))}" if message.extra else text


def with_overhead(counts: Sequence[int]) -> int:
    """The tokens of a prompt, by those of its texts (`prompt_texts`), with what a chat template writes around them."""
    return sum(counts) + MESSAGE_OVERHEAD * (len(counts) + 1)


def estimate(text: str) -> int:
    """The tokens of a text, where nobody can count them; rather too many than too few."""
    encoded = text.encode("utf-8", "replace")
    plain = len(encoded) if encoded.isascii() else len(text.encode("ascii", "ignore"))
    digits = len(encoded) - len(encoded.translate(None, _DIGITS))
    return digits - (plain - digits) // -_BYTES_PER_TOKEN - (len(encoded) - plain) // -_BYTES_PER_OTHER_TOKEN


def estimated_prompt(prompt: Prompt, options: Mapping[str, JSON]) -> int:
    """The tokens of a prompt, where nobody can count them; rather too many than too few."""
    return with_overhead([estimate(text) for text in prompt_texts(prompt, options)])


def upper_bound(prompt: Prompt, options: Mapping[str, JSON]) -> int:
    """A number of tokens that a prompt has at most: one for each byte, and what a chat template may write, which text
    to continue has not."""
    sizes = [
        len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in prompt_texts(prompt, options)
    ]
    return with_overhead(sizes) + (0 if isinstance(prompt, str) else _TEMPLATE_OVERHEAD)


def lower_bound(prompt: Prompt) -> int:
    """A number of tokens that a prompt has at least, found without looking at the text, which may be very long."""
    return sum(map(len, prompt_texts(prompt, {}))) // _LONGEST_TOKEN


def longest_text(window: int) -> int:
    """How many characters of a text might fit a context window of so many tokens."""
    return window * _MOST_BYTES_PER_TOKEN


def may_fit(texts: Iterable[str], window: int) -> int:
    """How many of the texts, from the first on, might fit a context window of so many tokens, the last one in part."""
    lengths = [len(text) for text in texts]
    starts = accumulate(lengths, initial=0)
    fitting = takewhile(lambda start: start <= longest_text(window), starts)
    return min(len(lengths), sum(1 for _ in fitting))
