"""What became of a question: right, refused, or wrong, which is made up."""

from __future__ import annotations

import re

from tests.benchmarks.answers.questions import Question
from tests.benchmarks.answers.words import contains

OUTCOMES = ("right", "refused", "wrong")

_SOURCE = (
    r"(?:context|contexts|documents?|documentation|texts?|passages?|excerpts?|search results?|results?|sources?|"
    r"information|articles?|tables?|reports?|data|materials?|records?)"
)
_SAY = r"(?:say|state|mention|specify|provide|give|indicate|tell|disclose|reveal)"
_CONTAIN = r"(?:contain|include|list|answer|name|describe|have|explain|offer|address|appear|seem)"
_SAID = (
    r"(?:mentioned|stated|specified|provided|given|disclosed|said|indicated|named|listed|available|included|known|found|"
    r"contained|answered|described|clear|present|recorded|told)"
)
_ENGLISH = (
    rf"\b{_SOURCE}\b[^.]{{0,60}}?\b(?:do|does|did)(?: not|n't) (?:\w+ )?(?:{_SAY}|{_CONTAIN})\b",
    rf"\b(?:it|they|this)(?: do| does| did)(?: not|n't) (?:\w+ )?{_SAY}\b",
    r"\bi(?:'m| am)? (?:do not|don't|cannot|can't|can not|could not|couldn't|not able to|unable to|not sure)\b",
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|impossible to|not possible to) (?:be )?"
    r"(?:answer|determine|find|found|say|tell|provide|know)",
    rf"\b(?:is|are|was|were|been)(?: not|n't) (?:\w+ )?{_SAID}\b(?=[^.]*\b{_SOURCE}\b|\W*$)",
    r"\bno (?:\w+ )?(?:information|mention|answer|documents?|indication|data|record|details?)\b",
    r"\b(?:nothing|none)\b[^.]{0,40}\b(?:say|says|said|mention|mentions|mentioned|about)\b",
    r"\b(?:not enough|insufficient) (?:information|context|data)",
    r"\bis(?: still)? (?:unknown|unclear|unspecified)\b",
    rf"^\W*(?:the answer is )?(?:not {_SAID}|unknown|unanswerable)\W*$",
)
_GERMAN = (
    r"\bweiß (?:ich |es |ich es |das )?(?:leider )?nicht\b",
    r"\bnicht (?:bekannt|erwähnt|genannt|angegeben|enthalten|beantwort\w+|zu finden|gefunden|ersichtlich|hervor|"
    r"verfügbar|vermerkt|zu entnehmen|gesagt)",
    r"\b(?:keine?n?|keinerlei) (?:\w+ )?(?:angaben?|informationen?|antwort|auskunft|hinweise?|daten|erwähnung)\b",
    r"\bkann (?:ich |man )?[^.]{0,60}nicht (?:beantworten|sagen|finden|bestimmen|feststellen)",
    r"\bnicht möglich\b",
    r"\b(?:kontext|text|dokumente?n?|quellen?|unterlagen)\b[^.]{0,40}\b(?:nicht|nichts)\b",
    r"\blässt sich [^.]{0,60}nicht\b",
)
_FRENCH = (
    r"\bje (?:ne|n') ?(?:le )?(?:sais|peux|trouve|connais|dispose)\w* (?:malheureusement )?(?:pas|rien|aucun)",
    r"\b(?:ne |n')(?:le |la |l')?(?:mentionne|précise|dit|disent|indique|contien|donne|permet|fourni|figure|"
    r"trouve)\w* (?:pas|aucun|rien|nulle)",
    r"\b(?:n'|ne )(?:est|a|ont|sont)(?: pas| jamais)(?: été)? (?:mentionn|précis|indiqu|conn|dit|donn|fourni|spécifi|"
    r"disponible)",
    r"\b(?:aucune?|pas d'|pas de) ?(?:information|mention|réponse|document|indication|donnée|précision)",
    r"\b(?:impossible de (?:répondre|dire|déterminer|savoir)|introuvable|inconnue?s?\b)",
)
_CHINESE = (
    r"(?:没有|并未|未|没)(?:被)?(?:直接|明确|具体|有)?(?:提到|提及|说明|说|给出|提供|找到|相关|记载|信息|写明|注明|指出|透露)",
    r"不知道|不清楚|不确定|不详|未知|找不到|无从得知",
    r"(?:无法|不能)(?:从[^。]{0,12})?(?:回答|确定|得知|找到|判断|知道|提供|得出)",
)
_REFUSALS = re.compile("|".join((*_ENGLISH, *_GERMAN, *_FRENCH, *_CHINESE)))
_GUESSES = re.compile(
    r"\b(?:probably|likely|presumably|perhaps|i (?:think|believe|guess|assume)|best guess|the answer is (?!not|un))\b"
    r"|\b(?:but|however)\b(?:(?!\bnot\b|n't)[^.])*\b(?:it|he|she|they|there) (?:is|was|are|were|has|had|costs?)\b"
    r"|\b(?:wahrscheinlich|vermutlich|aber es (?:ist|war)|probablement|sans doute|mais (?:c'est|il est|elle est))\b"
    r"|可能是|大概|也许|应该是|但是?[^。]{0,8}是"
)
_APOLOGY = re.compile(
    r"^\W*(?:(?:i'm|i am|we are|it is|es tut mir|je suis|很|非常)\s*)*"
    r"(?:sorry|unfortunately|leid|leider|entschuldigung|désolée?|malheureusement|抱歉|对不起)[\s,.;，。]*"
    r"(?:but |aber |mais )?"
)
_CLAUSES = re.compile(r"[,;] (?=(?:but|although|though|however|and|so|aber|jedoch|und|mais|et)\b)|，(?=但|不过)")
_MENTIONING = re.compile(
    rf"\W*(?:(?:the|these|those|this|provided|given|available) )*{_SOURCE}\b[^.]{{0,40}}\b"
    r"(?:only|mention|describe|discuss|refer|talk|contain|provide|include)"
    r"|(?:der |die |das )?(?:kontext|text|dokumente?)\b[^.]{0,40}\b(?:nenn|erwähn|beschreib)"
    r"|les? (?:contexte|texte|documents?)\b[^.]{0,40}\b(?:mentionne|parle|décri|évoque)"
    r"|[^。]{0,8}(?:上下文|文档|文中|资料|文本)[^。]{0,8}(?:提到|介绍)"
)
"""The beginning of a sentence such as "The documents mention the tower, but do not say how high it is."."""


