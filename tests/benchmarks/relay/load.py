"""The load client: asks as many at once as it is told, and checks every answer to the byte; a process of its own.

It takes one job a line on standard input, and prints one result a line: JSON, both. It reads the processor time of what
it asks itself, at the moments that count.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, cast

import httptools
import orjson
import uvloop

from tests.benchmarks.relay import words
from tests.benchmarks.relay.checks import Asked, Wrong, check
from tests.benchmarks.relay.processes import cpu_seconds, tree

QUESTIONS = 64
"""So many differ; the model server keeps their answers ready."""
BEGUN = 3
"""Events after which a stream counts as begun."""
PATIENCE = 60.0
"""Seconds beyond those that it should take after which a job has failed."""


@dataclass(frozen=True)
class Job:
    """What to ask, and of whom."""

    kind: str
    """`steady`: long streams; `repeated`: answers one after the other; `cancelled`: streams that are left."""
    port: int
    process: int
    """The process whose processor time is measured, with its children."""
    streams: int
    """At once, each over a connection of its own."""
    tokens: int
    """Of each answer."""
    pause_ms: int = 0
    """Between two tokens of an answer."""
    spread: bool = False
    """Whether the tokens of the streams come one after the other, and not all in the same moment."""
    stream: bool = True
    seconds: float = 0.0
    """How long to go on, if `repeated`."""
    exact: bool = False
    tgi: bool = False
    """See `Asked`."""
    stats_port: int = 0
    """Where the fake model server tells its statistics, if `cancelled`."""


@dataclass(frozen=True)
class Result:
    """What was measured."""

    cpu: float
    """Seconds of processor time."""
    units: int
    """Tokens if `steady`; answers; streams that the model server knows to be cancelled."""
    wall: float
    """Seconds."""
    first_ms: float = 0.0
    """From a request to the first byte of its answer's body, if `repeated`; the median."""
    late_ms: float = 0.0
    """The longest pause between two tokens of a stream, above the one that they are sent with."""


@dataclass
class Window:
    """The time in which all streams run, from the last one's beginning to the first one's end."""

    job: Job
    processes: list[int]
    events: int = 0
    begun: int = 0
    opened: tuple[float, float, int] | None = None
    """The time, the processor time and the events then."""
    closed: tuple[float, float, int] | None = None
    late: float = 0.0
    firsts: list[float] = field(default_factory=list)
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)

    def _now(self) -> tuple[float, float, int]:
        return perf_counter(), cpu_seconds(self.processes), self.events

    def saw(self, before: int, events: int, pause: float) -> None:
        """A stream that had brought `before` events has brought more, `pause` seconds after the last one."""
        if self.job.kind == "repeated":
            return
        self.events += events
        if before < BEGUN <= before + events:
            self.begun += 1
            if self.begun == self.job.streams:
                self.opened = self._now()
                self.all_begun.set()
        elif self.opened and not self.closed:
            self.late = max(self.late, pause - self.job.pause_ms / 1000)
            if before + events >= self.job.tokens - 1:
                self.closed = self._now()

    def result(self) -> Result:
        if not (self.opened and self.closed):
            raise Wrong("a stream ended before all had begun: nothing was measured")
        wall, cpu, events = (end - begin for begin, end in zip(self.opened, self.closed, strict=True))
        return Result(cpu, int(events), wall, late_ms=self.late * 1e3)


class Client(asyncio.Protocol):
    """A connection that is asked on, one time after the other."""

    def __init__(self, job: Job, window: Window) -> None:
        self._job = job
        self._window = window
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._body = bytearray()
        self._events = 0
        self._began = self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own.

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Wrong(f"the connection was closed in the middle of an answer: {exc or 'end of file'}"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Wrong(f"no HTTP: {error}: {data[:200]!r}"))

    def on_body(self, body: bytes) -> None:
        now = perf_counter()
        if not self._body:
            self._window.firsts.append(now - self._began)
        begin = max(len(self._body) - 1, 0)
        self._body += body
        if events := self._body.count(b"\n\n", begin):
            self._window.saw(self._events, events, now - self._last)
            self._events, self._last = self._events + events, now

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._end(None if status == 200 else Wrong(f"status {status}: {bytes(self._body[:500])!r}"))

    def _end(self, wrong: Wrong | None) -> None:
        if self._done and not self._done.done():
            self._done.set_exception(wrong) if wrong else self._done.set_result(None)

    async def ask(self, number: int) -> None:
        """Ask, and check the answer."""
        job, text = self._job, words.question(number % QUESTIONS)
        self._done = asyncio.get_running_loop().create_future()
        self._body, self._events = bytearray(), 0
        self._began = self._last = perf_counter()
        offset = number * job.pause_ms // job.streams if job.spread else 0
        self.transport.write(request(job, text, words.seed(job.pause_ms, offset)))
        await self._done
        check(Asked(text, job.tokens, job.stream, job.exact, job.tgi), bytes(self._body))


