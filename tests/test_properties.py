"""Parsers and encoders hold their promises for any input, not for examples alone."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comps.config_files import read_config_file
from comps.core.answers import Collector
from comps.core.citations import marks
from comps.core.errors import InvalidRequest, LLMError, SettingsError
from comps.core.redaction import without_keys, without_quotes
from comps.core.stop_strings import Stopped, cut
from comps.core.types import Finished, Generation, Message
from comps.core.whitespace import _without_blank_lines
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.framing import ResponseMetadata
from comps.model_servers.chat_templates.formats import FORMATS
from comps.model_servers.chat_templates.templates import chat_template
from comps.model_servers.remote import parsing
from comps.model_servers.remote.chunks import ChunkReader, parse_chunk
from comps.model_servers.remote.failures import WRONG_STRUCTURE
from comps.model_servers.remote.parsing import parse_json, parsed_in_pieces
from comps.model_servers.remote.sse import EventStream
from comps.model_servers.remote.tgi_answers import TokenReader
from tests.dialects.kinds import KINDS, Kind

FEW = settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
TEXT = st.text(st.characters(codec="utf-8"))
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("choices", "delta", "message", "content", "text", "index", "finish_reason", "usage", "error", "tool_calls")
CHUNKS = st.dictionaries(st.sampled_from(FIELDS), JSONS) | st.fixed_dictionaries(
    {"choices": st.lists(st.dictionaries(st.sampled_from(FIELDS), JSONS) | JSONS, max_size=3)}
)
STREAM = st.lists(
    st.sampled_from(
        [b"data: ", b"data:", b"event: error", b"id: 1", b": ", b"\n", b"\r\n", b"\r", b"\n\n", b"{", b"[DONE]"]
    )
    | st.binary(max_size=6),
    max_size=30,
).map(b"".join)

WRITERS = [kind for kind in KINDS if kind.bodies(streamed=True) and kind.dialect != "llm_api"]
"""The kinds of bodies with streams whose texts can be read back; llm-api's do not tell a line break from an event's."""
templates = cache(chat_template)


def events(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    stream = EventStream(lambda data, name: found.append((bytes(data), bytes(name))))
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    return found


@FEW
@given(STREAM, st.lists(st.integers(0, 200), max_size=8))
def test_however_a_stream_is_split_its_events_are_the_same(stream: bytes, at: list[int]) -> None:
    places = sorted({0, len(stream), *(place for place in at if place < len(stream))})
    split = [stream[start:end] for start, end in pairwise(places)]
    assert events(split) == events([stream]) == events([stream[n : n + 1] for n in range(len(stream))])


@FEW
@given(CHUNKS | JSONS)
def test_any_chunk_is_read_or_an_error_of_a_model_server(chunk: Any) -> None:
    data = json.dumps(chunk).encode()
    for reader in (ChunkReader(Collector()), TokenReader(Stopped(Collector(), ()))):
        try:
            reader.event(data)
            if isinstance(reader, ChunkReader):
                reader.close()
        except (LLMError, *WRONG_STRUCTURE):
            pass  # `checked_answer` makes one error of a wrong structure.


@FEW
@given(st.binary(max_size=60) | JSONS.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_without_halves_of_characters_or_a_value_error(data: bytes) -> None:
    try:
        value = parse_json(data)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False).encode()  # Raises if a half is left.
    with suppress(LLMError):
        assert type(parse_chunk(data)) is dict


@FEW
@given(
    st.binary(max_size=60)
    | JSONS.map(lambda value: json.dumps(value).encode())
    | JSONS.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
    | st.integers(0, 2_000).map(lambda levels: b"[" * levels + b"]" * levels)
)
@example(b'{"a": 1, "a": [NaN], "\\ud800": "\\ud800"}')
@example(b'\xef\xbb\xbf{"a": 1}')
def test_json_in_pieces_is_what_it_is_at_once(data: bytes) -> None:
    def parsed(*loads: Any) -> Any:
        try:
            return repr(parse_json(data, *loads))  # In which NaN is equal to NaN, and 1 is not 1.0.
        except ValueError:
            return ValueError

    for at_once in (0, 5):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(parsing, "LONG", at_once)
            assert parsed(parsed_in_pieces) == parsed()


@pytest.mark.parametrize("kind", WRITERS, ids=str)
@FEW
@given(pieces=st.lists(TEXT.filter(bool), max_size=4))
def test_any_text_comes_back_out_of_what_a_writer_wrote(kind: Kind, pieces: list[str]) -> None:
    call = kind.call.model_validate({**kind.bodies(streamed=True)[0], **kind.variables})
    assert isinstance(call, GenerationCall)
    items: list[bytes] = []
    writer = call.writer(ResponseMetadata("0" * 32, 0, "m"), items.append)
    for piece in pieces:
        writer.text(piece)
    writer.finished(Finished("stop"))
    writer.close()
    assert "".join(pieces) in read_back(kind, items)


def read_back(kind: Kind, items: list[bytes]) -> str:
    """The text of a stream, as its clients read it."""
    if kind.dialect == "square":
        frames = b"".join(items).split(b"\0")
        assert frames[-1] == b""
        texts = [json.loads(frame)["text"] for frame in frames[:-1] if frame]
        return str(texts[-1]) if texts else ""
    said = [event for item in items for event in item.decode().removesuffix("\n\n").split("\n\n")]
    data = [event.rpartition("\ndata: ")[2].removeprefix("data:").removeprefix(" ") for event in said]
    return "".join(map(text_in, data))


def text_in(data: str) -> str:
    if data[:2] in ("b'", 'b"'):
        return str(eval(data, {"__builtins__": {}}).decode())
    if data[:1] != "{":
        return ""
    event = json.loads(data)
    if event.get("type") == "content-delta":
        return str(event["delta"]["message"]["content"]["text"])
    if event.get("type") == "content_block_delta":
        return str(event["delta"]["text"])
    if "token" in event:
        return str(event["token"]["text"])
    if event.get("type") == "response.output_text.delta":
        return str(event["delta"])
    choices = event.get("choices") or [{}]
    found = choices[0].get("delta", {}).get("content") or choices[0].get("text") or event.get("text")
    return str(found or event.get("message", {}).get("content") or event.get("response") or "")  # Or Ollama's.


@FEW
@given(TEXT, st.lists(TEXT.filter(bool), max_size=3))
def test_a_text_is_cut_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    ended = cut(Generation(text, "length"), tuple(stops))
    shown = ended.text
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert shown == text or any(text[len(shown) :].startswith(stop) for stop in stops)
    assert (ended.reason == "stop") is bool(ended.stop_string)
    assert not ended.stop_string or text[len(shown) :].startswith(ended.stop_string)


@FEW
@given(st.text("[]0123456789,;- ^【】n†a", max_size=40))
def test_the_marks_of_a_text_are_in_it_in_order(text: str) -> None:
    end = 0
    for mark in marks(text):
        assert end <= mark.start < mark.end <= len(text)
        end = mark.end


@FEW
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), TEXT), max_size=4))
def test_any_conversation_is_rendered_with_all_its_texts_or_refused(turns: list[tuple[str, str]]) -> None:
    for name in FORMATS:
        try:
            text = templates(name, "m").render([Message(role, said) for role, said in turns])
        except InvalidRequest:
            continue
        assert all(said.strip() in text for role, said in turns if role == "user")


@FEW
@given(st.binary(max_size=80) | st.text("[]=:#; \n\t\"'abModel.%{}-&*!|>", max_size=60).map(str.encode), st.booleans())
def test_any_configuration_file_is_read_or_an_error_of_settings(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, is_yaml: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / ("config.yaml" if is_yaml else "config.ini")
    Path(file).write_bytes(data)
    with suppress(SettingsError):
        read_config_file(file)


@FEW
@given(st.text(" \n\tab|", max_size=40))
def test_blank_lines_go_and_words_stay(text: str) -> None:
    tidy = _without_blank_lines(text)
    assert tidy.split() == text.split()
    assert " \n" not in tidy
    assert _without_blank_lines(tidy) == tidy


@FEW
@given(TEXT, TEXT)
def test_redaction_shortens_nothing_else(message: str, prompt: str) -> None:
    assert without_quotes(message, "") == message
    hidden = without_quotes(message + prompt, prompt) if len(prompt) >= 24 else "***"
    assert "***" in hidden
    assert without_keys(without_keys(message)) == without_keys(message)


@FEW
@given(JSONS)
def test_orjson_and_json_agree_on_what_both_can_write(value: Any) -> None:
    try:
        written = orjson.dumps(value)
    except TypeError:  # Halves of characters, or integers of more than 64 bits.
        return
    assert json.loads(written) == json.loads(orjson.dumps(json.loads(written)))
