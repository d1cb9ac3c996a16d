"""The tgi dialect: what each body asks for, and the exact bytes of each answer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from comps.core.errors import (
    BodyTooLarge,
    BrokenOff,
    Forbidden,
    InvalidRequest,
    LLMError,
    ModelServerError,
    NotSupported,
    Overloaded,
    PromptTooLong,
    Refused,
    TextTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
)
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    MANY,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Report,
    Sampling,
    TextDelta,
    Token,
    Usage,
)
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.endpoint import Endpoint, RequestError
from comps.dialects.tgi.dialect import STYLE, Switches, TGITokenizeCall, tgi
from comps.model_servers.scripted import Scripted
from tests.dialects.written import METADATA, written
from tests.service import Able, running

ERROR_SHAPES = [{"error", "error_type"}, {"error"}]
"""The keys of an error."""
STATUSES: dict[type[LLMError], int] = {
    **dict.fromkeys((InvalidRequest, PromptTooLong, TextTooLong), 422),
    **dict.fromkeys((ModelServerError, Refused), 424),
    NotSupported: 404,
    BrokenOff: 500,
}
"""The statuses of errors that are TGI's own."""
_JSON: JSON = {"type": "json", "value": {"type": "object", "properties": {"city": {"type": "string"}}}}
VALUES: dict[str, list[JSON]] = {"grammar": [_JSON, {"type": "regex", "value": "[a-z]+"}]}
TOGETHER: dict[str, dict[str, JSON]] = {
    "parameters.best_of": {"parameters": {"do_sample": True, "seed": None}},
    "parameters.top_n_tokens": {"parameters": {"details": True}},
}
ANYWAY: dict[str, list[JSON]] = {
    "decoder_input_details": [False],
    "details": [False],
    "top_n_tokens": [0],
    "watermark": [False],
}

ALL = frozenset(
    (
        *Sampling.__dataclass_fields__,
        *("logprobs", "top_logprobs", "response_format", "structured_outputs", "truncate_prompt_tokens"),
    )
)
CHATTING = ModelInfo("m", None, ALL, has_chat_template=True)
TEXT_ONLY = ModelInfo("m", None, ALL, has_chat_template=False)
CHAT_TOKENIZE = "/chat_tokenize"
ONLY = {"LLM_DIALECTS": "tgi"}
QUESTION = "What is Deep Learning?"
ROUTES = ("/", "/generate", "/generate_stream")


def read(body: Any, path: str = "/generate", switches: Switches | None = None) -> GenerationCall:
    call = Endpoint(path, [tgi(switches or Switches())]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def asked(
    parameters: Any, path: str = "/generate", served: ModelInfo = TEXT_ONLY, form: Any = "auto", inputs: str = QUESTION
) -> list[GenerationRequest]:
    """What a body asks of a model."""
    call = read({"inputs": inputs, "parameters": parameters}, path, Switches(form))
    call.answered_by(served)
    return list(call.requests())


def ignored(parameters: Any, capabilities: frozenset[str] = ALL, path: str = "/generate", **further: Any) -> list[str]:
    return read({"inputs": QUESTION, "parameters": parameters, **further}, path).ignored(capabilities)


# What it asks for.


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("form", "served", "is_message"),
    [
        ("auto", CHATTING, True),
        ("auto", TEXT_ONLY, False),
        ("auto", ModelInfo("m"), False),
        ("text", CHATTING, False),
        ("messages", TEXT_ONLY, True),
    ],
)
def test_inputs_are_a_message_to_a_model_that_answers_such(
    path: str, form: Any, served: ModelInfo, is_message: bool
) -> None:
    (request,) = asked({}, path, served, form)
    assert request.prompt == ((Message("user", QUESTION),) if is_message else QUESTION)


def test_inputs_that_a_client_has_rendered_are_continued() -> None:
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert asked({}, served=CHATTING, inputs=rendered)[0].prompt == rendered


SAMPLED = Sampling(1024, 1.0, 1.0, MANY)
GREEDY = Sampling(1024, 0.0)


