"""Citation marks in an answer (`[3]`, `[1][2]`, `[1, 3]`, `[1-3]`, `【1】`), and the documents that they cite.

The text is not changed. It is parsed once, when it is complete: during a stream, its pieces are only stored.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import TypeAlias

from comps.core.answers import Forwarding
from comps.core.beside import beside
from comps.core.deltas import join_extra
from comps.core.ports import Answer
from comps.core.prompts import own_number
from comps.core.types import JSON, Document, Finished, Generation, TextDelta

CITATION_MODES = ("auto", "on", "off", "matched")
"""How an answer cites its documents: `on`: the documents are numbered, and the model is told to write marks; `auto`:
they are numbered if the request's own words ask for marks; `off`: never; `matched`: see `matching`."""
Find: TypeAlias = Callable[[str, int], dict[str, JSON]]
"""Returns the extra fields with the citations in a text, from an offset in characters on."""
ANNOTATIONS, UNKNOWN = "annotations", "unknown_citations"
"""The extra fields with the citations; see `citations`."""
_PLACE = ("number", "start_index", "end_index")
"""The fields of an annotation of ours that say which document is cited where; see `annotation`."""

_NUMBER = r"[1-9][0-9]{0,17}"
_SOME = rf"{_NUMBER}(?: ?[-–—] ?{_NUMBER})?"
_MARK = re.compile(rf"[\[【] ?({_SOME}(?: ?[,;，；、] ?{_SOME})*) ?(?:†[^][】【\n]*)?[\]】]")
_RANGE = re.compile(rf"({_NUMBER})(?: ?[-–—] ?({_NUMBER}))?")
_WIDEST = 20
"""The most documents in a range; a longer one is probably a range of years or pages."""
_TICKS = re.compile("`+")
_TILDES = re.compile(r"^ {0,3}~~~.*?(?:^ {0,3}~~~+ *$|\Z)", re.DOTALL | re.MULTILINE)
"""A code block between fences of tildes."""
_FENCE = 3
"""The number of backticks that open a code block."""


