"""The process of a model engine, seen from the service: it starts the process, sends requests and ends it.

An engine may hold Python's global interpreter lock while it computes: openvino-genai's `step()` does, for 10 ms a token
and 350 ms a chunk of a long prompt. In the service's own process, all requests would stand still meanwhile. So an
engine has a process, and speaks JSON lines over its standard input and output; `engine_program` is the other end and
documents the messages. Every message carries the id of the request that it belongs to.

Requests may come from several event loops. Two threads serve the pipes, and hand what arrives to the event loop that
asked. A third one ends a process that hangs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, PromptTooLong, Unreachable
from comps.core.types import JSON
from comps.model_servers.embedded.engine_program import Part

log = logging.getLogger("opea_llm")

_START = "import sys, runpy; _, module, *sys.path = sys.argv; runpy.run_module(module, run_name='__main__')"
"""Python's own `-m` would search the current folder first."""
_CHECK = """
import json, sys
_, module, *sys.path = sys.argv
from importlib import import_module
from comps.core.errors import SettingsError
try:
    import_module(module).check(**json.load(sys.stdin))
except SettingsError as error:
    print("\\n" + json.dumps(error.problems))
"""
_CHECK_SECONDS = 60
"""Seconds that a check may take, mostly to import the engine; if it takes longer, loading finds what is wrong."""
_GRACE = 5.0
"""Seconds that an engine has to end by itself once its input is closed."""
_LOOK_SECONDS = 10.0
"""Seconds between two looks at whether the process hangs."""
_MOST_LOOKS = 6
"""The looks after which it does, if from one to the next it neither wrote anything nor used the CPU. A step that takes
long uses it. Looks are counted, and not seconds, since the service may have been stopped together with its engine."""


@dataclass(slots=True, eq=False)
class _Request:
    """A request that the engine works on. `deliver` runs in the event loop that asked."""

    loop: asyncio.AbstractEventLoop
    last_part: asyncio.Future[Part]
    on_part: Callable[[Part], None] | None

    def deliver(self, part: Part) -> None:
        if self.last_part.done():  # Cancelled, or failed: nothing is delivered any more.
            return
        if part.get("last"):
            self.last_part.set_result(part)
        elif self.on_part:
            try:
                self.on_part(part)
            except Exception as error:  # It is this request's failure, and no other's.
                self.last_part.set_exception(error)


def run_check(module: str, given: Mapping[str, JSON]) -> list[str]:
    """Returns what is wrong with the settings of an engine, as its package finds them; nothing if it cannot be asked.

    Args:
        module: The module with the function `check`, which raises a SettingsError.
        given: The arguments of that function.
    """
    with suppress(subprocess.SubprocessError, ValueError, IndexError):
        done = subprocess.run(
            [sys.executable, "-c", _CHECK, module, *_search_path()],
            input=json.dumps(given),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_CHECK_SECONDS,
            check=True,
        )
        problems: list[str] = json.loads(done.stdout.splitlines()[-1])
        return problems
    return []


def _search_path() -> list[str]:
    return [str(Path(place).resolve()) for place in sys.path if place]