@pytest.mark.parametrize(
    ("parameters", "sampling", "defaulted"),
    [
        (None, SAMPLED, {"max_tokens", "temperature", "top_k", "top_p"}),
        ({}, GREEDY, {"max_tokens"}),
        ({"do_sample": False}, GREEDY, {"max_tokens"}),
        ({"do_sample": True}, SAMPLED, {"max_tokens", "temperature", "top_k", "top_p"}),
        ({"temperature": 0.5}, replace(SAMPLED, temperature=0.5), {"max_tokens", "top_k", "top_p"}),
        ({"top_p": 0.9, "max_new_tokens": 5}, Sampling(5, 1.0, 0.9, MANY), {"temperature", "top_k"}),
        ({"typical_p": 0.9}, replace(SAMPLED, typical_p=0.9), {"max_tokens", "temperature", "top_k", "top_p"}),
        ({"top_k": 0}, SAMPLED, {"max_tokens", "temperature", "top_p"}),
        ({"temperature": 0, "do_sample": True, "top_k": 5}, GREEDY, {"max_tokens"}),
        (
            {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "seed": 5, "stop": ["a", ""]},
            replace(GREEDY, repetition_penalty=1.1, frequency_penalty=0.1, seed=5, stop=("a",)),
            {"max_tokens"},
        ),
        ({"seed": 2**64 - 1}, replace(GREEDY, seed=2**63 - 1), {"max_tokens"}),
        ({"seed": None, "stop": None, "temperature": None}, GREEDY, {"max_tokens"}),
    ],
)
def test_it_samples_as_tgi_does(parameters: Any, sampling: Sampling, defaulted: set[str]) -> None:
    (request,) = asked(parameters)
    assert request.sampling == sampling
    assert request.defaulted - {"logprobs", "logprob_ids"} == defaulted


@pytest.mark.parametrize(
    ("parameters", "of_text", "of_chat"),
    [
        ({}, {}, {}),
        ({"details": True}, {"logprobs": 0}, {"logprobs": True}),
        ({"decoder_input_details": True}, {"logprobs": 0}, {"logprobs": True}),
        ({"top_n_tokens": 3}, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"truncate": 100}, {"truncate_prompt_tokens": 100}, {"truncate_prompt_tokens": 100}),
        *(
            (
                {"grammar": {"type": kind, "value": value}},
                *[{"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": {"x": 1}}}}] * 2,
            )
            for kind, value, name in (
                ("json", {"x": 1}, "answer"),
                ("json", '{"x": 1}', "answer"),
                ("json_schema", {"name": "person", "schema": {"x": 1}}, "person"),
                ("json_schema", {"name": "person", "schema": '{"x": 1}'}, "person"),
            )
        ),
        ({"grammar": {"type": "regex", "value": "a+"}}, *[{"structured_outputs": {"regex": "a+"}}] * 2),
    ],
)
def test_parameters_become_the_options_of_openais_api(parameters: Any, of_text: JSON, of_chat: JSON) -> None:
    assert asked(parameters)[0].options == of_text
    assert asked(parameters, served=CHATTING)[0].options == of_chat


@pytest.mark.parametrize("kind", ["json", "json_schema"])
def test_a_schema_as_text_can_be_sent_on_or_is_refused(kind: str) -> None:
    def grammar(text: str) -> JSON:
        return {"grammar": {"type": kind, "value": text if kind == "json" else {"schema": text}}}

    assert orjson.dumps(dict(asked(grammar('{"maximum": ' + "1" * 30 + "}"))[0].options))
    for text in ('{"x":' * 300 + "1" + "}" * 300, '{"x": NaN}', "[1]"):
        with pytest.raises(RequestError, match="grammar: "):
            asked(grammar(text))


def test_the_ids_of_tokens_are_asked_for_where_the_model_server_knows_them() -> None:
    served = replace(TEXT_ONLY, capabilities=ALL | {"logprob_ids"})
    assert asked({"details": True}, served=served)[0].options == {"logprobs": 0, "logprob_ids": True}
    assert asked({}, served=served)[0].options == {}


def test_a_model_server_without_alternatives_tells_its_tokens_all_the_same() -> None:
    served = replace(TEXT_ONLY, capabilities=ALL - {"top_logprobs", "structured_outputs"})
    assert asked({"details": True, "top_n_tokens": 3}, served=served)[0].options == {"logprobs": 0}
    grammar = {"type": "regex", "value": "a+"}
    assert asked({"grammar": grammar}, served=served)[0].options == {"response_format": grammar}


@pytest.mark.parametrize(("capabilities", "answers"), [(ALL, 3), (ALL - {"logprobs"}, 1)])
def test_of_several_answers_all_are_made_if_it_can_be_told_which_is_best(
    capabilities: frozenset[str], answers: int
) -> None:
    parameters = {"best_of": 3, "do_sample": True}
    assert len(asked(parameters, served=replace(TEXT_ONLY, capabilities=capabilities))) == answers
    assert ignored(parameters, capabilities) == ([] if answers == 3 else ["parameters.best_of"])


