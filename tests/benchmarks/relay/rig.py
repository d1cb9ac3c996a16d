"""The run: all targets started, measured one after the other in each round, and what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.benchmarks.relay import targets
from tests.benchmarks.relay.cells import BEFORE_TGI, CELLS, LEAVING, WARMING, Cell
from tests.benchmarks.relay.load import Job, Result
from tests.benchmarks.relay.processes import Cores, Others, kept_awake, machine, on_core, quietness, resident, tree
from tests.benchmarks.relay.targets import Failed, Target
from tests.process import ROOT

Figures = dict[str, dict[str, list[float]]]
"""Samples, one each round, by cell and target."""


@dataclass
class Found:
    """All that was measured, in the order in which it was."""

    notes: list[str] = field(default_factory=list)
    vllm: Figures = field(default_factory=dict)
    """Microseconds of processor time for a unit, before the wire of vLLM."""
    tgi: Figures = field(default_factory=dict)
    """The same before TGI's."""
    first_ms: dict[str, list[float]] = field(default_factory=dict)
    """From a request to the first byte of its streamed answer, 8 at once, the median of each round."""
    late_ms: dict[str, list[float]] = field(default_factory=dict)
    """The longest time for which a token of 64 streams was held up, in each round."""
    start: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a start until it is ready."""
    memory: dict[str, float] = field(default_factory=dict)
    """Megabytes resident after a first request."""
    left: dict[str, str] = field(default_factory=dict)
    """What became of streams whose client left."""
    documents: Figures = field(default_factory=dict)
    """Milliseconds that 40 documents add to a plan, by how they are counted and checkout."""


class Rig:
    """The fake model server and the load client, running."""

    def __init__(self, cores: Cores, model_server: subprocess.Popen[str], load: subprocess.Popen[str]) -> None:
        self.cores = cores
        self._model_server = model_server
        self._load = load
        assert model_server.stdout
        self.port = int(model_server.stdout.readline())

    @property
    def itself(self) -> Target:
        """The model server, asked directly."""
        return Target("direct", self.port, self._model_server.pid, exact=True)

    def do(self, job: Job, name: str) -> Result:
        """Let the load client do a job.

        Raises:
            Failed: An answer was wrong, or none came.
        """
        assert self._load.stdin
        assert self._load.stdout
        self._load.stdin.write(json.dumps(asdict(job)) + "\n")
        self._load.stdin.flush()
        told = json.loads(self._load.stdout.readline() or '{"wrong": "the load client has ended"}')
        if "wrong" in told:
            raise Failed(f"{name}: {job}: {told['wrong']}")
        return Result(**told)


@contextmanager
def rig() -> Iterator[Rig]:
    """Start the model server and the load client on their cores."""
    cores = Cores.allotted()
    with ExitStack() as stack:
        stack.enter_context(kept_awake((cores.target, cores.model_server, cores.load)))

        def start(module: str, core: int) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", f"tests.benchmarks.relay.{module}"]
            with on_core(core):
                process = subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        yield Rig(cores, start("fake", cores.model_server), start("load", cores.load))


Starting = Callable[[], AbstractContextManager[Target]]


def services(rig: Rig, checkouts: dict[str, Path]) -> dict[str, Starting]:
    """Ways to start the service, by name: each framework of each checkout."""

    def way(name: str, framework: str, checkout: Path) -> Starting:
        return lambda: targets.service(name, framework, rig.cores.target, rig.port, checkout=checkout)

    return {
        framework + suffix: way(framework + suffix, framework, checkout)
        for framework in ("native", "langchain")
        for suffix, checkout in checkouts.items()
    }


def start_times(ways: dict[str, Starting], rounds: int, found: Found) -> None:
    """Start the services, one after the other, over and over."""
    for _ in range(rounds):
        for name, way in ways.items():
            with way() as target:
                found.start.setdefault(name, []).append(target.ready_after)


def references(rig: Rig, stack: ExitStack, notes: list[str]) -> list[Target]:
    """Start what the service is compared with, as far as it is here."""
    running = []
    for way in (targets.smg, targets.nginx):
        try:
            running.append(stack.enter_context(way(rig.cores.target, rig.port)))
        except Failed as failed:
            notes.append(str(failed))
    return running


def measure(rig: Rig, running: list[Target], cells: Sequence[Cell], rounds: int, found: Found, into: Figures) -> None:
    """Measure each cell of each target, A B A B, in every round."""
    for target in running:
        for cell in WARMING:
            rig.do(cell.job(target), target.name)
    for number in range(rounds):
        for cell in cells:
            for target in running:
                result = rig.do(cell.job(target), target.name)
                into.setdefault(cell.name, {}).setdefault(target.name, []).append(result.cpu / result.units * 1e6)
                if into is found.vllm and cell.name in ("request", "token 64"):
                    kept = found.first_ms if cell.name == "request" else found.late_ms
                    told = result.first_ms if cell.name == "request" else result.late_ms
                    kept.setdefault(target.name, []).append(told)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)


def first_request(rig: Rig, running: list[Target], found: Found) -> None:
    """What memory each has, after it has answered once."""
    for target in running:
        rig.do(replace(WARMING[0].job(target), streams=1, seconds=0.0), target.name)
        found.memory[target.name] = resident(tree(target.process)) / 1e6


def leave(rig: Rig, running: list[Target], found: Found) -> None:
    """Leave streams in the middle; what does not tell the model server so stays open, and is not asked."""
    for target in running:
        result = rig.do(LEAVING.job(target, rig.port), target.name)
        found.left[target.name] = f"{result.units} of {LEAVING.streams} after {result.wall * 1e3:.0f} ms"


def plan_documents(core: int, checkouts: dict[str, Path], rounds: int, found: Found) -> None:
    """Measure the core's planning in processes of their own."""
    program = str(Path(__file__).with_name("documents.py"))
    for _ in range(rounds):
        for suffix, checkout in checkouts.items():
            with on_core(core):
                told = subprocess.run(
                    [sys.executable, program],
                    env={"PYTHONPATH": str(checkout)},
                    cwd=checkout,
                    stdout=subprocess.PIPE,
                    check=True,
                )
            for kind, samples in json.loads(told.stdout).items():
                found.documents.setdefault(kind, {}).setdefault("planning" + suffix, []).extend(samples)


