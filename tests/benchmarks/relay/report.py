"""Ratios, medians and ranges of what was measured, and how they stand to what is wanted; as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.pages import table
from tests.benchmarks.relay.cells import BEFORE_TGI, CELLS, GOALS, PLANNING, RESIDENT, STARTS
from tests.benchmarks.relay.rig import Figures, Found

RELAY = "relay"
ABOUT = (
    "Processor time (user and system, of the whole process tree) as a ratio to `relay` in the same run: the median of",
    "the rounds, and their range. `relay` is uvicorn and aiohttp, which hand every byte on unread; `native` and",
    "`langchain` are the service, SMG is SGLang's gateway in Rust, `direct` is the fake model server itself. It is",
    "measured for:",
)


@dataclass(frozen=True)
class Spread:
    """Some samples of the same."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(median(samples), min(samples), max(samples))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


def number(value: float) -> str:
    """With as many digits as say something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Of samples to those of a reference, each in its own round."""
    return Spread.of([sample / other for sample, other in zip(samples, reference, strict=True)])


def ratios(figures: Figures) -> dict[str, dict[str, Spread]]:
    """By target and cell, the ratios to the relay; of targets that were measured as often as it."""
    found: dict[str, dict[str, Spread]] = {}
    for cell, targets in figures.items():
        for target, samples in targets.items():
            if len(samples) == len(targets[RELAY]) and target != "direct":
                found.setdefault(target, {})[cell] = ratio(samples, targets[RELAY])
    return found


@dataclass(frozen=True)
class Goal:
    """What is wanted of a figure, and what it is."""

    what: str
    limit: float
    found: Spread
    unit: str

    @property
    def met(self) -> bool:
        return self.found.median <= self.limit

    def fields(self) -> tuple[str, ...]:
        met = "pass" if self.met else "**miss**"
        return self.what, f"≤ {self.limit:g} {self.unit}", f"{self.found} {self.unit}", met


def goals(found: Found) -> Iterator[Goal]:
    """All goals, with what was found."""
    to_relay = ratios(found.vllm)
    for framework, cells in GOALS.items():
        for cell, limit in cells.items():
            yield Goal(f"{framework}: {cell}", limit, to_relay[framework][cell], "x")
    for framework, limit in STARTS.items():
        yield Goal(f"{framework}: start until ready", limit, Spread.of(found.start[framework]), "s")
    for framework, limit in RESIDENT.items():
        yield Goal(f"{framework}: resident memory at rest", limit, Spread.of([found.memory[framework]]), "MB")
    texts = {"uncounted": "nothing counted", "seen": "counted, texts seen before", "new": "counted, new texts"}
    for kind, limit in PLANNING.items():
        samples = found.documents[kind]["planning"]
        yield Goal(f"40 documents of 300 words: {texts[kind]}", limit, Spread.of(samples), "ms")


def bench(found: Found) -> str:
    """The report of `make bench`."""
    lines = [*ABOUT, "", *(f"- `{cell.name}`: {cell.means}" for cell in CELLS), ""]
    for wire, cells, figures in (("vLLM", CELLS, found.vllm), ("TGI", BEFORE_TGI, found.tgi)):
        names = [cell.name for cell in cells]
        rows = [[target, *map(own.get, names)] for target, own in ratios(figures).items()]
        lines += table([f"before {wire}'s wire", *names], rows)
    lines += ["Goals:", "", *table(["", "goal", "found", ""], [goal.fields() for goal in goals(found)])]
    lines += ["Microseconds of processor time, and what it is to clients:", "", *around(found)]
    return "\n".join([*lines, *(f"- {note}" for note in found.notes), ""])


def around(found: Found) -> list[str]:
    """Absolute figures, of each target."""
    names = [cell.name for cell in CELLS]
    head = ["", *(f"{name}, µs" for name in names), "first token, ms", "longest pause, ms", "resident, MB", "cancelled"]
    rows = []
    for target in found.vllm[names[0]]:
        own: list[object] = [number(median(found.vllm[name][target])) for name in names]
        own += [number(median(found.first_ms[target])), number(max(found.late_ms[target]))]
        own += [number(found.memory[target]) if target in found.memory else "–", found.left.get(target, "–")]
        rows.append([target, *own])
    return table(head, rows)


def compared(found: Found, suffix: str) -> str:
    """The report of `make bench-compare`: what a change cost, as the new version's figures to those of the other."""
    lines: list[str] = []
    to_relay = ratios(found.vllm)
    for framework in GOALS:
        rows: list[tuple[object, ...]] = []
        for cell in CELLS:
            figures = found.vllm[cell.name]
            change = ratio(figures[framework], figures[framework + suffix])
            old, new = to_relay[framework + suffix][cell.name], to_relay[framework][cell.name]
            rows.append((f"{cell.name}, x of the relay", old, new, change))
        old_start, new_start = found.start[framework + suffix], found.start[framework]
        rows.append(("start, s", Spread.of(old_start), Spread.of(new_start), ratio(new_start, old_start)))
        old_size, new_size = found.memory[framework + suffix], found.memory[framework]
        rows.append(("resident, MB", number(old_size), number(new_size), number(new_size / old_size)))
        lines += table([framework, suffix.strip(" @"), "this", "this / that"], rows)
    rows = []
    for kind, samples in found.documents.items():
        before, after = samples["planning" + suffix], samples["planning"]
        rows.append((kind, Spread.of(before), Spread.of(after), number(median(after) / median(before))))
    lines += table(["40 documents, ms", suffix.strip(" @"), "this", "this / that"], rows)
    return "\n".join([*lines, *(f"- {note}" for note in found.notes), ""])
