"""What the core asks of the outside, and nothing about who provides it.

A model server is one required protocol; further abilities are protocols of their own, which it may have as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from comps.core.types import JSON, Embeddings, Finished, Generation, ModelInfo, Prompt, Sampling, TextDelta


class Answer(Protocol):
    """What a model server writes an answer to, as to one of asyncio's streams: a write returns at once, `drain` waits.

    https://docs.python.org/3/library/asyncio-stream.html#asyncio.StreamWriter
    """

    def text(self, text: str, choice: int = 0) -> None:
        """Write a piece of text: valid Unicode, not empty, never half a character.

        Args:
            text: What comes next.
            choice: Of an answer with several, which one goes on, from 0.
        """
        ...

    def delta(self, delta: TextDelta) -> None:
        """Write a piece that has more than text, such as a tool call."""
        ...

    def finished(self, end: Finished) -> None:
        """Write the end of a choice, once for each; nothing may follow for it."""
        ...

    @property
    def full(self) -> bool:
        """Whether the reader does not keep up, so that `drain` would wait."""
        ...

    async def drain(self) -> None:
        """Wait until the reader has caught up; returns at once if it has."""
        ...


class ModelServer(Protocol):
    """Turns prompts into tokens."""

    async def describe(self) -> ModelInfo:
        """What the model server is and honours; also the readiness check, so it is cheap and never generates.

        Raises:
            Unreachable: It is not there, or not ready yet.
        """
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        """Write an answer: its pieces and, at the end, one `Finished` a choice. Cancelling it stops the model.

        Raises:
            InvalidRequest: The prompt or a sampling value cannot be served (`PromptTooLong` for the window); nothing
                was written.
            ModelServerError: The model server failed, before or after something was written.
        """
        ...

    async def aclose(self) -> None:
        """Free what is held; calling it again does nothing."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A model server that can give a whole answer at once, for less than it costs piece by piece."""

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """The whole answer; otherwise as `ModelServer.generate`."""
        ...


@runtime_checkable
class Loads(Protocol):
    """A model server that has a model to load before it can answer."""

    async def load(self) -> None:
        """Fetch and load the model; returns when it can answer, at once if it already can.

        Raises:
            SettingsError: There is no such model.
            ModelServerError: The model cannot be loaded.
        """
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A model server that can count with the served model's own tokenizer."""

    async def count_tokens(self, text: str) -> int:
        """The tokens of `text`, without special tokens.

        Raises:
            InvalidRequest: It is too long to be counted (`TextTooLong`).
        """
        ...


@runtime_checkable
class CountsTexts(CountsTokens, Protocol):
    """A model server that can count many texts at once, for less than it costs one by one."""

    async def count_texts(self, texts: Sequence[str]) -> Sequence[int]:
        """The tokens of each text, in their order; otherwise as `CountsTokens.count_tokens`."""
        ...


@runtime_checkable
class FindsTokens(CountsTokens, Protocol):
    """A model server that can also tell where in a text its tokens are, so that it need not count what is cut from
    it."""

    async def token_ends(self, text: str) -> Sequence[int]:
        """Where each token of `text` ends, in characters from its beginning.

        One that ends within a character may be said to end where that begins, or where it ends.

        Raises:
            InvalidRequest: It is too long to be counted (`TextTooLong`).
            ModelServerError: Nobody can tell.
        """
        ...


@runtime_checkable
class CountsPrompts(CountsTokens, Protocol):
    """A model server that can also count a whole prompt."""

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """The tokens that the model would read: those of the chat template and the special ones are among them.

        Args:
            prompt: As for `generate`.
            options: As for `generate`; some of them (tools) are part of what is read.

        Raises:
            InvalidRequest: It cannot be served (`PromptTooLong` for the window).
        """
        ...


@runtime_checkable
class Renders(Protocol):
    """A model server that can tell what text a prompt becomes for the model."""

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """The text that the model would read, in its chat template; see `CountsPrompts.count_prompt`.

        What its tokenizer lays before every text (`<s>`) is no part of it, and text to continue is itself.

        Raises:
            InvalidRequest: It cannot be served.
            Refused: With 404: nobody knows the chat template.
        """
        ...


@runtime_checkable
class Translates(Protocol):
    """A model server that asks another one for something else than it is asked for."""

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """What that one is asked; see `ModelServer.generate`.

        Raises:
            InvalidRequest: It cannot be said to that one.
        """
        ...


@runtime_checkable
class Embeds(Protocol):
    """A model server that can turn texts into vectors."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector for each of `texts`, in their order.

        Raises:
            InvalidRequest: A text cannot be served (`TextTooLong` for the window).
            ModelServerError: The model server failed, or its model makes no embeddings.
        """
        ...


ABILITIES = (
    "complete",
    "load",
    "count_tokens",
    "count_texts",
    "token_ends",
    "count_prompt",
    "render",
    "translated",
    "embed",
)
"""The methods of the optional abilities, by which it is told whether a model server has one."""
