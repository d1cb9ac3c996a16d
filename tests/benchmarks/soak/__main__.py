"""`make soak` after its tests: a minute of overload, then half an hour of mixed load; both against one service each.

The service, the model server and the clients are processes of their own. `--save` keeps the figures in `docs/`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import uvloop

from tests.benchmarks.pages import DOCS, draw
from tests.benchmarks.sizing import Process, memory, run_model_server
from tests.benchmarks.soak import endurance, overload
from tests.benchmarks.soak.endurance import Endured
from tests.benchmarks.soak.overload import Held
from tests.process import serving

TITLE = "# Under load\n\n`make soak` writes this page.\n\n"


@contextmanager
def model_server() -> Iterator[int]:
    """The port of a model server that says words at a set pace, in a process of its own."""
    told, telling = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=run_model_server, args=(telling,), daemon=True)
    process.start()
    try:
        yield told.recv()
    finally:
        process.terminate()
        process.join()


@contextmanager
def service(upstream: int, **environment: str) -> Iterator[Process]:
    """The service before it."""
    settings = {
        "MODEL_SERVER": "vllm",
        "LLM_NAME": "m",
        "LLM_MODEL_SERVER_ENDPOINT": f"http://127.0.0.1:{upstream}",
        "LOG_PATH": os.devnull,
        **environment,
    }
    with serving(**settings) as running:
        yield Process(running.process.pid, running.port)


def page(held: Held, endured: Endured) -> str:
    """What was measured, in words."""
    first, last = endured.looks[len(endured.looks) // 10], endured.looks[-1]
    most = max(look.megabytes for look in endured.looks)
    return TITLE + "\n".join(
        [
            f"## {overload.TIMES} times the load that is allowed",
            "",
            f"`max_running = {overload.RUNNING}`, `max_waiting = {overload.WAITING}`, answers of a second: "
            f"{overload.TOKENS} tokens, one every {overload.PAUSE_MS} ms. Each request has a connection of its own.",
            "",
            "| | |",
            "|---|---|",
            f"| good answers a second, as many clients as may run | {held.peak:.1f} |",
            f"| good answers a second, overloaded | {held.overloaded:.1f} ({held.overloaded / held.peak:.0%}) |",
            f"| requests a second, then | {held.offered:.0f} |",
            f"| outcomes | {_listed(held.outcomes)} |",
            f"| a refusal (429) takes, median and 99th percentile | {held.refusals_ms[0]:.0f} ms, "
            f"{held.refusals_ms[1]:.0f} ms, with connecting |",
            f"| `/health` meanwhile, 95th percentile | {held.health_ms:.0f} ms |",
            f"| in flight and waiting afterwards | {held.left[0]:.0f} and {held.left[1]:.0f} |",
            "",
            f"## {last.minutes:.0f} minutes of mixed load",
            "",
            "Whole and streamed answers, a tenth of the clients leave, a twentieth of the bodies are refused.",
            "",
            "![Memory, gauges and file descriptors](soak.png)",
            "",
            "| | |",
            "|---|---|",
            f"| requests | {sum(endured.outcomes.values())}: {_listed(endured.outcomes)} |",
            f"| tokens | {last.tokens:.0f} |",
            f"| memory after a tenth of the time, at most, at the end | {first.megabytes:.1f} MB, {most:.1f} MB, "
            f"{last.megabytes:.1f} MB |",
            f"| in flight and waiting at the end | {last.in_flight:.0f} and {last.waiting:.0f} |",
            f"| open file descriptors at the end | {last.files} |",
            "",
        ]
    )


def _listed(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items(), key=lambda one: -one[1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--minutes", type=float, default=30, help="of mixed load")
    parser.add_argument("--save", action="store_true", help="keep the figures in docs/soak.md, soak.json and soak.png")
    options = parser.parse_args()
    with model_server() as upstream:
        with service(upstream, **overload.SETTINGS) as one:
            held = uvloop.run(overload.measure(one.port, options.seconds))
        with service(upstream) as one:
            files = Path(f"/proc/{one.process_ids()[0]}/fd")
            endured = uvloop.run(
                endurance.measure(one.port, options.minutes, lambda: memory(one), lambda: len(list(files.iterdir())))
            )
    text = page(held, endured)
    print(text)
    if options.save:
        data = DOCS / "soak.json"
        data.write_text(json.dumps({"held": asdict(held), "endured": endured.as_json()}, indent=1) + "\n", "utf-8")
        (DOCS / "soak.md").write_text(text, "utf-8")
        draw(Path(__file__).with_name("plot.py"), data, DOCS / "soak.png")


if __name__ == "__main__":
    main()
