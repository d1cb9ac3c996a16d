"""Metrics: counters and histograms by labels, counted in plain numbers, and the buckets of the histograms.

They have no locks, unlike those of prometheus_client, because the service counts in one thread.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
OPERATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84)
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 100)
PER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Upper bounds of buckets. The last four are those of OpenTelemetry's conventions, with some more for what is slower or
faster, and without those that no context window reaches."""
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

SERVED = ("model", "server")
"""The labels of a model: its name, and the kind of its server."""

Counts: TypeAlias = "array[float]"
"""The numbers of one histogram: how many values are in each bucket, those above the last bound, and the sum of all.
They have one piece of memory, as those of `shared_metrics.Latest`."""


class Counters:
    """Counters of one name, by the values of their labels."""

    def __init__(self, name: str, documentation: str, *labels: str) -> None:
        self._family = name, documentation, labels
        self.values: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def family(self) -> Metric:
        """Returns the metric for Prometheus."""
        return counter(*self._family, values=self.values)


class Histograms:
    """Histograms of one name, by the values of their labels.

    Args:
        name: The metric's name.
        documentation: What it is.
        bounds: The upper bounds of the buckets, ascending.
        labels: The names of the labels.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], *labels: str) -> None:
        self._family = name, documentation
        self._labels = labels
        self._bounds = [*map(str, map(float, bounds)), "+Inf"]
        self.values: dict[tuple[str, ...], Counts] = {}

    def of(self, *labels: str) -> Counts:
        """Returns the numbers of one histogram, to be added to: `counts[bisect_left(bounds, value)] += 1`."""
        return self.values.setdefault(labels, array("d", [0.0] * (len(self._bounds) + 1)))

    def family(self) -> Metric:
        """Returns the metric for Prometheus."""
        family = HistogramMetricFamily(*self._family, labels=self._labels)
        for labels, (*counts, total) in self.values.items():
            family.add_metric(labels, list(zip(self._bounds, accumulate(counts), strict=True)), total)
        return family


def counter(name: str, documentation: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    """Returns the metric of numbers by the values of their labels, each a tuple, or a text if there is one label."""
    family = CounterMetricFamily(name, documentation, labels=labels)
    for said, value in values.items():
        family.add_metric((said,) if isinstance(said, str) else said, value)
    return family


def gauge(name: str, documentation: str, value: float) -> Metric:
    """Returns the metric of a number without labels."""
    return GaugeMetricFamily(name, documentation, value)
