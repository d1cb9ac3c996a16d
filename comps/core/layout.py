"""Where documents are put: in the text of the prompt, or in an option of their own, from which the model's own chat
template writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from comps.core.counting import Count
from comps.core.escaping import escape_control_tokens, escape_documents, escape_prompt
from comps.core.prompts import (
    Templates,
    as_context,
    asks_for_context,
    build_prompt,
)
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt

_SAMPLE_QUESTION = (Message("user", "Which bird was it?"),)
_SAMPLE_DOCUMENT = Document("The harbour bird of Velmora is a grey heron that nests under the pier.", "Birds", number=1)


class Laid(NamedTuple):
    """What the model server gets."""

    prompt: Prompt
    options: Mapping[str, JSON]
    documents: tuple[Document, ...]
    """As they are in there."""


class Layout(Protocol):
    """Puts documents into a request to the model server."""

    @property
    def numbered(self) -> bool:
        """Whether the model sees the documents' numbers."""
        ...

    @property
    def overhead(self) -> int:
        """The most tokens that each document costs besides those of its `text`."""
        ...

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        """The prompt and the options for the model server, not escaped yet.

        Raises:
            InvalidRequest: See `build_prompt`.
        """
        ...

    def escaped(self, request: GenerationRequest, laid: tuple[Prompt, Mapping[str, JSON]]) -> Laid:
        """What `lay` made of a request, with turn markers broken up.

        What is in the text of the prompt is escaped only now, since two harmless texts may form a marker where they
        meet, and so that each text is searched once.
        """
        ...

    def occurrences(self, request: GenerationRequest) -> int:
        """How many times each document occurs in the prompt."""
        ...

    def text(self, document: Document) -> str:
        """What the model reads of a document, for its tokens to be counted."""
        ...


class InPrompt:
    """Documents are in the text of the prompt, where the templates have them.

    Args:
        templates: How questions and documents become prompts.
        escape: Breaks up turn markers in a text.
    """

    overhead = 1

    def __init__(self, templates: Templates, escape: Callable[[str], str]) -> None:
        self.templates = templates
        self.numbered = templates.numbered
        self._escape = escape
        self._escaping = replace(templates, escape=escape)

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        return build_prompt(request, self.templates), request.options

    def escaped(self, request: GenerationRequest, laid: tuple[Prompt, Mapping[str, JSON]]) -> Laid:
        prompt, options = laid
        documents = request.documents or ()
        if not isinstance(prompt, str):
            prompt = escape_prompt(prompt, self._escape)
        elif documents:  # Text to continue may hold turns of the caller's own, and its documents may not.
            prompt = build_prompt(request, self._escaping)
        if prompt != laid[0]:
            documents = escape_documents(documents, self._escape)
        return Laid(prompt, options, documents)

    def occurrences(self, request: GenerationRequest) -> int:
        in_system = 0
        if not isinstance(request.prompt, str):
            in_system = sum(str(one.content).count("{context}") for one in request.prompt if asks_for_context(one))
        in_template = 0 if request.template is None else max(request.template.count("{context}"), 1)
        return max(in_system + in_template, 1)

    def text(self, document: Document) -> str:
        # Where two texts meet, the tokenizer may make one token more than of each alone.
        return self._escape(as_context(document, self.templates)) + self.templates.separator


class InOptions:
    """Documents are in the option `documents`: a list of objects with `doc_id`, `title`, `text` and the strings of
    their metadata, as Hugging Face's chat templates take them:
    https://huggingface.co/docs/transformers/v4.51.3/chat_extras

    Args:
        overhead: The most tokens that the chat template writes around a document.
        escape: Breaks up turn markers in a text.
    """

    numbered = False

    def __init__(self, overhead: int, escape: Callable[[str], str]) -> None:
        self.overhead = overhead
        self._escape = escape

    @staticmethod
    def suits(request: GenerationRequest) -> bool:
        """Whether there are documents, and the request says nothing of where in the text they belong."""
        if not request.documents or request.template is not None or isinstance(request.prompt, str):
            return False
        return not any(map(asks_for_context, request.prompt))

    def lay(self, request: GenerationRequest) -> tuple[Prompt, Mapping[str, JSON]]:
        prompt = build_prompt(replace(request, documents=None, template=None))
        return prompt, {**request.options, "documents": [_as_object(one) for one in request.documents or ()]}

    def escaped(self, request: GenerationRequest, laid: tuple[Prompt, Mapping[str, JSON]]) -> Laid:
        request = escape_control_tokens(request, self._escape)
        return Laid(*self.lay(request), request.documents or ())

    def occurrences(self, request: GenerationRequest) -> int:
        return 1

    def text(self, document: Document) -> str:
        (document,) = escape_documents((document,), self._escape)
        metadata = (f"{name}: {value}" for name, value in _strings(document).items())
        return "\n".join((*metadata, document.title, document.text))


def _strings(document: Document) -> dict[str, str]:
    """The strings of a document's metadata, by name; a name that is no identifier could be anything to a template."""
    named = {name: value for name, value in document.metadata.items() if name.isidentifier()}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _as_object(document: Document) -> dict[str, str]:
    return {**_strings(document), "doc_id": str(document.number), "title": document.title, "text": document.text}


async def find_native(count: Count, escape: Callable[[str], str]) -> InOptions | None:
    """The layout by which the model's own chat template writes documents; None if it does not, or if the model server
    cannot count what the model reads.

    A sample is counted with and without a document: the difference is the document and what is written around it.
    """
    request = GenerationRequest(_SAMPLE_QUESTION, (_SAMPLE_DOCUMENT,))
    prompt, options = InOptions(0, escape).lay(request)
    without, (text,) = await count.prompt_and_texts(prompt, {}, [_SAMPLE_DOCUMENT.text])
    overhead = await count.prompt(prompt, options) - without - text
    return InOptions(overhead, escape) if count.exact and overhead >= 0 else None
