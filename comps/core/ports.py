"""Ports: the interfaces between the core and its environment.

`ModelServer` is required. The other protocols are optional abilities, which a model server may implement as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from comps.core.types import JSON, Embeddings, Finished, Generation, ModelInfo, Prompt, Sampling, TextDelta, Token


class Answer(Protocol):
    """The writer of an answer. As in asyncio's StreamWriter, writing returns at once, and `drain` waits for the reader.

    https://docs.python.org/3/library/asyncio-stream.html#asyncio.StreamWriter
    """

    def text(self, text: str, choice: int = 0) -> None:
        """Write the next piece of text.

        Args:
            text: Valid Unicode, not empty, with whole characters only.
            choice: The index of the choice that it continues, from 0.
        """
        ...

    def delta(self, delta: TextDelta) -> None:
        """Write a delta that has more than text, such as a tool call."""
        ...

    def finished(self, end: Finished) -> None:
        """Write the end of a choice: once for each choice, after all its deltas."""
        ...

    @property
    def full(self) -> bool:
        """Whether the buffer is full, so that `drain` would wait."""
        ...

    async def drain(self) -> None:
        """Wait while the buffer is full; returns at once if it is not."""
        ...


class ModelServer(Protocol):
    """A model server: generates the answers to prompts."""

    async def describe(self) -> ModelInfo:
        """Returns the model's name, context window and supported parameters.

        This is also the readiness check, so it is cheap and generates nothing.

        Raises:
            Unreachable: The model server cannot be reached, or is not ready.
        """
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        """Generate an answer: write its deltas, and one `Finished` for each choice. Cancellation stops the model.

        Args:
            prompt: Text to continue, or a conversation to answer.
            sampling: The sampling parameters.
            options: Other options of OpenAI's API, such as `tools` and `n`.
            answer: The writer of the answer.

        Raises:
            InvalidRequest: The prompt or a parameter cannot be served (`PromptTooLong` for the context window). It is
                raised before anything is written.
            ModelServerError: The model server failed, before or after something was written.
        """
        ...

    async def aclose(self) -> None:
        """Release all resources; calling it again does nothing."""
        ...


@runtime_checkable
class Completes(Protocol):
    """Optional ability: generate a complete answer in one piece, which costs less than its deltas."""

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """Returns the complete answer. Arguments and errors are those of `ModelServer.generate`."""
        ...


@runtime_checkable
class Loads(Protocol):
    """Optional ability: load a model, which has to come before the first answer."""

    async def load(self) -> None:
        """Download and load the model. Returns when it can answer, at once if it is loaded already.

        Raises:
            SettingsError: The model does not exist.
            ModelServerError: The model cannot be loaded.
        """
        ...


@runtime_checkable
class ChecksSettings(Protocol):
    """Optional ability: check settings more closely than at opening, before anything is loaded. It may take seconds."""

    def check_settings(self) -> None:
        """Check the settings; it blocks.

        Raises:
            SettingsError: Something is wrong; it has all that is wrong.
        """
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """Optional ability: count tokens with the served model's own tokenizer."""

    async def count_tokens(self, text: str) -> int:
        """Returns the number of tokens of `text`, without special tokens.

        Raises:
            InvalidRequest: The text is too long to be counted (`TextTooLong`).
        """
        ...


@runtime_checkable
class CountsTexts(CountsTokens, Protocol):
    """Optional ability: count many texts in one call, which costs less than one call for each."""

    async def count_texts(self, texts: Sequence[str]) -> Sequence[int]:
        """Returns the number of tokens of each text, in the order of `texts`; see `CountsTokens.count_tokens`."""
        ...


@runtime_checkable
class FindsTokens(CountsTokens, Protocol):
    """Optional ability: find the token boundaries of a text, so that a text can be cut without counting again."""

    async def token_ends(self, text: str) -> Sequence[int]:
        """Returns the end offset of each token of `text`, in characters.

        If a token ends within a character, its offset is the beginning or the end of that character.

        Raises:
            InvalidRequest: The text is too long to be counted (`TextTooLong`).
            ModelServerError: The boundaries cannot be found.
        """
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """Optional ability: tokenize a text with the served model's own tokenizer."""

    async def tokenize(self, text: str) -> Sequence[Token]:
        """Returns the tokens of `text` as the model reads it, with the special tokens that go before any text.

        Raises:
            InvalidRequest: The text is too long (`TextTooLong`).
        """
        ...


@runtime_checkable
class CountsPrompts(CountsTokens, Protocol):
    """Optional ability: count a complete prompt, chat template included."""

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        """Returns the number of tokens that the model would read, with chat template and special tokens.

        Args:
            prompt: As for `generate`.
            options: As for `generate`; some of them, such as tools, are part of the rendered prompt.

        Raises:
            InvalidRequest: The prompt cannot be served (`PromptTooLong` for the context window).
        """
        ...


@runtime_checkable
class Renders(Protocol):
    """Optional ability: render a conversation with the model's chat template."""

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """Returns the rendered prompt, without the special tokens (`<s>`) that the tokenizer adds in front of any text.

        Text to continue is returned unchanged. The arguments are those of `CountsPrompts.count_prompt`.

        Raises:
            InvalidRequest: The prompt cannot be served.
            Refused: Status 404: the chat template is unknown.
        """
        ...


@runtime_checkable
class Translates(Protocol):
    """Optional ability of a model server that changes requests before it sends them on: return what it would send."""

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """Returns the prompt, the sampling and the options that would be sent; see `ModelServer.generate`.

        Raises:
            InvalidRequest: The request cannot be sent on.
        """
        ...


@runtime_checkable
class Embeds(Protocol):
    """Optional ability: compute embeddings."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Returns one vector for each text, in the order of `texts`.

        Raises:
            InvalidRequest: A text cannot be served (`TextTooLong` for the context window).
            ModelServerError: The model server failed, or its model computes no embeddings.
        """
        ...


CIRCUIT_STATES = ("closed", "open", "half-open")
"""The states of a circuit breaker: requests pass, none does, or one does as a probe."""


@runtime_checkable
class HasCircuitBreakers(Protocol):
    """Optional ability of a model server that is several replicas: tell the states of their circuit breakers."""

    def circuit_states(self) -> Sequence[str]:
        """Returns one of `CIRCUIT_STATES` for each replica, in their order."""
        ...


ABILITIES = (
    "complete",
    "load",
    "count_tokens",
    "count_texts",
    "token_ends",
    "tokenize",
    "count_prompt",
    "render",
    "translated",
    "embed",
)
"""The method names of the optional abilities: a model server has an ability if it has the method."""
