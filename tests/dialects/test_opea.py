"""The opea dialect: what each body asks for, and the exact bytes of each answer."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from comps.core.citations import by_number, citations
from comps.core.errors import InvalidRequest, ModelServerError, PromptTooLong
from comps.core.prompts import numbered
from comps.core.types import (
    Document,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    Report,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.opea import Switches, opea
from comps.dialects.openai import CHAT
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.endpoint import Endpoint, RequestError
from tests.dialects.written import METADATA, written

ERROR_SHAPES = [{"detail"}, {"error"}]
"""The keys of an error."""

NORMAL = Switches()
DEFAULTS = Sampling(1024, 0.01, 0.95, 10, 0.95, None, 0.0, 0.0)
SEED = {
    "query": "What is Deep Learning?",
    "max_new_tokens": 17,
    "top_k": 10,
    "top_p": 0.95,
    "typical_p": 0.95,
    "temperature": 0.01,
    "repetition_penalty": 1.03,
    "streaming": False,
}
ALL = frozenset(Sampling.__dataclass_fields__)
E2_DOCS = [
    {"text": "one", "metadata": {"url": "http://a", "reranker_score": 0.9, "citation_id": 3}},
    {"text": "two", "metadata": {"bucket_name": "b", "object_name": "o"}},
]


def read(body: Any, switches: Switches = NORMAL) -> GenerationCall:
    call = Endpoint(CHAT, [opea(switches)]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def request(body: Any, switches: Switches = NORMAL) -> GenerationRequest:
    (only,) = read(body, switches).requests()
    return only


CITED: dict[str, Any] = {
    "annotations": [
        {
            "type": "url_citation",
            "url_citation": {"start_index": 5, "end_index": 8, "title": "T", "url": "http://a", "number": 3},
        }
    ],
    "unknown_citations": [9],
}


def cited(body: Any, switches: Switches = NORMAL) -> list[bytes]:
    events = TextDelta("Deep [3][9]"), TextDelta("", extra=CITED), Finished("stop", Usage(5, 2))
    return written(read(body, switches), *events)


def streamed(body: Any, switches: Switches = NORMAL, reason: str = "stop") -> list[bytes]:
    events = TextDelta(" Deep"), TextDelta("'n\" ü\n"), Finished(reason, Usage(5, 2))
    return written(read(body, switches), *events)


def whole(body: Any, switches: Switches = NORMAL, reason: str = "stop") -> Any:
    return read(body, switches).reply([Generation("Deep.", reason, Usage(5, 2))], METADATA)


def test_the_seeds_body_is_one_question_with_its_sampling() -> None:
    assert request(SEED) == GenerationRequest(
        (Message("user", "What is Deep Learning?"),), sampling=Sampling(17, 0.01, 0.95, 10, 0.95, 1.03, 0.0, 0.0)
    )


@pytest.mark.parametrize(
    ("body", "documents"),
    [
        ({"query": "?", "documents": ["a", {"text": "b", "title": "B"}]}, (Document("a"), Document("b", "B"))),
        ({"initial_query": "?", "retrieved_docs": [{"text": "a"}, {"text": "b"}]}, (Document("a"),)),
        (
            {"initial_query": "?", "retrieved_docs": [{"text": "a"}, {"text": "b"}, {"text": "c"}], "top_n": 2},
            (Document("a"), Document("b")),
        ),
        (
            {"initial_query": "?", "retrieved_docs": [{"text": ["a", "b"]}]},
            (Document("a"), Document("b")),
        ),
        ({"initial_query": "?", "reranked_docs": [{"text": "a"}, {"text": "b"}]}, (Document("a"), Document("b"))),
        ({"initial_query": "?", "reranked_docs": []}, ()),
        ({"messages": "?", "documents": ["a"]}, (Document("a"),)),
        (
            {"messages": [{"role": "user", "content": "?"}], "data": {"reranked_docs": E2_DOCS}},
            tuple(Document(doc["text"], metadata=doc["metadata"]) for doc in E2_DOCS),  # type: ignore[arg-type]
        ),
    ],
)
def test_documents_are_found_wherever_a_body_has_them(body: Any, documents: tuple[Document, ...]) -> None:
    assert request(body).documents == documents


def test_what_stands_beside_a_documents_text_is_kept_as_metadata() -> None:
    asked = request({"query": "?", "documents": [{"text": "a", "score": 0.5, "metadata": {"url": "u"}}]})
    assert asked.documents
    assert asked.documents[0].metadata == {"score": 0.5, "url": "u"}


RERANKED = "there are reranked documents"
RERANKER = {
    "documents": ["Doc C"],
    "reranked_docs": [{"text": "Doc C", "score": 0.9}],
    "retrieved_docs": [{"text": "Doc A", "metadata": None}, {"text": "Doc C", "metadata": {"url": "http://c"}}],
    "top_n": 1,
}
"""What GenAIComps' reranker returns of a ChatCompletionRequest."""
RETRIEVED = [{"text": text, "metadata": {"url": f"http://{text}"}} for text in ("a", "b", "c")]


