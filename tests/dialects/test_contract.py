"""What holds for every dialect and every kind of body, whatever it asks for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from comps.core.answers import Forwarding
from comps.core.errors import (
    BodyTooLarge,
    BrokenOff,
    Forbidden,
    InvalidHTTP,
    InvalidRequest,
    LLMError,
    Malformed,
    ModelServerError,
    NotKept,
    NotSupported,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    TextTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    UnknownRoute,
    Unreachable,
    UnsupportedEncoding,
)
from comps.core.ports import Answer
from comps.core.types import JSON, Embeddings, Finished, Generation, ModelInfo, Prompt, Sampling, TextDelta, Token
from comps.dialects import DIALECTS
from comps.dialects.shared.base import Call, DescriptionCall, Dialect, EmbeddingCall, GenerationCall, PromptCountCall
from comps.dialects.shared.fields import matters
from comps.model_servers.scripted import Scripted
from tests.dialects.kinds import KINDS, Kind, dialects
from tests.dialects.written import METADATA, written
from tests.service import PATIENCE, Able, Connection, Service, running, until_in_flight
from tests.service import Answer as Response

WORDS = ["Deep", " learning", " ."]
EVERY = pytest.mark.parametrize("kind", KINDS, ids=str)
TEXTS = pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind.call, GenerationCall)], ids=str)
STREAMS = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.bodies(streamed=True)], ids=str)


def own_tests(name: str) -> Any:
    """The test file of a dialect."""
    is_folder = (Path(__file__).parent / name).is_dir()
    return import_module(f"tests.dialects.{name}.test_dialect" if is_folder else f"tests.dialects.test_{name}")


OWN_TESTS = {name: own_tests(name) for name in DIALECTS}
"""The test file of each dialect. It has `ERROR_SHAPES`, the keys that its errors may have, `STATUSES`, those of its own
by the class of the error, if it has any, and, if its bodies have fields that need it, its own part of `TOGETHER`,
`ANYWAY`, `SILENT` and `VALUES`; `ITEMS_WITHOUT_TEXT` is how many items of a stream it has for what comes without text,
and `REFUSED` has the statuses of its routes that are refused, 403 by the settings. `CUT` is what a stream has that was
cut short, and what only a complete one has, where these are not `length` and `stop`."""


def of_all(name: str) -> dict[str, Any]:
    """What the dialects' own test files have under this name; lists under the same key are joined."""
    found: dict[str, Any] = {}
    for module in OWN_TESTS.values():
        for key, value in getattr(module, name, {}).items():
            found[key] = [*found.get(key, ()), *value] if isinstance(value, list) else value
    return found


def only(dialect: str) -> dict[str, str]:
    """Settings by which no other dialect takes a body."""
    return {"LLM_DIALECTS": dialect}


# What they say.


