"""What every engine's own process does: read requests, let the engine take steps, say what came of them.

Input, a JSON line each:
    {"id": n, "load": {…}}                                           first, and once
    {"id": n, "generate": {"prompt": text | messages, "sampling": {…}}}
    {"id": n, "count": text}
    {"id": n, "measure": text | messages}
    {"id": n, "render": messages}
    {"id": n, "embed": [text, …]}
    {"cancel": n}
Output, a JSON line a step, a list of parts:
    {"id": n, "context_window": tokens | null, "longest_token": characters, "last": true}      loaded
    {"id": n, "text": piece}
    {"id": n, "text": piece, "reason": "stop" | "length", "usage": [prompt, completion], "last": true}
    {"id": n, "count": tokens, "last": true}
    {"id": n, "text": rendered, "last": true}
    {"id": n, "vectors": [[number, …], …], "prompt_tokens": tokens, "last": true}
    {"id": n, "error": text, "field"?: name, "too_long"?: [prompt, window], "last": true}
    {"id": n, "error": text, "setting": true, "last": true}                   not loaded for a setting that is wrong

One thread speaks to the engine, so nothing is locked. It ends when its input does; `engine` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

from comps.core.errors import InvalidRequest, ModelServerError, PromptTooLong, SettingsError
from comps.core.types import JSON, Sampling

Part: TypeAlias = dict[str, JSON]


class Engine(Protocol):
    """A model, and the requests that it is working on. What its methods raise is told to whoever asked."""

    context_window: int | None
    longest_token: int
    """No token stands for more characters."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do for `step`."""
        ...

    def start(self, number: int, prompt: str | list[dict[str, str]], sampling: Sampling) -> None:
        """Take in a request to generate, under the number that its parts will carry.

        Raises:
            InvalidRequest: It cannot be served (`PromptTooLong` for the window).
        """
        ...

    def cancel(self, number: int) -> None:
        """Forget a request, if it is there."""
        ...

    def count(self, text: str) -> int:
        """The tokens of `text`, without special tokens."""
        ...

    def measure(self, prompt: str | list[dict[str, str]]) -> int:
        """The tokens that would be read of a prompt to generate from; raises like `start`."""
        ...

    def render(self, messages: list[dict[str, str]]) -> str:
        """The text that would be read of a conversation; raises like `start`."""
        ...

    def step(self) -> list[Part]:
        """Compute for at most a few hundred milliseconds, and say what each request gained."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """An engine that also turns texts into vectors."""

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        """Take in texts to embed, of which `step` reads some; raises like `Engine.start`."""
        ...


class Inbox:
    """Messages from a file descriptor, one JSON document a line."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._begun: list[bytes] = []
        """The pieces of a line whose end has not arrived yet: to join them each time would take ever longer."""

    def read(self, wait: bool) -> list[dict[str, JSON]] | None:
        """All that has arrived, waiting for some if told to; None at the end of the input."""
        arrived: list[dict[str, JSON]] = []
        while wait or select.select([self._source], [], [], 0)[0]:
            wait = False
            chunk = os.read(self._source, 1 << 20)
            if not chunk:
                return arrived or None
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                arrived.append(json.loads(b"".join((*self._begun, end))))
                self._begun = []
            self._begun.append(rest)
        return arrived


class Outbox:
    """The way out, kept clear of whatever a library prints."""

    def __init__(self) -> None:
        self._output: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def say(self, parts: list[Part]) -> None:
        """Send what there is to say, in one line."""
        if parts:
            self._output.write(json.dumps(parts).encode() + b"\n")
            self._output.flush()


def serve(load: Callable[..., Engine]) -> None:
    """Load an engine as the first message says, and serve standard input until it ends."""
    # A signal may be sent to every process there is; the service decides when its engine ends, by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    inbox, outbox = Inbox(0), Outbox()
    with suppress(BrokenPipeError):  # The service is gone, and so is the point of this process.
        while (arrived := inbox.read(wait=True)) == []:
            pass
        if arrived:
            _serve(load, arrived, inbox, outbox)


def _serve(load: Callable[..., Engine], arrived: list[Any] | None, inbox: Inbox, outbox: Outbox) -> None:
    assert arrived
    first = arrived.pop(0)
    try:
        engine = load(**first["load"])
    except Exception as error:  # Whatever it is, it goes to whoever waits for this engine.
        wrong = {"setting": True} if isinstance(error, SettingsError) else {}
        outbox.say([{"id": first["id"], "error": reason(error), **wrong, "last": True}])
        return
    facts = {"context_window": engine.context_window, "longest_token": engine.longest_token}
    outbox.say([{"id": first["id"], **facts, "last": True}])
    waiting: set[int] = set()
    """Who has been taken in, and has had no last part yet."""
    while arrived is not None:
        outbox.say([part for message in arrived if (part := _take(engine, message, waiting))])
        if engine.busy:
            try:
                parts = engine.step()
            except Exception as error:  # Whatever it is, the engine is not to be trusted with further requests.
                outbox.say([{"id": number, "error": reason(error), "last": True} for number in waiting])
                raise
            waiting.difference_update(part["id"] for part in parts if part.get("last"))
            outbox.say(parts)
        arrived = inbox.read(wait=not engine.busy)


def _take(engine: Engine, message: dict[str, JSON], waiting: set[int]) -> Part | None:
    """Take a message in; what can be answered at once is."""
    if "cancel" in message:
        waiting.discard(message["cancel"])
        engine.cancel(message["cancel"])
        return None
    number = message["id"]
    try:
        if "count" in message:
            return {"id": number, "count": engine.count(message["count"]), "last": True}
        if "measure" in message:
            return {"id": number, "count": engine.measure(message["measure"]), "last": True}
        if "render" in message:
            return {"id": number, "text": engine.render(message["render"]), "last": True}
        if "generate" in message:
            sampling = message["generate"]["sampling"]
            sampling = Sampling(**{**sampling, "stop": tuple(sampling["stop"])})
            engine.start(number, message["generate"]["prompt"], sampling)
        elif isinstance(engine, Embeds):
            engine.start_embedding(number, message["embed"])
        else:
            raise ModelServerError("this engine makes no embeddings")
        waiting.add(number)
        return None
    except PromptTooLong as error:
        return {
            "id": number,
            "error": "too long",
            "too_long": [error.prompt_tokens, error.context_window],
            "last": True,
        }
    except InvalidRequest as error:
        return {"id": number, "error": error.args[0], "field": error.field, "last": True}
    except Exception as error:  # From a library anything may come, and nothing may end the engine.
        return {"id": number, "error": reason(error), "last": True}


def reason(error: Exception) -> str:
    """The last line of an error: before it, OpenVINO writes the paths of the machine that it was built on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
