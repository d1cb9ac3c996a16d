"""What may be cited in the answer to a plan, and what finds it."""

from __future__ import annotations

from comps.core.citations import Cited, Find, by_number, citations
from comps.core.cited_sentences import CitedSentences
from comps.core.matching import Matcher
from comps.core.planning import Plan
from comps.core.ports import Answer

_LONG_ANSWER = 10_000
_COMPARED = 1_000_000
"""The characters of an answer that are searched at once at most, and these times the documents that it may cite: each
sentence is compared with all that have one of its words."""


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


def found_at_once(plan: Plan) -> int:
    """Returns up to how many characters of an answer its citations are found within the event loop, where they are
    found within some milliseconds. Longer ones are searched beside it."""
    if plan.request.is_large:
        return 0
    return min(_LONG_ANSWER, _COMPARED // max(len(plan.sources) + len(plan.request.quoted), 1))


def citing(answer: Answer, plan: Plan, find: Find) -> Cited:
    """Returns the answer that adds the citations to a streamed one: at the end of it, or of each of its sentences.

    Args:
        answer: The answer to write to.
        plan: The plan.
        find: Finds the citations.
    """
    if plan.request.passages and not plan.request.is_large:
        return CitedSentences(answer, find, most=found_at_once(plan))
    return Cited(answer, find, echoed(plan), found_at_once(plan))


def echoed(plan: Plan) -> str:
    """Returns the prompt if the answer begins with it (`echo`), because marks in it are no citations."""
    return plan.prompt if plan.options.get("echo") and isinstance(plan.prompt, str) else ""
