"""Tokens counted in this process, by the served model's own tokenizer.json, for a model server that counts none or is
slow to reach."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from tokenizers import Encoding, Tokenizer

from comps.core.beside import beside_if_long
from comps.core.counting import prompt_texts, with_overhead
from comps.core.errors import ModelServerError, SettingsError
from comps.core.ports import ABILITIES, Answer, CountsPrompts, ModelServer
from comps.core.types import JSON, ModelInfo, Prompt, Sampling, Token

_LONG = 2_000
"""In characters: what takes a millisecond. Longer texts are counted in a thread."""


class WithTokenizer:
    """A model server whose tokens are counted in this process; it keeps its other abilities.

    A conversation is still counted by a server that can, since it knows its chat template.

    Args:
        server: The model server that answers.
        file: The path of its model's tokenizer.json.

    Raises:
        SettingsError: There is no such file, or it is no tokenizer.
    """

    def __init__(self, server: ModelServer, file: str) -> None:
        self._server = server
        self._count_prompt = server.count_prompt if isinstance(server, CountsPrompts) else None
        try:
            self._tokenizer = Tokenizer.from_file(file)
        except Exception as error:  # The library raises nothing narrower.
            raise SettingsError(f"tokenizer_file = {file}: no tokenizer.json of Hugging Face's: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for ability in ABILITIES:
            if (method := getattr(server, ability, None)) and not hasattr(self, ability):
                setattr(self, ability, method)

    async def count_tokens(self, text: str) -> int:
        """See `CountsTokens`."""
        return len(await self._encoded(text, special=False))

    async def count_texts(self, texts: Sequence[str]) -> Sequence[int]:
        """See `CountsTexts`."""
        if sum(map(len, texts)) <= _LONG:
            return [len(await self._encoded(text, special=False)) for text in texts]
        clean = [_clean(text) for text in texts]

        def counted() -> list[int]:
            # The fast way finds no offsets, which are not needed here.
            return [len(one) for one in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)]

        return await asyncio.to_thread(counted)

    async def token_ends(self, text: str) -> Sequence[int]:
        """See `FindsTokens`."""
        encoding = await self._encoded(text, special=False)
        return [end for _, end in encoding.offsets]

    async def tokenize(self, text: str) -> Sequence[Token]:
        """See `Tokenizes`."""
        return await beside_if_long(text, _tokens_in, await self._encoded(text, special=True))

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """See `CountsPrompts`; what a chat template that is not known here writes around a message is estimated."""
        if isinstance(prompt, str):
            return len(await self._encoded(prompt, special=True))
        if self._count_prompt:
            with suppress(ModelServerError):
                return await self._count_prompt(prompt, options)
        return with_overhead(await self.count_texts(prompt_texts(prompt, options)))

    async def _encoded(self, text: str, special: bool) -> Encoding:
        text = _clean(text)
        if len(text) <= _LONG:
            return self._tokenizer.encode(text, add_special_tokens=special)
        # Only for a batch is the interpreter's lock released, so that other requests go on.
        encode = partial(self._tokenizer.encode_batch, [text], add_special_tokens=special)
        return (await asyncio.to_thread(encode))[0]

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        await self._server.generate(prompt, sampling, options, answer)

    async def aclose(self) -> None:
        await self._server.aclose()


def _tokens_in(encoding: Encoding) -> list[Token]:
    return [Token(id, end) for id, (_, end) in zip(encoding.ids, encoding.offsets, strict=True)]


def _clean(text: str) -> str:
    """The text with a question mark for each lone surrogate, which the library does not take."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
