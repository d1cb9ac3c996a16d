"""Every regular expression of the library takes linear time, as it is used, on texts made to slow it down."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import pytest

import comps
from tests.process import ROOT

if sys.version_info >= (3, 11):
    from re import _parser as sre_parse
else:
    import sre_parse

LENGTH, SECONDS = 10_000, 0.1
"""Of a text, and of CPU time: linear time is a few milliseconds, quadratic time some seconds."""
BOUNDED = {
    "comps.core.markers._OPEN_TURN": 80,
    "comps.core.model_names._ENDING": 1000,
    # It reads templates of the settings, once, at the start.
    "comps.dialects.square.conversations._WORDS": 200,
    # It reads names of environment variables.
    "comps.settings.unknown_variables._LINK": 1000,
}
"""The patterns whose texts have a limit, and that limit in characters."""
EXTRAS = ("llama_cpp", "transformers", "numpy", "torch", "llguidance")
"""Packages of engines that are not installed here; their modules are left out."""


@dataclass(frozen=True)
class Used:
    """A pattern, and the methods that are called on it."""

    name: str
    pattern: re.Pattern[Any]
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return self.name.removeprefix("comps.")


def patterns() -> list[Used]:
    found: dict[tuple[Any, int], Used] = {}
    for module in pkgutil.walk_packages(comps.__path__, "comps."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] not in EXTRAS:
                raise
            continue
        source = inspect.getsource(loaded)
        for name, value in vars(loaded).items():
            methods = tuple(sorted(set(re.findall(rf"\b{name}\.(\w+)\(", source))))
            anchored = methods and set(methods) <= {"match", "fullmatch"}
            for pattern in inside(value):
                used = Used(f"{module.name}.{name}", pattern, methods if anchored else ("finditer",))
                found.setdefault((pattern.pattern, pattern.flags), used)
    return list(found.values())


def inside(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    """The patterns in a value of a module."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | dict | set | frozenset) and depth < 4:
        for one in value.values() if isinstance(value, dict) else value:
            yield from inside(one, depth + 1)


def samples(parsed: Any, most: int = 12) -> list[str]:
    """Some texts that a parsed pattern matches."""
    parts = [list(islice(one_of(str(kind), argument), most)) or [""] for kind, argument in parsed]
    whole = ["".join(chosen) for chosen in islice(product(*parts), most)]
    # Each branch once, also where there are more combinations than are taken.
    for place, part in enumerate(parts):
        whole += ["".join(one[0] if n != place else option for n, one in enumerate(parts)) for option in part]
    return list(dict.fromkeys(whole))


CLASSES = {"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a", "CATEGORY_NOT_SPACE": "x"}


def one_of(kind: str, argument: Any) -> Iterator[str]:
    """Texts that one element of a parsed pattern matches."""
    match kind:
        case "LITERAL":
            yield chr(argument)
        case "RANGE":
            yield chr(argument[0])
        case "CATEGORY":
            yield CLASSES.get(str(argument), ";")
        case "IN":
            negated = str(argument[0][0]) == "NEGATE"
            yield from ("z",) if negated else (one for inner in argument for one in one_of(str(inner[0]), inner[1]))
        case "ANY" | "NOT_LITERAL":
            yield from ("x", " ")
        case "BRANCH":
            yield from (one for branch in argument[1] for one in samples(branch, 3))
        case "SUBPATTERN":
            yield from samples(argument[3])
        case "MAX_REPEAT" | "MIN_REPEAT":
            yield from (one * max(argument[0], 1) for one in samples(argument[2]))


def pumps(parsed: Any) -> Iterator[str]:
    """Texts to repeat: what each repeated part matches, and what parts that are next to each other do."""
    yield from ("a", " ", "\n", "-", ".", "_", "#", "<", "[", '"', "1", "é")
    for kind, argument in parsed:
        if str(kind) in ("MAX_REPEAT", "MIN_REPEAT"):
            yield from samples(argument[2])
            yield from pumps(argument[2])
        elif str(kind) == "SUBPATTERN":
            yield from pumps(argument[3])
        elif str(kind) == "BRANCH":
            for branch in argument[1]:
                yield from pumps(branch)
    yield from samples(parsed)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so much CPU time; a search looks for signals now and then."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        # By default it would end the process, and it may still be on its way to another thread.
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)


def slow(used: Used, seconds: float) -> str:
    """A text on whose repetition a pattern takes too long; empty: none is known."""
    source = used.pattern.pattern
    parsed = sre_parse.parse(source if isinstance(source, str) else source.decode("latin-1"))
    length = BOUNDED.get(used.name, LENGTH)
    for pump in dict.fromkeys(one for one in pumps(parsed) if one):
        text: Any = (pump * (length // len(pump) + 1))[:length] + "\0"
        text = text if isinstance(source, str) else text.encode("latin-1", "replace")
        try:
            with limited(seconds):
                for method in used.methods:
                    found_there = getattr(used.pattern, method)(text)
                    if method == "finditer":
                        for _ in found_there:
                            pass
        except TimeoutError:
            return pump
    return ""


def slow_ones(known: Sequence[str] = ()) -> dict[str, str]:
    """Those of all patterns, or of some, that take too long, with the texts. In a process of its own: its timer counts
    what all threads of a process take, and those of other tests go on."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_patterns", *known], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_every_pattern_takes_linear_time() -> None:
    used = patterns()
    assert len(used) > 60
    assert {one.name for one in used} >= BOUNDED.keys()
    assert slow_ones() == {}


def test_a_pattern_that_takes_longer_is_found() -> None:
    known = [r"(a+)+$", r"\w+://x", r" +(?=\n)", r"[.!?]+(?=\s)", r"(-(q\d[\w-]*|hf))+$"]
    assert list(slow_ones(known)) == known


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """A collection of all that the tests have made takes longer than a search may."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.soak
@pytest.mark.usefixtures("no_garbage_collection")
def test_every_pattern_takes_linear_time_on_all_pairs() -> None:
    wrong: dict[str, list[str]] = {}
    for used in patterns():
        source = used.pattern.pattern
        text = source if isinstance(source, str) else source.decode("latin-1")
        letters = list(dict.fromkeys([one for one in text if one not in "(){}*+?^$|\\"] + list(' a1\n.-_<"A')))
        length = BOUNDED.get(used.name, LENGTH) // 2
        for pair in product(letters[:60], repeat=2):
            pumped: Any = "".join(pair) * length + "\0"
            pumped = pumped if isinstance(source, str) else pumped.encode("latin-1", "replace")
            began = time.process_time()
            try:
                with limited(SECONDS):
                    for method in used.methods:
                        list(found) if isinstance(found := getattr(used.pattern, method)(pumped), Iterator) else None
            except TimeoutError:
                wrong.setdefault(str(used), []).append(f"{pair} {time.process_time() - began:.2f} s")
    assert wrong == {}


if __name__ == "__main__":
    chosen = [Used(source, re.compile(source), ("finditer",)) for source in sys.argv[1:]]
    limit = 0.05 if chosen else SECONDS
    slow_of_them = {one.name if chosen else str(one): slow(one, limit) for one in chosen or patterns()}
    print(json.dumps({name: found for name, found in slow_of_them.items() if found}))
