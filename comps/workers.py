"""Several processes that answer on the same port, and the parent that starts them.

Each worker has listening sockets of its own (SO_REUSEPORT), among which the kernel spreads connections evenly. With one
socket for all, the first worker to wake accepts all connections that wait: all 200 of a burst. The parent keeps the
sockets open as well, so that what waits at a worker that died is accepted by the one that is started in its place.

The parent does nothing but wait for signals:
- TERM, INT and HUP (which `nohup` has ignored): the workers end after their running answers (END), and at a second
  one at once (END_AT_ONCE);
- USR1, from a worker that a client told to shut the service down: as the first TERM;
- CHLD: a worker that has ended is started again, after a pause that doubles if it did not live long. As process 1 of a
  container, the parent reaps all other processes as well.

Workers ignore TERM, INT and HUP, which may be sent to all processes. If the parent is gone, they end after their
answers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from comps.exit_codes import CUT_OFF, FAILED, WRONG_SETTINGS, ended_at_once

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP)
END, END_AT_ONCE = signal.SIGUSR1, signal.SIGQUIT
"""How the parent tells a worker to end, after its running answers or at once."""
_CRASHED = 70
"""Exit code of a worker for an unexpected exception."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
"""Seconds before a worker is started again."""
_LATE_SECONDS = 15.0
"""Seconds beyond its own deadlines after which a worker that has not ended is killed."""
_AT_ONCE_SECONDS = 5.0
"""Seconds that a worker may take to end at once."""


@dataclass(frozen=True)
class Worker:
    """What a worker knows of itself."""

    number: int
    """From 0. The worker that is started in the place of another has the same number."""
    is_first: bool
    """Whether it is the first one of all."""
    parent: int
    """The parent's process."""
    lifeline: int
    """A file descriptor that is at its end when the parent is gone."""

    def handle_signals(self, handle: Callable[[int, object], None]) -> None:
        """Let END and END_AT_ONCE be handled, and TERM, INT and HUP be ignored. What came before is handled now."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for number in (END, END_AT_ONCE):
            signal.signal(number, handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def end_all(self) -> None:
        """Tell the parent to end the service."""
        if os.getppid() == self.parent:  # Otherwise it is gone, and the workers are ending.
            os.kill(self.parent, signal.SIGUSR1)


@dataclass
class _Place:
    """One of the workers, and those that were it before."""

    process: int | None = None
    started: float = 0.0
    start_at: float = 0.0
    """When it is to be started, while there is no process."""
    pause: float = 0.0
    """Seconds of the last pause."""
    was_started: bool = False


class Workers:
    """The parent of some workers.

    Args:
        number: How many there are.
        work: Runs in each worker, and returns its exit code. FAILED and WRONG_SETTINGS end all.
        seconds: How long a worker may take to end when it is told to.
        tell: Says to the operator what has happened.
        on_end: Called with the number of each worker that has ended, and the seconds before it is started again.
        on_ending: Called when the service is told to end, before the workers are.
    """

    def __init__(
        self,
        number: int,
        work: Callable[[Worker], int],
        seconds: float,
        tell: Callable[[str], None],
        on_end: Callable[[int, float], None],
        on_ending: Callable[[], None],
    ) -> None:
        self._places = [_Place() for _ in range(number)]
        self._work = work
        self._seconds = seconds
        self._tell = tell
        self._on_end = on_end
        self._on_ending = on_ending
        self._lifeline = os.pipe()
        self._ending = False
        self._signals = 0
        """How many times TERM, INT or HUP has come."""
        self._kill_at = 0.0
        """When the workers that have not ended by then are killed."""
        self._codes: set[int] = set()
        """The exit codes of workers that ended after they were told to."""
        self._code: int | None = None
        """The exit code, if it does not depend on those."""

    def run(self) -> int:
        """Start the workers, and return the exit code when the last one has ended."""
        awaited = set(_SIGNALS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            awaited.remove(signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        while not self._ending or any(place.process for place in self._places):
            self._start_those_due()
            told = signal.sigtimedwait(awaited, self._seconds_left())
            if told:
                self._handle(told.si_signo)
            self._reap()
            if self._ending and time.monotonic() >= self._kill_at:
                self._signal_all(signal.SIGKILL)
        if self._code is not None:
            return self._code
        return FAILED if self._codes - {0, CUT_OFF} else max(self._codes, default=0)

    def _seconds_left(self) -> float:
        """Returns the seconds after which there is something to do, if no signal comes."""
        times = [self._kill_at] if self._ending else [place.start_at for place in self._places if not place.process]
        return max(0.01, min(times, default=time.monotonic() + 3600) - time.monotonic())

    def _start_those_due(self) -> None:
        for number, place in enumerate(self._places):
            if not self._ending and not place.process and time.monotonic() >= place.start_at:
                self._start(number, place)

    def _start(self, number: int, place: _Place) -> None:
        is_first = number == 0 and not place.was_started
        sys.stdout.flush()
        sys.stderr.flush()
        parent, process = os.getpid(), os.fork()
        if not process:
            os.close(self._lifeline[1])
            self._be(Worker(number, is_first, parent, self._lifeline[0]))
        place.process, place.started, place.was_started = process, time.monotonic(), True

    def _be(self, worker: Worker) -> NoReturn:
        """Be a worker, in the new process."""
        code = _CRASHED
        try:
            os.setsid()  # Ctrl-C in the terminal is for the parent alone.
            code = self._work(worker)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        if number != signal.SIGUSR1:
            self._signals += 1
        if self._signals <= 1:
            self._end()
        elif self._signals == 2:
            self._code = ended_at_once(number)
            self._kill_at = time.monotonic() + _AT_ONCE_SECONDS
            self._signal_all(END_AT_ONCE)
        else:
            self._signal_all(signal.SIGKILL)

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._kill_at = time.monotonic() + self._seconds + _LATE_SECONDS
            self._on_ending()
            self._signal_all(END)

    def _signal_all(self, number: int) -> None:
        for place in self._places:
            if place.process:
                os.kill(place.process, number)

    def _reap(self) -> None:
        """Take leave of all processes that have ended."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            for number, place in enumerate(self._places):
                if place.process == process:
                    place.process = None
                    self._ended(number, place, os.waitstatus_to_exitcode(status))

    def _ended(self, number: int, place: _Place, code: int) -> None:
        if self._ending:
            self._codes.add(code)
        elif code in (FAILED, WRONG_SETTINGS):  # The others fail as well.
            self._code = code
            self._end()
        else:
            lived = time.monotonic() - place.started
            place.pause = _SHORTEST_PAUSE if lived > _LONGEST_PAUSE else _next_pause(place.pause)
            place.start_at = time.monotonic() + place.pause
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._on_end(number, place.pause)
            self._tell(f"worker {number + 1} has ended ({why}); it is started again in {place.pause:g} s")


def _next_pause(pause: float) -> float:
    return min(max(2 * pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