def run(checkouts: dict[str, Path], rounds: int) -> Found:
    """Measure the checkouts, which are told apart by a suffix, and where there is but one, all references."""
    found, alone = Found(notes=[machine(), quietness()]), len(checkouts) == 1
    others = Others()
    with rig() as this, ExitStack() as stack:
        core = this.cores.target
        if core == this.cores.model_server:
            found.notes.append("There is one core for all: what is measured and what measures disturb each other.")
        ways = services(this, checkouts)
        start_times(ways, min(rounds, 3), found)
        relay = stack.enter_context(targets.bare_relay(core, this.port))
        running = references(this, stack, found.notes) if alone else []
        running += [stack.enter_context(way()) for way in ways.values()]
        first_request(this, running, found)
        if alone:
            measure(this, [this.itself], CELLS, 1, found, found.vllm)
        measure(this, [relay, *running], CELLS, rounds, found, found.vllm)
        leave(this, running, found)
        if alone:
            before_tgi(this, relay, min(rounds, 3), found)
    plan_documents(core, checkouts, 1 if alone else rounds, found)
    found.notes.append(others.told())
    return found


def before_tgi(rig: Rig, relay: Target, rounds: int, found: Found) -> None:
    """The native service before TGI's wire, and the relay on it."""
    with targets.service("native", "native", rig.cores.target, rig.port, kind="tgi") as service:
        measure(rig, [replace(relay, tgi=True), service], BEFORE_TGI, rounds, found, found.tgi)
