"""How many tokens a request has, by the served model's own tokenizer where there is one."""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, takewhile

from comps.core.errors import ModelServerError, PromptTooLong, Refused
from comps.core.ports import CountsPrompts, CountsTokens, FindsTokens, ModelServer
from comps.core.prompts import text_of
from comps.core.tasks import at_once
from comps.core.types import JSON, Prompt

BYTES_PER_TOKEN = 3
"""An estimate's: English has 4 or more, Chinese 3 and less, so that what is estimated is rarely too little."""
_MOST_BYTES_PER_TOKEN = 8
"""Of a text of some length: English has about 4, and hardly any has more."""
AROUND = 8
"""Tokens that a chat template may lay around a message."""
NO_SUCH_ROUTE = (404, 405, 501)
_KEPT = 20_000
"""How many texts are remembered."""


@dataclass(frozen=True, slots=True)
class _Counted:
    tokens: int
    ends: Sequence[int] | None = None
    """Where they end, in characters; None: nobody said."""


class Counter:
    """Counts for one model server, and remembers texts that it has counted.

    Args:
        server: Whose model reads them.
    """

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.seen: OrderedDict[bytes, _Counted] = OrderedDict()
        self.can_count = isinstance(server, CountsTokens)
        self.can_find = isinstance(server, FindsTokens)

    def count(self) -> Count:
        """The count of one request."""
        return Count(self)


class Count:
    """The count of one request: all of it by the served model's own tokenizer, or, once that could not, estimated.

    Args:
        counter: What is known of the model server.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.exact = counter.can_count
        """Whether the model's own tokenizer has counted."""

    async def prompt_and_texts(
        self, prompt: Prompt, options: Mapping[str, JSON], texts: Sequence[str]
    ) -> tuple[int, list[int]]:
        """The tokens of a prompt as the model reads it, and those of each text, all asked for at once.

        Raises:
            PromptTooLong: Of the prompt alone.
        """
        if self.exact:
            try:
                tokens, *others = await at_once([self._prompt(prompt, options), *map(self._text, texts)])
            except ModelServerError as error:  # Counting shall cost no request its answer.
                self.exact = False
                if isinstance(error, Refused) and error.status in NO_SUCH_ROUTE:
                    self._counter.can_count = False
            else:
                return tokens, others
        return _estimated_prompt(prompt), [estimate(text) for text in texts]

    async def prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """The tokens of a prompt as the model reads it."""
        return (await self.prompt_and_texts(prompt, options, ()))[0]

    async def text(self, text: str) -> int:
        """The tokens of a text."""
        if self.exact:
            try:
                return await self._text(text)
            except ModelServerError:
                self.exact = False
        return estimate(text)

    async def _prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        server = self._counter.server
        if isinstance(server, CountsPrompts):
            return await server.count_prompt(prompt, options)
        if isinstance(prompt, str):
            return await self._text(prompt) + AROUND
        texts = [text_of(message.content) for message in prompt]
        return sum(await at_once([*map(self._text, texts)])) + AROUND * (len(texts) + 1)

    def ends(self, text: str) -> Sequence[int] | None:
        """Where the tokens of a text that was counted end, in characters; None if nobody said."""
        counted = self._counter.seen.get(_key(text))
        return counted.ends if counted else None

    async def _text(self, text: str) -> int:
        seen, key = self._counter.seen, _key(text)
        if key in seen:
            seen.move_to_end(key)
            return seen[key].tokens
        try:
            seen[key] = await self._counted(text)
        except PromptTooLong as error:  # It fits nowhere, so that it need not be counted.
            seen[key] = _Counted(max(error.prompt_tokens, error.context_window + 1))
        if len(seen) > _KEPT:
            seen.popitem(last=False)
        return seen[key].tokens

    async def _counted(self, text: str) -> _Counted:
        server = self._counter.server
        if self._counter.can_find and isinstance(server, FindsTokens):
            with suppress(ModelServerError):
                ends = array("L", await server.token_ends(text))
                return _Counted(len(ends), ends)
        assert isinstance(server, CountsTokens)
        counted = _Counted(await server.count_tokens(text))
        self._counter.can_find = False  # It counts, so that it is there, and still it could not say where.
        return counted


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def estimate(text: str) -> int:
    """The tokens of a text, where nobody can count them."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def at_most(prompt: Prompt, options: Mapping[str, JSON]) -> int:
    """What no tokenizer makes more of: a token for every byte, whatever of the options is read."""
    texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
    texts += [json.dumps(options)] if options else []
    return sum(len(text.encode("utf-8", "replace")) for text in texts) + AROUND * (len(texts) + 1)


def may_fit(texts: Iterable[str], window: int) -> int:
    """How many of them, one after the other, might fit a context window of so many tokens, the last one in part."""
    lengths = [len(text) for text in texts]
    begins = accumulate(lengths, initial=0)
    near = takewhile(lambda begin: begin <= window * _MOST_BYTES_PER_TOKEN, begins)
    return min(len(lengths), sum(1 for _ in near))


def _estimated_prompt(prompt: Prompt) -> int:
    texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
    return sum(map(estimate, texts)) + AROUND * (len(texts) + 1)
