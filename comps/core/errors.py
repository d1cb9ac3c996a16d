"""Exception hierarchy: every error that the packages of `comps` raise on purpose.

LLMError
├── InvalidRequest         request error: the caller has to change `field`
│   ├── Malformed          the body is invalid: no JSON, or a field is missing or has a wrong type
│   ├── PromptTooLong      the prompt does not fit the model's context window
│   │   └── TextTooLong    a text to embed or to count does not fit
│   ├── UnknownModel       the requested model is not served
│   ├── BodyTooLarge       the HTTP body exceeds the configured limit
│   ├── UnsupportedEncoding  the HTTP body has a content encoding that is not read
│   ├── InvalidHTTP        the HTTP message is malformed, too large or too late; with its `status`
│   │   └── UnknownRoute   there is no such route, or not with this method
│   ├── NotKept            what the request names by its id is not kept here
│   ├── NotSupported       the model server has no such ability
│   ├── Unauthorized       the request has no API key, or an unknown one
│   └── Forbidden          the settings, or the caller's API key, do not allow the request
├── Overloaded             too many requests; try again after `retry_after` seconds
├── ModelServerError       the model server failed
│   ├── Unreachable        no connection, or the model is still loading
│   ├── Timeout            no answer before the deadline
│   ├── BrokenOff          the answer ended before its end
│   └── Refused            the model server answered with an error: `status` and `body`
└── SettingsError          at start-up only: a setting is missing, unknown or wrong

Messages are shown to callers. They contain no secrets, no stack frames, no addresses and no paths of the service's own
files. An error that an operator could not mend by its message has a second text, for the log and the commands; see
`for_operator`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Failure = TypeVar("Failure", bound="LLMError")

_LONGEST_NAME = 200
"""The most characters of a name from a request in an error."""
_NAME = re.compile(r"[\w.:/-]{1,64}")
_LONGEST_MESSAGE, _HEAD = 2_000, 1_200
"""The most characters of a message about a request, and how many of them are its beginning."""


class LLMError(Exception):
    """The base class. `str(error)` may be shown to a caller."""

    retry_after: int | None = None
    """Seconds after which a retry may succeed; None if a retry is no use."""
    operator_text: str = ""
    """The text for the operator, with the address of the server that failed; empty: `str(error)`. No secrets."""


class InvalidRequest(LLMError):
    """Request error: the request cannot be served as it is.

    Args:
        message: What is wrong, without the field. Of a long one, as it may quote a value of megabytes, the middle is
            left out.
        field: The path of the field that is wrong, treated alike; None if no single field is.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(_brief(message))
        self.field = field and _brief(field)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.field}: {message}" if self.field else message


class Malformed(InvalidRequest):
    """Validation error: the body is not valid JSON, or does not match the schema.

    Args:
        problems: All validation errors in pydantic's form, each with `type`, `loc` (the path of the field, a tuple) and
            `msg`: https://docs.pydantic.dev/latest/errors/validation_errors/
    """

    def __init__(self, message: str, field: str | None, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message, field)
        self.problems = problems


class PromptTooLong(InvalidRequest):
    """The prompt fills the context window, so that no token is left for an answer.

    Args:
        prompt_tokens: The tokens of the prompt with its chat template; 0 if unknown.
        context_window: The maximum number of tokens of prompt and answer together; 0 if unknown.
        at_least: Whether `prompt_tokens` is a lower bound, because counting stopped there.
        said: The message to use if a number is unknown.
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
    """A text to embed or to count has more tokens than the limit, which is in `context_window`."""

    _said = "the text has {tokens} tokens, and at most {most} are taken"


class UnknownModel(InvalidRequest):
    """The request names a model that is not served.

    Args:
        name: The name in the request, which is shortened.
        known: The names of the served models, separated by commas.
    """

    def __init__(self, name: str, known: str) -> None:
        self.name = shortened(name)
        super().__init__(f"'{self.name}' is not served here; known: {known}", "model")


class BodyTooLarge(InvalidRequest):
    """The HTTP body exceeds the configured limit."""


class UnsupportedEncoding(InvalidRequest):
    """The HTTP body has a content encoding that is not read.

    Args:
        encoding: The encoding.
        known: Those that are read, separated by commas.
    """

    def __init__(self, encoding: str, known: str) -> None:
        super().__init__(f"'{encoding}' is not read here; known: {known}", "content-encoding")


class InvalidHTTP(InvalidRequest):
    """The HTTP message is malformed, too large or too late, so that no handler gets it.

    Args:
        message: What is wrong, without the field.
        status: The HTTP status: https://www.rfc-editor.org/rfc/rfc9110#section-15.5
        field: What is wrong; None if no single part is.
    """

    def __init__(self, message: str, status: int, field: str | None = None) -> None:
        super().__init__(message, field)
        self.status = status


class UnknownRoute(InvalidHTTP):
    """There is no such route, or not with this method."""


class NotKept(InvalidRequest):
    """The request names something by its id, and nothing is kept here."""


class NotSupported(InvalidRequest):
    """The model server does not have the ability that the request needs, such as embeddings."""


class Unauthorized(InvalidRequest):
    """The request has no API key, or an unknown one."""


class Forbidden(InvalidRequest):
    """The settings, or the caller's API key, do not allow the request."""


