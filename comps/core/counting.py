"""How many tokens a request has, by the served model's own tokenizer where there is one."""

from __future__ import annotations

import json
import re
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
from comps.core.types import JSON, Message, Prompt

BYTES_PER_TOKEN = 3
"""An estimate's, where English has 4 or more: a quarter or more of what is estimated is spare."""
_OTHER_BYTES_PER_TOKEN = 2
"""Of what is not ASCII: a Chinese character has 3 bytes, and 1 token or, to an English model, 2."""
_DIGITS = re.compile(rb"[0-9]")
"""Each is a token to many models."""
_BESIDE = ("tools", "functions", "documents")
"""Options that a model reads."""
_OF_TEMPLATE = 512
"""Tokens that a chat template may write of its own, such as a system message, or what it says of tools."""
_LONGEST_TOKEN = 256
"""Characters; those of today's vocabularies have at most 128, of spaces."""
_MOST_BYTES_PER_TOKEN = 8
"""Of a text of some length: English has about 4, and hardly any has more."""
AROUND = 8
"""Tokens that a chat template may lay around a message."""
NO_SUCH_ROUTE = (404, 405, 501)
_KEPT, _TOKENS_KEPT = 20_000, 4_000_000
"""How many texts are remembered, and of how many tokens the places: 4 bytes each."""


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
        self.can_count = isinstance(server, CountsTokens)
        self.can_count_prompts = isinstance(server, CountsPrompts)
        self.can_find = isinstance(server, FindsTokens)
        self._seen: OrderedDict[bytes, _Counted] = OrderedDict()
        self._places = 0

    def seen(self, text: str) -> _Counted | None:
        """What is remembered of a text."""
        key = _key(text)
        if key in self._seen:
            self._seen.move_to_end(key)
        return self._seen.get(key)

    def remember(self, text: str, counted: _Counted) -> None:
        """What was counted, in the place of what was last looked at longest ago."""
        before = self._seen.pop(key := _key(text), None)
        self._seen[key] = counted
        self._places += len(counted.ends or ()) - len((before and before.ends) or ())
        while len(self._seen) > _KEPT or self._places > _TOKENS_KEPT:
            _, oldest = self._seen.popitem(last=False)
            self._places -= len(oldest.ends or ())

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
        return estimated_prompt(prompt, options), [estimate(text) for text in texts]

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
        counter = self._counter
        if counter.can_count_prompts and isinstance(counter.server, CountsPrompts):
            try:
                return await counter.server.count_prompt(prompt, options)
            except Refused as refused:
                if refused.status not in NO_SUCH_ROUTE:
                    raise
                counter.can_count_prompts = False
        return with_template(await at_once([*map(self._text, texts_read(prompt, options))]))

    def ends(self, text: str) -> Sequence[int] | None:
        """Where the tokens of a text that was counted end, in characters; None if nobody said, or all is estimated."""
        counted = self._counter.seen(text) if self.exact else None
        return counted.ends if counted else None

    async def _text(self, text: str) -> int:
        counted = self._counter.seen(text)
        if counted is None:
            try:
                counted = await self._counted(text)
            except PromptTooLong as error:  # It fits nowhere, so that it need not be counted.
                return max(error.prompt_tokens, error.context_window + 1)
            self._counter.remember(text, counted)
        return counted.tokens

    async def _counted(self, text: str) -> _Counted:
        server = self._counter.server
        if self._counter.can_find and isinstance(server, FindsTokens):
            with suppress(ModelServerError):
                ends = array("I", await server.token_ends(text))
                return _Counted(len(ends), ends)
        assert isinstance(server, CountsTokens)
        counted = _Counted(await server.count_tokens(text))
        self._counter.can_find = False  # It counts, so that it is there, and still it could not say where.
        return counted


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def texts_read(prompt: Prompt, options: Mapping[str, JSON]) -> list[str]:
    """The texts that a model reads of a prompt, each of which a chat template may lay something around."""
    texts = [prompt] if isinstance(prompt, str) else [text_read(message) for message in prompt]
    beside = {name: options[name] for name in _BESIDE if options.get(name)}
    return [*texts, json.dumps(beside)] if beside else texts


def text_read(message: Message) -> str:
    """The text that a model reads of a message: the content, and what else there is, such as tool calls."""
    text = text_of(message.content)
    return f"{text}\n{json.dumps(dict(message.extra))}" if message.extra else text


def with_template(sizes: Sequence[int]) -> int:
    """The tokens of a prompt, by those of the texts that a model reads of it."""
    return sum(sizes) + AROUND * (len(sizes) + 1)


def estimate(text: str) -> int:
    """The tokens of a text, where nobody can count them."""
    encoded = text.encode("utf-8", "replace")
    plain = len(encoded) if encoded.isascii() else sum(map(str.isascii, text))
    digits = len(_DIGITS.findall(encoded))
    return digits - (plain - digits) // -BYTES_PER_TOKEN - (len(encoded) - plain) // -_OTHER_BYTES_PER_TOKEN


def estimated_prompt(prompt: Prompt, options: Mapping[str, JSON]) -> int:
    """The tokens of a prompt, where nobody can count them."""
    return with_template([estimate(text) for text in texts_read(prompt, options)])


def at_most(prompt: Prompt, options: Mapping[str, JSON]) -> int:
    """What no tokenizer makes more of: a token for every byte. Text to continue has no chat template."""
    sizes = [len(text.encode("utf-8", "replace")) for text in texts_read(prompt, options)]
    return with_template(sizes) + (0 if isinstance(prompt, str) else _OF_TEMPLATE)


def at_least(prompt: Prompt) -> int:
    """What every tokenizer makes of a prompt, or more: looking at what cannot fit would hold up everybody else."""
    return sum(map(len, texts_read(prompt, {}))) // _LONGEST_TOKEN


def longest_text(window: int) -> int:
    """How many characters of a text might fit a context window of so many tokens."""
    return window * _MOST_BYTES_PER_TOKEN


def may_fit(texts: Iterable[str], window: int) -> int:
    """How many of them, one after the other, might fit a context window of so many tokens, the last one in part."""
    lengths = [len(text) for text in texts]
    begins = accumulate(lengths, initial=0)
    near = takewhile(lambda begin: begin <= longest_text(window), begins)
    return min(len(lengths), sum(1 for _ in near))