_DECODER = json.JSONDecoder()
_MOST_OBJECTS = 100
"""The most places at which JSON is looked for: a text may have any number of braces."""
_REASONING = re.compile(
    r"(\A(?:(?!<think).)*?</think>)|[<\[](think|thinking|thought|reasoning|code|pre)[>\]].*?([<\[]/\2[>\]]|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_LONGEST_NAME = 40
_NAME_BEFORE = re.compile(r"(?<![\w.])[A-Za-z_]\w*\Z", re.ASCII)
_USE = re.compile(r" ?([-+*/%|&^]|<<|>>)?=(?!=)| ?[=!<>]=|\.[a-z_]\w*|\(", re.ASCII)
"""What follows an index in code: an assignment, a comparison, an attribute or a call."""
_VARIABLES = frozenset(("args", "argv", "arr", "array", "df", "dict", "dp", "idx", "lst", "mat", "nums", "obj", "seq"))
_LITERAL = re.compile(r"(=|\breturn) ?\Z")
"""What precedes a list of several values in code."""
_VARIABLES |= frozenset(("str", "tmp", "tuple", "vec", "xs", "ys", *"bcdfghjklmnopqrstuvwxyz"))
"""Names that variables have, and that end no sentence."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Citation mark: `text[start:end]` in characters, brackets included, cites the documents with these numbers."""

    start: int
    end: int
    numbers: tuple[int, ...]


def marks(text: str, start: int = 0) -> Iterator[Mark]:
    """Yields the citation marks of a text, in order.

    Numbers begin at 1. Marks within Markdown code, reasoning (`<think>`) and JSON are skipped, as are indexes (`a[1]`).

    Args:
        text: The text.
        start: The offset, in characters, at which to begin.
    """
    code = deque(skipped(text))
    for found in _MARK.finditer(text, start):
        while code and code[0][1] <= found.start():
            code.popleft()
        is_skipped = code and found.start() >= code[0][0]
        if not is_skipped and not _is_index(text, found) and (numbers := _numbers(found[1])):
            yield Mark(found.start(), found.end(), numbers)


def _is_index(text: str, found: re.Match[str]) -> bool:
    """Returns whether a mark is an index into a variable, as in `arr[1]`.

    Marks follow words without a space as well (`memory[1]`), so it takes a name that variables have, or what follows an
    index in code.
    """
    if "," in found[1] and _LITERAL.search(text, max(0, found.start() - _LONGEST_NAME), found.start()):
        return True
    name = _NAME_BEFORE.search(text, max(0, found.start() - _LONGEST_NAME), found.start())
    if name is None:
        return False
    return bool("_" in name[0] or name[0] in _VARIABLES or _USE.match(text, found.end()))


def skipped(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans in which nothing is a citation mark, in order and without overlaps."""
    marked = (found.span() for pattern in (_REASONING, _TILDES) for found in pattern.finditer(text))
    spans = [*_code(text), *marked, *_json(text)]
    end = 0
    for first, last in sorted(spans):
        if last > end:
            yield max(first, end), last
            end = last


def _json(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of JSON objects in a text, and that of a text that is a JSON array of several values."""
    if text.lstrip()[:1] == "[":
        try:
            if len(json.loads(text)) != 1:  # `[1]` alone is a mark.
                yield 0, len(text)
        except (ValueError, RecursionError):
            pass
    start = text.find("{")
    for _ in range(_MOST_OBJECTS):
        if start < 0:
            return
        try:
            _, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield start, end
        start = text.find("{", end)


def _numbers(said: str) -> tuple[int, ...]:
    """Returns the numbers in a mark, without repetitions; none if a range is invalid."""
    numbers: dict[int, None] = {}
    for found in _RANGE.finditer(said):
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + _WIDEST:
            return ()
        numbers |= dict.fromkeys(range(first, last + 1))
    return tuple(numbers)


def _code(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of Markdown code: between backtick runs of equal length, either within a paragraph or as a code
    block, which may be unclosed."""
    runs = [found.span() for found in _TICKS.finditer(text)]
    next_of: dict[int, int] = {}
    partners: list[int | None] = []
    for place in reversed(range(len(runs))):
        begin, end = runs[place]
        partners.append(next_of.get(end - begin))
        next_of[end - begin] = place
    partners.reverse()
    place = 0
    while place < len(runs):
        (begin, end), partner = runs[place], partners[place]
        is_block = end - begin >= _FENCE
        if partner is not None and (is_block or "\n\n" not in text[end : runs[partner][0]]):
            yield begin, runs[partner][1]
            place = partner
        elif is_block:
            yield begin, len(text)
            return
        place += 1


def by_number(documents: Sequence[Document], quoted: Sequence[Document] = ()) -> dict[int, Document]:
    """Returns the documents that can be cited, by citation number.

    Args:
        documents: Documents with assigned numbers. They take precedence.
        quoted: Documents that the caller's messages contain, numbered by their `citation_id`s. If several share an id,
            as passages of one file do, the first is used.
    """
    named: dict[int, Document] = {}
    for document in quoted:
        if number := own_number(document):
            named.setdefault(number, document)
    return named | {document.number: document for document in documents if document.number is not None}


def citations(text: str, given: Mapping[int, Document], start: int = 0) -> dict[str, JSON]:
    """Returns the citations in a text as extra fields; empty ones are left out.

    `annotations` has an OpenAI annotation for each mark and document. `unknown_citations` has the numbers that match no
    document.

    Args:
        text: The text.
        given: The documents by citation number.
        start: The offset, in characters, at which to begin.
    """
    annotations: list[JSON] = []
    unknown: dict[int, None] = {}
    for mark in marks(text, start):
        for number in mark.numbers:
            if document := given.get(number):
                annotations.append(annotation(mark.start, mark.end, number, document))
            else:
                unknown[number] = None
    found = {ANNOTATIONS: annotations, UNKNOWN: list(unknown)}
    return {name: value for name, value in found.items() if value}


def annotation(
    start: int, end: int, number: int, document: Document, told: Mapping[str, JSON] = MappingProxyType({})
) -> JSON:
    """Returns the annotation that `text[start:end]` cites a document.

    OpenAI defines the type `url_citation`; the others are ours.

    Args:
        start: Where the citing text begins, in characters.
        end: Where it ends.
        number: The document's citation number.
        document: The document.
        told: Further fields.
    """
    known = document.metadata
    source: dict[str, JSON] = {}
    kind = "document_citation"
    if isinstance(known.get("url"), str) and known["url"]:
        kind, source = "url_citation", {"url": known["url"]}
    elif "bucket_name" in known and "object_name" in known:
        kind, source = "file_citation", {name: known[name] for name in ("bucket_name", "object_name")}
    own = {"citation_id": known["citation_id"]} if known.get("citation_id") is not None else {}
    place = {"start_index": start, "end_index": end}
    return {"type": kind, kind: {**place, "title": document.title, **source, "number": number, **own, **told}}


def annotations_in(extra: Mapping[str, JSON] | None) -> list[dict[str, JSON]]:
    """Returns the annotations in extra fields. A model server may have sent them, in any form: what is no object is
    left out."""
    said = (extra or {}).get(ANNOTATIONS)
    return [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []


def own_citations_in(extra: Mapping[str, JSON] | None) -> Iterator[dict[str, JSON]]:
    """Yields what those annotations in extra fields say that are ours: they have the number of a document, and a place
    in the text, as whole numbers. A model server's own have not."""
    for one in annotations_in(extra):
        told = one.get(str(one.get("type")))
        if isinstance(told, dict) and all(type(told.get(name)) is int for name in _PLACE):
            yield told


def cited_numbers(extra: Mapping[str, JSON] | None) -> set[int]:
    """Returns the numbers of the documents that the annotations in extra fields cite."""
    return {told["number"] for told in own_citations_in(extra)}


class Cited(Forwarding):
    """Answer that adds citations: before the end of each choice it writes a delta with the fields from `find`.

    Args:
        answer: The answer to write to.
        find: Returns the fields for a text from an offset on, such as `citations`.
        echoed: The echoed prompt with which the answer may begin. What is in it is skipped.
        most: The characters of a choice up to which its citations are found at once, where there is only little to
            search; the end of a longer choice is written by `finish`.
    """

    def __init__(self, answer: Answer, find: Find, echoed: str = "", most: float = inf) -> None:
        super().__init__(answer)
        self.late: list[tuple[str, int, Finished]] = []
        """The texts, from where on they are searched, and the ends that `finish` writes."""
        self._most = most
        self._find = find
        self._echoed = echoed
        self._pieces: defaultdict[int, list[str]] = defaultdict(list)

    def text(self, text: str, choice: int = 0) -> None:
        self._pieces[choice].append(text)
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._pieces[delta.choice].append(delta.text)
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        text = "".join(self._pieces.pop(end.choice, ()))
        start = self._start(text, end.choice)
        if len(text) - start > self._most:
            self.late.append((text, start, end))
        else:
            self._finish(end, self._find(text, start))

    async def finish(self) -> None:
        """Write the citations and the ends of long choices. To find citations in them would hold the event loop."""
        for text, start, end in self.late:
            self._finish(end, await beside(self._find, text, start))

    def _start(self, text: str, choice: int) -> int:
        """Returns the offset from which on a choice is searched at its end."""
        return _echo(text, self._echoed)

    def _finish(self, end: Finished, found: Mapping[str, JSON]) -> None:
        if found:
            self._answer.delta(TextDelta("", end.choice, found))
        self._answer.finished(end)


def with_citations(generation: Generation, find: Find, echoed: str = "") -> Generation:
    """Returns a complete answer with the citations of each choice in its extra fields; see `Cited`."""
    found = find(generation.text, _echo(generation.text, echoed))
    further = tuple(with_citations(choice, find, echoed) for choice in generation.further)
    extra = join_extra(generation.extra or {}, found) if found else generation.extra
    return replace(generation, extra=extra, further=further)


def _echo(text: str, echoed: str) -> int:
    """Returns how many characters of an answer are the echoed prompt."""
    return len(echoed) if text.startswith(echoed) else 0
