"""What was decided on the way from a request to its prompt, in one line of the log, without a word of the prompt."""

from __future__ import annotations

from comps.core.planning import Plan
from comps.core.types import DocumentUse


def decided(plan: Plan) -> str:
    """Returns the decisions about a prompt: its form, what became of the documents, and the budget of tokens."""
    report = plan.report
    form = "text to continue" if isinstance(plan.prompt, str) else f"{len(plan.prompt)} messages"
    documents = "; ".join(map(_document, report.documents)) or ("none found" if report.nothing_found else "none")
    return (
        f"prompt: {form}{', with documents as an option' if report.native else ''}; "
        f"documents: {documents}; order={report.order} citations={plan.citations} "
        f"numbered={'yes' if plan.numbered else 'no'} turns_dropped={report.turns_dropped} "
        f"window={_known(report.context_window)} counted={report.counted} prompt_tokens={_known(report.prompt_tokens)} "
        f"documents_tokens={_known(report.documents_tokens)} history_tokens={_known(report.history_tokens)} "
        f"question_tokens={_known(report.question_tokens)} max_tokens={_known(plan.sampling.max_tokens)}"
    )


def _document(use: DocumentUse) -> str:
    why = f" ({use.reason})" if use.reason else ""
    size = "" if use.tokens is None else f", {use.tokens_used or 0} of {use.tokens} tokens"
    return f"{use.number} {use.fate}{why}{size}"


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)