def request(job: Job, text: str, seed: int) -> bytes:
    """A request, as it goes over the wire."""
    body: dict[str, Any]
    if job.tgi:
        parameters = {"max_new_tokens": job.tokens, "seed": seed, "details": True}
        path, body = "/generate_stream" if job.stream else "/generate", {"inputs": text, "parameters": parameters}
    else:
        path = "/v1/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": job.tokens}
        body |= {"seed": seed} if seed else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if job.stream else {}
    data = orjson.dumps(body)
    head = "POST {} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    return head.format(path, job.port, len(data)).encode() + data


async def connected(job: Job, window: Window) -> list[Client]:
    loop = asyncio.get_running_loop()
    made = [loop.create_connection(lambda: Client(job, window), "127.0.0.1", job.port) for _ in range(job.streams)]
    return [client for _, client in await asyncio.gather(*made)]


async def steady(job: Job, window: Window, clients: list[Client]) -> Result:
    """One long stream on each connection."""
    await asyncio.gather(*(client.ask(number) for number, client in enumerate(clients)))
    return window.result()


async def repeated(job: Job, window: Window, clients: list[Client]) -> Result:
    """Answers on each connection, one after the other; the first on each is not counted."""
    numbers, done = count(), 0

    async def go_on(client: Client) -> None:
        nonlocal done
        while perf_counter() < until:
            await client.ask(next(numbers))
            done += 1

    await asyncio.gather(*(client.ask(next(numbers)) for client in clients))
    window.firsts.clear()
    began, cpu = perf_counter(), cpu_seconds(window.processes)
    until = began + job.seconds
    await asyncio.gather(*map(go_on, clients))
    cpu, wall = cpu_seconds(window.processes) - cpu, perf_counter() - began
    return Result(cpu, done, wall, median(window.firsts or [0.0]) * 1e3)


async def cancelled(job: Job, window: Window, clients: list[Client]) -> Result:
    """Streams that are left after a few tokens: how many the model server knows of, and after what time."""
    before = (await stats(job.stats_port))["cancelled"]
    asking = [asyncio.ensure_future(client.ask(number)) for number, client in enumerate(clients)]
    await window.all_begun.wait()
    began = perf_counter()
    for client, task in zip(clients, asking, strict=True):
        task.cancel()
        client.transport.abort()
    known, took = 0, 0.0
    while known < job.streams and took < job.seconds:
        known = (await stats(job.stats_port))["cancelled"] - before
        took = perf_counter() - began
        await asyncio.sleep(0.001)
    return Result(0.0, known, took)


async def stats(port: int) -> Any:
    """What the fake model server counts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    writer.close()
    return orjson.loads(body)


KINDS: dict[str, Callable[[Job, Window, list[Client]], Awaitable[Result]]] = {
    "steady": steady,
    "repeated": repeated,
    "cancelled": cancelled,
}


async def measure(job: Job) -> Result:
    """Do a job.

    Raises:
        Wrong: An answer is not the one that was asked for, or none came.
    """
    window = Window(job, tree(job.process))
    long = job.seconds + job.tokens * job.pause_ms / 1000 + PATIENCE
    try:
        clients = await connected(job, window)
    except OSError as error:
        raise Wrong(f"no connection: {error}") from None
    try:
        return await asyncio.wait_for(KINDS[job.kind](job, window, clients), long)
    except asyncio.TimeoutError:
        raise Wrong(f"no end after {long:.0f} s") from None
    finally:
        for client in clients:
            client.transport.close()


def main() -> None:
    for line in sys.stdin:
        try:
            told = asdict(uvloop.run(measure(Job(**json.loads(line)))))
        except Wrong as wrong:
            told = {"wrong": str(wrong)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