@pytest.mark.parametrize("question", [{"query": "?"}, {"initial_query": "?"}, {"messages": "?"}])
@pytest.mark.parametrize(
    ("sent", "kept", "left_out"),
    [
        (RERANKER, [1], ["", "document 1 has the same text", RERANKED, "document 1 has the same text"]),
        ({"reranked_docs": ["b", "a"], "retrieved_docs": ["a", "b", "c"], "top_n": 3}, [1, 2], None),
        (
            {"data": {"reranked_docs": ["b"]}, "retrieved_docs": ["a", "b"]},
            [3],
            [RERANKED, "document 3 has the same text", ""],
        ),
        ({"documents": ["a"], "data": {"reranked_docs": ["a "]}}, [1], ["", "document 1 has the same text"]),
        ({"documents": ["x"], "reranked_docs": [], "retrieved_docs": ["a", "b"]}, [1, 2], ["", ""]),
        ({"documents": ["x"], "reranked_docs": [" "], "retrieved_docs": ["a"]}, [1, 2, 3], ["", "", ""]),
        ({"retrieved_docs": [{"text": ["a", "a"]}]}, [1], ["", "document 1 has the same text"]),
    ],
)
def test_reranked_documents_take_the_place_of_retrieved_ones_and_no_text_is_there_twice(
    question: Any, sent: Any, kept: list[int], left_out: list[str] | None
) -> None:
    given = numbered(request({**question, **sent}).documents or ())
    assert [place for place, document in enumerate(given, 1) if not document.left_out] == kept
    if left_out:
        assert [document.left_out for document in given] == left_out
    assert not any(name.startswith("retrieved") for name in read({**question, **sent}).ignored(ALL)) or "c" in str(sent)


def test_a_document_that_comes_three_times_keeps_what_each_says_of_it() -> None:
    first, *_ = numbered(request({"query": "?", **RERANKER}).documents or ())
    assert first == Document("Doc C", metadata={"score": 0.9, "url": "http://c"}, number=1)


def test_a_retrievers_texts_keep_their_metadata_whatever_top_n_is() -> None:
    body = {"messages": "?", "documents": ["a", "b", "c"], "retrieved_docs": RETRIEVED, "top_n": 1}
    given = [one for one in numbered(request(body).documents or ()) if not one.left_out]
    assert [(one.text, one.metadata, one.number) for one in given] == [
        (text, {"url": f"http://{text}"}, place) for place, text in enumerate("abc", 1)
    ]
    assert read(body).ignored(ALL) == []
    assert read({**body, "documents": ["a", "b"]}).ignored(ALL) == ["retrieved_docs[1:]"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"documents": None, "retrieved_docs": [], "reranked_docs": []}, None),
        ({"documents": [], "retrieved_docs": [], "reranked_docs": []}, ()),
        ({"retrieved_docs": [], "reranked_docs": []}, ()),
        ({"documents": None, "retrieved_docs": ["a"], "reranked_docs": []}, (Document("a"),)),
    ],
)
def test_no_search_is_not_a_search_that_found_nothing(sent: Any, expected: Any) -> None:
    assert request({"messages": "?", **sent}).documents == expected


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LangChain": (
        {"page_content": "T", "metadata": {"title": "I", "source": "s"}, "type": "Document"},
        {"source": "s"},
    ),
    "LangChain, serialised": (
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "document", "Document"],
            "kwargs": {"page_content": "T", "metadata": {"title": "I", "source": "s"}, "type": "Document"},
        },
        {"source": "s"},
    ),
    "Haystack": (
        {"id": "1", "content": "T", "meta": {"title": "I", "page": 2}, "score": 0.5},
        {"page": 2, "score": 0.5},
    ),
    "Haystack, flat": ({"id": "1", "content": "T", "title": "I", "page": 2}, {"id": "1", "page": 2}),
    "LlamaIndex": (
        {"node": {"id_": "1", "text": "T", "metadata": {"title": "I", "page": 2}}, "score": 0.5},
        {"id_": "1", "page": 2, "score": 0.5},
    ),
    "LlamaIndex, newer": (
        {"node": {"text_resource": {"text": "T"}, "metadata": {"title": "I", "page": 2}}, "score": 0.5},
        {"page": 2, "score": 0.5},
    ),
    "Cohere 1": ({"title": "I", "snippet": "T", "url": "u"}, {"url": "u"}),
    "Cohere 2": ({"id": "1", "data": {"text": "T", "title": "I", "url": "u"}}, {"id": "1", "url": "u"}),
    "Cohere 2, a snippet": ({"data": {"snippet": "T", "title": "I"}}, {}),
    "Cohere's reranker": ({"document": {"text": "T", "title": "I"}, "relevance_score": 0.5}, {"relevance_score": 0.5}),
    "a null beside it": ({"text": None, "content": "T", "metadata": None, "meta": {"title": "I"}}, {}),
    "OPEA": (
        {"text": "T", "title": "I", "metadata": {"title": "J"}, "node": "n", "content": 5},
        {"node": "n", "content": 5},
    ),
}


