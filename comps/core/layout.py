"""How documents get to the model: in the text of the prompt, or beside it, for the model's own chat template to write
them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from comps.core.counting import Count
from comps.core.prompts import DEFAULT_TEMPLATES, Templates, as_context, asks_for_context, build_prompt
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt

_JOINT = "\n\n"
"""Behind a document; where two texts meet, a token may come apart, which is counted as one more."""
_QUESTION = (Message("user", "Which bird was it?"),)
_DOCUMENT = Document("The harbour bird of Velmora is a grey heron that nests under the pier.", "Birds", number=1)


class Layout(Protocol):
    """One of the two ways."""

    @property
    def numbered(self) -> bool:
        """Whether the model can tell documents by their numbers."""
        ...

    @property
    def around(self) -> int:
        """The most tokens that come with a document besides those of what `read` gives."""
        ...

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        """The prompt and the options that the model server gets."""
        ...

    def times(self, request: GenerationRequest) -> int:
        """In how many places the model reads each document."""
        ...

    def read(self, document: Document) -> str:
        """What the model reads of a document."""
        ...


@dataclass(frozen=True, slots=True)
class InText:
    """Documents are in the prompt, as the templates have it."""

    templates: Templates = DEFAULT_TEMPLATES
    around: int = 1

    @property
    def numbered(self) -> bool:
        return self.templates.numbered

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        return build_prompt(request, self.templates), request.options

    def times(self, request: GenerationRequest) -> int:
        asking = 0
        if not isinstance(request.prompt, str):
            asking = sum(str(one.content).count("{context}") for one in request.prompt if asks_for_context(one))
        return asking + (0 if request.template is None else max(request.template.count("{context}"), 1)) or 1

    def read(self, document: Document) -> str:
        return as_context(document, self.templates) + _JOINT


@dataclass(frozen=True, slots=True)
class Beside:
    """Documents are an option of their own: `documents`, a list of objects with `doc_id`, `title`, `text` and what is
    text in their metadata, as Hugging Face's chat templates have them."""

    around: int
    numbered: ClassVar[bool] = False

    @staticmethod
    def suits(request: GenerationRequest) -> bool:
        """Whether there are documents, and nobody says where in the text they belong."""
        if not request.documents or request.template is not None or isinstance(request.prompt, str):
            return False
        return not any(map(asks_for_context, request.prompt))

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        prompt = build_prompt(replace(request, documents=None, template=None))
        return prompt, {**request.options, "documents": [_as_object(one) for one in request.documents or ()]}

    def times(self, request: GenerationRequest) -> int:
        return 1

    def read(self, document: Document) -> str:
        further = (f"{name}: {value}" for name, value in _metadata(document).items())
        return "\n".join((*further, document.title, document.text))


def _metadata(document: Document) -> dict[str, str]:
    """What of it is text; with a name that is none, it could be anything to a template."""
    named = {name: value for name, value in document.metadata.items() if name.isidentifier()}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _as_object(document: Document) -> dict[str, str]:
    return {**_metadata(document), "doc_id": str(document.number), "title": document.title, "text": document.text}


async def find_beside(count: Count) -> Beside | None:
    """Whether the model's chat template writes documents down, and with what around them; None if it does not, or if
    the model server cannot count what it reads."""
    asked = GenerationRequest(_QUESTION, (_DOCUMENT,))
    laid, options = Beside(0).lay(asked)
    without, (text,) = await count.prompt_and_texts(laid, {}, [_DOCUMENT.text])
    around = await count.prompt(laid, options) - without - text
    return Beside(around) if count.exact and around >= 0 else None