@pytest.mark.parametrize(
    ("parameters", "capabilities", "names"),
    [
        ({"temperature": 0.5, "top_k": 3, "max_new_tokens": 5, "seed": 1, "stop": ["x"], "details": True}, ALL, []),
        (
            {"temperature": 0.5, "top_k": 3, "max_new_tokens": 5, "seed": 1, "stop": ["x"], "do_sample": True},
            frozenset(),
            ["temperature", "top_k", "do_sample", "max_new_tokens", "stop", "seed"],
        ),
        ({"top_k": 0, "top_p": 1, "typical_p": 1, "repetition_penalty": 1, "frequency_penalty": 0}, frozenset(), []),
        (
            {"watermark": True, "truncate": 5, "details": True},
            ALL - {"truncate_prompt_tokens"},
            ["truncate", "watermark"],
        ),
        ({"watermark": False, "decoder_input_details": False, "top_n_tokens": 0}, frozenset(), []),
        ({"decoder_input_details": True}, ALL, ["decoder_input_details"]),
        ({"top_n_tokens": 2}, ALL, ["top_n_tokens"]),
        ({"temperature": 0, "top_k": 5, "do_sample": True}, ALL, ["top_k", "do_sample"]),
        ({"num_beams": 4, "nothing": None}, ALL, ["num_beams"]),
    ],
)
def test_what_has_no_effect_is_named(parameters: Any, capabilities: frozenset[str], names: list[str]) -> None:
    assert ignored(parameters, capabilities) == [f"parameters.{name}" for name in names]


def test_stream_is_named_where_it_has_no_effect() -> None:
    assert ignored(None, frozenset()) == []  # Nobody sent do_sample.
    assert ignored({}, stream=True) == ["stream"]
    assert ignored({}, stream=False) == []
    assert ignored({}, path="/generate_stream", stream=False) == ["stream"]
    assert ignored({"top_n_tokens": 2}, path="/generate_stream", stream=True) == []
    assert ignored({}, path="/", stream=True, temperature=0.5) == ["temperature"]


# What it refuses.


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"inputs": ""}, "/", "`inputs`: it cannot be empty"),
        (
            {"inputs": "x", "parameters": {"best_of": 2}},
            "/generate",
            "`best_of`: several answers need sampling (do_sample)",
        ),
        (
            {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, "seed": 1}},
            "/generate",
            "`seed`: it must not be set when best_of is more than 1",
        ),
        (
            {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}},
            "/generate_stream",
            "`best_of`: several answers are not supported when streaming tokens",
        ),
        (
            {"inputs": "x", "parameters": {"decoder_input_details": True}, "stream": True},
            "/",
            "`decoder_input_details`: it is not supported when streaming tokens",
        ),
        (
            {"inputs": "x", "parameters": {"temperature": -1}},
            "/generate",
            "`temperature`: Input should be greater than or equal to 0",
        ),
        (
            {"inputs": "x", "parameters": {"grammar": {"type": "json", "value": "{"}}},
            "/generate",
            "`grammar`: a JSON schema as text must be an object in valid JSON",
        ),
        (
            {"inputs": "x", "parameters": {"grammar": {"type": "ebnf"}}},
            "/",
            "`grammar`: its type must be json, json_schema or regex",
        ),
        (
            {"inputs": "x", "parameters": {"grammar": {"type": "json", "value": '{"a":' + "1" * 100_000 + "}"}}},
            "/generate",
            "`grammar`: a JSON schema as text may have at most 100000 characters",
        ),
        ({"inputs": ["x"]}, "/generate", "`inputs`: Input should be a valid string"),
        ({"prompt": "x"}, "/", "`inputs`: Field required"),
        (
            {"inputs": "x", "parameters": {"adapter_id": "lora"}},
            "/generate",
            "`adapter_id`: 'lora' is not served here; an adapter has to be a served model",
        ),
    ],
)
def test_what_tgi_refuses_is_refused_in_its_form(body: JSON, path: str, said: str) -> None:
    try:
        call = read(body, path)
        call.answered_by(TEXT_ONLY)
        call.requests()
    except RequestError as request_error:
        error = request_error.error
    except InvalidRequest as refused:
        error = refused
    else:
        raise AssertionError("it was read")
    assert STYLE.status(error) == 422
    assert STYLE.error(error) == {"error": f"Input validation error: {said}", "error_type": "validation"}


