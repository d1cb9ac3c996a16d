"""Cohere's bodies for embeddings and tokens: https://docs.cohere.com/reference/embed"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from comps.core.errors import InvalidRequest, Malformed, shown_name
from comps.core.request_id import REQUEST_ID
from comps.core.types import JSON, Embeddings, Token
from comps.dialects.cohere.bodies import Object, in_capitals
from comps.dialects.shared.base import EmbeddingCall, Style, TokenizeCall
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.examples import FACT
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.tokens import token_texts
from comps.dialects.shared.vectors import in_base64

STYLE = Style(lambda error: {"message": str(error), "id": REQUEST_ID.get()}, {Malformed: 422})
_ENCODED = ("float", "base64")
"""The types of embeddings that are made here."""


def _checked_input(given: Object) -> Object:
    parts = given.get("content")
    if not (isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts)):
        raise ValueError("an input needs a content, a list of parts")
    for part in parts:
        if part.get("type") != "text" or not (isinstance(text := part.get("text"), str) and text):
            raise ValueError("a part needs the type 'text' and a text; pictures cannot be embedded here")
    return given


class CohereEmbed(EmbeddingCall):
    """Texts to embed."""

    marker = None
    _version: ClassVar[str] = "2"
    examples = {
        "Texts": {"texts": ["Deep learning", "Bread and butter"], "input_type": "search_document"},
        "Inputs of several parts": {
            "inputs": [{"content": [{"type": "text", "text": "Gaudi 2"}, {"type": "text", "text": FACT}]}],
            "input_type": "search_document",
            "embedding_types": ["float", "base64"],
        },
    }
    style = STYLE

    given: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST)] | None = Field(
        None, alias="texts", description="Or inputs."
    )
    inputs: Annotated[list[Annotated[Object, AfterValidator(_checked_input)]], Field(max_length=MOST)] | None = Field(
        None, description="Each is embedded as one text, its parts joined by line breaks."
    )
    images: list[str] | None = Field(None, description="Refused: pictures cannot be embedded here.")
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = Field(
        None, description="The API demands it; the vector of a text is the same for all of them."
    )
    embedding_types: list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None = Field(
        None, description="float and base64 (little-endian float32); others are refused."
    )
    truncate: Annotated[Literal["NONE", "START", "END"] | None, BeforeValidator(in_capitals)] = Field(
        None, description="NONE is what holds: a text that is too long is an error."
    )
    max_tokens: int | None = Field(None, gt=0, description="No effect.")
    output_dimension: int | None = Field(None, gt=0, description="Refused unless the model's vectors have so many.")
    priority: int | None = Field(None, ge=0, le=999, description="No effect.")

    def texts(self) -> Sequence[str]:
        if self.images:
            raise InvalidRequest("pictures cannot be embedded here", "images")
        if self.given and self.inputs:
            raise InvalidRequest("there are texts as well; only one of the two is taken", "inputs")
        if not (self.given or self.inputs):
            raise InvalidRequest("there is nothing to embed; texts or inputs are needed", "texts")
        other = next((kind for kind in self.embedding_types or () if kind not in _ENCODED), None)
        if other:
            raise InvalidRequest(
                f"{shown_name(other)} is not made here; known: {', '.join(_ENCODED)}", "embedding_types"
            )
        return self.given or ["\n".join(part["text"] for part in one["content"]) for one in self.inputs or ()]

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = [name for name in ("max_tokens", "priority") if getattr(self, name)]
        lost += ["truncate"] if self.truncate not in (None, "NONE") else []
        names = {f"inputs.{name}" for one in self.inputs or () for name in one.keys() - {"content"}}
        parts = [part for one in self.inputs or () for part in one["content"]]
        names |= {f"inputs.content.{name}" for part in parts for name in part.keys() - {"type", "text"}}
        return [*lost, *sorted(names), *super().ignored(capabilities)]

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        vectors = embeddings.vectors
        length = len(vectors[0])
        if self.output_dimension not in (None, length):
            raise InvalidRequest(f"the vectors of {metadata.model} have {length} dimensions", "output_dimension")
        made: Mapping[str, Callable[[Sequence[float]], JSON]] = {"float": list, "base64": in_base64}
        tokens = embeddings.prompt_tokens
        return {
            "id": metadata.id,
            "response_type": "embeddings_by_type",
            "embeddings": {
                kind: [made[kind](vector) for vector in vectors] for kind in self.embedding_types or ("float",)
            },
            "texts": self.texts(),
            "meta": {
                "api_version": {"version": self._version},
                **({} if tokens is None else {"billed_units": {"input_tokens": tokens}}),
            },
        }


class CohereEmbedV1(CohereEmbed):
    """Texts to embed, as in the API's first version, which LangChain's client uses."""

    _version = "1"

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        answer = super().reply(embeddings, metadata)
        if self.embedding_types:
            return answer
        return {**answer, "response_type": "embeddings_floats", "embeddings": answer["embeddings"]["float"]}


class CohereTokenize(TokenizeCall):
    """A text to tokenize as the model reads it."""

    marker = "text"
    examples: ClassVar[Mapping[str, JSON]] = {"A text": {"text": "Deep learning"}}
    style = STYLE

    given: str = Field(alias="text")

    def text(self) -> str:
        return self.given

    def reply(self, tokens: Sequence[Token]) -> JSON:
        return {
            "tokens": [token.id for token in tokens],
            "token_strings": list(token_texts(self.given, tokens)),
            "meta": {"api_version": {"version": "1"}},
        }
