"""Siblings of the corpus, made by hypothesis: the same texts and questions, whatever else is around them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comps.core.answers import Collector
from comps.dialects.shared.base import GenerationCall
from comps.model_servers.remote.chunks import ChunkReader
from comps.model_servers.remote.sse import EventStream, is_done
from tests.corpus import Case, cases
from tests.dialects.kinds import KINDS, Kind

STREAMS = [case for case in cases("upstream") if "stream" in case.said and "pieces" in case.outcome]
# Of server-sent events alone: lines of JSON without them are read by another parser.
STREAMS = [case for case in STREAMS if case.get("server", "vllm") == "vllm" and "data:" in case["stream"]]
TEXTS = [kind for kind in KINDS if issubclass(kind.call, GenerationCall)]
SIBLINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.from_regex(r"x_[a-z]{1,6}", fullmatch=True)
NOT_NEEDED = {
    "chunk": ("id", "created", "model", "system_fingerprint", "service_tier", "usage", "prompt_logprobs", "kv"),
    "choice": ("logprobs", "stop_reason", "token_ids", "matched_stop"),
    "delta": ("role", "refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content"),
}
"""Fields of a chunk that its text does not need."""


def text_of(stream: bytes, cuts: list[int]) -> str:
    """The text of a stream that is cut at these places."""
    collector = Collector()
    reader = ChunkReader(collector)

    def read(data: bytes, name: bytes) -> None:
        if not is_done(data):
            reader.event(data, name)

    events = EventStream(read)
    places = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    for begin, end in pairwise(places):
        if begin < end:
            events.feed(stream[begin:end])
    events.close()
    reader.close()
    return collector.generation().text


@st.composite
def altered(draw: st.DrawFn, value: Any, kind: str = "chunk") -> Any:
    """A chunk with its fields in another order, with further ones, and others where the text does not need them."""
    if not isinstance(value, dict):
        return value
    inner = {"chunk": "choice", "choice": "delta"}.get(kind, "")
    fields = {}
    for name, one in value.items():
        if name == "choices" and isinstance(one, list):
            fields[name] = [draw(altered(choice, "choice")) for choice in one]
        else:
            fields[name] = draw(altered(one, inner)) if name == inner else one
    fields |= draw(st.dictionaries(NAMES, ANY, max_size=2))
    fields |= draw(st.dictionaries(st.sampled_from(NOT_NEEDED[kind]), ANY, max_size=2))
    return {name: fields[name] for name in draw(st.permutations(list(fields)))}


@SIBLINGS
@given(st.data(), st.sampled_from(STREAMS), st.lists(st.integers(0, 10_000), max_size=6))
def test_a_text_is_the_same_however_a_stream_is_cut_and_whatever_is_beside_it(
    data: st.DataObject, case: Case, cuts: list[int]
) -> None:
    events = []
    for event in case["stream"].rstrip("\n").split("\n\n"):
        try:
            chunk = json.loads(event.removeprefix("data: "))
        except ValueError:
            events.append(event)
        else:
            events.append("data: " + json.dumps(data.draw(altered(chunk))))
    stream = "\n\n".join([*events, ""]).encode("utf-8", "surrogatepass")
    assert text_of(stream, cuts) == text_of(case["stream"].encode(), [])


@SIBLINGS
@given(st.data(), st.sampled_from(TEXTS), st.dictionaries(NAMES, ANY, max_size=3))
def test_a_question_is_the_same_with_further_fields_nulls_and_in_another_order(
    data: st.DataObject, kind: Kind, further: dict[str, Any]
) -> None:
    example = data.draw(st.sampled_from(kind.examples))
    nulls = dict.fromkeys(data.draw(st.lists(st.sampled_from(sorted(kind.call.model_fields)), max_size=4)))
    body = {**further, **{name: None for name in nulls if kind.reads({**example, name: None})}, **example}
    body = {name: body[name] for name in data.draw(st.permutations(list(body)))}
    assert parts(kind, body) == parts(kind, example)


def parts(kind: Kind, body: dict[str, Any]) -> Any:
    """What a body asks for, without the fields that only some model servers know."""
    return [(one.prompt, one.documents, one.sampling) for one in requests(kind, body)]


def requests(kind: Kind, body: dict[str, Any]) -> Any:
    call = kind.call.model_validate({**body, **kind.variables})
    assert isinstance(call, GenerationCall)
    return call.requests()