def test_an_answer_that_cannot_be_constrained_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="constrains no answers") as caught:
        ignored({"grammar": _JSON}, ALL - {"response_format"})
    assert caught.value.field == "parameters.grammar"


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (Overloaded("full"), 429, {"error": "Model is overloaded: full", "error_type": "overloaded"}),
        (ModelServerError("x"), 424, {"error": "Request failed during generation: x", "error_type": "generation"}),
        (Unreachable("x"), 503, {"error": "Request failed during generation: x", "error_type": "generation"}),
        (Timeout("x"), 504, {"error": "Request failed during generation: x", "error_type": "generation"}),
        (BrokenOff("x"), 500, {"error": "Incomplete generation: x", "error_type": "incomplete_generation"}),
        (LLMError("x"), 500, {"error": "Request failed during generation: x", "error_type": "generation"}),
        (Unauthorized("who"), 401, {"error": "who"}),
        (Forbidden("no"), 403, {"error": "no"}),
        (UnknownModel("a", "b"), 404, {"error": "model: 'a' is not served here; known: b"}),
        (NotSupported("no ids", "model"), 404, {"error": "model: no ids"}),
        (BodyTooLarge("big"), 413, {"error": "big"}),
        (
            PromptTooLong(9000, 8192),
            422,
            {
                "error": "Input validation error: the prompt has 9000 tokens, and the model's context window holds "
                "8192, of which at least 1 must be left for the answer. `inputs` must have less than 8191 tokens. "
                "Given: 9000",
                "error_type": "validation",
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_the_type_by_which_clients_know_it(error: LLMError, status: int, shown: JSON) -> None:
    assert (STYLE.status(error), STYLE.error(error)) == (status, shown)


# What it answers.

CHAT_LOGPROBS: JSON = {
    "content": [
        {
            "token": "Deep",
            "logprob": -0.5,
            "bytes": None,
            "top_logprobs": [{"token": "Deep", "logprob": -0.5}, {"token": "Long", "logprob": -1.5}],
        },
        {"token": " learning", "logprob": -1.5, "bytes": None, "top_logprobs": []},
    ]
}
TEXT_LOGPROBS: JSON = {
    "tokens": ["Deep", " learning"],
    "token_logprobs": [-0.5, -1.5],
    "top_logprobs": [{"Long": -1.5, "Deep": -0.5}, None],
    "text_offset": [0, 4],
}


def token(text: str, logprob: float | None = None, special: bool = False) -> JSON:
    return {"id": 0, "text": text, "logprob": logprob, "special": special}


TOKENS = [token("Deep", -0.5), token(" learning", -1.5)]


def replied(parameters: JSON, *generations: Generation, path: str = "/generate", **further: JSON) -> Any:
    call = read({"inputs": QUESTION, "parameters": parameters, **further}, path)
    return call.reply(generations, METADATA)


ANSWER = Generation("Deep learning", "stop", Usage(5, 2))


def test_an_answer_is_its_text() -> None:
    assert replied({}, ANSWER) == {"generated_text": "Deep learning"}
    assert replied({"return_full_text": True}, ANSWER) == {"generated_text": f"{QUESTION}Deep learning"}
    assert replied({}, replace(ANSWER, text="")) == {"generated_text": ""}


def test_at_the_root_it_is_in_a_list_and_begins_with_the_inputs_as_tgi_s() -> None:
    assert replied({}, ANSWER, path="/") == [{"generated_text": f"{QUESTION}Deep learning"}]
    assert replied({"return_full_text": False}, ANSWER, path="/") == [{"generated_text": "Deep learning"}]


@pytest.mark.parametrize("logprobs", [CHAT_LOGPROBS, TEXT_LOGPROBS])
def test_the_details_have_the_tokens(logprobs: JSON) -> None:
    answer = replace(ANSWER, extra={"logprobs": logprobs})
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": 7, "prefill": [], "tokens": TOKENS}
    assert replied({"details": True, "seed": 7}, answer) == {"generated_text": "Deep learning", "details": details}
    top = [[token("Deep", -0.5), token("Long", -1.5)], []]
    with_top = replied({"details": True, "seed": 7, "top_n_tokens": 2}, answer)
    assert with_top["details"] == {**details, "top_tokens": top}
    one = replied({"decoder_input_details": True, "top_n_tokens": 1}, answer)
    assert one["details"]["top_tokens"] == [[token("Deep", -0.5)], []]


@pytest.mark.parametrize(
    "logprobs",
    [
        {
            "content": [
                {"token": "Deep", "logprob": -1, "id": 5, "top_logprobs": [{"token": "x", "logprob": -2, "id": 6}]}
            ]
        },
        {
            "tokens": ["Deep"],
            "token_logprobs": [-1],
            "top_logprobs": [{"x": -2}],
            "token_ids": [5],
            "top_token_ids": [{"x": 6}],
        },
    ],
)
def test_tokens_have_the_ids_that_the_model_server_tells(logprobs: JSON) -> None:
    told = ({**token("Deep", -1), "id": 5}, {**token("x", -2), "id": 6})
    details = replied({"details": True, "top_n_tokens": 1}, replace(ANSWER, extra={"logprobs": logprobs}))["details"]
    assert (details["tokens"], details["top_tokens"]) == ([told[0]], [[told[1]]])
    delta = TextDelta("Deep", extra={"logprobs": logprobs})
    event = json.loads(streamed({"top_n_tokens": 1}, delta, END)[0].removeprefix(b"data:"))
    assert (event["token"], event["top_tokens"]) == (told[0], [told[1]])


def test_the_details_of_a_model_server_that_tells_no_tokens_have_none() -> None:
    details = replied({"details": True}, replace(ANSWER, reason="length"))["details"]
    told = {"finish_reason": "length", "generated_tokens": 2, "seed": None, "prefill": [], "tokens": []}
    assert details == told


def test_an_answer_that_a_stop_string_ended_says_so_where_that_is_known() -> None:
    details = replied({"details": True}, replace(ANSWER, stop_string="."))["details"]
    assert details["finish_reason"] == "stop_sequence"
    last = streamed({"details": True}, *BEGUN, replace(END, stop_string="."))[-1]
    assert json.loads(last.removeprefix(b"data:"))["details"]["finish_reason"] == "stop_sequence"


def test_of_several_answers_the_one_with_the_likeliest_tokens_is_given() -> None:
    def generation(text: str, reason: str, *scores: float) -> Generation:
        logprobs = {"tokens": [text] * len(scores), "token_logprobs": scores, "top_logprobs": None}
        return Generation(text, reason, Usage(5, len(scores)), {"logprobs": logprobs})

    made = [generation("a", "stop", -2, -1), generation("b", "length", -1), generation("c", "stop", -1.25, -1)]
    parameters = {"best_of": 3, "do_sample": True, "details": True}
    reply = replied(parameters, *made)
    assert reply["generated_text"] == "b"
    assert reply["details"]["finish_reason"] == "length"
    others = reply["details"]["best_of_sequences"]
    assert [(one["generated_text"], one["generated_tokens"], len(one["tokens"])) for one in others] == [
        ("a", 2, 2),
        ("c", 2, 2),
    ]
    call = read({"inputs": QUESTION, "parameters": parameters})
    assert call.ends(made) == ["length", "stop", "stop"]
    assert replied({**parameters, "details": False}, *made) == {"generated_text": "b"}


def annotation(start: int, end: int) -> JSON:
    inner = {"start_index": start, "end_index": end, "title": "", "number": 1}
    return {"type": "document_citation", "document_citation": inner}


def test_citations_are_beside_the_text_with_their_places_in_it() -> None:
    answer = replace(ANSWER, text="Deep [1]", extra={"annotations": [annotation(5, 8), {"type": "other"}]})
    assert replied({}, answer)["annotations"] == [annotation(5, 8), {"type": "other"}]
    (full,) = replied({}, answer, path="/")
    length = len(QUESTION)
    assert full["annotations"] == [annotation(length + 5, length + 8), {"type": "other"}]
    assert full["generated_text"][length + 5 : length + 8] == "[1]"


# What it streams.


def streamed(
    parameters: JSON, *events: Any, path: str = "/generate_stream", switches: Switches | None = None, **further: JSON
) -> list[bytes]:
    call = read({"inputs": QUESTION, "parameters": parameters, "stream": True, **further}, path, switches)
    return written(call, *events, reports={0: Report()})


END = Finished("stop", Usage(5, 2))
BEGUN = (TextDelta("Deep"), TextDelta(' "☃"'))
TEXTS = [
    b'data:{"index":1,"token":{"id":0,"text":"Deep","logprob":null,"special":false},"generated_text":null,'
    b'"details":null}\n\n',
    'data:{"index":2,"token":{"id":0,"text":" \\"☃\\"","logprob":null,"special":false},"generated_text":null,'
    '"details":null}\n\n'.encode(),
]


def test_a_stream_has_an_event_for_each_token_and_one_with_the_whole_text() -> None:
    last = (
        'data:{"index":3,"token":{"id":0,"text":"","logprob":null,"special":true},"generated_text":"Deep \\"☃\\"",'
        '"details":null}\n\n'
    )
    assert streamed({}, *BEGUN, END) == [*TEXTS, last.encode()]


def test_the_last_event_has_the_details_if_they_are_wanted() -> None:
    last = streamed({"details": True, "seed": 7}, *BEGUN, Finished("length", Usage(5, 2)))[-1]
    details = {"finish_reason": "length", "generated_tokens": 2, "seed": 7, "input_length": 5}
    assert json.loads(last.removeprefix(b"data:"))["details"] == details
    uncounted = streamed({"details": True}, *BEGUN, Finished("stop"))[-1]
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": None}
    assert json.loads(uncounted.removeprefix(b"data:"))["details"] == details


def test_without_details_an_answer_that_was_cut_is_told_in_a_comment() -> None:
    assert streamed({}, *BEGUN, Finished("length"))[-1] == b": finish_reason=length\n\n"
    assert streamed({"details": True}, *BEGUN, Finished("length"))[-1].startswith(b"data:")


def test_an_answer_that_was_filtered_is_told_in_a_comment_even_with_details() -> None:
    *_, last, behind = streamed({"details": True}, *BEGUN, replace(END, reason="content_filter"))
    assert json.loads(last.removeprefix(b"data:"))["details"]["finish_reason"] == "eos_token"
    assert behind == b": finish_reason=content_filter\n\n"


def test_an_empty_answer_is_its_last_event() -> None:
    (only,) = streamed({}, END)
    assert json.loads(only.removeprefix(b"data:"))["generated_text"] == ""


def test_at_the_root_the_whole_text_begins_with_the_inputs() -> None:
    events = [json.loads(item.removeprefix(b"data:")) for item in streamed({}, *BEGUN, END, path="/")]
    assert [event["token"]["text"] for event in events] == ["Deep", ' "☃"', ""]
    assert events[-1]["generated_text"] == f'{QUESTION}Deep "☃"'


def test_a_token_has_its_logprob_and_the_likeliest_ones() -> None:
    delta = TextDelta("Deep learning", extra={"logprobs": CHAT_LOGPROBS})
    events = [json.loads(item.removeprefix(b"data:")) for item in streamed({"top_n_tokens": 1}, delta, END)]
    assert [event["token"] for event in events[:-1]] == TOKENS
    assert [event.get("top_tokens") for event in events] == [[token("Deep", -0.5)], None, None]
    assert [event["index"] for event in events] == [1, 2, 3]
    assert events[-1]["generated_text"] == "Deep learning"


def test_tokens_within_a_character_lose_no_text() -> None:
    pieces = {"tokens": ["\ufffd", "\ufffd"], "token_logprobs": [-1, -2], "top_logprobs": None}
    events = streamed({"details": True}, TextDelta("é", extra={"logprobs": pieces}), END)
    told = [json.loads(item.removeprefix(b"data:")) for item in events]
    assert [event["token"]["text"] for event in told] == ["é", "", ""]
    assert [event["token"]["logprob"] for event in told] == [-1, -2, None]
    assert told[-1]["generated_text"] == "é"


def test_what_has_no_place_is_left_out() -> None:
    further = [TextDelta("", extra={"reasoning_content": "hm"}), TextDelta("", extra={"tool_calls": [{"index": 0}]})]
    assert streamed({}, *further, *BEGUN, END) == streamed({}, *BEGUN, END)


def test_a_stream_tells_what_it_cites_where_that_is_asked_for() -> None:
    events = (*BEGUN, TextDelta("", extra={"annotations": [annotation(0, 4)]}), END)
    for further in ({"citations": "matched"}, {"include_report": True}):
        last = json.loads(streamed({}, *events, **further)[-1].removeprefix(b"data:"))
        assert last["annotations"] == [annotation(0, 4)]
        assert ("report" in last) is ("include_report" in further)
    assert streamed({}, *events) == streamed({}, *BEGUN, END)


def test_what_is_cited_beside_a_text_is_told_and_all_of_it() -> None:
    cited = [TextDelta(text, extra={"annotations": [annotation(place, 4)]}) for place, text in enumerate(("Deep", ""))]
    last = json.loads(streamed({}, *cited, END, citations="matched")[-1].removeprefix(b"data:"))
    assert last["annotations"] == [annotation(0, 4), annotation(1, 4)]


def test_a_refusal_is_the_text() -> None:
    refused = {"refusal": "I cannot."}
    assert replied({}, replace(ANSWER, text="", extra=refused)) == {"generated_text": "I cannot."}
    event, last = streamed({}, TextDelta("", extra=refused), END)
    assert json.loads(event.removeprefix(b"data:"))["token"]["text"] == "I cannot."
    assert json.loads(last.removeprefix(b"data:"))["generated_text"] == "I cannot."


def test_where_streaming_is_switched_off_there_is_one_event() -> None:
    scored = TextDelta(" learning", extra={"logprobs": TEXT_LOGPROBS})
    (only,) = streamed({}, TextDelta("Deep"), scored, END, switches=Switches(disable_streaming=True))
    event = json.loads(only.removeprefix(b"data:"))
    assert event["token"] == token("Deep learning")
    assert event["generated_text"] == "Deep learning"


# Tokens.


def test_tokens_are_told_with_their_places_in_bytes() -> None:
    call = TGITokenizeCall.model_validate({"inputs": "é b"})
    assert call.reply([Token(1, 0), Token(7, 1), Token(8, 3)]) == [
        {"id": 1, "text": "", "start": 0, "stop": 0},
        {"id": 7, "text": "é", "start": 0, "stop": 2},
        {"id": 8, "text": " b", "start": 2, "stop": 4},
    ]


def test_of_a_tokenizer_without_places_the_ids_are_told() -> None:
    call = TGITokenizeCall.model_validate({"inputs": "é b"})
    assert call.reply([Token(7, None)]) == [{"id": 7, "text": "", "start": 0, "stop": 0}]


# The service.


async def test_its_routes_answer_over_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Deep", " learning"]
    async with running(Able([words], context_window=9000), monkeypatch, ONLY) as service:
        whole = await service.post({"inputs": QUESTION, "parameters": {"max_new_tokens": 1}}, "/generate")
        root = await service.post({"inputs": QUESTION}, "/")
        stream = await service.post({"inputs": QUESTION, "stream": True}, "/")
        tokens = await service.post({"inputs": "ab", "parameters": {"truncate": 1}}, "/tokenize")
        info, health = await service.get("/info"), await service.get("/health")
    assert (whole.json, whole.headers["x-finish-reason"]) == ({"generated_text": "Deep"}, "length")
    assert root.json == [{"generated_text": f"{QUESTION}Deep learning"}]
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert len(stream.chunks) == 3
    assert tokens.json == [
        {"id": 97, "text": "a", "start": 0, "stop": 1},
        {"id": 98, "text": "b", "start": 1, "stop": 2},
    ]
    assert tokens.headers["x-ignored-params"] == "parameters.truncate"
    assert info.json["model_id"] == "scripted"
    assert (info.json["max_input_tokens"], info.json["max_total_tokens"]) == (8999, 9000)
    assert health.status == 200


async def test_a_conversation_is_told_as_text_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "b"}]
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with running(Able(), monkeypatch, ONLY) as service:
        told = (await service.post({"messages": messages}, CHAT_TOKENIZE)).json
        lost = await service.post({"messages": messages, "tools": tools, "tool_prompt": "x", "seed": 1}, CHAT_TOKENIZE)
        wrong = await service.post({"messages": []}, CHAT_TOKENIZE)
    text = told["templated_text"]
    assert text == "<system>é<user>b{}"
    tokens = told["tokenize_response"]
    assert [token["id"] for token in tokens] == [ord(character) for character in text]
    encoded = text.encode()
    assert [one["text"] for one in tokens] == list(text)
    assert [encoded[one["start"] : one["stop"]].decode() for one in tokens] == list(text)
    assert lost.json == told
    assert sorted(lost.headers["x-ignored-params"].split(", ")) == ["seed", "tool_prompt", "tools"]
    assert (wrong.status, wrong.json["error_type"]) == (422, "validation")