def refuses(answer: str) -> bool:
    """Whether an answer says that the documents do not say it, or that the model does not know, and claims nothing.

    It must begin with that: an answer that claims something and then adds what the documents do not say is no refusal,
    and neither is an empty one, or one that guesses after its refusal.
    """
    text = " ".join(answer.replace("’", "'").replace("ʼ", "'").lower().split())
    sentence = re.split(r"(?<=[.!?])\s|(?<=[。！？])", _APOLOGY.sub("", text, count=1))[0]
    beginning = sentence if _MENTIONING.match(sentence) else _CLAUSES.split(sentence)[0]
    return bool(_REFUSALS.search(beginning)) and not _GUESSES.search(text)


def has_all(answer: str, question: Question) -> bool:
    """Whether an answer has each fact that is asked for, in any of its forms."""
    return all(any(contains(answer, form) for form in forms) for forms in question.accepted)


def outcome(answer: str, question: Question) -> str:
    """One of `OUTCOMES`. Where no document says it, to refuse is right, and anything else is wrong. Where one does, an
    answer with what the distractor says is wrong, even if it has the fact as well."""
    if not question.answerable:
        return "right" if refuses(answer) else "wrong"
    is_mixed = any(contains(answer, form) for form in question.rival)
    if has_all(answer, question) and not is_mixed:
        return "right"
    return "refused" if refuses(answer) and not is_mixed else "wrong"
