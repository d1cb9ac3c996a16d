"""What may be cited in the answer to a plan, and what finds it."""

from __future__ import annotations

from comps.core.citations import Find, by_number, citations
from comps.core.matching import Matcher
from comps.core.planning import Plan


def finder(plan: Plan) -> Find | None:
    """Returns what finds the citations in an answer; None if it has no documents that it may cite."""
    quoted, mode = plan.request.quoted, plan.citations
    sources = plan.sources if plan.numbered or mode == "matched" else ()
    if mode == "off" or not (sources or quoted):
        return None
    given = by_number(sources, quoted)
    if mode == "matched":
        return Matcher(given).matches
    return lambda text, start: citations(text, given, start)


def echoed(plan: Plan) -> str:
    """Returns the prompt if the answer begins with it (`echo`), because marks in it are no citations."""
    return plan.prompt if plan.options.get("echo") and isinstance(plan.prompt, str) else ""
