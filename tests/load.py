"""A load generator, in a process of its own: requests at a fixed rate, whatever becomes of them, and probes.

    python -m tests.load PORT RATE SECONDS

It prints a JSON object: how many answers were whole in the second half of the time, each second; the milliseconds from
a request to the head of its refusal, and those of each probe; and what was neither an answer nor a refusal.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from time import monotonic
from typing import Any

import uvloop

BODY = json.dumps({"messages": [{"role": "user", "content": "word " * 100}], "stream": True}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
PROBES = ("/health", "/metrics", "/v1/models")
PROBES_EACH_SECOND = 10
MOST_IDLE_SECONDS = 2
"""Less than the service keeps an idle connection."""


class Load:
    """What happened to the requests so far."""

    def __init__(self, port: int, rate: float, seconds: float) -> None:
        self._port = port
        self._rate = rate
        self._seconds = seconds
        self._began = monotonic()
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        """Connections, and since when they are idle; the last one has been so for the shortest time."""
        self.whole = 0
        self.refused: list[float] = []
        self.probes: dict[str, list[float]] = {path: [] for path in PROBES}
        self.others: Counter[str] = Counter()

    async def run(self) -> dict[str, Any]:
        tasks = [asyncio.ensure_future(self._at_rate(self._rate, self._ask))]
        tasks += [
            asyncio.ensure_future(self._at_rate(PROBES_EACH_SECOND, lambda path=path: self._probe(path)))
            for path in PROBES
        ]
        await asyncio.gather(*tasks)
        return {
            "whole answers a second": self.whole / (self._seconds / 2),
            "refused": figures(self.refused),
            **{path: figures(took) for path, took in self.probes.items()},
            "others": dict(self.others),
        }

    async def _at_rate(self, rate: float, work: Any) -> None:
        """Begin `work` so many times a second, and wait for all of it."""
        began, tasks = monotonic(), set[asyncio.Task[None]]()
        for number in range(int(rate * self._seconds)):
            if (pause := began + number / rate - monotonic()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.ensure_future(work())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _ask(self) -> None:
        try:
            reader, writer = await self._connection()
            began = monotonic()
            writer.write(REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"http/1.1 429"):
                self.refused.append(monotonic() - began)
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
            elif head.startswith(b"http/1.1 200"):
                await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
                self.whole += self._seconds / 2 < monotonic() - self._began < self._seconds
            else:
                self.others[head.partition(b"\r\n")[0].decode()] += 1
            self._idle.append((monotonic(), reader, writer))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.others[type(error).__name__] += 1

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._idle:
            since, reader, writer = self._idle.pop()
            if monotonic() - since < MOST_IDLE_SECONDS:
                return reader, writer
            for _, _, one in (*self._idle, (since, reader, writer)):
                one.close()
            self._idle.clear()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _probe(self, path: str) -> None:
        began = monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.read()
            writer.close()
            self.probes[path].append(monotonic() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                self.others[f"{path}: {head.partition(b' ')[2][:3].decode()}"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self.others[f"{path}: {type(error).__name__}"] += 1


def figures(seconds: list[float]) -> dict[str, float]:
    """How many there are, and their percentiles (nearest rank) in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}
    of = {name: round(1000 * ordered[max(0, int(share * len(ordered)) - 1)], 1) for name, share in shares.items()}
    return {"number": len(seconds), **of}


if __name__ == "__main__":
    port, rate, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(Load(int(port), float(rate), float(seconds)).run())))