@pytest.mark.parametrize("field", ["documents", "reranked_docs", "retrieved_docs", "data"])
@pytest.mark.parametrize("form", FORMS)
def test_documents_are_read_as_other_frameworks_have_them(form: str, field: str) -> None:
    sent, metadata = FORMS[form]
    (document,) = (
        request({"query": "?", field: {"reranked_docs": [sent]} if field == "data" else [sent]}).documents or ()
    )
    assert (document.text, document.title) == ("T", "I")
    assert document.metadata.items() >= metadata.items()


@pytest.mark.parametrize("meta", ["m", 5, [], None])
def test_what_only_has_the_name_of_another_frameworks_field_is_kept_as_it_is(meta: Any) -> None:
    (document,) = request({"query": "?", "documents": [{"text": "a", "meta": meta, "data": meta}]}).documents or ()
    assert document == Document("a", metadata={"meta": meta, "data": meta})


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"body": "T"}, "text"),
        ({}, "text"),
        ({"text": None}, "text"),
        ({"node": {"title": "I"}}, "text"),
        ({"node": "T"}, "text"),
        ({"page_content": 5}, "page_content"),
        ({"content": {"text": "T"}}, "content"),
        ({"snippet": "T", "title": ["I"]}, "title"),
    ],
)
def test_a_document_without_a_text_is_refused_by_the_name_of_the_field(document: Any, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        read({"query": "?", "documents": ["a", document]})
    assert isinstance(caught.value.error, InvalidRequest)
    assert caught.value.error.field == f"documents.1.{named}"
    if named == "text":
        assert "page_content, content, snippet, node.text, data.text" in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        *(sent for sent, _ in FORMS.values() if sent.get("text", "") is not None),
        "T",
        {"text": ["T"]},
        {},
        {"node": {}},
        {"text": 5},
        {"node": {"text": 5}},
        5,
    ],
)
def test_the_schema_of_a_document_is_true(document: Any) -> None:
    body = {"query": "?", "documents": [document]}
    schema = type(read({"query": "?"})).model_json_schema()
    try:
        read(body)
    except RequestError:
        is_read = False
    else:
        is_read = True
    assert Draft202012Validator(schema).is_valid(body) == is_read


def test_documents_that_the_messages_quote_already_are_not_written_twice() -> None:
    messages = [{"role": "system", "content": "Answer from: one, two"}, {"role": "user", "content": "?"}]
    asked = request({"messages": messages, "data": {"reranked_docs": [*E2_DOCS, " two\n"]}})
    assert asked.documents is None  # Which is not: nothing was found.
    assert [document.text for document in asked.quoted] == ["one", "two", " two\n"]


def test_a_document_is_not_taken_for_written_because_its_text_occurs_somewhere() -> None:
    asked = request({"messages": "Is 96 the right number?", "documents": [{"title": "Memory in GB", "text": "96"}]})
    assert asked.documents == (Document("96", "Memory in GB"),)


def test_a_document_without_text_keeps_its_place() -> None:
    documents = (Document("", "T"), Document(""))
    assert request({"query": "?", "documents": [{"title": "T", "text": ""}, ""]}).documents == documents


