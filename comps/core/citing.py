"""What may be cited in the answer to a plan, and what finds it."""

from __future__ import annotations

from comps.core.citations import Cited, Find, by_number, citations
from comps.core.cited_sentences import CitedSentences
from comps.core.matching import Matcher
from comps.core.planning import Plan
from comps.core.ports import Answer


def finder(plan: Plan) -> Find | None:
    """Returns what finds the citations in an answer; None if it has no documents that it may cite."""
    quoted, mode = plan.request.quoted, plan.citations
    sources = plan.sources if plan.numbered or mode == "matched" else ()
    if mode == "off" or not (sources or quoted):
        return None
    given = by_number(sources, quoted)
    if mode == "matched":
        return Matcher(given, plan.request.passages).matches
    return lambda text, start: citations(text, given, start)


def citing(answer: Answer, plan: Plan, find: Find, most: float) -> Cited:
    """Returns the answer that adds the citations to a streamed one: at the end of it, or of each of its sentences.

    Args:
        answer: The answer to write to.
        plan: The plan.
        find: Finds the citations.
        most: See `Cited`.
    """
    if plan.request.passages and not plan.request.is_large:
        return CitedSentences(answer, find, most=most)
    return Cited(answer, find, echoed(plan), 0 if plan.request.is_large else most)


def echoed(plan: Plan) -> str:
    """Returns the prompt if the answer begins with it (`echo`), because marks in it are no citations."""
    return plan.prompt if plan.options.get("echo") and isinstance(plan.prompt, str) else ""
