"""A client for what only this service has: the preview of a prompt, and the reports of answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import httpx

from comps.core.errors import (
    Forbidden,
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    SettingsError,
    Unauthorized,
    Unreachable,
)
from comps.core.redaction import without_keys
from comps.core.types import JSON, DocumentUse, Message, Prompt, Report, Sampling

_ERRORS: Mapping[int, type[LLMError]] = {
    401: Unauthorized,
    403: Forbidden,
    429: Overloaded,
    503: Unreachable,
}
Values = TypeVar("Values")


@dataclass(frozen=True, slots=True)
class PreviewedPrompt:
    """One prompt of a body, as the model server would get it."""

    prompt: Prompt = field(repr=False)
    """A conversation, or text to continue."""
    rendered: str | None = field(repr=False)
    """The text that the model's chat template makes of it; None if the template is unknown."""
    sampling: Sampling
    options: Mapping[str, JSON]
    report: Report
    answer: str | None
    """The answer that would be given without the model; None: the model would be asked."""


@dataclass(frozen=True, slots=True)
class Previewed:
    """What would be asked of the model with a body."""

    model: str
    model_server: Mapping[str, JSON]
    """Its kind and framework, and its URL if the service shows it."""
    dialect: str
    route: str
    stream: bool
    ignored: tuple[str, ...]
    """The names of the fields that would have no effect."""
    prompts: tuple[PreviewedPrompt, ...]


class PromptClient:
    """A client for `POST /v1/prompt`.

    Args:
        url: The service's URL, such as `http://localhost:9000`.
        api_key: The key that the service wants; empty: none.
        timeout: Seconds that a request may take.

    Raises:
        SettingsError: The URL is none, or not of HTTP.
    """

    def __init__(self, url: str = "http://localhost:9000", api_key: str = "", timeout: float = 60.0) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=_checked(url).rstrip("/"), headers=headers, timeout=timeout)

    def prompt(self, body: Mapping[str, JSON], route: str = "") -> Previewed:
        """Returns what would be asked of the model; no model is asked.

        Args:
            body: A body of any route that asks for text.
            route: The path at which it would be posted; empty: the first that reads it.

        Raises:
            InvalidRequest: The body is wrong.
            LLMError: The service refuses the request, cannot be reached, or cannot reach its model server.
        """
        try:
            response = self._http.post("/v1/prompt", json=dict(body), params={"route": route} if route else {})
        except httpx.TransportError as error:
            why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise Unreachable(f"the service cannot be reached: {why}") from error
        if response.is_error:
            raise _error(response)
        said = response.json()
        prompts = tuple(map(_prompt, said["prompts"]))
        return _known(Previewed, {**said, "ignored": tuple(said["ignored"]), "prompts": prompts})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> PromptClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reports_of(answer: Mapping[str, Any]) -> tuple[Report, ...]:
    """Returns the reports of a whole answer, or of an item of a stream, one for each prompt; none if it has none.

    Args:
        answer: The JSON object; of OpenAI's client, `answer.model_dump()`.
    """
    found = answer.get("reports") or [answer.get("report")]
    return tuple(_report(one) for one in found if one)


def _checked(url: str) -> str:
    """Returns a URL of HTTP.

    Raises:
        SettingsError: It is none.
    """
    shown = without_keys(url.rpartition("@")[2])
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"url = {shown}: {error}") from None
    if parsed.scheme not in ("http", "https"):
        raise SettingsError(f"url = {shown}: a URL is needed, which begins with http:// or https://")
    if not parsed.host:
        raise SettingsError(f"url = {shown}: no host in this URL")
    return url


def _prompt(said: Mapping[str, Any]) -> PreviewedPrompt:
    conversation = tuple(_message(message) for message in said.get("messages", ()))
    return PreviewedPrompt(
        prompt=said.get("prompt", conversation),
        rendered=said["rendered"],
        sampling=_known(Sampling, {**said["sampling"], "stop": tuple(said["sampling"].get("stop", ()))}),
        options=said["options"],
        report=_report(said["report"]),
        answer=said["answer"],
    )


def _message(said: Mapping[str, Any]) -> Message:
    extra = {name: value for name, value in said.items() if name not in ("role", "content")}
    return Message(said["role"], said["content"], extra)


def _report(said: Mapping[str, Any]) -> Report:
    return _known(Report, {**said, "documents": tuple(_known(DocumentUse, use) for use in said["documents"])})


def _known(kind: type[Values], said: Mapping[str, Any]) -> Values:
    """Returns an object of a dataclass; fields that it does not have are of a newer service."""
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in said.items() if name in names})


def _error(response: httpx.Response) -> LLMError:
    """Returns the error of a response, with the service's own words."""
    try:
        said = response.json()
    except ValueError:
        said = {}
    inner = said.get("error") if isinstance(said, dict) else None
    text = inner.get("message") if isinstance(inner, dict) else inner
    if isinstance(said, dict):
        text = text or said.get("detail")
    kind = _ERRORS.get(response.status_code, InvalidRequest if response.is_client_error else ModelServerError)
    return kind(str(text or f"the service answered with status {response.status_code}"))
