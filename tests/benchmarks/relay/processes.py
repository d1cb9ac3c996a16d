"""Processes on cores: where they run, the processor time and the memory of each tree, and what else runs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """Which core has what; with two, the model server and the load share one."""

    target: int
    model_server: int
    load: int

    @classmethod
    def allotted(cls) -> Cores:
        """Of those that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[min(1, len(cores) - 1)], cores[min(2, len(cores) - 1)])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started in this block stay on that core, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


_SPIN = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"


@contextmanager
def kept_awake(cores: Iterable[int]) -> Iterator[None]:
    """Keeps cores from sleeping: a loop of the lowest priority runs on each. Waking a core costs more than a token,
    above all in a virtual machine, and how much depends on the other cores.

    Where processor time is rationed (a control group's `cpu.max`), the loop would take it from what is measured, so
    there is none.
    """
    rationed = Path("/sys/fs/cgroup/cpu.max")
    spinning = []
    try:
        if not rationed.exists() or rationed.read_text("utf-8").startswith("max"):
            for core in sorted(set(cores)):
                with on_core(core):
                    spinning.append(subprocess.Popen([sys.executable, "-S", "-c", _SPIN]))
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def tree(process: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [process]
    for one in found:
        with suppress(OSError):  # It has ended meanwhile.
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text("utf-8").split())
    return found


def cpu_seconds(processes: list[int]) -> float:
    """Seconds of processor time, user's and system's, that the processes have had since their start.

    It is read from the clock that the kernel has for each process (`clock_getcpuclockid(3)`). That one counts
    nanoseconds, as `schedstat` does, and threads that have ended, as `stat` does.
    """
    seconds = 0.0
    for process in processes:
        with suppress(OSError):
            seconds += time.clock_gettime((~process << 3) | 2)
    return seconds


def resident(processes: list[int]) -> int:
    """Bytes of memory that are resident."""
    kilobytes = 0
    for process in processes:
        status = Path(f"/proc/{process}/status").read_text("utf-8")
        if found := re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE):
            kilobytes += int(found[1])
    return kilobytes * 1024


@dataclass(frozen=True)
class Ticks:
    """What all cores have done since the machine's start, in the kernel's ticks."""

    all: int
    busy: int
    steal: int
    """Had by other virtual machines."""

    @classmethod
    def now(cls) -> Ticks:
        line = Path("/proc/stat").read_text("utf-8").partition("\n")[0]
        user, nice, system, idle, wait, irq, softirq, steal, *_ = map(int, line.split()[1:])
        busy = user + nice + system + irq + softirq
        return cls(busy + idle + wait + steal, busy, steal)

    def since(self, before: Ticks) -> tuple[float, float]:
        """The shares of the cores that were busy and that were taken away."""
        whole = max(self.all - before.all, 1)
        return (self.busy - before.busy) / whole, (self.steal - before.steal) / whole


def machine() -> str:
    """The processor and the interpreter."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    told = model[1] if model else platform.machine()
    return f"{told}, {os.cpu_count()} cores; {platform.python_implementation()} {platform.python_version()}."


BUSY, STEAL = 0.05, 0.01
"""Shares of all cores above which a machine is not quiet."""


def quietness(seconds: float = 1.5) -> str:
    """What runs on the machine at the moment, as a sentence."""
    before = Ticks.now()
    time.sleep(seconds)
    return _told("Beforehand", *Ticks.now().since(before))


class Others:
    """What else runs on the machine, from when this is made; all that this process starts must have ended by then."""

    def __init__(self) -> None:
        self._before = Ticks.now(), time.monotonic(), sum(os.times()[:4])

    def told(self) -> str:
        """Their share of the cores until now, as a sentence."""
        ticks, began, own = self._before
        busy, steal = Ticks.now().since(ticks)
        cores = (time.monotonic() - began) * (os.cpu_count() or 1)
        return _told("During the run", max(busy - (sum(os.times()[:4]) - own) / cores, 0.0), steal)


def _told(when: str, busy: float, steal: float) -> str:
    quiet = "The machine is quiet" if busy <= BUSY and steal <= STEAL else "**The machine is not quiet**"
    load = os.getloadavg()[0]
    return f"{quiet}. {when}, others had {busy:.1%} of its {os.cpu_count()} cores, {steal:.1%} steal; load {load:.1f}."
