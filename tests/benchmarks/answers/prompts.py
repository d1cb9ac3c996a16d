"""The prompts that are compared, and the body that is posted for each.

Three kinds: `service` leaves the layout to the service; a template of `TEMPLATES` is posted as `chat_template`; a
`Layout` is posted as the exact messages, without documents, so that the service lays nothing out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comps.core.types import JSON
from tests.benchmarks.answers.questions import Document

SERVICE = "service"
"""The prompt that the service makes of a question and documents by itself."""

TEMPLATES: Mapping[str, str] = {
    "house": "Answer the question from these search results.\n\n{context}\n\n{question}",
    "labelled": "Search results:\n{context}\n\n{question}",
    "refuse": (
        "Answer from these search results. If they do not say it, say that you do not know.\n\n{context}\n\n{question}"
    ),
    "last": (
        "Search results:\n{context}\n\nAnswer the question in one sentence, using only the search results above. "
        "If they do not say it, answer that you do not know.\n\nQuestion: {question}\nAnswer:"
    ),
    "cite": (
        "Answer the question with what the search results say about it, and put the number of the result behind what "
        "it says, like this: [1]. If they say nothing, answer that you do not know.\n\nSearch results:\n{context}\n\n"
        "Question: {question}"
    ),
    "long": (
        "You are a careful assistant who answers questions from search results. Read all of them, find the one that "
        "is about what is asked, and answer with the name, number or date that it says, exactly as it is written "
        "there. Do not add anything that the search results do not say, do not repeat them, and keep the answer to "
        "one sentence. If none of them has the answer, say that you do not know.\n\n### Search results\n{context}\n\n"
        "### Question\n{question}"
    ),
}
"""What is posted as `chat_template`."""

SENTENCE = "Answer the question using only the context. Answer in one short sentence."
REFUSING = f"{SENTENCE} If the context does not say it, answer: not found."
_CONTEXT = "Context:\n"
INSTRUCTIONS: Mapping[str, tuple[str | None, str]] = {
    "system": (SENTENCE, _CONTEXT),
    "refusing": (REFUSING, _CONTEXT),
    "own": (None, _CONTEXT),
    "user": (None, f"{SENTENCE}\n\n{_CONTEXT}"),
    "house": (None, "Answer the question from these search results.\n\n"),
    "empty": ("", _CONTEXT),
}
"""The system message, None for that of the model's own chat template, and what stands above the documents."""
FORMS = ("lines", "blocks")
"""Of documents: title and text joined by a colon, without blank lines; or the text below its title, with a blank line
after each."""
QUESTIONS: Mapping[str, tuple[str, str]] = {
    "bare": ("", "{question}"),
    "question": ("", "Question: {question}"),
    "according": ("", "According to the context above, {question}"),
    "twice": ("Question: {question}\n\n", "Question: {question}"),
}
"""What stands before the documents, and behind them."""
PENALTY = 1.03
"""The repetition penalty that a `query` had by default."""

LAYOUTS = (
    "house+blocks+numbered+penalty",
    "house+blocks+numbered",
    "house+lines",
    "house+lines+numbered",
    "own+lines",
    "own+lines+according",
    "own+lines+numbered",
    "system+lines",
    "system+lines+penalty",
    "system+lines+according",
    "system+lines+according+penalty",
    "system+lines+question",
    "system+lines+numbered",
    "system+lines+numbered+penalty",
    "system+lines+numbered+according",
    "system+lines+numbered+question",
    "system+lines+twice",
    "user+lines",
    "refusing+lines",
)
"""Those that `--prompt layouts` compares."""


@dataclass(frozen=True)
class Layout:
    """A prompt of our own making.

    Attributes:
        instruction: A key of `INSTRUCTIONS`.
        form: One of `FORMS`.
        question: A key of `QUESTIONS`.
        numbered: `[n] ` stands before each document.
        penalty: The repetition penalty `PENALTY` is applied.
    """

    instruction: str
    form: str
    question: str = "bare"
    numbered: bool = False
    penalty: bool = False

    @classmethod
    def parse(cls, name: str) -> Layout:
        """Of a name such as `system+lines+numbered+question`.

        Raises:
            ValueError: A part of the name is unknown, or said twice.
        """
        instruction, form, *further = [*name.split("+"), ""]
        words = [word for word in further if word]
        known = [*QUESTIONS, "numbered", "penalty"]
        unknown = [word for word in words if word not in known or words.count(word) > 1]
        asked = [word for word in words if word in QUESTIONS]
        if instruction not in INSTRUCTIONS or form not in FORMS or unknown or len(asked) > 1:
            raise ValueError(
                f"no prompt is called '{name}': it is {SERVICE}, one of {', '.join(TEMPLATES)}, or a layout, "
                f"({'|'.join(INSTRUCTIONS)})+({'|'.join(FORMS)})[+numbered][+({'|'.join(QUESTIONS)})][+penalty]"
            )
        return cls(instruction, form, (asked or ["bare"])[0], "numbered" in words, "penalty" in words)

    def messages(self, documents: Sequence[Document], question: str) -> list[JSON]:
        """The whole prompt, as the model gets it."""
        system, above = INSTRUCTIONS[self.instruction]
        before, behind = (text.replace("{question}", question) for text in QUESTIONS[self.question])
        written = [self._written(number, one) for number, one in enumerate(documents, 1)]
        context = ("\n" if self.form == "lines" else "\n\n").join(written)
        turn = {"role": "user", "content": f"{before}{above}{context}\n\n{behind}"}
        return [turn] if system is None else [{"role": "system", "content": system}, turn]

    def _written(self, number: int, document: Document) -> str:
        mark = f"[{number}] " if self.numbered else ""
        if self.form == "blocks":
            return f"{mark}{document.title}\n{document.text}"
        return f"{mark}{document.title}: " + "\n".join(line for line in document.text.splitlines() if line.strip())


@dataclass(frozen=True)
class Variant:
    """What is compared: a prompt, and what its bodies have besides.

    Raises:
        ValueError: There is no prompt of that name.
    """

    prompt: str
    fields: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt not in (SERVICE, *TEMPLATES):
            Layout.parse(self.prompt)

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        return ", ".join([self.prompt, *(f"{key} = {json.dumps(value)}" for key, value in self.fields.items())])


def body(name: str, documents: Sequence[Document], question: str, fields: Mapping[str, JSON]) -> JSON:
    """What is posted: the prompt of that name, with further fields, which go before those of the prompt."""
    if name in (SERVICE, *TEMPLATES):
        posted = {
            "query": question,
            "documents": [{"title": one.title, "text": one.text} for one in documents],
            **({"chat_template": TEMPLATES[name]} if name in TEMPLATES else {}),
        }
        return {**posted, "stream": False, **fields}
    layout = Layout.parse(name)
    penalty = {"repetition_penalty": PENALTY} if layout.penalty else {}
    return {"messages": layout.messages(documents, question), "stream": False, **fields, **penalty}
