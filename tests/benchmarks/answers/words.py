"""Words and numbers of texts in English, German, French and Chinese, for comparisons."""

from __future__ import annotations

import re
from functools import lru_cache

_CJK = "\u3400-\u9fff\u3007"
_THOUSANDS = re.compile(r"(?<=\d)[, \u00a0\u202f](?=\d{3}(?!\d))")
_WORDS = re.compile(rf"\d+(?:[.:]\d+)*|[{_CJK}]|(?:(?![{_CJK}])[^\W\d_])+")
_CJK_PAIRS = re.compile(rf"(?=([{_CJK}]{{2}}))")
_STEM = 5
"""Letters by which words are compared, so that endings do not count."""
_SHORTEST = 4
"""Letters of a content word, at least."""
_COMMON_WORDS = """
about after also been before between does down ever from have here into made make many more most much only other over
some such than that their them then there these they this those time under until were what when where which while whom
whose will with would year
aber alle auch beim dass dein denn diese dieser eine einem einen einer eines gibt haben hatte heisst ihre ihrem ihrer
kann mehr nach nicht noch oder sein seine seit sich sind über unter viel viele wann warum welche welchem welchen welcher
welches wenn werden wird wurde
alors avec avait cette ceux comme comment combien dans depuis elle elles entre était être leur leurs mais même nous pour
quand quel quelle quelles quels sans sont sous tout tous toute vous
什么 哪里 哪一 多少 是谁 为什 怎么 一个 哪位 几年 几点 名字 么名 叫什 有多
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def normal(text: str) -> str:
    """The words and numbers of a text in small letters, a space before and after each: what is compared. A Chinese
    character is a word."""
    return f" {' '.join(_WORDS.findall(_THOUSANDS.sub('', text).casefold()))} "


def contains(text: str, form: str) -> bool:
    """Whether a text has a fact in one of its forms, as whole words and numbers."""
    return normal(form) in normal(text)


@lru_cache(1024)
def content_words(text: str) -> frozenset[str]:
    """What a text is about: its longer words that are not common ones, and its numbers, cut to the same length; of
    Chinese, the pairs of neighbouring characters."""
    words = (word for word in normal(text).split() if word not in _COMMON)
    pairs = set(_CJK_PAIRS.findall(text)) - _COMMON
    return frozenset(
        {word.rstrip("s")[:_STEM] for word in words if len(word) >= _SHORTEST or word[0].isdigit()} | pairs
    )
