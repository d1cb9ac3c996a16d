"""A request's report, corrected to the number of tokens that the model server has counted."""

from __future__ import annotations

from dataclasses import replace

from comps.core.types import Report, Usage


def settled(report: Report, usage: Usage | None) -> Report:
    """A report with the prompt's tokens as the model server counted them, and parts that add up to them.

    The difference from the sum of the parts goes to the history, in which the overhead of each message was only
    estimated, else to the question; where the whole report is an estimate, every part is scaled.
    """
    if usage is None or not usage.prompt_tokens:
        return report
    if report.prompt_tokens is None or report.question_tokens is None:
        return replace(report, prompt_tokens=usage.prompt_tokens)
    if report.counted == "estimate":
        return _scaled(report, usage.prompt_tokens)
    over = report.prompt_tokens - usage.prompt_tokens
    if report.history_tokens and over <= report.history_tokens:
        return replace(report, prompt_tokens=usage.prompt_tokens, history_tokens=report.history_tokens - over)
    return replace(report, prompt_tokens=usage.prompt_tokens, question_tokens=report.question_tokens - over)


def _scaled(report: Report, prompt_tokens: int) -> Report:
    """An estimated report whose parts add up to a number of tokens."""
    estimated = report.prompt_tokens or 1

    def scaled(tokens: int | None) -> int | None:
        return tokens and tokens * prompt_tokens // estimated

    uses = tuple(
        replace(use, tokens=scaled(use.tokens), tokens_used=scaled(use.tokens_used)) for use in report.documents
    )
    documents, history = sum(use.tokens_used or 0 for use in uses), scaled(report.history_tokens) or 0
    return replace(
        report,
        documents=uses,
        prompt_tokens=prompt_tokens,
        documents_tokens=documents,
        history_tokens=history,
        question_tokens=prompt_tokens - documents - history,
    )
