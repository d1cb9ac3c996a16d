"""Every error that leaves a room of this house.

LLMError
├── InvalidRequest         the caller's fault; `field` names what to mend
│   ├── Malformed          the body is not one that is read here: no JSON, or a field is missing or of a wrong type
│   ├── PromptTooLong      the prompt does not fit the model's context window
│   │   └── TextTooLong    nor does a text to embed or to count
│   ├── UnknownModel       the model asked for is not served here
│   ├── BodyTooLarge       the HTTP body is over the configured limit
│   └── Forbidden          the settings do not allow it
├── Overloaded             too many requests at once; try again after `retry_after` seconds
├── ModelServerError       the model server failed
│   ├── Unreachable        it cannot be reached, or is still loading
│   ├── Timeout            it did not answer in time
│   └── Refused            it answered with an error of its own: `status` and `body`
└── SettingsError          start-up only: a setting is missing, unknown or wrong

A message is written for whoever reads it, and names no path, secret or stack frame that the reader does not own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class LLMError(Exception):
    """The root; its text is fit to be shown to a caller."""

    retry_after: int | None = None
    """Seconds after which it is worth trying again; None if it is not."""


class InvalidRequest(LLMError):
    """The request cannot be served as it stands."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.field}: {message}" if self.field else message


class Malformed(InvalidRequest):
    """The body is not one that is read here.

    Args:
        problems: All that is wrong, an item each with `type`, `loc` (the path of the field, a tuple) and `msg`, in the
            words of pydantic: https://docs.pydantic.dev/latest/errors/validation_errors/
    """

    def __init__(self, message: str, field: str | None, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message, field)
        self.problems = problems


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for an answer.

    Args:
        prompt_tokens: Tokens of the prompt, the chat template's own included; 0 if they are not known.
        context_window: Tokens that the model can hold, prompt and answer together; 0 if it is not known.
        at_least: The prompt may have more tokens: it was not worth counting on.
        said: The message, where a number is not known.
    """

    _said = (
        "the prompt has {tokens} tokens, and the model's context window holds {most}, of which at least 1 must be left "
        "for the answer"
    )

    def __init__(self, prompt_tokens: int, context_window: int, at_least: bool = False, said: str = "") -> None:
        tokens = f"at least {prompt_tokens}" if at_least else prompt_tokens
        super().__init__(said or self._said.format(tokens=tokens, most=context_window))
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class TextTooLong(PromptTooLong):
    """A text to embed or to count has more tokens than are taken; `context_window` says how many those are."""

    _said = "the text has {tokens} tokens, and at most {most} are taken"


class UnknownModel(InvalidRequest):
    """The request names a model that is not served here."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__(f"'{name}' is not served here; known: {known}", "model")


class BodyTooLarge(InvalidRequest):
    """The HTTP body is larger than the service reads."""


class Forbidden(InvalidRequest):
    """The settings do not allow it."""


class Overloaded(LLMError):
    """All places are taken, and so is the queue."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelServerError(LLMError):
    """The model server failed, in a way that is not the caller's to mend."""


class Unreachable(ModelServerError):
    """The model server cannot be reached, or is not ready yet."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Timeout(ModelServerError):
    """The model server did not answer in time."""


class Refused(ModelServerError):
    """The model server answered with an error of its own.

    Args:
        status: Its HTTP status.
        body: What it said, shortened.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the model server answered {status}: {body}")
        self.status = status
        self.body = body


class SettingsError(LLMError):
    """A setting is missing, unknown or wrong."""


def no_room(prompt_tokens: int, most: int, at_least: bool = False) -> InvalidRequest:
    """The error of a prompt that fills `Sampling.max_total_tokens`, which it names; see `PromptTooLong`."""
    tokens = f"at least {prompt_tokens}" if at_least else prompt_tokens
    said = f"the prompt alone has {tokens} tokens, and {most} are allowed with the answer"
    return InvalidRequest(said, "max_total_tokens")
