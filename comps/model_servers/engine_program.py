"""What every engine's own process does: read requests, let the engine take steps, say what came of them.

Input, a JSON line each:
    {"id": n, "load": {…}}                                           first, and once
    {"id": n, "generate": {"prompt": text | messages, "sampling": {…}}}
    {"id": n, "count": text}
    {"cancel": n}
Output, a JSON line a step, a list of parts:
    {"id": n, "context_window": tokens | null, "longest_token": characters, "last": true}      loaded
    {"id": n, "text": piece}
    {"id": n, "text": piece, "reason": "stop" | "length", "usage": [prompt, completion], "last": true}
    {"id": n, "count": tokens, "last": true}
    {"id": n, "error": text, "field"?: name, "too_long"?: [prompt, window], "last": true}

One thread does everything, so nothing is locked. It ends when its input does; `engine` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, Protocol, TypeAlias

from comps.core.types import JSON

Part: TypeAlias = dict[str, JSON]


class Engine(Protocol):
    """A model, and the requests that it is working on."""

    context_window: int | None
    longest_token: int
    """In bytes: so many of them are at least one token."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do for `step`."""
        ...

    def handle(self, message: dict[str, JSON]) -> Part | None:
        """Take a message in; what can be answered at once is. Never raises."""
        ...

    def step(self) -> list[Part]:
        """Compute for at most a few hundred milliseconds, and say what each request gained."""
        ...

    def fail(self, error: Exception) -> list[Part]:
        """A step has failed: what there is to say to each request that was running."""
        ...


class Inbox:
    """Messages from a file descriptor, one JSON document a line."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._rest = b""

    def read(self, wait: bool) -> list[dict[str, JSON]] | None:
        """What has arrived, waiting for some if told to; None at the end of the input."""
        if not wait and not select.select([self._source], [], [], 0)[0]:
            return []
        chunk = os.read(self._source, 1 << 20)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines] if chunk else None


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
        outbox.say([{"id": first["id"], "error": reason(error), "last": True}])
        return
    facts = {"context_window": engine.context_window, "longest_token": engine.longest_token}
    outbox.say([{"id": first["id"], **facts, "last": True}])
    while arrived is not None:
        outbox.say([part for message in arrived if (part := engine.handle(message))])
        if engine.busy:
            try:
                outbox.say(engine.step())
            except Exception as error:  # Whatever it is, the engine is not to be trusted with further requests.
                outbox.say(engine.fail(error))
                raise
        arrived = inbox.read(wait=not engine.busy)


def reason(error: Exception) -> str:
    """The last line of an error: before it, OpenVINO writes the paths of the machine that it was built on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