@EVERY
async def test_every_example_is_answered(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    async with running(Able([WORDS]), monkeypatch, only(kind.dialect)) as service:
        for body in kind.bodies():
            answer = await service.post(body, kind.path)
            assert answer.status == 200
            assert ("transfer-encoding" in answer.headers) is (body in kind.bodies(streamed=True))
            assert b"Deep" in answer.body or not issubclass(kind.call, GenerationCall)


@STREAMS
async def test_where_streaming_is_switched_off_the_text_comes_at_once(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    words = ["Deep", "Deep", "Deep"]
    environment = {**only(kind.dialect), "LLM_DISABLE_STREAMING": "true"}
    async with running(Able([words]), monkeypatch, environment) as service:
        answer = await service.post(kind.bodies(streamed=True)[0], kind.path)
    assert answer.status == 200
    if "transfer-encoding" in answer.headers:
        assert [b"Deep" in chunk for chunk in answer.chunks].count(True) == 1


@TEXTS
async def test_an_answer_cut_short_says_so(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    async with running(Cut([WORDS]), monkeypatch, only(kind.dialect)) as service:
        for body in kind.bodies():
            answer = await service.post(body, kind.path)
            if "transfer-encoding" in answer.headers:
                cut, complete = getattr(OWN_TESTS[kind.dialect], "CUT", (b"length", b"stop"))
                assert cut in answer.body
                assert complete not in answer.body
            else:
                assert answer.headers["x-finish-reason"].split(",").count("length") == kind.answers(body)


class Cut(Scripted):
    """A model server that cuts every answer short."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        await super().generate(prompt, sampling, options, _CutShort(answer))


class _CutShort(Forwarding):
    def finished(self, end: Finished) -> None:
        self._answer.finished(replace(end, reason="length"))


@STREAMS
def test_what_comes_without_text_is_an_item_of_its_own_or_none(kind: Kind) -> None:
    call = kind.call.model_validate({**kind.bodies(streamed=True)[0], **kind.variables})
    assert isinstance(call, GenerationCall)
    begun, beside, end = TextDelta("Deep"), TextDelta("", extra={"annotations": [{"type": "x"}]}), Finished("stop")
    plain, with_it = written(call, begun, end), written(call, begun, beside, end)
    assert [item for item in with_it if item in plain] == plain
    expected = getattr(OWN_TESTS[kind.dialect], "ITEMS_WITHOUT_TEXT", 1 if b'"choices":' in plain[0] else 0)
    assert len(with_it) - len(plain) == expected


DEEP = '{"a":' + "[" * 300 + "]" * 300 + "}"
ODD: dict[str, list[JSON]] = {
    "annotations": ["x", 1.5, [1], {"a": 1}, [{}], [{"type": "x", "x": {"start_index": None}}]],
    "refusal": [1.5, [1], {"a": 1}],
    "reasoning": [1.5, [1], {"a": 1}],
    "tool_calls": [[{"index": 0, "id": "x", "function": {"name": "f", "arguments": DEEP}}], [{"function": {"a": 1}}]],
    "logprobs": [
        *("x", 1.5, {"content": "x"}, {"content": [1, {}, {"token": ["a"], "logprob": "x", "top_logprobs": [1]}]}),
        *({"content": [{"token": "a", "logprob": {}, "bytes": 1, "top_logprobs": {"b": -1}}]}, {"tokens": 5}),
        {"tokens": ["a"], "token_logprobs": 5, "top_logprobs": {"a": 1}, "token_ids": 5, "top_token_ids": [5]},
        {"tokens": ["a"], "token_logprobs": ["x"], "top_logprobs": [{"a": None, "b": -1, "c": "x"}]},
        {"tokens": ["a", "b"], "token_logprobs": [None], "top_logprobs": [[1]], "token_ids": [1]},
    ],
}
"""What model servers might send beside a text, and nobody expects."""


@TEXTS
def test_nothing_that_comes_beside_a_text_costs_the_text(kind: Kind) -> None:
    served = ModelInfo("scripted", None, frozenset(("logprobs", "top_logprobs")))
    for name, value in ((name, value) for name, values in ODD.items() for value in values):
        extra = {name: value}
        for streamed in (True, False):
            for body in kind.bodies(streamed)[:1]:
                call = kind.call.model_validate({**body, **kind.variables})
                assert isinstance(call, GenerationCall)
                call.answered_by(served)
                if streamed:
                    events = (TextDelta("Deep"), TextDelta(" learning", extra=extra), TextDelta("", extra=extra))
                    told = b"".join(written(call, *events, Finished("stop")))
                else:
                    asked = len(call.requests())
                    told = call.style.encode(
                        call.reply([Generation("Deep learning", "stop", None, extra)] * asked, METADATA)
                    )
                assert 0 < told.find(b"Deep") < told.find(b"learning"), (name, value)


# How they fail.

ERRORS: dict[LLMError, int] = {
    InvalidRequest("no good", "top_k"): 400,
    PromptTooLong(9000, 8192): 400,
    TextTooLong(9000, 8192): 400,
    UnknownModel("other", "scripted"): 404,
    Forbidden("not this"): 403,
    Unauthorized("who is this"): 401,
    NotSupported("not able to"): 400,
    Overloaded("full"): 429,
    ModelServerError("broken"): 502,
    NotKept("no"): 404,
    Refused(500, "its own fault"): 502,
    Unreachable("not there"): 503,
    Timeout("too slow"): 504,
    BrokenOff("in the middle"): 502,
    LLMError("what is this"): 500,
}
"""What a model server may raise, and the status that it becomes where a dialect has no other one."""


class Failing(Able):
    """A model server that fails, whatever it is asked."""

    error: LLMError

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise self.error

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        raise self.error

    async def count_tokens(self, text: str) -> int:
        raise self.error

    async def tokenize(self, text: str) -> Sequence[Token]:
        raise self.error


def check_error(dialect: str, answer: Response, said: str = "") -> None:
    """It is an error in the dialect's own shape."""
    is_frame = answer.body.endswith(b"\0")  # As square's streams are.
    assert answer.headers["content-type"] == ("application/octet-stream" if is_frame else "application/json")
    error = json.loads(answer.body.removesuffix(b"\0"))
    assert set(error) in OWN_TESTS[dialect].ERROR_SHAPES, answer.body
    assert said in answer.body.decode()


ASKING = [kind for kind in KINDS if not issubclass(kind.call, DescriptionCall | PromptCountCall)]
"""The kinds of bodies for which the model server has to answer: the tokens of a prompt can be estimated."""


@pytest.mark.parametrize("kind", ASKING, ids=str)
async def test_every_error_before_the_answer_is_a_status_in_the_dialects_own_shape(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    server = Failing()
    bodies = [*kind.bodies(streamed=False)[:1], *kind.bodies(streamed=True)[:1]]
    async with running(server, monkeypatch, only(kind.dialect)) as service:
        for server.error, status in ERRORS.items():
            for body in bodies:
                answer = await service.post(body, kind.path)
                assert answer.status == own_status(kind.dialect, server.error, status)
                assert ("retry-after" in answer.headers) is (server.error.retry_after is not None)
                check_error(kind.dialect, answer, str(server.error.args[0])[:20])


def own_status(dialect: str, error: LLMError, status: int) -> int:
    """The status of an error in a dialect; `status` where the dialect has no other one."""
    statuses: dict[type[LLMError], int] = getattr(OWN_TESTS[dialect], "STATUSES", {})
    return statuses.get(type(error), status)


def own_statuses(dialect: str, status: int) -> set[int]:
    """What stands in a dialect for a status of `ERRORS`."""
    return {own_status(dialect, error, status) for error, usual in ERRORS.items() if usual == status} or {status}


def test_every_class_of_error_is_among_these() -> None:
    others = {
        Malformed,
        BodyTooLarge,
        InvalidHTTP,
        UnknownRoute,
        UnsupportedEncoding,
        SettingsError,
    }  # Of what comes before a model server is asked.
    assert {type(error) for error in ERRORS} == {LLMError, *descendants(LLMError)} - others


def descendants(kind: type[LLMError]) -> Iterator[type[LLMError]]:
    for child in kind.__subclasses__():
        if child.__module__ == "comps.core.errors":
            yield child
            yield from descendants(child)


@STREAMS
async def test_a_stream_that_breaks_off_says_so_or_loses_its_connection_and_has_no_mark_of_its_end(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    whole = Scripted([WORDS])
    async with running(whole, monkeypatch, only(kind.dialect)) as service:
        end = (await service.post(kind.bodies(streamed=True)[0], kind.path)).chunks[-1]
    async with running(Scripted([[*WORDS, ModelServerError("it broke")]]), monkeypatch, only(kind.dialect)) as service:
        chunks, ended = await streamed(service, kind)
    texts, rest = chunks[: len(WORDS)], chunks[len(WORDS) :]
    assert all(word.strip().encode() in text for word, text in zip(WORDS, texts, strict=True))
    assert ended or (issubclass(kind.call, GenerationCall) and kind.call.cuts_off)
    assert b"rror" in rest[-1].lower()
    assert end not in rest
    assert not re.search(rb'\[DONE\]|"finish_reason": ?"(?!ERROR)', b"".join(chunks))


async def streamed(service: Service, kind: Kind) -> tuple[list[bytes], bool]:
    """The chunks of a stream, and whether it ended as HTTP has it; if not, the connection was cut."""
    chunks = []
    async with service.connect() as client:
        await client.send("POST", kind.path, json.dumps(kind.bodies(streamed=True)[0]).encode())
        assert (await client.head()).status == 200
        try:
            while chunk := await client.chunk():
                chunks.append(chunk)
        except ValueError:  # No size of a chunk: nothing more came.
            assert client.reader.at_eof()
            return chunks, False
    return chunks, True


NO_CALLS = [b"{not json", b"\xff\xfe{}", b"", b"[]", b"[{}]", b'"text"', b"null", b"5", b"true", b"{}", b'{"x":' * 5000]
TOO_MUCH: list[JSON] = [[0] * 10_001, {"a": [[0] * 10_000] * 11}, {str(n): 0 for n in range(10_001)}]
WRONG: list[JSON] = [
    None,
    True,
    -1,
    0.5,
    10**40,
    float("nan"),
    "",
    "text",
    "\ud800",
    [],
    [[]],
    [None, "a", 5],
    {},
    {"a": 1},
]


@EVERY
async def test_a_body_that_is_none_or_has_more_in_it_than_is_read_is_the_callers_fault_in_the_dialects_own_shape(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    async with running(Able([WORDS]), monkeypatch, only(kind.dialect)) as service:
        for body in NO_CALLS:
            answer = await service.post(body, kind.path)
            assert 400 <= answer.status < 500, body[:40]
            check_error(kind.dialect, answer)
        for much in TOO_MUCH:
            answer = await service.post({**kind.examples[0], "further": much}, kind.path)
            assert 400 <= answer.status < 500, str(much)[:40]
            check_error(kind.dialect, answer, "further")  # It names what is too long.


@EVERY
async def test_no_value_of_any_field_is_the_services_fault(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    refused = 0
    async with running(Able([WORDS]), monkeypatch, only(kind.dialect)) as service, service.connect() as client:
        for field in fields(kind.call):
            for body in filter(None, (changed(kind.examples[0], field.place, wrong) for wrong in WRONG)):
                answer = await posted(client, kind, body)
                assert answer.status < 500, (field, body)
                if answer.status != 200:
                    check_error(kind.dialect, answer)
                    refused += 1
    assert refused


# What becomes of a field.


@dataclass(frozen=True)
class Field:
    """A field of a body, or of an object in it."""

    place: tuple[str | int, ...]
    schemas: tuple[Mapping[str, Any], ...]
    """Any of which it may have."""

    def __str__(self) -> str:
        return ".".join(map(str, self.place))

    def is_among(self, ignored: list[str]) -> bool:
        """Whether it, what it is in or something in it is named there; places in lists may be left out."""
        own = [str(step) for step in self.place if step != 0]
        if "model" in own and "model" in ignored:  # Wherever it stands, there is but one.
            return True
        others = [[step for step in name.partition("[")[0].split(".") if step != "0"] for name in ignored]
        return any(other == own[: len(other)] or own == other[: len(own)] for other in others)

    def values(self) -> Iterator[JSON]:
        """Some that it might have."""
        name = str(self.place[-1])
        yield from VALUES.get(name, ())
        for module in OWN_TESTS.values():
            yield from getattr(module, "VALUES", {}).get(name, ())
        for schema in self.schemas:
            yield from schema.get("enum", ())
            yield from BY_TYPE.get(schema.get("type", ""), ["x", 1, True, False])


DOCUMENTS = ("documents", "reranked_docs", "retrieved_docs")
VALUES: dict[str, list[JSON]] = {
    "chat_template": ["Say this: {question} {context}"],
    "generation_mode": ["chat", "completion"],
    "input_data": [{"input_string": [[{"role": "user", "content": "x"}]]}],
    "input_string": [[[{"role": "user", "content": "x"}]]],
    "response_format": [{"type": "json_object"}],
    "stream_options": [{"include_usage": True}],
    "tools": [[{"type": "function", "function": {"name": "x"}}]],
    "functions": [[{"name": "x"}]],
}
BY_TYPE: dict[str, list[JSON]] = {
    "integer": [2, 1, 7, 0, -1],
    "number": [0.5, 0.25, 1.5, 0, -1],
    "boolean": [True, False],
    "string": ["x", "hole"],
    "array": [["x"], [1], [{"text": "x"}], [{"role": "user", "content": "x"}]],
    "object": [{"x": "y"}, {"1": 1}],
}


def fields(call: type[Call]) -> Iterator[Field]:
    """All that a kind of body declares, and what the objects in it declare."""
    schema = call.model_json_schema()
    yield from _properties(schema, (), schema.get("$defs", {}))


def _properties(schema: Mapping[str, Any], place: tuple[str | int, ...], known: Mapping[str, Any]) -> Iterator[Field]:
    for name, property in schema.get("properties", {}).items():
        schemas = tuple(_alternatives(property, known))
        yield Field((*place, name), schemas)
        for inner in schemas:
            yield from _properties(inner, (*place, name), known)
            for item in _alternatives(inner.get("items", {}), known):
                yield from _properties(item, (*place, name, 0), known)


def _alternatives(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a schema may stand for, without null."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _alternatives(one, known)
    elif schema.get("type") != "null":
        yield schema


def changed(body: dict[str, Any], place: tuple[str | int, ...], value: JSON) -> dict[str, Any] | None:
    """The body with another value at a place; None if there is no such place in it."""
    body = deepcopy(body)
    inside: Any = body
    for step, following in pairwise(place):
        if isinstance(step, str) and isinstance(following, str) and isinstance(inside, dict) and not inside.get(step):
            inside[step] = {}
        try:
            inside = inside[step]
        except (KeyError, IndexError, TypeError):
            return None
    if not isinstance(inside, dict):
        return None
    inside[place[-1]] = value
    return body


async def posted(client: Connection, kind: Kind, body: JSON) -> Response:
    await client.send("POST", kind.path, json.dumps(body).encode())
    return await client.answer()


EVERYTHING = frozenset(Sampling.__dataclass_fields__).union(
    ("min_tokens", "messages.*"), *(kind.call.model_fields for kind in KINDS)
)


class Honouring(Able):
    """A model server that honours everything."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", None, EVERYTHING)

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        self.asked.append((prompt, Sampling(), options))
        return 7


class Deaf(Scripted):
    """A model server that honours nothing, and generates only."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", None, frozenset())

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        await super().generate(prompt, Sampling(), options, answer)


_VARYING = re.compile(rb'[0-9a-f]{32}|(?<="created":)\d+|(?<="created_at":)("[^"]+"|\d+)|(?<=_duration":)\d+')
"""What differs from answer to answer: ids and times."""


class Watch:
    """The observable results of bodies: responses, and calls of the model server."""

    def __init__(self, server: Scripted, client: Connection, kind: Kind) -> None:
        self.kind = kind
        self._server = server
        self._client = client
        self._usual: dict[str, Any] = {}

    async def seen(self, body: dict[str, Any]) -> tuple[int, list[str], tuple[Any, ...]]:
        """The status; the fields that are named as ignored; and all that a client sees, with what the model server
        got."""
        before = len(self._server.asked)
        answer = await posted(self._client, self.kind, body)
        ignored = answer.headers.get("x-ignored-params", "").split(", ")
        said = _VARYING.sub(b"", answer.body)
        got = self._server.asked[before:]
        return answer.status, ignored, (said, ignored, answer.headers.get("x-finish-reason"), got)

    async def usual(self, body: dict[str, Any]) -> Any:
        """What comes of a body that is as it should be."""
        key = json.dumps(body)
        if key not in self._usual:
            status, _, self._usual[key] = await self.seen(body)
            assert status == 200
        return self._usual[key]


_DOCUMENTS = [{"text": "one", "title": "I"}]
TOGETHER: dict[str, dict[str, JSON]] = {
    **{f"{place}.0.{field}": {place: _DOCUMENTS} for place in DOCUMENTS for field in ("text", "title")},
    **{f"data.reranked_docs.0.{field}": {"data": {"reranked_docs": _DOCUMENTS}} for field in ("text", "title")},
    "generation_mode": {"prompt": "x", "messages": [{"role": "human", "text": "y"}]},
    "citations": {"documents": ["".join(WORDS)]},
    "language": {"documents": ["x"]},
    "order": {
        "documents": [{"text": text, "score": score} for score, text in enumerate(("one", "two", "three"))],
        "reranked_docs": None,
        "retrieved_docs": None,
    },
    "top_n": {"retrieved_docs": [{"text": "one"}, {"text": "two"}, {"text": "three"}]},
    **of_all("TOGETHER"),
}
"""What has to be in a body for a field to mean anything."""
ANYWAY: dict[str, list[JSON]] = {
    "citations": ["auto", "off", False],
    "clean_up_tokenization_spaces": [False],
    "dimensions": [2],
    "do_sample": [True, False],
    "include_report": [False],
    "include_usage": [False],
    "input_data": [{"x": "y"}, {"1": 1}],  # Refused, as by the original, with the name of what is not in it.
    "language": ["auto", "en"],
    "order": ["auto"],
    "role": ["human", "ai", "assistant"],  # Of a first turn, before which Llama's template has none.
    "seed": [-1],
    "temperature": [0],
    "top_k": [0, -1],
    "top_n": [1],
    "top_p": [1.5],
    **of_all("ANYWAY"),
}
"""Values by which a field says what holds where it is left out, or in an example."""
SILENT: dict[str, str] = {
    "id": "of a pipeline, which sends it to everybody",
    "index_name": "for the retriever, likewise",
    "pad_token_id": "fills up what a batch leaves empty; the text is the same",
    "generate_kwargs.pad_token_id": "likewise",
    "input_guardrail_params": "for the guard before, likewise",
    "output_guardrail_params": "for the guard behind; carried on if a setting says that there is one",
    **dict.fromkeys(
        [f"{place}.0.metadata" for place in ("documents", "reranked_docs", "retrieved_docs", "data.reranked_docs")],
        "where a document is from; handed back if a setting says so",
    ),
    **of_all("SILENT"),
}
"""Fields that nothing comes of and that are not named, and why; a field may have its route before it."""


@pytest.mark.parametrize(
    ("kind", "server"),
    [
        pytest.param(kind, server, id=f"{kind}-{server.__name__}")
        for kind in KINDS
        for server in ((Honouring, Deaf) if issubclass(kind.call, GenerationCall) else (Honouring,))
    ],
)
async def test_no_field_is_dropped_without_a_word(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, server: type[Scripted]
) -> None:
    model = server([WORDS])
    dropped = []
    async with running(model, monkeypatch, only(kind.dialect)) as service, service.connect() as client:
        watch = Watch(model, client, kind)
        silent = {*SILENT, *kind.variables}  # What the path says, no body unsays.
        bodies = kind.bodies()
        for field in fields(kind.call):
            if silent.isdisjoint((str(field), f"{kind.route} {field}")):
                dropped += [f"{field}: {value}" for value in await unnoticed(watch, field, bodies)]
    assert not dropped, "\n".join(dropped)


async def unnoticed(watch: Watch, field: Field, bodies: list[dict[str, Any]]) -> list[JSON]:
    """The values of a field that are there to change something, and in no body do, are named as ignored or refused by
    the field's name."""
    name, tried = str(field.place[-1]), False
    missed: dict[str, JSON] = {}
    noticed = set()
    for value in field.values():
        is_said = matters(name, value) and value not in ANYWAY.get(name, ())
        for body in ({**body, **TOGETHER.get(str(field), {})} for body in bodies):
            if str(value) in noticed or (tried and not is_said):
                break
            other = changed(body, field.place, value)
            if other is None or other == body or not watch.kind.reads(other):
                continue
            tried = True
            if is_said and await is_noticed(watch, field, body, other):
                noticed.add(str(value))
            elif is_said:
                missed[str(value)] = value
    assert tried, f"{field}: no value for it is known here"
    return [value for key, value in missed.items() if key not in noticed]


async def is_noticed(watch: Watch, field: Field, body: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a field that makes `other` of `body` changes something, is named as ignored or is refused by its name."""
    status, ignored, came_of_it = await watch.seen(other)
    if status != 200:
        return str(field.place[-1]).encode() in came_of_it[0]
    return field.is_among(ignored) or bool(came_of_it != await watch.usual(body))


# Whose models they are.


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_body_chooses_among_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    (tmp_path / "config.ini").write_text("[Model]\nmodel_server = scripted\n[Model.org/second-1.5]\n")
    monkeypatch.chdir(tmp_path)
    servers = {"scripted": Counting([["one"]]), "org/second-1.5": Counting([["two"]])}
    asked = [("org/second-1.5", 200), ("scripted", 200), ("third", 404)]
    async with running(servers, monkeypatch, only(dialect)) as service:
        for kind, (name, status) in product((kind for kind in KINDS if kind.dialect == dialect), asked):
            body, path = {**kind.examples[0], "model": name}, kind.route.replace("{model:path}", name)
            answer = await service.post(body, path)
            assert answer.status == status, kind
            if status == 404:
                check_error(dialect, answer, "known: scripted, org/second-1.5")
            elif issubclass(kind.call, DescriptionCall):  # It was described at the start.
                assert name.encode() in answer.body
            else:
                assert [server.used for server in servers.values()] == [name == known for known in servers], kind
                servers[name].used = False


class Counting(Able):
    """A model server that knows whether it was used."""

    used = False

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        self.used = True
        await super().generate(prompt, sampling, options, answer)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self.used = True
        return await super().embed(texts)

    async def count_tokens(self, text: str) -> int:
        self.used = True
        return await super().count_tokens(text)

    async def tokenize(self, text: str) -> Sequence[Token]:
        self.used = True
        return await super().tokenize(text)


# When their clients leave.


class Waiting(Able):
    """A model server that waits where its script does, also for vectors and counts."""

    def __init__(self, *script: str | asyncio.Event) -> None:
        super().__init__([script])

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        await self._wait()
        return await super().embed(texts)

    async def count_tokens(self, text: str) -> int:
        await self._wait()
        return await super().count_tokens(text)

    async def _wait(self) -> None:
        self.reached.set()
        try:
            for item in self._answers[0]:
                if isinstance(item, asyncio.Event):
                    await item.wait()
        except asyncio.CancelledError:
            self.closed.set()
            raise


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if issubclass(kind.call, GenerationCall | EmbeddingCall)], ids=str
)
async def test_a_client_that_leaves_the_queue_never_reaches_the_model(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    go_on = asyncio.Event()
    server = Waiting(go_on, "one")
    full = {**only(kind.dialect), "USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "2"}
    async with running(server, monkeypatch, full) as service:
        running_one = asyncio.ensure_future(service.post(kind.examples[0], kind.path))
        await asyncio.wait_for(server.reached.wait(), PATIENCE)
        async with service.connect() as client:
            await client.send("POST", kind.path, json.dumps(kind.examples[0]).encode())
            await until_in_flight(service, 2)
        await until_in_flight(service, 1)
        go_on.set()
        assert (await running_one).status == 200
    assert len(server.asked) == (kind.answers(kind.examples[0]) if issubclass(kind.call, GenerationCall) else 0)


# What is said of them.


async def test_the_page_shows_every_body_with_its_examples_each_of_which_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Able([WORDS]), monkeypatch) as service:
        document = (await service.get("/openapi.json")).json
        shown = 0
        for path, operations in document["paths"].items():
            content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            for example in content["examples"].values():
                assert (await service.post(example["value"], path.replace("{model}", "scripted"))).status == 200
                shown += 1
            for reference in content["schema"]["anyOf"]:
                assert reference["$ref"].rpartition("/")[2] in document["components"]["schemas"]
    assert shown > len(KINDS)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_page_of_a_dialect_alone_shows_all_its_bodies(monkeypatch: pytest.MonkeyPatch, dialect: str) -> None:
    async with running(Able([WORDS]), monkeypatch, only(dialect)) as service:
        document = (await service.get("/openapi.json")).json
    for kind in (kind for kind in KINDS if kind.dialect == dialect):
        body = document["paths"][re.sub(r":\w+\}", "}", kind.route)]["post"]["requestBody"]
        content = body["content"]["application/json"]
        assert {"$ref": f"#/components/schemas/{kind.call.__name__}"} in content["schema"]["anyOf"]
        assert all(example in [shown["value"] for shown in content["examples"].values()] for example in kind.examples)


async def test_the_page_says_what_a_path_is_for_and_every_status_that_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        paths = (await service.get("/openapi.json")).json["paths"]
    assert paths["/v1/chat/completions"]["post"]["summary"] == "Generate text from query, initial_query or messages"
    assert paths["/v1/completions"]["post"]["summary"].startswith("Generate text: text to continue")
    assert paths["/v1/embeddings"]["post"]["summary"] == "Turn texts into vectors"
    assert paths["/api/count_token"]["post"]["summary"] == "Count the tokens of a text"
    assert "422" in paths["/generate"]["post"]["responses"]
    assert "422" not in paths["/v1/chat/completions"]["post"]["responses"]


def test_no_two_bodies_have_the_same_name_in_the_openapi_document() -> None:
    names = {kind.call.__name__: kind.call for kind in KINDS}
    assert all(names[kind.call.__name__] is kind.call for kind in KINDS)


async def test_every_reference_in_the_openapi_document_leads_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        text = (await service.get("/openapi.json")).body.decode()
    schemas = json.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(schemas)


async def test_the_page_needs_nothing_from_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        page = (await service.get("/docs")).body.decode()
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        for link in links:
            assert link.startswith("/")
            assert (await service.get(link)).status == 200


# What has no body.


@pytest.mark.parametrize("dialect", dialects(), ids=lambda dialect: dialect.name)
async def test_every_fact_is_told(monkeypatch: pytest.MonkeyPatch, dialect: Dialect) -> None:
    async with running(Scripted(), monkeypatch, only(dialect.name)) as service, service.connect() as client:
        for route in dialect.routes:
            method, _, path = route.replace("{model:path}", "scripted").partition(" ")
            await client.send(method, path)
            answer = await client.answer()
            refused = getattr(OWN_TESTS[dialect.name], "REFUSED", {"POST /shutdown": 403})
            assert answer.status == refused.get(route, 200), route


@pytest.mark.parametrize("dialect", dialects(), ids=lambda dialect: dialect.name)
async def test_an_unknown_route_is_told_in_the_first_dialects_shape(
    monkeypatch: pytest.MonkeyPatch, dialect: Dialect
) -> None:
    others = [name for name in DIALECTS if name != dialect.name]
    async with running(Scripted(), monkeypatch, only(",".join([dialect.name, *others]))) as service:
        unknown, wrong = await service.get("/nope"), await service.post({}, "/health")
    assert (unknown.status, wrong.status) == (404, 405)
    check_error(dialect.name, unknown, "/nope")
    check_error(dialect.name, wrong, "/health")


async def test_an_unknown_route_below_or_beside_those_of_a_dialect_is_told_in_its_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch) as service, service.connect() as client:
        for dialect, status, method, path in (
            ("anthropic", 404, "POST", "/v1/messages/batches"),
            ("anthropic", 404, "GET", "/v1/messages/batches/batch_1/results"),
            ("anthropic", 405, "GET", "/v1/messages"),
            ("responses", 404, "GET", "/v1/responses/resp_1/more"),
            ("responses", 405, "POST", "/v1/responses/resp_1"),
            ("cohere", 404, "POST", "/v2/rerank"),
            ("cohere", 405, "GET", "/v2/chat"),
            ("ollama", 405, "GET", "/api/chat"),
            ("ollama", 404, "GET", "/api/tags/more"),
            ("tgi", 405, "GET", "/generate_stream"),
        ):
            await client.send(method, path)
            answer = await client.answer()
            assert answer.status == status, path
            check_error(dialect, answer, path)
            if dialect == "anthropic":
                assert (answer.json["error"]["type"] == "not_found_error") is (status == 404)
        for path in (
            "/v2/chat",
            "/api/chat",
            "/v1/messages",
            "/generate_stream",
        ):  # A client added it to a URL with a path.
            doubled = await service.post({}, f"/{path.split('/')[1]}{path}")
            assert f"did you mean POST {path}?" in doubled.body.decode()
        shared = [await service.get(path) for path in ("/api/nothing", "/v1/files", "/v1/chat/completions")]
    assert shared[0].json["error"] == shared[0].json["error_message"]  # As Ollama's and as SQuARE's.
    for answer in shared[1:]:
        assert answer.json["detail"] == answer.json["error"]["message"]  # As OPEA's and as OpenAI's and Anthropic's.
