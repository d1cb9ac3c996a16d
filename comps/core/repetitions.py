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
    originals: dict[str, list[int]] = {}
    """Places by text, one for each title."""
    for place in sorted(range(len(result)), key=lambda place: bool(result[place].left_out)):
        document = result[place]
        text = document.text.strip()
        if not (text or document.title):
            continue
        known = originals.setdefault(text, [])
        same = next((one for one in known if _may_share(result[one].title, document.title)), None)
        if same is not None:
            result[same] = _completed(result[same], document)
            result[place] = replace(document, left_out=f"document {same + 1} has the same text")
        elif not document.left_out:
            known.append(place)
    return tuple(result)


def _may_share(title: str, other: str) -> bool:
    """Whether two documents with the same text may be one, going by their titles."""
    return not title or not other or title == other


def _completed(original: Document, repetition: Document) -> Document:
    return replace(
        original,
        title=original.title or repetition.title,
        metadata={**repetition.metadata, **original.metadata},
    )
