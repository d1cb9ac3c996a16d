"""The table that `make live` ends with: server × framework × check."""

from __future__ import annotations

from pathlib import Path

from comps.model_servers import FRAMEWORKS

REPORTS = Path(__file__).parents[2] / "build" / "live"
"""A file of rows for each server; the whole table is written beside it, to `build/live.md`."""

CHECKS = (
    *("ready", "whole", "streamed", "length", "usage", "stop", "stop string", "same", "sampling", "tokens", "several"),
    *("bad value", "unknown model", "too long", "cancel"),
)
HEAD = [f"| server | framework | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 2) + "|"]


class Table:
    """What the checks of one server came to."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.outcomes: dict[tuple[str, str], list[str]] = {}

    def add(self, check: str, framework: str | None, outcome: str) -> None:
        """Take in a test's outcome: `passed`, `failed` or `skipped`; without a framework, it is for both."""
        assert check in CHECKS
        for name in FRAMEWORKS if framework is None else [framework]:
            self.outcomes.setdefault((name, check), []).append(outcome)

    def rows(self) -> list[str]:
        return [
            f"| {self.server} | {name} | {' | '.join(self._cell(name, check) for check in CHECKS)} |"
            for name in FRAMEWORKS
        ]

    def _cell(self, framework: str, check: str) -> str:
        """The worst that its tests came to."""
        outcomes = self.outcomes.get((framework, check), [])
        for outcome, word in (("failed", "FAILED"), ("passed", "yes")):
            if outcome in outcomes:
                return word
        return "–"
