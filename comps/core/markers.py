"""Turn markers, which open and close turns in a chat template, broken up wherever they occur in a caller's text.

A marker is either a control token, which is a single token to the model's tokenizer, or a role marker, from which the
model was trained to begin a turn. A space after the first character makes either one ordinary text: `< |im_end|>`,
`[ INST]`, `U SER:`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

_INVISIBLE = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\ud800-\udfff"
)
"""Characters that are not displayed, and that a tokenizer may leave out: control characters, those that Unicode calls
default ignorable, surrogates."""
_ANY_INVISIBLE = f"[{_INVISIBLE}]*"
_LINE_BREAKS = "\n\r\v\f\x85\u2028\u2029"
_INDENT = rf"[ \t\xa0{_INVISIBLE}]*"
_INNER = r"[^<>|｜ \t\n\r]+"
_SPECIAL = rf"[|｜]{_INNER}(?:[|｜]{_ANY_INVISIBLE})?>"
"""What follows the `<` of `<|im_end|>`, of DeepSeek's `<｜User｜>`, and of Gemma 4's `<|turn>`."""
_SPECIAL_END = rf"{_INNER}[|｜]{_ANY_INVISIBLE}>"
"""What follows the `<` of Gemma 4's `<turn|>`."""
_SPECIALS = ("<s>", "</s>", "<bos>", "<eos>", "<unk>", "<pad>")
_LONG = 100_000
"""The characters of a text up to which it is searched in one piece."""
_SPARSE = 512
"""A character is rare in a text if it occurs less than once in so many characters, on average."""

_TAG = re.compile(r"<[^<>\s]+>+|<<[^<>\s]+>>|\[[^\[\]\s]+\]")
_CONTROL = re.compile(rf"<{_SPECIAL}|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[\|\w+\|\]|\A\s*(?:<s>|<bos>)")
_OPEN_TURN = re.compile(
    r"\s*(?:#+ ?)?\w+ ?[:：]|.*(?<!\w)(?:assistant|response|falcon|gpt|ai|bot) ?[:：]", re.IGNORECASE
)
_LONGEST_LABEL = 80
"""The most characters of a line that is the label of an open turn, or the end of a line that ends with one."""
_ROLE = re.compile(r"(?<!#)(?:#+ ?)?(?<!\w)\w+:(?=\s*$)")


def tag_at(text: str) -> str | None:
    """The tag that a text begins with."""
    found = _TAG.match(text)
    return found[0] if found else None


def tags_in(text: str) -> list[str]:
    """The tags in a text: `[INST]`, `<<SYS>>`, `</s>`."""
    return _TAG.findall(text)


def markers_in(pieces: Iterable[str]) -> set[str]:
    """The turn markers in the pieces of text that a template writes around contents."""
    return {mark for piece in pieces for mark in (*tags_in(piece), *_ROLE.findall(piece))}


def is_rendered(text: str) -> bool:
    """Whether a text is a conversation that a chat template has rendered.

    It has a control token of a turn (`<|im_start|>`, `[INST]`, `<start_of_turn>`) or begins with BOS, or it ends with
    the label of an open turn (`ASSISTANT:`, `### Response:`, `AI:`).
    """
    if _CONTROL.search(text):
        return True
    last_line = text.rstrip().rpartition("\n")[2]
    return bool(_OPEN_TURN.fullmatch(last_line[-_LONGEST_LABEL:]))


def control_token_escape(markers: Collection[str]) -> Callable[[str], str]:
    r"""A function that breaks up these markers and all special tokens in a text, in linear time.

    A marker is also found with invisible characters inside. To escape a text twice is the same as to escape it once. A
    text without markers is returned as the same object.

    Args:
        markers: One that begins with `\n` counts only at the start of a line; one that begins with a letter, only at
            the start of a word.
    """
    at_start = {mark[1:] for mark in markers if mark.startswith("\n")}
    anywhere = _heads({*_SPECIALS, *(mark for mark in markers if not mark.startswith("\n"))})
    patterns = [(first, re.compile(head), f"{first} ") for first, head in anywhere.items()]
    heads = "|".join(_heads(at_start).values())
    at_lines = [(first, re.compile(f"{first}{_INDENT}(?:{heads})"), r"\g<0> ") for first in _LINE_BREAKS if heads]

    def escaped(text: str) -> str:
        for first, pattern, broken in patterns:
            if first in text and _may_occur(pattern, first, text):
                text = _substituted(pattern, first, broken, text)
        if not at_lines:
            return text
        lines = f"\n{text}"  # The start of a text is the start of a line.
        for first, pattern, broken in at_lines:
            if first in lines and _may_occur(pattern, first, lines):
                lines = _substituted(pattern, first, broken, lines)
        return lines[1:] if len(lines) > len(text) + 1 else text

    return escaped


def _substituted(pattern: re.Pattern[str], first: str, broken: str, text: str) -> str:
    """`pattern.sub`, for a pattern that begins with this character. For a long text `sub` would hold the interpreter's
    lock for seconds."""
    if len(text) <= _LONG:
        return pattern.sub(broken, text)
    pieces: list[str] = []
    end, place = 0, text.find(first)
    while place >= 0:
        if found := pattern.match(text, place):
            pieces += (text[end:place], found.expand(broken))
            end = found.end()
        place = text.find(first, max(place + 1, end))
    return "".join([*pieces, text[end:]]) if pieces else text


def _may_occur(pattern: re.Pattern[str], first: str, text: str) -> bool:
    """Whether a pattern that begins with this character may occur in a text; False is certain.

    To find a rare character and to match the pattern there is many times faster than to search for the pattern.
    """
    place = -1
    for _ in range(4 + len(text) // _SPARSE):
        place = text.find(first, place + 1)
        if place < 0:
            return False
        if pattern.match(text, place):
            break
    return True


def _heads(marks: Iterable[str]) -> dict[str, str]:
    """By each character that a mark begins with, a pattern that matches this character where one of its marks
    follows."""
    heads = {}
    for first, rests in _by_first(marks).items():
        # Invisible characters before a word are no part of it, although some of them are letters to `\w`.
        at_word = rf"(?<![^\W{_INVISIBLE}]{first})" if first.isalnum() else ""
        behind = f"{_ANY_INVISIBLE}{_any_of(rests)}"
        if first == "<":
            behind = f"{_ANY_INVISIBLE}(?:{_any_of(rests)}|{_SPECIAL})|{_SPECIAL_END}"
        heads[first] = f"{re.escape(first)}{at_word}(?={behind})"
    return heads


def _any_of(marks: Iterable[str]) -> str:
    """A pattern of any of the marks, as a tree: a beginning that several share is matched once."""
    branches = [
        re.escape(first) + ("" if "" in rests else _ANY_INVISIBLE + _any_of(rests))
        for first, rests in _by_first(marks).items()
    ]
    return f"(?:{'|'.join(branches)})"


def _by_first(marks: Iterable[str]) -> dict[str, list[str]]:
    """The rests of the marks, by the character that each begins with."""
    rests: dict[str, list[str]] = {}
    for mark in sorted(marks):
        rests.setdefault(mark[0], []).append(mark[1:])
    return rests