async def test_functions_are_in_the_text_of_a_conversation_unless_the_model_calls_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Calling(Able):
        async def describe(self) -> ModelInfo:
            return ModelInfo("scripted", None, frozenset({"tools", "tool_choice", CALLS_ON_DEMAND}))

    body = {"messages": "?", "tools": [{"type": "function", "function": {"name": "look"}}]}
    async with running(Calling(), monkeypatch, ONLY) as service:
        of_its_own, demanded = [
            await service.post({**body, **choice}, CHAT_TOKENIZE) for choice in ({}, {"tool_choice": "required"})
        ]
    assert of_its_own.headers["x-ignored-params"] == "tools"
    assert "x-ignored-params" not in demanded.headers
    assert "'look'" in demanded.json["templated_text"]


@pytest.mark.parametrize("ability", ["render", "tokenize"])
async def test_a_model_server_that_renders_or_tokenizes_nothing_has_no_text_of_a_conversation(
    monkeypatch: pytest.MonkeyPatch, ability: str
) -> None:
    server = Able()

    async def refuse(*_: Any) -> None:
        raise Refused(404, "no such route")

    monkeypatch.setattr(server, ability, refuse)
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"messages": "?"}, CHAT_TOKENIZE)
    assert answer.status == 404
    assert ("chat template" if ability == "render" else "no token ids") in answer.json["error"]


