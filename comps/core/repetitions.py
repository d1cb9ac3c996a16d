"""Documents whose text is there already: it is written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from comps.core.types import Document


def once_each(documents: Sequence[Document]) -> tuple[Document, ...]:
    """The documents, each repetition with the reason for which it is left out; all keep their places.

    A repetition has the text of an earlier document, up to white space around it, and not another title. Of documents
    that are left out anyway, each may be a repetition, and none is one's original. What a repetition says besides the
    text is added to the original, whose own title and metadata come first.
    """
    if len({document.text.strip() for document in documents}) == len(documents):
        return tuple(documents)
    result = list(documents)
    firsts: dict[str, int] = {}
    """The place of each text's first original."""
    originals: dict[str, dict[str, int]] = {}
    """The places of each text's originals, by title."""
    for place in sorted(range(len(result)), key=lambda place: bool(result[place].left_out)):
        document = result[place]
        text = document.text.strip()
        if not (text or document.title):
            continue
        by_title = originals.setdefault(text, {})
        # Without a title it may be any of them; with one, the one with the same title, or the one without.
        same = by_title.get(document.title, by_title.get("")) if document.title else firsts.get(text)
        if same is not None:
            result[same] = _completed(result[same], document)
            if by_title.get("") == same and result[same].title:  # It has got a title.
                by_title[result[same].title] = by_title.pop("")
            result[place] = replace(document, left_out=f"document {same + 1} has the same text")
        elif not document.left_out:
            by_title[document.title] = place
            firsts.setdefault(text, place)
    return tuple(result)


def _completed(original: Document, repetition: Document) -> Document:
    return replace(
        original,
        title=original.title or repetition.title,
        metadata={**repetition.metadata, **original.metadata},
        score=repetition.score if original.score is None else original.score,
    )