@pytest.mark.parametrize("field", ["documents", "retrieved_docs", "reranked_docs"])
def test_more_documents_than_anybody_has_are_refused(field: str) -> None:
    with pytest.raises(RequestError, match=field):
        read({"query": "?", field: ["a"] * 10_001})


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    names = [name for name in type(read({"query": "?"})).model_fields if name != "query"]
    assert request({"query": "?", **dict.fromkeys(names)}) == request({"query": "?"})


def test_further_fields_of_a_delta_are_passed_on() -> None:
    events = TextDelta("", extra={"reasoning": "hm"}), TextDelta("a"), Finished("stop")
    items = written(read({"messages": "?"}), *events)
    assert json.loads(items[0].removeprefix(b"data: "))["choices"][0]["delta"]["reasoning"] == "hm"


def test_messages_may_be_a_string_or_a_list() -> None:
    assert request({"messages": "Hi"}).prompt == (Message("user", "Hi"),)
    turns = [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Q"},
    ]
    assert request({"messages": turns}).prompt == (
        Message("system", "S"),
        Message("assistant", ""),
        Message("user", "Q"),
    )


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        ("{context} {qestion}", "{qestion} is no placeholder; did you mean {question}?"),
        ("{ Context }: {question}", "{ Context } is no placeholder; did you mean {context}?"),
        ("{contexts}\n{context} {question}", None),
        ("{context} {question} {answer}", None),
        ("Answer with {} or {1}", None),
    ],
)
def test_a_misspelled_placeholder_is_an_error_that_names_the_right_one(template: str, wrong: str | None) -> None:
    body = {"query": "?", "chat_template": template}
    if wrong is None:
        assert request(body).template == template
        return
    with pytest.raises(RequestError) as caught:
        request(body)
    assert str(caught.value) == f"chat_template: {wrong}"


def test_template_and_language_are_passed_on() -> None:
    asked = request({"query": "?", "chat_template": "{context} {question}", "language": "zh"})
    assert (asked.template, asked.language) == ("{context} {question}", "zh")


@pytest.mark.parametrize("body", [{"query": "?"}, {"initial_query": "?"}])
def test_a_question_without_sampling_gets_opeas_defaults(body: Any) -> None:
    assert request(body).sampling == DEFAULTS


def test_a_conversation_without_sampling_gets_the_later_services_defaults() -> None:
    assert request({"messages": "?"}).sampling == Sampling(max_tokens=1024, temperature=0.01)
    assert request({"messages": "?"}, Switches(messages="enterprise_rag")).sampling == DEFAULTS


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_new_tokens": 6}, 6),
        ({"max_tokens": 5, "max_new_tokens": 6}, 5),
        ({"max_tokens": 7, "max_new_tokens": 6}, 6),
        ({"max_tokens": None}, 1024),
    ],
)
@pytest.mark.parametrize("marker", ["query", "initial_query", "messages"])
def test_of_two_limits_the_smaller_counts(marker: str, limits: dict[str, int], expected: int) -> None:
    assert request({marker: "?", **limits}).sampling.max_tokens == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 4}, 4),
    ],
)
def test_a_conversation_knows_openais_newer_name_of_the_limit(limits: dict[str, int], expected: int) -> None:
    assert request({"messages": "?", **limits}).sampling.max_tokens == expected


@pytest.mark.parametrize(("stop", "expected"), [("a", ("a",)), (["a", "", "b"], ("a", "b")), ("", ()), (None, ())])
def test_stop_is_a_string_or_a_list_and_an_empty_one_is_none(stop: Any, expected: tuple[str, ...]) -> None:
    assert request({"query": "?", "stop": stop}).sampling.stop == expected


@pytest.mark.parametrize(
    ("body", "switches", "expected"),
    [
        ({"query": "?"}, Switches(), True),
        ({"initial_query": "?"}, Switches(), True),
        ({"messages": "?"}, Switches(), False),
        ({"messages": "?"}, Switches(messages="enterprise_rag"), True),
        ({"query": "?", "stream": False}, Switches(), False),
        ({"query": "?", "streaming": False}, Switches(), False),
        ({"query": "?", "streaming": None}, Switches(), True),
        ({"messages": "?", "streaming": True}, Switches(), True),
        ({"query": "?", "stream": False, "streaming": True}, Switches(), False),
        ({"query": "?", "stream": True}, Switches(disable_streaming=True), False),
        ({"query": "?", "stream": True}, Switches(output_guard=True), False),
    ],
)
def test_when_it_streams(body: Any, switches: Switches, expected: bool) -> None:
    assert read(body, switches).streamed is expected