async def test_a_model_server_that_tells_no_ids_has_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post({"inputs": "ab"}, "/tokenize")
    assert answer.status == 404
    assert answer.json == {"error": "model: the model server of scripted tells no token ids"}


async def test_to_clients_of_vllm_its_route_of_the_same_name_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch) as service:
        bodies: list[JSON] = [{"prompt": "ab"}, {"messages": []}, {}]
        answers = [await service.post(body, "/tokenize") for body in bodies]
    assert [answer.status for answer in answers] == [404, 404, 422]
    assert answers[0].json == {"error": "the route /tokenize of vLLM is not here; a text to tokenize is in `inputs`"}


async def test_beside_the_others_on_their_path_inputs_choose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["Deep"]]), monkeypatch) as service:
        ours = await service.post({"inputs": QUESTION}, "/generate")
        llama = await service.post({"prompts": [QUESTION]}, "/generate")
        text = await service.post({"prompt": QUESTION}, "/generate")
    assert ours.json == {"generated_text": "Deep"}
    assert set(llama.json) == {"results"}
    assert text.json == "Deep"


async def test_an_adapter_is_a_served_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "config.ini").write_text("[Model]\nmodel_server = scripted\n[Model.lora]\n")
    monkeypatch.chdir(tmp_path)
    servers = {"scripted": Scripted([["base"]]), "lora": Scripted([["adapted"]])}
    async with running(servers, monkeypatch, ONLY) as service:
        body = {"inputs": QUESTION, "parameters": {"adapter_id": "lora"}}
        adapted = await service.post(body, "/generate")
        contradiction = await service.post({**body, "model": "scripted"}, "/generate")
        tagged = await service.post({"inputs": "?", "parameters": {"adapter_id": "lora:latest"}}, "/generate")
    assert adapted.json == tagged.json == {"generated_text": "adapted"}
    assert "x-ignored-params" not in tagged.headers
    assert contradiction.status == 422


