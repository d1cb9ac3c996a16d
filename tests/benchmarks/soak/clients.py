"""Clients of a service under load: each request on a connection of its own, and what came of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.sizing import PATH, QUESTION

PATIENCE = 60.0
"""Seconds after which a client gives up, which counts as `lost`."""
GOOD, BROKEN, LOST, LEFT = "good", "broken", "lost", "left"
"""Outcomes: the whole answer; an answer that is cut without a word; no reply; a client that left, as it meant to. All
others are the status of a refusal."""
_STATUS = re.compile(rb"HTTP/1.1 (\d+)")


@dataclass
class Outcomes:
    """How requests ended, and how long that took."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, outcome: str, seconds: float) -> None:
        self.counts[outcome] += 1
        self.seconds.setdefault(outcome, []).append(seconds)

    def percentile(self, outcome: str, percent: float) -> float | None:
        """In seconds; None if nothing ended so."""
        found = sorted(self.seconds.get(outcome, ()))
        return found[min(int(len(found) * percent / 100), len(found) - 1)] if found else None


def body(tokens: int, pause_ms: int, **further: Any) -> dict[str, Any]:
    """A question with a document; the model server takes `seed` for the milliseconds between two tokens."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], "documents": ["Gaudi 2 has 96 GB of memory."]}
    return {"model": "m", **asked, "max_tokens": tokens, "seed": pause_ms, "stream": True, **further}


def request(method: str, path: str, content: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def ask(port: int, asked: dict[str, Any], outcomes: Outcomes, leaves_after: float | None = None) -> None:
    """Ask once, and note how that ends.

    Args:
        port: Of the service.
        asked: The body.
        outcomes: Where the outcome is noted.
        leaves_after: Seconds after which the client closes its connection; None: it stays to the end.
    """
    started = time.perf_counter()
    sent = request("POST", PATH, json.dumps(asked).encode())
    try:
        reply = await asyncio.wait_for(exchange(port, sent), leaves_after or PATIENCE)
    except (TimeoutError, asyncio.TimeoutError):
        outcomes.add(LEFT if leaves_after else LOST, time.perf_counter() - started)
    except OSError:
        outcomes.add(LOST, time.perf_counter() - started)
    else:
        outcomes.add(_outcome(reply, asked), time.perf_counter() - started)


async def exchange(port: int, sent: bytes) -> bytes:
    """The whole reply to a request, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await reader.read()
    finally:
        writer.close()


def _outcome(reply: bytes, asked: dict[str, Any]) -> str:
    status = _STATUS.match(reply)
    if not status:
        return LOST
    if status[1] != b"200":
        return status[1].decode()
    words = reply.count(b" word")
    return GOOD if words == asked["max_tokens"] and (b"[DONE]" in reply or not asked["stream"]) else BROKEN


async def figures(port: int, *names: str) -> list[float]:
    """The values of metrics of the service, each summed over its labels."""
    text = (await exchange(port, request("GET", "/metrics"))).decode()
    found = {name: re.findall(rf"^{name}(?:\{{.*\}})? (\S+)\r?$", text, re.MULTILINE) for name in names}
    return [sum(map(float, values)) for values in found.values()]
