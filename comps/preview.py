"""Prints prompt previews: the report and the prompt with marked cuts; in colour on a terminal, otherwise as plain
text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from comps.core.previews import Preview
from comps.core.prompts import text_of
from comps.core.types import Document, DocumentUse, Report

_FATES = {"kept": "green", "cut": "yellow", "dropped": "red"}
_HEADING, _TEMPLATE, _MARK = "bold", "dim cyan", "bold reverse yellow"
_COUNTED = {"model": "by the model's own tokenizer", "estimate": "estimated, without the model's tokenizer"}
_SEEN = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), 0xFFFD),
}
"""Maps control characters to visible ones, so that no text sends commands to the terminal."""

Pieces: TypeAlias = list[tuple[str, str]]
"""Pieces of text, each with its style of rich."""


@dataclass(frozen=True, slots=True)
class ModelPreview:
    """The preview of one model.

    Attributes:
        heading: The model's name and kind.
        documents: The documents of the request.
        preview: The prompt and the report.
    """

    heading: str
    documents: Sequence[Document]
    preview: Preview


def show(models: Sequence[ModelPreview]) -> None:
    """Print previews: on a terminal in colour and side by side, otherwise as plain text, one after the other."""
    console = Console(highlight=False)
    parts = [([(one.heading, _HEADING)], _report(one), _prompt(one)) for one in models]
    if not console.is_terminal:
        print("\n\n".join("".join(text for text, _ in part) for one in parts for part in one))
        return
    grid = Table.grid(*([""] * len(parts)), padding=(0, 2), expand=True)
    for column in grid.columns:
        column.ratio, column.overflow = 1, "fold"
    for row in zip(*parts, strict=True):
        grid.add_row(*map(_coloured, row))
        grid.add_row()
    console.print(grid)


def _coloured(pieces: Pieces) -> Text:
    """Returns the styled text, with visible characters for control characters."""
    return Text.assemble(*((text.translate(_SEEN), style) for text, style in pieces))


def _report(shown: ModelPreview) -> Pieces:
    pieces = [(f"{name:<16}{value}\n", "") for name, value in _summary(shown.preview)]
    width = max((len(document.title) for document in shown.documents), default=0)
    for use, document in zip(shown.preview.plan.report.documents, shown.documents, strict=True):
        pieces.append((f"document {use.number:<3}{document.title:<{width}}  ", ""))
        pieces += [(f"{use.fate:<8}", _FATES[use.fate]), (f"{_size(use)}\n", "")]
    last, style = pieces.pop()
    return [*pieces, (last.rstrip(), style)]


def _summary(preview: Preview) -> Iterator[tuple[str, str]]:
    report = preview.plan.report
    yield "context window", _tokens(report.context_window)
    yield "prompt", _tokens(report.prompt_tokens) + _parts(report)
    yield "answer", "at most " + _tokens(preview.sampling.max_tokens)
    if report.headroom is not None:
        yield "headroom", _tokens(report.headroom)
    if report.counted in _COUNTED:
        yield "counted", _COUNTED[report.counted]
    sampling = {name: value for name, value in asdict(preview.sampling).items() if value not in (None, ())}
    yield "sampling", ", ".join(f"{name} = {value}" for name, value in sampling.items())


def _parts(report: Report) -> str:
    parts = {
        "question": report.question_tokens,
        "history": report.history_tokens or None,
        "documents": report.documents_tokens or None,
    }
    told = [f"{name} {tokens}" for name, tokens in parts.items() if tokens is not None]
    return f" ({', '.join(told)})" if told else ""


def _tokens(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens} token{'' if tokens == 1 else 's'}"


def _size(use: DocumentUse) -> str:
    why = f": {use.reason}" if use.reason else ""
    if use.tokens is None:
        return why.removeprefix(": ")
    return f"{use.tokens_used} of {_tokens(use.tokens)}{why}" if use.fate == "cut" else f"{_tokens(use.tokens)}{why}"


def _prompt(shown: ModelPreview) -> Pieces:
    """Returns the rendered prompt, or else the messages, with a mark at each missing piece of a document."""
    prompt, rendered = shown.preview.prompt, shown.preview.rendered
    turns = [] if isinstance(prompt, str) else [(one.role, text_of(one.content)) for one in prompt]
    text = "\n\n".join(f"{role}:\n{said}" for role, said in turns) if rendered is None else rendered
    pieces: Pieces = []
    at = 0
    for said in [said for _, said in turns] or [text]:
        if (begin := text.find(said, at)) >= 0:
            pieces += [(text[at:begin], _TEMPLATE), *_with_marks(shown, said)]
            at = begin + len(said)
    pieces.append((text[at:], _TEMPLATE))
    if not any(style == _MARK for _, style in pieces):  # The chat template has changed the texts.
        pieces += [(mark, _MARK) for mark in _marks(shown)]
    return [(text.encode("utf-8", "replace").decode(), style) for text, style in pieces]


def _with_marks(shown: ModelPreview, said: str) -> Pieces:
    """Returns a message's text, with the marks after the last document if it contains that."""
    last = next((one.text for one in reversed(shown.preview.plan.documents) if one.text), "")
    before, found, behind = said.rpartition(last) if last else ("", "", said)
    return [(before + found, ""), *((mark, _MARK) for mark in _marks(shown) if found), (behind, "")]


def _marks(shown: ModelPreview) -> Iterator[str]:
    for use, document in zip(shown.preview.plan.report.documents, shown.documents, strict=True):
        named = f"document {use.number}{f' ({document.title})' if document.title else ''}"
        if use.fate == "cut":
            missing = (use.tokens or 0) - (use.tokens_used or 0)
            yield f"\n[... {named} is cut: {_tokens(missing)} missing]"
        elif use.fate == "dropped":
            size = f": {_tokens(use.tokens)} missing" if use.tokens is not None else ""
            yield f"\n[... {named} is dropped{size}]"
