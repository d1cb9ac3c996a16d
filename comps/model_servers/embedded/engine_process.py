"""A model engine in a process of its own, which this service starts, talks to and ends.

An engine may hold Python's interpreter lock while it computes: openvino-genai's `step()` does, for 10 ms a token and
350 ms a slice of a long prompt, and in this process all requests would stand still meanwhile. So it gets a process, and
speaks JSON lines over its standard input and output. Every message carries the id of the request that it belongs to;
the words are in `engine_program`, which is the other end.

Requests may come from any event loop: pipes are served by two threads, and what arrives is handed to the loop that
asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from comps.core.errors import ModelServerError, Unreachable
from comps.core.types import JSON

log = logging.getLogger("opea_llm")

_START = "import sys, runpy; _, module, *sys.path = sys.argv; runpy.run_module(module, run_name='__main__')"
"""Python's own `-m` would look into the current folder first, and find there what is none of ours."""
_GRACE = 5.0
"""Seconds an engine has to end by itself once its input is closed."""


class EngineProcess:
    """One running engine.

    Args:
        module: The module that is the engine's program.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, module, *(str(Path(place).resolve()) for place in sys.path if place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the service, which ends its engine when nobody needs it any more.
        )
        self._ids = count(1)
        self._inboxes: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Queue[JSON]]] = {}
        self._lock = threading.Lock()
        self._outbox: SimpleQueue[JSON] = SimpleQueue()
        assert self._process.stdin
        assert self._process.stdout
        threading.Thread(target=self._write, args=(self._process.stdin,), daemon=True).start()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    async def ask(self, message: Mapping[str, JSON]) -> AsyncGenerator[JSON]:
        """Send `message` and yield what comes back for it, up to and with the part that has `"last": true`.

        Closing the generator before that tells the engine to stop.

        Raises:
            Unreachable: The process is gone.
        """
        inbox: asyncio.Queue[JSON] = asyncio.Queue()
        number = next(self._ids)
        with self._lock:
            if self.ended:
                raise self._gone()
            self._inboxes[number] = (asyncio.get_running_loop(), inbox)
        self._outbox.put({**message, "id": number})
        last = False
        try:
            while not last:
                part = await inbox.get()
                if part is None:
                    last = True
                    raise self._gone()
                last = part.get("last", False)
                yield part
        finally:
            with self._lock:
                self._inboxes.pop(number, None)
            if not last:
                self._outbox.put({"cancel": number})

    def close(self, grace: float = _GRACE) -> None:
        """End the process; whoever still waits gets `Unreachable`. Blocks until it is gone.

        Args:
            grace: Seconds it has to end by itself.
        """
        self._outbox.put(None)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> ModelServerError:
        return Unreachable(f"the model's process has ended (exit code {self._process.poll()})")

    def _write(self, pipe: IO[bytes]) -> None:
        # If the process is gone, the reading side tells everybody; the pipe, as it is closed, fails once more.
        with suppress(OSError), pipe:
            while (message := self._outbox.get()) is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        """Hand out what the engine says: a line holds all that one step brought, for all requests."""
        try:
            with pipe:
                for line in pipe:
                    with self._lock:
                        self._deliver(json.loads(line))
        except ValueError:
            log.exception("the model's process says what makes no sense; it is ended")
        finally:
            self._process.kill()
            self._process.wait()
            with self._lock:
                self._deliver([{"id": number, "gone": True} for number in self._inboxes])

    def _deliver(self, parts: list[JSON]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[JSON], JSON]]] = {}
        for part in parts:
            if waiting := self._inboxes.get(part["id"]):
                loop, inbox = waiting
                by_loop.setdefault(loop, []).append((inbox, None if "gone" in part else part))
        for loop, arrived in by_loop.items():
            with suppress(RuntimeError):  # That loop may be closed, and with it whoever waited there.
                loop.call_soon_threadsafe(_put_all, arrived)


def _put_all(arrived: list[tuple[asyncio.Queue[JSON], JSON]]) -> None:
    for inbox, part in arrived:
        inbox.put_nowait(part)
