"""What is measured of each target, and what of it is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.relay.load import Job
from tests.benchmarks.relay.targets import Target


@dataclass(frozen=True)
class Cell:
    """One figure: the processor time of one unit."""

    name: str
    means: str
    kind: str
    streams: int
    tokens: int
    pause_ms: int = 0
    spread: bool = False
    stream: bool = True
    seconds: float = 0.0
    """See `Job`, all of these."""

    def job(self, target: Target, stats_port: int = 0) -> Job:
        return Job(
            kind=self.kind,
            port=target.port,
            process=target.process,
            streams=self.streams,
            tokens=self.tokens,
            pause_ms=self.pause_ms,
            spread=self.spread,
            stream=self.stream,
            seconds=self.seconds,
            exact=target.exact,
            tgi=target.tgi,
            stats_port=stats_port,
        )


CELLS = (
    Cell("token 64", "a streamed token; 64 streams, one each 20 ms, all in the same step", "steady", 64, 70, 20),
    Cell("token 8", "a streamed token; 8 streams, each token alone", "steady", 8, 110, 20, spread=True),
    Cell("request", "a request whose streamed answer has one token; 8 at once", "repeated", 8, 1, seconds=1.0),
    Cell("whole", "a whole answer of 128 tokens; 8 at once", "repeated", 8, 128, stream=False, seconds=1.0),
)
BEFORE_TGI = tuple(cell for cell in CELLS if cell.name != "token 8")
WARMING = (
    Cell("", "", "repeated", 8, 16, seconds=0.3),
    Cell("", "", "repeated", 2, 8, stream=False, seconds=0.2),
)
"""Asked before anything counts, so that all is imported and cached."""
LEAVING = Cell("cancelled", "streams that are left after a few tokens", "cancelled", 8, 150, 20, seconds=2.0)
GOALS: dict[str, dict[str, float]] = {
    "native": {"token 64": 0.9, "token 8": 0.9, "request": 1.7, "whole": 1.8},
    "langchain": {"token 64": 2.5, "token 8": 2.5, "request": 6.0, "whole": 5.0},
}
"""The processor time of each cell, as a ratio to the bare relay's, at most."""
STARTS = {"native": 1.0, "langchain": 2.5}
"""Seconds from the start until the service is ready, at most."""
RESIDENT = {"native": 70.0}
"""Megabytes of resident memory after a first request, at most."""
PLANNING = {"uncounted": 1.2, "seen": 5.0, "new": 25.0}
"""Milliseconds that documents add to a plan, at most: where nothing is counted; counted, with texts seen before; with
new ones."""
