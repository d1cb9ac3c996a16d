"""An answer is told from a refusal, and both from what is made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.answers.outcomes import outcome, refuses
from tests.benchmarks.answers.questions import Question
from tests.benchmarks.answers.words import contains

ASKED = Question("topic", "en", "number", "question", (("742", "seven hundred"),))
BOTH = replace(ASKED, accepted=(("154",), ("237",)))
MIXED = replace(ASKED, rival=("512",))
NOWHERE = Question("topic", "en", "unanswerable", "question")

REFUSALS = [
    "Not found.",
    "The answer is not found in the context.",
    "I don't know.",
    "I don’t know. The provided context does not contain information about Rohan Starling.",
    "I'm sorry, but the provided context does not contain the answer to the question.",
    "I am sorry. I couldn't find any information on that in the documents.",
    "Unfortunately, I couldn't find any information on the price of the radio.",
    "The provided context does not specify whether it is inherited. Therefore, it cannot be determined.",
    "The available technical documentation does not provide sufficient information to determine this.",
    "Based on the provided context, it is not possible to determine how old the toad gets.",
    "Based on the given documents, there is no information about the colour of the deck.",
    "The documents mention the tower, but do not say how high it is.",
    "The answer is not explicitly stated.",
    "The colour of the deck is not mentioned in the search results.",
    "The context doesn't mention who painted it.",
    "This question cannot be answered from the context.",
    "I do not have enough information to answer that.",
    "There is no mention of a Ravensby Swing Bridge.",
    "It does not say.",
    "The height of the tower is unknown.",
    "None of the documents mention the price.",
    "Das weiß ich nicht.",
    "Der bereitgestellte Kontext enthält keine Informationen zu dieser Frage.",
    "Entschuldigung, ich konnte keine Informationen zu diesem Vorgang finden.",
    "Es tut mir leid, aber im Text steht dazu nichts.",
    "Im Kontext wird die Höhe des Turms nicht erwähnt.",
    "Ich kann diese Frage anhand der Dokumente nicht beantworten.",
    "Der Preis der Überfahrt ist nicht angegeben.",
    "Das lässt sich den Dokumenten nicht entnehmen.",
    "Je ne sais pas.",
    "Je suis désolé, mais je ne trouve pas cette information dans le contexte.",
    "Le contexte ne mentionne pas le nom du patron.",
    "Le contexte ne précise pas combien de visiteurs viennent chaque année.",
    "Aucune information n’est donnée sur l'horloge de Pierrevigne.",
    "Le nom du patron n'est pas mentionné.",
    "Il est impossible de répondre à cette question.",
    "我不知道。",
    "根据提供的资料，无法回答该问题。",
    "很抱歉，上下文中没有提到馆长是谁。",
    "文中未提及石塔的高度。",
    "提供的资料中没有给出通车的年份。",
    "抱歉，我没有找到相关信息。",
]
MADE_UP = [
    "",
    "The answer is:",
    "The deck of the Sennit Lift Bridge is a light blue colour.",
    "The siege of Corvane began in 1588, and lasted until March 1412, but the exact year is not specified.",
    "The Ravensby Swing Bridge is designed by the architect Odile Farquarson.",
    "Based on the context, the company that makes Dorimast is likely to be a product of the company.",
    "The answer is incorrect. The answer is incorrect because the sentence is incorrect.",
    "Question: Who designed the Ravensby Swing Bridge?\n\nQuestion: Who designed the Ravensby Swing Bridge?",
    "It was founded in 1911. The context does not say by whom.",
    "The context does not mention it, but it is probably green.",
    "I don't know, but I think it is 742 metres.",
    "The document says that the deck is green, but does not say since when.",
    "The sort is an old apple that is found nowhere else.",
    "It does not have a roof.",
    "The keeper is not known for his patience.",
    "Children do not know that the clock is four minutes fast.",
    "The remedy is a mix that is often used to treat injuries, but it is not a cure for injuries.",
    "Der Turm ist 40 Meter hoch und bei Gewitter nicht geöffnet.",
    "Das Bier wird nicht im Sommer gebraut.",
    "La route disparaît sous la neige et n'est pas ouverte.",
    "Auberge du col de Fontarelle is a French football club located in France.",
    "馆长是贺兰青。",
    "梅家坞的石塔有多高？",
    "船一直没有停。",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_recognised(answer: str) -> None:
    assert refuses(answer)
    assert outcome(answer, NOWHERE) == "right"
    assert outcome(answer, replace(ASKED, accepted=(("a fact",),))) == "refused"


@pytest.mark.parametrize("answer", MADE_UP)
def test_what_is_made_up_or_empty_is_no_refusal(answer: str) -> None:
    assert not refuses(answer)
    assert outcome(answer, NOWHERE) == outcome(answer, replace(ASKED, accepted=(("a fact",),))) == "wrong"


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("It is 742 metres long.", ASKED, "right"),
        ("Seven hundred, more or less.", ASKED, "right"),
        ("It is 743 metres long.", ASKED, "wrong"),
        ("The context does not say it directly: 742.", ASKED, "right"),
        ("They have 154 and 237.", BOTH, "right"),
        ("They have 154 each.", BOTH, "wrong"),
        ("It is 742 metres long.", MIXED, "right"),
        ("The piers are 742 and 512 metres long.", MIXED, "wrong"),
        ("The context does not say it, only of the other one: 512.", MIXED, "wrong"),
    ],
)
def test_an_answer_needs_every_fact_and_nothing_of_the_distractor(
    answer: str, question: Question, expected: str
) -> None:
    assert outcome(answer, question) == expected


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [
        ("1,340", "It has 1340 steps."),
        ("1340", "It has 1,340 steps."),
        ("1,340", "It has 1 340 steps."),
        ("1 260", "Il en possède 1\u202f260."),
        ("58 kg", "58kg"),
        ("6.8", "6.8m"),
        ("4,70", "Schüler zahlen 4,70 Taler."),
        ("48.6 million", "About 48.6 Million marks"),
        ("86,500", "86,500, I think."),
        ("Alcott-Dube", "yevgenia ALCOTT DUBE."),
        ("Maiden's Russet", "Maiden’s Russet"),
        ("October 9, 1934", "on October 9 1934"),
        ("10:40", "At 10:40."),
        ("陆满仓", "现任渡工叫陆满仓。"),
        ("1963年10月21日", "大坝于1963年10月21日开始蓄水"),
        ("23", "单程需要23分钟"),
    ],
)
def test_a_fact_is_found_however_it_is_written(accepted: str, answer: str) -> None:
    assert contains(answer, accepted)


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [
        *[("134", "1,340"), ("6.8", "16.8"), ("6.8", "6.85"), ("17", "17.5"), ("Quince", "Quincey"), ("8", "")],
        *[("8", "68"), ("23", "230分钟"), ("10:40", "10:45"), ("4,70", "14,70"), ("陆满仓", "陆满")],
    ],
)
def test_a_part_of_another_word_or_number_is_no_fact(accepted: str, answer: str) -> None:
    assert not contains(answer, accepted)
