"""What answers a command: a model in this process, or a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from comps.cli.common import API_KEY, load, settings_of
from comps.cli.progress import progress
from comps.core.answers import Forwarding
from comps.core.errors import InvalidRequest, LLMError, Refused, SettingsError
from comps.core.ports import Answer
from comps.core.types import JSON, Finished, GenerationRequest, TextDelta
from comps.messages import message

if TYPE_CHECKING:
    from comps.settings import Settings


class Answering(Protocol):
    """What answers questions."""

    async def load(self) -> None:
        """Load what has to be there before the first question."""
        ...

    async def answer(self, request: GenerationRequest, answer: Answer) -> dict[str, JSON]:
        """Write the answer to a request, and tell on standard error what became of its documents.

        Returns:
            The facts for `--json`: `model`, and what is known of the documents.
        """
        ...

    async def aclose(self) -> None:
        """Release all resources."""
        ...


def opened(config: Path | None, url: str, api_key: str, model: str | None) -> Answering:
    """Returns what answers: the service at `url`, or, if that is empty, the configured model.

    Raises:
        SettingsError: A setting, or the URL, is wrong.
    """
    from comps.logs import start_log

    if url:
        if config:
            raise SettingsError("--config: no effect with --url: the service has settings of its own")
        return RunningService(url, api_key, model or "")
    settings = settings_of(config)
    start_log("WARNING", "")
    return InProcess(settings, model)


class InProcess:
    """The configured model, without a service.

    Args:
        settings: The settings.
        model: The model's name; None: the first one.
    """

    def __init__(self, settings: Settings, model: str | None) -> None:
        from comps.opening import open_models

        self._settings = settings
        self._generator = open_models(settings).named(model)

    async def load(self) -> None:
        await load(self._settings, self._generator.model, self._generator)

    async def answer(self, request: GenerationRequest, answer: Answer) -> dict[str, JSON]:
        with progress("Reading the prompt") as waiting:
            plan = await self._generator.plan(request)
            for use in plan.report.documents:
                if use.fate != "kept":
                    title = (request.documents or ())[use.number - 1].title
                    message(f"[document {use.number} ({title}) was {use.fate}: {use.reason}]")
            await self._generator.answer(plan, _Begun(answer, waiting))
        return {"model": self._generator.model, "report": {**asdict(plan.report), "headroom": plan.report.headroom}}

    async def aclose(self) -> None:
        await self._generator.server.aclose()


class RunningService:
    """A running service, or any server with OpenAI's API.

    Args:
        url: Its URL, with or without `/v1`.
        api_key: The key; empty: none.
        model: The model's name; empty: the first that it lists.
        of_settings: Whether it is a model server of the settings; errors then call it so.

    Raises:
        SettingsError: The URL or the key is invalid.
    """

    def __init__(self, url: str, api_key: str, model: str = "", *, of_settings: bool = False) -> None:
        from comps.model_servers.remote.openai_api import OpenAIAPI, check_endpoint, split_endpoint
        from comps.model_servers.target import Access

        self._key = api_key
        self._of_settings = of_settings
        self.url = url
        self._is_ours = False
        with self.errors():
            check_endpoint(url)
            self._api = split_endpoint(url)[1]
            self._server = OpenAIAPI(model, url, Access(api_key=api_key))

    async def load(self) -> None:
        """Find out which model answers, and whether the service reads documents.

        Raises:
            SettingsError: The service does not serve the model. A service may take any name, and other servers may know
                names that they do not list, so that only services are judged by their lists.
        """
        with progress(f"Waiting for {self.url}"):
            listed = await self.listed()
        named = [one["id"] for one in listed]
        self._is_ours = any("honours" in one for one in listed)
        model = self._server.model_name
        if self._is_ours and model and model not in named:
            raise SettingsError(f"--model = {model}: {self.url} does not serve it; it serves: {', '.join(named)}")
        if not model and named:
            self._server.model_name = named[0]

    async def listed(self) -> list[dict[str, Any]]:
        """Returns the models that it lists, in OpenAI's form; none if it has no such list."""
        with self.errors():
            try:
                listing = await self._server.http.get(f"{self._api}/models")
            except (InvalidRequest, Refused, ValueError) as error:
                if isinstance(error, Refused) and error.status in _KEY_REFUSED:
                    raise
                return []
        listed = listing.get("data") if isinstance(listing, dict) else None
        return [one for one in listed or () if isinstance(one, dict) and isinstance(one.get("id"), str)]

    async def answer(self, request: GenerationRequest, answer: Answer) -> dict[str, JSON]:
        if request.documents and not self._is_ours:
            message(f"[{self.url} does not say that it reads documents: it may answer without them]")
        with self.errors(), progress(f"Waiting for {self.url}") as waiting:
            headers = await self._stream(request, _Begun(answer, waiting))
        return {"model": self._server.model_name, **_told(headers, request)}

    async def _stream(self, request: GenerationRequest, answer: Answer) -> Mapping[bytes, bytes]:
        """Write the streamed answer; returns the headers of the response."""
        from comps.model_servers.remote.chunks import ChunkReader
        from comps.model_servers.remote.failures import checked_answer

        path, body = self._server.request(request.prompt, request.sampling, _with_documents(request))
        reader = ChunkReader(answer)
        with checked_answer():
            streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
            headers = await self._server.http.stream(path, streamed, reader)
            reader.close()
        return headers

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Let errors say that the service failed, and hide the key in them."""
        try:
            yield
        except LLMError as error:
            error.operator_text = self._said(error.operator_text, error)
            error.args = tuple(self._said(one, error) if isinstance(one, str) else one for one in error.args)
            if isinstance(error, SettingsError):
                error.problems = tuple(self._said(one, error) for one in error.problems)
            raise

    def _said(self, text: str, error: LLMError) -> str:
        """Returns the text of an error in the words of the command line, without the key."""
        if not self._of_settings:
            text = text.replace("the model server", "the service", 1)  # What follows may be the service's own words.
            if isinstance(error, SettingsError):
                for said, meant in _NAMES:
                    text = text.replace(said, meant)
            elif isinstance(error, Refused) and error.status in _KEY_REFUSED:
                text = text.replace(error.body, _WRONG_KEY if self._key else _NO_KEY)
        return text.replace(self._key, "***") if self._key else text

    async def aclose(self) -> None:
        await self._server.aclose()


_NAMES = (
    ("api_key (LLM_API_KEY)", "--api-key"),
    ("model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT)", "--url"),
    ("model_server_endpoint", "--url"),
    ("LLM_API_KEY", "--api-key"),
)
"""Settings that the client of model servers names, and their flags here."""
_KEY_REFUSED = (401, 403)
_WRONG_KEY = "the service does not know this key, or does not allow it to do this"
_NO_KEY = f"a key is needed: --api-key, or {API_KEY}"


class _Begun(Forwarding):
    """Answer that ends the progress with its first piece.

    Args:
        answer: The answer.
        waiting: Ends the progress.
    """

    def __init__(self, answer: Answer, waiting: Callable[[], None]) -> None:
        super().__init__(answer)
        self._waiting = waiting

    def text(self, text: str, choice: int = 0) -> None:
        self._waiting()
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._waiting()
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        self._waiting()
        self._answer.finished(end)


def _with_documents(request: GenerationRequest) -> dict[str, JSON]:
    """Returns the documents as fields of a body; nobody has ranked those of the command line."""
    if not request.documents:
        return {}
    documents = [{"title": one.title, "text": one.text} for one in request.documents]
    return {"documents": documents, "order": request.order or "relevance"}


def _told(headers: Mapping[bytes, bytes], request: GenerationRequest) -> dict[str, JSON]:
    """Returns what the headers of a response say, and tells it on standard error."""
    facts: dict[str, JSON] = {}
    if used := headers.get(b"x-documents-used", b"").decode("latin-1"):
        numbers = [] if used == "none" else [int(number) for number in used.split(",") if number.isdigit()]
        facts["documents_used"] = numbers
        for number, document in enumerate(request.documents or (), 1):
            if number not in numbers and not used.endswith("..."):
                message(f"[document {number} ({document.title}) was dropped]")
    ignored = headers.get(b"x-ignored-params", b"").decode("latin-1").split(", ")
    if names := [name for name in ignored if name and name not in _OWN and name not in request.defaulted]:
        facts["ignored"] = names
        message(f"[ignored by the service: {', '.join(names)}]")
    if dropped := headers.get(b"x-turns-dropped", b"").decode("latin-1"):
        facts["turns_dropped"] = int(dropped)
        message(f"[earlier messages that had no room: {dropped}]")
    return facts


_OWN = ("stream_options",)
"""Fields that nobody gave on the command line."""
