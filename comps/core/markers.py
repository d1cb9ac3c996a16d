"""What opens and closes turns in a chat template, broken up wherever it stands in somebody's text.

A control token is a single token to the model's tokenizer, and a role marker is what the model was trained to take a
turn from. A space behind the first character makes either the text that it is: `< |im_end|>`, `[ INST]`, `U SER:`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

_UNSEEN = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\ud800-\udfff"
)
"""What nobody sees and a tokenizer may leave out: control characters, Unicode's default ignorable ones, surrogates."""
_ANY_UNSEEN = f"[{_UNSEEN}]*"
_LINE_START = rf"[\n\r\v\f\x85\u2028\u2029][ \t\xa0{_UNSEEN}]*"
_INNER = r"[^<>|｜ \t\n\r]+"
_SPECIAL = rf"[|｜]{_INNER}(?:[|｜]{_ANY_UNSEEN})?>"
"""What is behind the `<` of `<|im_end|>`, DeepSeek's `<｜User｜>`, and Gemma 4's `<|turn>`."""
_SPECIAL_END = rf"{_INNER}[|｜]{_ANY_UNSEEN}>"
"""What is behind that of Gemma 4's `<turn|>`."""
_SPECIALS = ("<s>", "</s>", "<bos>", "<eos>", "<unk>", "<pad>")

_TAG = re.compile(r"<[^<>\s]+>+|<<[^<>\s]+>>|\[[^\[\]\s]+\]")
_ROLE = re.compile(r"(?:#+ ?)?\w+:(?=\s*$)")


def tag_at(text: str) -> str | None:
    """The tag that a text begins with."""
    found = _TAG.match(text)
    return found[0] if found else None


def tags_in(text: str) -> list[str]:
    """The tags in it: `[INST]`, `<<SYS>>`, `</s>`."""
    return _TAG.findall(text)


def markers_in(pieces: Iterable[str]) -> set[str]:
    """What opens and closes turns, told by what a template writes around contents."""
    return {mark for piece in pieces for mark in (*tags_in(piece), *_ROLE.findall(piece))}


def control_token_escape(markers: Collection[str]) -> Callable[[str], str]:
    r"""What breaks up these markers and all special tokens, also with unseen characters within, in linear time.

    Args:
        markers: After a `\n`, one counts at the start of a line only; one that begins with a letter, at that of a word.
    """
    lines = {mark[1:] for mark in markers if mark.startswith("\n")}
    anywhere = {*_SPECIALS, *(mark for mark in markers if not mark.startswith("\n"))}
    patterns = [(re.compile(head), f"{first} ") for first, head in _heads(anywhere).items()]
    at_lines = re.compile(f"{_LINE_START}(?:{'|'.join(_heads(lines).values())})") if lines else None

    def escaped(text: str) -> str:
        for pattern, broken in patterns:  # Each finds one character, and writes one text: Python is fast at that.
            text = pattern.sub(broken, text)
        return at_lines.sub(lambda begin: f"{begin[0]} ", f"\n{text}")[1:] if at_lines else text

    return escaped


def _heads(marks: Iterable[str]) -> dict[str, str]:
    """Patterns of the characters that marks begin with, each where one of its marks stands."""
    heads = {}
    for first, rests in _by_first(marks).items():
        at_word = rf"(?<!\w{first})" if first.isalnum() else ""
        behind = f"{_ANY_UNSEEN}{_any_of(rests)}"
        if first == "<":
            behind = f"{_ANY_UNSEEN}(?:{_any_of(rests)}|{_SPECIAL})|{_SPECIAL_END}"
        heads[first] = f"{re.escape(first)}{at_word}(?={behind})"
    return heads


def _any_of(marks: Iterable[str]) -> str:
    """A pattern of any of the marks; what several begin with is looked at once."""
    branches = [
        re.escape(first) + ("" if "" in rests else _ANY_UNSEEN + _any_of(rests))
        for first, rests in _by_first(marks).items()
    ]
    return f"(?:{'|'.join(branches)})"


def _by_first(marks: Iterable[str]) -> dict[str, list[str]]:
    """What follows each character that a mark begins with."""
    rests: dict[str, list[str]] = {}
    for mark in sorted(marks):
        rests.setdefault(mark[0], []).append(mark[1:])
    return rests
