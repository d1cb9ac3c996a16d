"""The metrics of several workers as those of one service.

Each worker writes its own into a file once a second, and adds those of the others when it is asked. So they are at most
a second old, and a worker that hangs delays nobody. Counters of a worker that has ended are kept: the worker in its
place adds them to its own.

prometheus_client has a mode for several processes, but only for metrics of its own classes, which write to a mapped
file with each change. `Telemetry` counts in plain numbers.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import add
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class Latest(Sequence[float]):
    """The latest numbers of a series, in no order.

    They have one piece of memory: a thousand floats of their own, made during a storm of requests, would lie in as many
    places, each of which keeps a megabyte of Python's memory from being returned.

    Args:
        most: How many there are at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values = array("d")
        self._next = 0

    def append(self, value: float) -> None:
        """Add a number, in the place of the oldest one if there are as many as there may be."""
        if len(self._values) < self._most:
            self._values.append(value)
        else:
            self._values[self._next] = value
            self._next = (self._next + 1) % self._most

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]


@dataclass
class Snapshot(Collector):
    """What was counted until a moment."""

    metrics: Sequence[Metric] = ()
    latencies: Sequence[float] = ()
    """Seconds of the most recent answers."""
    first_latencies: Sequence[float] = ()
    """Seconds until the first events of the most recent streams."""

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics; see prometheus_client's `Collector`."""
        yield from self.metrics


class SharedMetrics:
    """The files of all workers, for one of them.

    Args:
        folder: Where the files are. Only workers may write there.
        number: Which of the workers this is. Its file may be there, from an earlier process with the same number.
        most: How many latencies are kept of each worker.
    """

    def __init__(self, folder: Path, number: int, most: int) -> None:
        self._file = folder / str(number)
        self._most = most
        self._written = b""
        before = _read(self._file)
        kept = [metric for metric in before.metrics if metric.type != "gauge"]
        self._before = Snapshot(kept, before.latencies, before.first_latencies)

    def publish(self, own: Snapshot) -> None:
        """Write what this worker has counted."""
        data = pickle.dumps(_sum((self._before, own), self._most))
        if data != self._written:
            new = self._file.with_suffix(".new")
            new.write_bytes(data)
            new.replace(self._file)
            self._written = data

    def whole(self, own: Snapshot) -> Snapshot:
        """Returns what all workers have counted.

        Args:
            own: What this worker has counted.
        """
        files = [one for one in self._file.parent.iterdir() if one != self._file and not one.suffix]
        return _sum((self._before, own, *map(_read, files)), self._most * (len(files) + 1))


def _read(file: Path) -> Snapshot:
    with suppress(FileNotFoundError):
        snapshot: Snapshot = pickle.loads(file.read_bytes())
        return snapshot
    return Snapshot()


def _sum(snapshots: Sequence[Snapshot], most: int) -> Snapshot:
    return Snapshot(
        list(_added(metric for one in snapshots for metric in one.metrics)),
        [seconds for one in snapshots for seconds in one.latencies][-most:],
        [seconds for one in snapshots for seconds in one.first_latencies][-most:],
    )


_ALIKE = {"opea_llm_build_info": max, "process_start_time_seconds": min}
"""How metrics are combined that no sum makes sense of."""


@dataclass
class _Total:
    metric: Metric
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    """By the sample's name and its labels."""


def _added(metrics: Iterable[Metric]) -> Iterator[Metric]:
    """Yields each metric once: the sum of all that have its name, for each set of labels."""
    totals: dict[str, _Total] = {}
    for metric in metrics:
        total = totals.setdefault(metric.name, _Total(metric))
        for sample in metric.samples:
            key = sample.name, tuple(sample.labels.items())
            before = total.values.get(key)
            combine = _ALIKE.get(metric.name, add)
            total.values[key] = sample.value if before is None else combine(before, sample.value)
    for name, total in totals.items():
        added = Metric(name, total.metric.documentation, total.metric.type)
        for (sample_name, labels), value in total.values.items():
            added.add_sample(sample_name, dict(labels), value)
        yield added
