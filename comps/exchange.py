"""One request and its answer, as metrics and log see it: who asked what of which model, how it ended, and when what
happened. Times are `time.monotonic`'s, in seconds; 0.0: not yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from comps.access import CALLER, Caller, client_address
from comps.admission import RequestSlots
from comps.core.generator import TextGenerator
from comps.core.request_id import REQUEST_ID
from comps.core.times import Times
from comps.core.types import GenerationRequest, Report, Usage

Fields: TypeAlias = "dict[str, str | int | float | bool | list[str] | None]"

_LONGEST_WHY = 500
"""The most characters of an error in the log."""
_ANSWERED = ("200", "gone", "broken")
"""The outcomes of requests that a model may have begun to answer."""
_BYTES_PER_TOKEN = 4
"""By which the tokens of a body are estimated where nobody has counted them."""


class Trace(Protocol):
    """The spans of a request."""

    def around(self, model: TextGenerator, slots: RequestSlots) -> tuple[TextGenerator, RequestSlots]:
        """Returns a model and slots that begin and end spans."""
        ...

    def end(self, exchange: Exchange) -> None:
        """End the span of the request."""
        ...


class Exchange(Times):
    """One request and its answer.

    Args:
        path: The path of the request's route.
        scope: ASGI's scope of the request.
        dialect: The name of the dialect whose errors the path has; until the body is read.
    """

    dialect: str
    """The dialect of the body, or of the error."""
    model = ""
    """The served model that is asked; empty until that is known, and for a name that is not served."""
    operation = ""
    """What is asked of it, in the words of OpenTelemetry's conventions; empty until that is known."""
    caller: Caller | None
    """Who sent it; None if no keys are set."""
    body_size = 0
    """The bytes of the request's body."""
    streamed = False
    ignored = ""
    """The fields that have no effect, as in `x-ignored-params`."""
    outcome = "error"
    """The HTTP status, `gone` if the client disconnected before the end, or `broken` if a stream is incomplete."""
    window = "body"
    """Where a cancelled request was: `body` (it was not read completely), `queued` (for a slot), `first_token` (its
    prompt was planned, or its stream had not begun), `stream`, or `whole` (its answer is not streamed)."""
    asked: Sequence[GenerationRequest] = ()
    """What was asked of the model; empty before that is known, and if nothing is to be generated."""
    answers = 1
    """How many answers were asked for."""
    reports: Mapping[int, Report] = MappingProxyType({})
    """What is known of each prompt that has been planned, by its place in `asked`."""
    sent = 0
    """The tokens that the client has got, if there is no `usage`: of a stream the items, which are a few more."""
    usage: Usage | None = None
    reason: str | None = None
    why = ""
    """The error, for the log."""
    is_failure = False
    """Whether it is one of the service or the model server."""
    slots: RequestSlots | None = None
    trace: Trace | None = None
    """Its spans; None if there are no traces."""
    received_at = 0.0
    """When the body had arrived."""
    ended_at = 0.0

    def __init__(self, path: str, scope: Mapping[str, Any], dialect: str = "") -> None:
        self.path = path
        self.dialect = dialect
        self.caller = scope.get(CALLER)
        self.client = scope.get("client")
        """The address and the port of the client; None if the server does not say."""
        self.id = REQUEST_ID.get()
        self.started = monotonic()

    def fails(self, why: str, is_failure: bool) -> None:
        """Record an error.

        Args:
            why: Its text, for the operator.
            is_failure: Whether it is one of the service or the model server.
        """
        self.why = why[:_LONGEST_WHY]
        self.is_failure = is_failure

    def spent(self, speed: float) -> int:
        """Returns the tokens that a model read and made; an estimate if there is no `usage`.

        Args:
            speed: See `saved`.
        """
        if self.usage:
            return self.usage.prompt_tokens + self.usage.completion_tokens
        if self.outcome not in _ANSWERED or self.window in ("body", "queued"):
            return 0
        counted = [tokens for report in self.reports.values() if (tokens := report.prompt_tokens) is not None]
        is_known = 0 < len(counted) == len(self.reports)
        prompts = sum(counted) if is_known else self.body_size // _BYTES_PER_TOKEN
        return prompts + self._made(speed)

    def saved(self, speed: float) -> int:
        """Returns the tokens that a request whose client left allowed, and that were not made; 0: not known.

        Args:
            speed: The tokens per second of the model's answers, by which those of a whole answer are estimated whose
                client left, since they do not come one by one; 0.0: not known.
        """
        return max(self._allowed - self._made(speed), 0)

    @property
    def _allowed(self) -> int:
        """The most tokens that the answers may have; 0 if there is no limit."""
        return sum(_most_tokens(one, self.reports.get(number)) for number, one in enumerate(self.asked))

    def _made(self, speed: float) -> int:
        if not (speed and self.window == "whole" and self.asked_at):
            return self.sent
        made = int(speed * (self.ended_at - self.asked_at))
        return min(made, self._allowed or made)

    def parts(self, now: float) -> tuple[float, float, float]:
        """Returns the seconds since the body arrived: in the queue, with the model server, and of the service itself.

        The model server's part ends with its answer, or now. That of the service is all the rest: to read the body, to
        plan the prompt, for which it may have the model server count tokens, and to write the answer.
        """
        queue = self.slots.waited if self.slots else 0.0
        model = (self.answered_at or now) - self.asked_at if self.asked_at else 0.0
        return queue, model, max(now - (self.received_at or now) - queue - model, 0.0)

    def server_timing(self) -> bytes:
        """Returns the value of the header `server-timing`, in milliseconds: https://www.w3.org/TR/server-timing/"""
        now = monotonic()
        queue, model, own = self.parts(now)
        said = (1000 * (now - self.started), 1000 * queue, 1000 * model, 1000 * own)
        return b"total;dur=%.2f, queue;dur=%.2f, model;dur=%.2f, overhead;dur=%.2f" % said

    def fields(self, server: str) -> Fields:
        """Returns what the log says of it, by name; there is nothing of the prompt in it.

        Args:
            server: The kind of the model's server.
        """
        usage, first = self.usage, self.first_token_at
        queue, model, own = self.parts(self.ended_at)
        return {
            "path": self.path,
            "outcome": self.outcome,
            "request_id": self.id,
            "client": client_address(self.client),
            "key": self.caller.name if self.caller else None,
            "dialect": self.dialect,
            "model": self.model,
            "server": server,
            "stream": self.streamed,
            "reason": self.reason,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "queue_seconds": round(queue, 6),
            "first_token_seconds": round(first - self.started, 6) if first else None,
            "model_seconds": round(model, 6),
            "overhead_seconds": round(own, 6),
            "seconds": round(self.ended_at - self.started, 6),
            "ignored": self.ignored.split(", ") if self.ignored else [],
            "error": self.why or None,
        }

    def line(self, server: str) -> str:
        """Returns the same in one line of text."""
        usage, first, ended = self.usage, self.first_token_at, self.ended_at
        queue, model, own = self.parts(ended)
        tokens = f"{usage.prompt_tokens}+{usage.completion_tokens}" if usage else "-"
        ignored = self.ignored.replace(", ", ",")
        return (
            f"{self.path} {self.outcome} id={self.id or '-'} client={client_address(self.client) or '-'}"
            f"{f' key={self.caller.name}' if self.caller else ''} dialect={self.dialect or '-'} "
            f"model={self.model or '-'} server={server or '-'} stream={'yes' if self.streamed else 'no'} "
            f"reason={self.reason or '-'} tokens={tokens} queue={queue:.3f} "
            f"first={f'{first - self.started:.3f}' if first else '-'} answer={model:.3f} overhead={own:.4f} "
            f"total={ended - self.started:.4f}{f' ignored={ignored}' if ignored else ''}"
            f"{f': {self.why}' if self.why else ''}"
        )


def _most_tokens(request: GenerationRequest, report: Report | None) -> int:
    """Returns the number of tokens that the answers to a request may have; 0 if there is no limit.

    Where prompt and answer together are limited, it is that limit if the prompt's tokens are not counted.

    Args:
        request: The request.
        report: Of its prompt; None if that is not planned.
    """
    choices = request.options.get("n")
    most = (report.max_tokens if report else None) or request.sampling.max_tokens
    if most is None and request.max_total_tokens is not None:
        most = max(request.max_total_tokens - ((report.prompt_tokens if report else None) or 0), 1)
    return (most or 0) * (choices if isinstance(choices, int) else 1)
