"""Tokens counted here, by the served model's own tokenizer.json, for a model server that counts none or is far away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress

from tokenizers import Encoding, Tokenizer

from comps.core.counting import texts_read, with_template
from comps.core.errors import ModelServerError, SettingsError
from comps.core.ports import ABILITIES, CountsPrompts, ModelServer
from comps.core.types import JSON, Event, ModelInfo, Prompt, Sampling

_LONG = 2_000
"""Characters that take a millisecond: more is counted in a thread."""


class WithTokenizer:
    """A model server whose tokens are counted here; it can do all else that it could before.

    A conversation is still counted by a server that can, which knows its chat template.

    Args:
        server: Who answers.
        file: The path of its model's tokenizer.json.

    Raises:
        SettingsError: There is no such file, or it is no tokenizer.
    """

    def __init__(self, server: ModelServer, file: str) -> None:
        self._server = server
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

    async def token_ends(self, text: str) -> Sequence[int]:
        """See `FindsTokens`."""
        encoding = await self._encoded(text, special=False)
        return [end for _, end in encoding.offsets]

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """See `CountsPrompts`; what a chat template unknown here lays around a message is estimated."""
        if isinstance(prompt, str):
            return len(await self._encoded(prompt, special=True))
        if isinstance(self._server, CountsPrompts):
            with suppress(ModelServerError):
                return await self._server.count_prompt(prompt, options)
        return with_template([await self.count_tokens(text) for text in texts_read(prompt, options)])

    async def _encoded(self, text: str, special: bool) -> Encoding:
        def encoded() -> Encoding:
            # Of a batch, others are let by meanwhile.
            texts = [text.encode("utf-8", "replace").decode()]
            return self._tokenizer.encode_batch(texts, add_special_tokens=special)[0]

        return await asyncio.to_thread(encoded) if len(text) > _LONG else encoded()

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        return self._server.generate(prompt, sampling, options)

    async def aclose(self) -> None:
        await self._server.aclose()