def test_the_seeds_whole_answer() -> None:
    assert whole(SEED) == {"id": METADATA.id, "text": "Deep.", "prompt": "What is Deep Learning?"}
    assert whole({"initial_query": "Why?"})["prompt"] == "Why?"


@pytest.mark.parametrize(
    ("stream", "first", "second"),
    [
        ("bytes", rb"""data: b' Deep'""", rb"""data: b'\'n" \xc3\xbc\n'"""),
        ("text", rb"""data: ' Deep'""", """data: '\\'n" ü\\n'""".encode()),
    ],
)
def test_a_question_is_streamed_as_pythons_literals(stream: Any, first: bytes, second: bytes) -> None:
    items = streamed({"query": "?"}, Switches(stream=stream))
    assert items == [first + b"\n\n", second + b"\n\n", b"data: [DONE]\n\n"]


LATER = Switches("text_completion", string_messages="query")
"""The wire of GenAIComps 1.3 and later."""
QUESTIONS = [{"query": "Q"}, {"initial_query": "Q"}, {"messages": "Q"}]


@pytest.mark.parametrize(
    ("body", "switches"),
    [
        ({"query": "Q"}, NORMAL),
        ({"initial_query": "Q", "stream": False}, NORMAL),
        ({"query": "Q", "stream": False, "streaming": False}, NORMAL),
        ({"query": "Q", "streaming": False}, LATER),
        ({"messages": "Q"}, LATER),
        ({"messages": "Q"}, Switches(messages="enterprise_rag", string_messages="query")),
    ],
)
def test_a_questions_whole_answer_is_what_clients_of_both_generations_read(body: Any, switches: Switches) -> None:
    assert whole(body, switches, "length") == {
        "id": METADATA.id,
        "text": "Deep.",
        "prompt": "Q",
        "object": "text_completion",
        "created": METADATA.created,
        "model": "tiny",
        "choices": [{"index": 0, "text": "Deep.", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


@pytest.mark.parametrize("body", QUESTIONS)
def test_a_question_is_streamed_as_chunks_of_a_completion(body: Any) -> None:
    *items, done = streamed(body, LATER, "length")
    chunks = [json.loads(item.removeprefix(b"data: ")) for item in items]
    head = {"id": f"cmpl-{METADATA.id}", "object": "text_completion", "created": METADATA.created, "model": "tiny"}
    pieces = [(" Deep", None), ("'n\" ü\n", None), ("", "length")]
    assert chunks == [
        {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}
        for text, reason in pieces
    ]
    assert done == b"data: [DONE]\n\n"


@pytest.mark.parametrize("body", QUESTIONS)
def test_a_stream_of_a_completion_says_what_it_cites_its_report_and_what_broke(body: Any) -> None:
    asked = read({**body, "include_report": True}, LATER)
    events = TextDelta("Deep [3][9]"), TextDelta("", extra=CITED), Finished("stop", Usage(5, 2))
    _, annotations, end, report, _ = written(asked, *events, reports={0: Report(512)})
    choice = json.loads(annotations.removeprefix(b"data: "))["choices"][0]
    assert choice.items() >= {"text": "", **CITED}.items()
    assert b'"finish_reason":"stop"' in end
    assert json.loads(report.removeprefix(b"data: "))["report"]["context_window"] == 512
    assert json.loads(asked.error_item(ModelServerError("it broke")).removeprefix(b"data: "))["error"]


@pytest.mark.parametrize(
    ("messages", "switches"),
    [("Q", NORMAL), ("Q", Switches("text_completion")), ([{"role": "user", "content": "Q"}], LATER)],
)
def test_only_a_string_is_answered_like_a_query_and_only_if_set(messages: Any, switches: Switches) -> None:
    assert whole({"messages": messages}, switches)["object"] == "chat.completion"
    assert b'"chat.completion.chunk"' in streamed({"messages": messages}, switches)[0]


def test_what_a_stream_of_literals_has_no_place_for_is_not_asked_and_named() -> None:
    switches = Switches(string_messages="query")
    body = {"messages": "Q", "n": 2, "logprobs": True, "response_format": {"type": "json_object"}}
    literals, all_of_them = read({**body, "stream": True}, switches), read(body, switches)
    assert literals.requests()[0].options == {"response_format": {"type": "json_object"}}
    assert literals.ignored(ALL | {"n", "logprobs", "response_format"}) == ["n", "logprobs"]
    assert all_of_them.requests()[0].options.keys() == {"n", "logprobs", "response_format"}
    assert all_of_them.ignored(ALL | {"n", "logprobs", "response_format"}) == []
    answer = all_of_them.reply([Generation("a", "stop", further=(Generation("b", "stop"),))], METADATA)
    assert [choice["text"] for choice in answer["choices"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "switches"), [({"query": "?"}, Switches(stream="openai")), ({"messages": "?"}, Switches())]
)
def test_openais_chunks(body: Any, switches: Switches) -> None:
    *items, done = streamed(body, switches, "length")
    chunks = [json.loads(item.removeprefix(b"data: ")) for item in items]
    head = {
        "id": f"chatcmpl-{METADATA.id}",
        "object": "chat.completion.chunk",
        "created": METADATA.created,
        "model": "tiny",
    }
    choices = [
        {"index": 0, "delta": {"role": "assistant", "content": " Deep"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "'n\" ü\n"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"},
    ]
    assert chunks == [{**head, "choices": [choice]} for choice in choices]
    assert done == b"data: [DONE]\n\n"


def test_a_stream_carries_its_usage_if_asked() -> None:
    items = streamed({"messages": "?", "stream_options": {"include_usage": True}})
    chunk = json.loads(items[-2].removeprefix(b"data: "))
    assert chunk["choices"] == []
    assert chunk["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_a_conversation_is_answered_as_openai_does() -> None:
    assert whole({"messages": "?"}, reason="length") == {
        "id": f"chatcmpl-{METADATA.id}",
        "object": "chat.completion",
        "created": METADATA.created,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Deep."},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


E2_BODY = {
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q1"},
        {"role": "user", "content": "Q2"},
    ],
    "data": {"reranked_docs": E2_DOCS},
}
E2_ECHO = [
    {
        "type": "link",
        "url": "http://a",
        "text": "one",
        "vector_distance": 1.0,
        "reranker_score": 0.9,
        "citation_id": 3,
    },
    {
        "type": "file",
        "bucket_name": "b",
        "object_name": "o",
        "text": "two",
        "vector_distance": 1.0,
        "reranker_score": 0.0,
        "citation_id": 0,
    },
]


def test_enterprise_rags_whole_answer() -> None:
    answer = whole({**E2_BODY, "stream": False}, Switches(messages="enterprise_rag"))
    assert answer["choices"][0]["message"]["content"] == "Deep."
    assert {name: answer[name] for name in ("text", "prompt", "stream", "output_guardrail_params", "data")} == {
        "text": "Deep.",
        "prompt": "Q1",
        "stream": False,
        "output_guardrail_params": None,
        "data": {"reranked_docs": E2_ECHO},
    }


@pytest.mark.parametrize("switches", [Switches(messages="enterprise_rag"), Switches(output_guard=True)])
def test_each_of_several_answers_is_a_choice(switches: Switches) -> None:
    several = Generation("One.", "stop", further=(Generation("Two.", "length"),))
    answer = read({"messages": "?", "n": 2, "stream": False}, switches).reply([several], METADATA)
    assert [(one["index"], one["message"]["content"]) for one in answer["choices"]] == [(0, "One."), (1, "Two.")]


def test_enterprise_rags_stream_ends_with_the_documents_that_were_sent() -> None:
    *_, finish, done, tail = streamed(E2_BODY, Switches(messages="enterprise_rag"), "length")
    assert b'"finish_reason":"length"' in finish
    assert done == b"data: [DONE]\n\n"
    assert tail.startswith(b"json: ")
    assert json.loads(tail.removeprefix(b"json: ")) == {"reranked_docs": E2_ECHO}


E2_WRITTEN = {
    "messages": [{"role": "system", "content": "[3] (http://a)\nContent: one\n\n[4] (b/o)\nContent: two"}],
    "data": {
        "user_prompt": "?",
        "reranked_docs": [
            E2_DOCS[0],
            {"text": "two", "title": "B", "metadata": {"bucket_name": "b", "object_name": "o", "citation_id": 4}},
            {"text": "Content", "metadata": {"url": "http://a", "citation_id": 3}},
        ],
    },
}
E2_RAG = Switches(messages="enterprise_rag")


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("Deep [3].", ["one", "Content"]),
        ("Deep [4].", ["two"]),
        ("Deep [4][3][9].", ["one", "two", "Content"]),
        ("Deep [9].", ["one", "two", "Content"]),
        ("Deep.", ["one", "two", "Content"]),
    ],
)
def test_enterprise_rag_gets_the_documents_that_the_answer_cites_or_else_all(said: str, texts: list[str]) -> None:
    call = read(E2_WRITTEN, E2_RAG)
    (asked,) = call.requests()
    given = by_number((), asked.quoted)
    found = citations(said, given)
    *_, done, tail = written(call, TextDelta(said), *([TextDelta("", 0, found)] if found else []), Finished("stop"))
    whole = call.reply([Generation(said, "stop", extra=found)], METADATA)
    assert done == b"data: [DONE]\n\n"
    assert whole["data"] == json.loads(tail.removeprefix(b"json: "))
    assert [document["text"] for document in whole["data"]["reranked_docs"]] == texts


def test_a_document_that_goes_back_to_enterprise_rag_keeps_its_title_if_it_has_one() -> None:
    answer = whole(E2_WRITTEN, E2_RAG)
    assert [document.get("title") for document in answer["data"]["reranked_docs"]] == [None, "B", None]


def test_documents_that_are_new_to_enterprise_rags_messages_are_cited_by_their_numbers_in_the_prompt() -> None:
    call = read({"messages": "?", "data": {"reranked_docs": ["one", "two"]}}, E2_RAG)
    extra = citations("[2]", by_number(numbered(call.requests()[0].documents or ())))
    answer = call.reply([Generation("[2]", "stop", extra=extra)], METADATA)
    assert [document["text"] for document in answer["data"]["reranked_docs"]] == ["two"]


@pytest.mark.parametrize("spelling", ["bytes", "text"])
def test_a_stream_of_literals_says_what_is_cited_only_to_those_who_ask(spelling: Any) -> None:
    switches = Switches(stream=spelling)
    literal = b"data: b'Deep [3][9]'\n\n" if spelling == "bytes" else b"data: 'Deep [3][9]'\n\n"
    assert cited({"query": "?"}, switches) == [literal, b"data: [DONE]\n\n"]
    assert cited({"query": "?", "include_report": True}, switches) == [
        literal,
        b"event: annotations\ndata: " + orjson.dumps(CITED) + b"\n\n",
        b"data: [DONE]\n\n",
    ]


@pytest.mark.parametrize(
    ("body", "switches"), [({"query": "?"}, Switches(stream="openai")), ({"messages": "?"}, Switches())]
)
def test_openais_chunks_say_what_is_cited_before_the_end(body: Any, switches: Switches) -> None:
    _, said, end, _ = cited(body, switches)
    head = (
        f'data: {{"id":"chatcmpl-{METADATA.id}","object":"chat.completion.chunk","created":1700000000,"model":"tiny",'
    )
    delta = b'"choices":[{"index":0,"delta":' + orjson.dumps(CITED)
    assert said == head.encode() + delta + b',"logprobs":null,"finish_reason":null}]}\n\n'
    assert b'"finish_reason":"stop"' in end


@pytest.mark.parametrize("body", [{"query": "Q"}, {"initial_query": "Q"}])
def test_a_whole_answer_to_a_question_says_what_it_cites(body: Any) -> None:
    answer = read(body).reply([Generation("Deep [3][9]", "stop", extra=CITED)], METADATA)
    assert answer.items() >= {"id": METADATA.id, "text": "Deep [3][9]", "prompt": "Q", **CITED}.items()
    assert answer["choices"][0].items() >= {"text": "Deep [3][9]", **CITED}.items()


@pytest.mark.parametrize("switches", [NORMAL, E2_RAG])
def test_a_whole_answer_to_a_conversation_says_in_its_message_what_it_cites(switches: Switches) -> None:
    answer = read({"messages": "?"}, switches).reply([Generation("Deep [3][9]", "stop", extra=CITED)], METADATA)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Deep [3][9]", **CITED}


def test_of_passages_that_say_the_same_those_of_a_cited_one_are_all_told() -> None:
    texts = ["a", "b", "c", "a"]
    call = read({"messages": "?", "data": {"reranked_docs": [{"text": text} for text in texts]}}, E2_RAG)
    (asked,) = call.requests()
    given = by_number(numbered(asked.documents or ()))
    whole = call.reply([Generation("Deep [1].", "stop", extra=citations("Deep [1].", given))], METADATA)
    assert [document["text"] for document in whole["data"]["reranked_docs"]] == ["a", "a"]


def test_without_data_enterprise_rags_stream_has_no_tail() -> None:
    assert (streamed({"messages": "?"}, Switches(messages="enterprise_rag")))[-1] == b"data: [DONE]\n\n"


def test_in_front_of_an_output_guard_a_document_carries_its_parameters_on() -> None:
    guarded = Switches(output_guard=True)
    parameters = {"ban_topics": {"enabled": True}}
    assert whole({"query": "Q", "streaming": True, "output_guardrail_params": parameters}, guarded) == {
        "id": METADATA.id,
        "text": "Deep.",
        "prompt": "Q",
        "streaming": True,
        "output_guardrail_params": parameters,
    }
    for switches in (guarded, Switches("text_completion", output_guard=True, string_messages="query")):
        chat = whole({"messages": "Q", "output_guardrail_params": parameters}, switches)
        assert (chat["text"], chat["prompt"], chat["output_guardrail_params"]) == ("Deep.", "Q", parameters)
    assert (chat["choices"][0]["text"], chat["streaming"]) == ("Deep.", False)


def test_the_fields_that_opeas_orchestrator_lays_over_every_body_are_accepted() -> None:
    laid = {
        "max_tokens": 1024,
        "max_new_tokens": 1024,
        "top_k": 10,
        "top_p": 0.95,
        "typical_p": 0.95,
        "temperature": 0.01,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.03,
        "stream": True,
        "language": "auto",
        "index_name": "rag",
        "chat_template": None,
        "model": None,
        "id": "abc",
    }
    for marker in ("query", "initial_query", "messages"):
        assert read({marker: "?", **laid}).ignored(ALL) == []


@pytest.mark.parametrize("off", [0, -1])
def test_a_top_k_of_0_or_less_is_all_tokens_and_not_the_model_servers_to_decide(off: int) -> None:
    assert request({"messages": "?", "top_k": off}).sampling.top_k == 2**31 - 1
    assert request({"query": "?", "top_k": off}).sampling.top_k == 2**31 - 1


@pytest.mark.parametrize("marker", ["query", "initial_query", "messages"])
def test_sampling_that_changes_nothing_is_not_lost(marker: str) -> None:
    neutral = {
        **{"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0},
        **{"top_p": 1, "typical_p": 1.0, "top_k": -1},
    }
    assert read({marker: "?", **neutral}).ignored(frozenset()) == []


def test_nothing_that_is_sent_is_ignored_without_a_word() -> None:
    body = {
        "messages": [{"role": "user", "content": "?", "name": "Ann"}],
        "retrieved_docs": ["a", "b"],
        "stream": True,
        "streaming": False,
        "stop": "x",
        "max_new_tokens": 5,
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "n": 2,
        "data": {"reranked_docs": [], "colour": "blue"},
    }
    assert set(read(body).ignored(frozenset())) == {
        "stop",
        "max_new_tokens",
        "streaming",
        "retrieved_docs[1:]",
        "data.colour",
        "tools",
        "n",
        "messages.name",
    }


@pytest.mark.parametrize("found", [{"documents": []}, {"retrieved_docs": []}, {"data": {"reranked_docs": []}}])
def test_a_search_that_found_nothing_is_no_body_without_documents(found: dict[str, Any]) -> None:
    assert request({"messages": "?", **found}).documents == ()
    assert request({"messages": "?", **dict.fromkeys(found)}).documents is None


def test_a_conversation_need_not_have_a_turn_of_the_user() -> None:
    body = {"messages": [{"role": "developer", "content": "Greet whoever comes."}]}
    assert request(body).prompt == (Message("developer", "Greet whoever comes."),)


def test_errors_are_spelled_as_the_body_they_answer() -> None:
    error = PromptTooLong(9000, 8192)
    assert read({"query": "?"}).style.error(error) == {"detail": str(error)}
    assert read({"messages": "?"}).style.error(error) == {
        "error": {
            "message": str(error),
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
        }
    }
    assert read({"query": "?"}).error_item(ModelServerError("x")) == b"data: [ERROR]\n\n"


def test_a_wrong_field_is_named_in_the_spelling_of_its_body() -> None:
    with pytest.raises(RequestError) as caught:
        read({"messages": "?", "top_k": -2})
    spelled = caught.value.style.error(caught.value.error)
    assert spelled["error"]["param"] == "top_k"
    assert spelled["error"]["type"] == "invalid_request_error"


def test_several_wrong_fields_are_all_named_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        read({"query": "?", "top_k": -2, "temperature": -1})
    assert isinstance(caught.value.error, InvalidRequest)
    assert {"top_k", "temperature"} <= set(str(caught.value.error).replace(":", " ").split())
