"""The form of a record: made of a draft, and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from pydantic import TypeAdapter, ValidationError

from comps.core.pieces import pieces
from comps.core.planning import Plan
from comps.core.redaction import HIDDEN, without_keys
from comps.core.types import JSON, Document, GenerationRequest, Message, Sampling
from comps.recording.drafts import Draft
from comps.settings import Settings
from comps.version import version

FORMAT = 1
"""The version of this form."""
MOST_TEXT = 2_000_000
"""Bytes of a request, a prompt or an answer; of a longer one, a record has the hash alone."""
_PIECE = 20_000
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)


def record_of(draft: Draft, settings: Settings, *, with_texts: bool) -> dict[str, JSON]:
    """Returns the record of a request, as JSON; keys are redacted.

    Args:
        draft: What is known of it.
        settings: Those of the service.
        with_texts: Whether it has the texts of the request and its answer, or their hashes alone.
    """
    model = settings.models[draft.model].model
    texts = _Texts(with_texts, (model.api_key.get_secret_value(), model.client_secret.get_secret_value()))
    plan = draft.plan
    record = {
        "format": FORMAT,
        "id": draft.id,
        "time": datetime.fromtimestamp(draft.began, timezone.utc).isoformat(timespec="milliseconds"),
        "version": version(),
        "outcome": draft.outcome,
        "error": without_keys(draft.error),
        "model": draft.model,
        "model_server": _model_server(draft, settings),
        "settings": {f"[{one.section}] {one.key}": without_keys(one.value) for one in settings.listing},
        "request": texts.kept(_request_object(draft.request)),
        "prompt": texts.kept(_prompt_object(plan.prompt)) if plan else None,
        "sampling": {name: value for name, value in asdict(plan.sampling).items() if name != "stop"} if plan else None,
        "decisions": _decisions(plan) if plan else None,
        "report": {**asdict(plan.report), "headroom": plan.report.headroom} if plan else None,
        "answer": texts.kept(draft.answer()),
        "finish_reason": draft.end.reason if draft.end else None,
        "usage": asdict(draft.end.usage) if draft.end and draft.end.usage else None,
        "times": {
            "planned": _rounded(draft.planned),
            "first_chunk": _rounded(draft.chunks[0]) if draft.chunks else None,
            "total": _rounded(draft.total),
            "chunks": [_rounded(one) for one in draft.chunks],
        },
    }
    return {**record, "redacted": texts.redacted}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _model_server(draft: Draft, settings: Settings) -> JSON:
    """Returns who answered: the kind, the URL without credentials, and what the model server says of itself."""
    model, info = settings.models[draft.model].model, draft.info
    known = {"name": info.name, "base": info.base, "context_window": info.context_window} if info else {}
    endpoint = without_keys(model.model_server_endpoint)
    return {"kind": model.model_server, "framework": model.framework, "endpoint": endpoint, **known}


def _decisions(plan: Plan) -> JSON:
    return {
        "language": plan.request.language,
        "documents_numbered": plan.numbered,
        "citations": plan.citations,
        "instruction_in_system_message": plan.has_system_instruction,
        "options": sorted(plan.options),
    }


class _Texts:
    """Turns values with texts in them into what a record has of them.

    Args:
        with_texts: Whether that is the texts as well, or their hashes alone.
        secrets: What is taken out of the texts, beside what looks like a key.
    """

    def __init__(self, with_texts: bool, secrets: Iterable[str]) -> None:
        self._with_texts = with_texts
        self._secrets = [secret for secret in secrets if secret]
        self.redacted = False
        """Whether something that looks like a key was taken out."""

    def kept(self, value: JSON) -> JSON:
        """Returns the hash and the size of a value, and, with texts, the value without what looks like a key."""
        digest, size = hashlib.sha256(), 0
        for piece in _ENCODER.iterencode(value):
            encoded = piece.encode("utf-8", "surrogatepass")
            digest.update(encoded)
            size += len(encoded)
        known = {"sha256": digest.hexdigest(), "bytes": size}
        return {**known, "value": self._without_keys(value)} if self._with_texts and size <= MOST_TEXT else known

    def _without_keys(self, value: JSON) -> JSON:
        if isinstance(value, str):
            clean = "".join(without_keys(piece) for piece in pieces(value, _PIECE, "\n"))
            for secret in self._secrets:
                clean = clean.replace(secret, HIDDEN)
            self.redacted = self.redacted or clean != value
            return clean
        if isinstance(value, dict):
            return {name: self._without_keys(one) for name, one in value.items()}
        return [self._without_keys(one) for one in value] if isinstance(value, list | tuple) else value


def _prompt_object(prompt: JSON) -> JSON:
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]


def _request_object(request: GenerationRequest) -> JSON:
    said = {name: value for name, value in asdict(request).items() if name != "is_large"}
    return {**said, "defaulted": sorted(request.defaulted)}


@dataclass(frozen=True)
class _ModelServer:
    kind: str
    framework: str
    endpoint: str


@dataclass(frozen=True)
class _Kept:
    sha256: str
    bytes: int
    value: JSON = None


@dataclass(frozen=True)
class _Usage:
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class _Times:
    planned: float | None
    first_chunk: float | None
    total: float | None
    chunks: list[float]


@dataclass(frozen=True)
class _Form:
    """What `record_of` writes, as far as it is read."""

    id: str
    time: str
    version: str
    outcome: str
    error: str
    model: str
    model_server: _ModelServer
    settings: dict[str, JSON]
    request: _Kept
    prompt: _Kept | None
    sampling: dict[str, JSON] | None
    decisions: dict[str, JSON] | None
    report: dict[str, JSON] | None
    answer: _Kept
    finish_reason: str | None
    usage: _Usage | None
    times: _Times
    redacted: bool


def check_form(record: JSON) -> None:
    """Check that a record has all that a comparison reads.

    Raises:
        ValueError: It has not; the text names the first field that is missing or has another type.
    """
    try:
        TypeAdapter(_Form).validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{field}: {first['msg'].lower()}") from None


def request_in(record: Mapping[str, JSON]) -> GenerationRequest | None:
    """Returns the request in a record; None if the record has its hash alone.

    Raises:
        ValueError: The record has another form.
    """
    said = record["request"].get("value")
    if said is None:
        return None
    try:
        prompt, documents = said["prompt"], said["documents"]
        return GenerationRequest(
            **{
                **said,
                "prompt": prompt if isinstance(prompt, str) else tuple(Message(**one) for one in prompt),
                "documents": None if documents is None else tuple(Document(**one) for one in documents),
                "quoted": tuple(Document(**one) for one in said["quoted"]),
                "sampling": Sampling(**{**said["sampling"], "stop": tuple(said["sampling"]["stop"])}),
                "defaulted": frozenset(said["defaulted"]),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its request has another form: {error}") from None
