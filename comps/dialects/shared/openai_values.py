"""The types of OpenAI's fields: tools, response formats, stream options, texts and token ids.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.dialects.shared.bodies import MOST

Schema = dict[str, Any]
"""An object in the model server's own form, which is passed through."""

_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def _checked_function(function: Any) -> Any:
    if not (isinstance(function, dict) and isinstance(name := function.get("name"), str) and _NAME.fullmatch(name)):
        raise ValueError("a function needs a name of letters, digits, underscores and dashes")
    return function


def _checked_tool(tool: Schema) -> Schema:
    if not isinstance(tool.get("type"), str):
        raise ValueError("a tool needs a type")
    if tool["type"] == "function":
        _checked_function(tool.get("function"))
    return tool


def _checked_format(form: Schema) -> Schema:
    if not isinstance(form.get("type"), str):
        raise ValueError("it needs a type: text, json_object or json_schema")
    if form["type"] == "json_schema" and not isinstance(form.get("json_schema", form.get("value")), dict):
        raise ValueError("the type json_schema needs a json_schema, an object")
    return form


class StreamOptions(BaseModel):
    """What else a stream has."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = Field(None, description="A last chunk has the usage.")


Alternatives = Annotated[
    int | None,
    Field(ge=0, le=20),
    BeforeValidator(lambda value: None if value is False else value, json_schema_input_type=int | None),
]
"""How many alternatives to each token of a completion; `false`, as chats have it, is the same as leaving it out."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _no_ids(items: list[Any]) -> list[Any]:
    if any(isinstance(item, int | list) for item in items):
        raise ValueError(
            "token ids are not read here, since it is the model server's tokenizer that counts; send text "
            "(LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)"
        )
    return items


Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MOST), BeforeValidator(_listed)
]
TextsAlone = Annotated[Texts, BeforeValidator(lambda value: _no_ids(_listed(value)))]
"""Texts; token ids are refused, since they belong to some tokenizer."""


def _ids(value: Any) -> Any:
    """A list of the one list of token ids or the several."""
    return [value] if isinstance(value, list) and value and isinstance(value[0], int) else value


TokenIds = Annotated[
    list[Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=MOST)]],
    Field(min_length=1, max_length=MOST),
    BeforeValidator(_ids),
]
TOKEN_IDS = "prompt_token_ids"
"""The option with the ids of a prompt's tokens."""

Function = Annotated[Schema, AfterValidator(_checked_function)]
Tool = Annotated[Schema, AfterValidator(_checked_tool)]
ResponseFormat = Annotated[Schema, AfterValidator(_checked_format)]