def _cpu_ticks(pid: int) -> tuple[str, str] | None:
    """Returns the CPU time that a process has used as a user and in the kernel; None if the system does not tell.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[11], fields[12]


class EngineProcess:
    """One running engine. Once it has loaded its model, it is ended if it hangs.

    Args:
        module: The module that is the engine's program.
        on_end: Called in a thread when the process is gone, after all its requests have been told.
    """

    def __init__(self, module: str, on_end: Callable[[], None] = lambda: None) -> None:
        self._on_end = on_end
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, module, *_search_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the service, which ends its engine when no request needs it.
        )
        self._ids = count(1)
        self._requests: dict[int, _Request] = {}
        self._lock = threading.Lock()
        self._outgoing: SimpleQueue[JSON] = SimpleQueue()
        self._wrote = False
        """Whether the process has written something since the last look."""
        self._hung = False
        self._over = threading.Event()
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

    async def ask(self, message: Mapping[str, JSON], on_part: Callable[[Part], None] | None = None) -> Part:
        """Send a request and wait for its last part. Cancelling it cancels the request at the engine.

        Args:
            message: The request, without its id; see `engine_program`.
            on_part: Called in this event loop with each earlier part, as it arrives. What it raises is raised here,
                and cancels the request at the engine.

        Returns:
            The part that has `"last": true`.

        Raises:
            Unreachable: The process is gone.
        """
        loop = asyncio.get_running_loop()
        request = _Request(loop, loop.create_future(), on_part)
        number = next(self._ids)
        with self._lock:
            if self.ended:
                raise self._gone()
            self._requests[number] = request
        self._outgoing.put({**message, "id": number})
        try:
            part = await request.last_part
        except BaseException:
            self._outgoing.put({"cancel": number})
            raise
        finally:
            with self._lock:
                self._requests.pop(number, None)
        if "gone" in part:
            raise self._gone()
        return part

    def close(self, grace: float = _GRACE) -> None:
        """End the process; requests that still wait get `Unreachable`. Blocks until the process is gone.

        Args:
            grace: Seconds that it has to end by itself.
        """
        self._outgoing.put(None)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> Unreachable:
        if self._hung:
            return Unreachable("the model's process did not react any more, and was ended")
        return Unreachable(f"the model's process has ended (exit code {self._process.poll()})")

    def _write(self, pipe: IO[bytes]) -> None:
        # If the process is gone, the reading thread tells all requests; the pipe fails once more as it is closed.
        with suppress(OSError), pipe:
            while (message := self._outgoing.get()) is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        """Deliver what the engine writes: a line holds the parts of one step, of all requests."""
        try:
            with pipe:
                for number, line in enumerate(pipe):
                    if number == 0:  # The model is loaded. Until then, nothing is read or written.
                        threading.Thread(target=self._watch, daemon=True).start()
                    self._wrote = True
                    self._deliver(json.loads(line))
        except ValueError:
            log.exception("the model's process writes what is no JSON; it is ended")
        finally:
            self._process.kill()
            self._process.wait()
            self._over.set()
            with self._lock:
                waiting = list(self._requests)
            self._deliver([{"id": number, "gone": True, "last": True} for number in waiting])
            self._on_end()

    def _watch(self) -> None:
        """End the process if it hangs. It is asked for a sign of life, since without requests it writes nothing."""
        silent, used = 0, None
        while not self._over.wait(_LOOK_SECONDS):
            wrote, self._wrote = self._wrote, False
            before, used = used, _cpu_ticks(self.pid)
            silent = silent + 1 if used and used == before and not wrote else 0
            if silent == _MOST_LOOKS:
                log.error("the model's process does not react any more; it is ended")
                self._hung = True
                self._process.kill()
            if wrote:
                self._outgoing.put({"id": 0, "ping": True})

    def _deliver(self, parts: Sequence[Part]) -> None:
        """Wake each event loop that asked once, with all that is for its requests."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[_Request, Part]]] = defaultdict(list)
        with self._lock:
            for part in parts:
                if request := self._requests.get(part["id"]):
                    by_loop[request.loop].append((request, part))
        for loop, arrived in by_loop.items():
            with suppress(RuntimeError):  # The loop is closed, and with it whoever waited there.
                loop.call_soon_threadsafe(_deliver_all, arrived)


def _deliver_all(arrived: Sequence[tuple[_Request, Part]]) -> None:
    for request, part in arrived:
        request.deliver(part)


def error_of(part: Mapping[str, JSON], too_long: type[PromptTooLong]) -> LLMError:
    """Returns the error that a part of the engine's tells, as `too_long` where it is about a length."""
    if "too_long" in part:
        return too_long(*part["too_long"])
    if field := part.get("field"):
        return InvalidRequest(part["error"], field)
    return ModelServerError(f"the model failed: {part['error']}")