class Overloaded(LLMError):
    """All admission slots are taken, and the queue is full."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelServerError(LLMError):
    """The model server failed. The caller cannot correct it."""


class Unreachable(ModelServerError):
    """The model server cannot be reached, or is not ready.

    Args:
        message: What is wrong.
        retry_after: Seconds after which a retry may succeed.
        operator_text: See `LLMError`.
        passes: Whether a new connection may succeed within seconds: this one was refused or reset. A wrong certificate
            does not pass.
    """

    def __init__(self, message: str, retry_after: int = 1, operator_text: str = "", passes: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.operator_text = operator_text
        self.passes = passes


class Timeout(ModelServerError):
    """The model server missed a deadline."""


class BrokenOff(ModelServerError):
    """The model server's answer ended without a finish reason, or with one that says that it is not complete."""


class Refused(ModelServerError):
    """The model server answered with an error.

    Args:
        status: The HTTP status of its response.
        body: The error message in its response, shortened.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the model server answered {status}: {body}")
        self.status = status
        self.body = body


class SettingsError(LLMError):
    """Settings are missing, unknown or wrong.

    Args:
        *problems: A sentence for each of them.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _brief(message: str) -> str:
    """A message as it can be shown: of lone surrogates in what it quotes, which no UTF-8 has, `?` is left."""
    message = message if message.isascii() else message.encode("utf-8", "replace").decode()
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_HEAD]} … {message[_HEAD - _LONGEST_MESSAGE :]}"


def shortened(name: str) -> str:
    """Returns a name from a request as an error shows it: it may have megabytes."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def shown_name(said: object) -> str:
    """Returns a name from a request in quotes, as an error shows it; `'...'` for what is no name, such as a text."""
    return f"'{said}'" if said is None or (isinstance(said, str) and _NAME.fullmatch(said)) else "'...'"


class SettingsProblems:
    """Collects the errors of settings, so that all of them are told at once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    @property
    def found(self) -> tuple[str, ...]:
        """All problems, in order."""
        return tuple(self._found)

    def add(self, error: SettingsError) -> None:
        """Add all problems of an error; a problem that is known already counts once."""
        self._found.update(dict.fromkeys(error.problems))

    @contextmanager
    def caught(self, where: str = "") -> Iterator[None]:
        """Add the SettingsError of the block, if it raises one, instead of raising it.

        Args:
            where: The beginning of each problem, such as the heading of a section.
        """
        try:
            yield
        except SettingsError as error:
            self.add(SettingsError(*(where + problem for problem in error.problems)))

    def raise_if_any(self) -> None:
        """Raise one SettingsError with all problems, if there is one."""
        if self._found:
            raise SettingsError(*self._found)


def for_operator(error: BaseException) -> str:
    """Returns the text of an error for the operator: in the log, and in the terminal."""
    return getattr(error, "operator_text", "") or str(error)


def told_at(error: Failure, address: str) -> Failure:
    """Returns the error, whose text for the operator begins with the address of the server that failed."""
    error.operator_text = error.operator_text or f"{address}: {error}"
    return error


def shutting_down() -> Unreachable:
    """Returns the error of requests that the end of the service cuts off, and of its readiness from then on."""
    return Unreachable("the service is shutting down")


def no_room(prompt_tokens: int, most: int, at_least: bool = False) -> InvalidRequest:
    """Returns the request error of a prompt that fills `Sampling.max_total_tokens`.

    Args:
        prompt_tokens: The tokens of the prompt.
        most: The value of `max_total_tokens`.
        at_least: Whether `prompt_tokens` is a lower bound.
    """
    tokens = f"at least {prompt_tokens}" if at_least else prompt_tokens
    said = f"the prompt alone has {tokens} tokens, and {most} are allowed with the answer"
    return InvalidRequest(said, "max_total_tokens")