async def test_documents_are_packed_cited_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fact = "Intel Gaudi 2 has 96 GB of memory on board."
    body = {"inputs": "How much memory?", "documents": [fact], "citations": "matched", "include_report": True}
    server = Scripted([[fact]])
    async with running(server, monkeypatch, ONLY) as service:
        whole = await service.post(body, "/generate")
        stream = await service.post(body, "/generate_stream")
    assert whole.headers["x-documents-used"] == stream.headers["x-documents-used"] == "1"
    last = json.loads(stream.chunks[-1].removeprefix(b"data:"))
    for told in (whole.json, last):
        (cited,) = told["annotations"]
        span = cited["document_citation"]
        assert told["generated_text"][span["start_index"] : span["end_index"]] == fact
        assert [use["fate"] for use in told["report"]["documents"]] == ["kept"]
    assert all(fact in str(prompt) for prompt, _, _ in server.asked)


async def test_details_are_no_reason_to_refuse_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([[InvalidRequest("none of a chat", "logprobs")], ["Deep"]])
    monkeypatch.setattr(server, "_info", replace(CHATTING, name="scripted"))
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"inputs": QUESTION, "parameters": {"details": True}}, "/generate")
    assert answer.json["generated_text"] == "Deep"
    assert [options for _, _, options in server.asked] == [{"logprobs": True}, {}]


@pytest.mark.parametrize("further", [{"best_of": 2, "do_sample": True}, {"top_n_tokens": 2}])
async def test_what_needs_log_probabilities_is_refused_where_the_model_server_refuses_them(
    monkeypatch: pytest.MonkeyPatch, further: dict[str, JSON]
) -> None:
    server = Scripted([[InvalidRequest("none of a chat", "logprobs")]])
    monkeypatch.setattr(server, "_info", replace(CHATTING, name="scripted"))
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"inputs": QUESTION, "parameters": {"details": True, **further}}, "/generate")
    assert (answer.status, "`logprobs`: none of a chat" in answer.json["error"]) == (422, True)


async def test_a_prompt_that_is_too_long_is_not_asked_again_without_details(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([[PromptTooLong(9000, 8192)]])
    monkeypatch.setattr(server, "_info", replace(CHATTING, name="scripted"))
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"inputs": QUESTION, "parameters": {"details": True}}, "/generate")
    assert (answer.status, len(server.asked)) == (422, 1)
