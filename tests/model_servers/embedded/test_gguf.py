"""The context window in a GGUF header, found behind whatever stands before it."""

from __future__ import annotations

import os
import struct
import tempfile
from io import BytesIO
from pathlib import Path

import pytest

from comps.model_servers.embedded.gguf import gguf_window, openable

STRING, ARRAY, UINT32, BOOL, FLOAT64, UINT64, INT8, UINT16 = 8, 9, 4, 7, 12, 10, 1, 2


def number(form: str, value: float) -> bytes:
    return struct.pack("<" + form, value)


def text(value: str) -> bytes:
    return number("Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + number("I", kind) + value


def array(kind: int, *values: bytes) -> bytes:
    return number("I", kind) + number("Q", len(values)) + b"".join(values)


def gguf(*pairs: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs)) + b"".join(pairs)


WINDOW = pair("llama.context_length", UINT32, number("I", 8192))

BEFORE = {
    "nothing": b"",
    "string": pair("general.name", STRING, text("Smol 🦙")),
    "empty string": pair("general.name", STRING, text("")),
    "bool": pair("llama.flag", BOOL, number("?", True)),
    "one byte": pair("llama.small", INT8, number("b", -1)),
    "two bytes": pair("llama.short", UINT16, number("H", 65535)),
    "eight bytes": pair("llama.eps", FLOAT64, number("d", 1e-5)),
    "array of numbers": pair("tokenizer.scores", ARRAY, array(UINT16, *[number("H", n) for n in range(300)])),
    "array of strings": pair("tokenizer.tokens", ARRAY, array(STRING, text("<s>"), text(""), text("né"))),
    "empty array": pair("tokenizer.merges", ARRAY, array(STRING)),
    "nested arrays": pair(
        "odd.nest",
        ARRAY,
        array(ARRAY, array(STRING, text("a"), text("bc")), array(UINT32, number("I", 1)), array(ARRAY, array(INT8))),
    ),
    "another length": pair("llama.rope.scaling.original_context_length", UINT32, number("I", 2048)),
    "the window as text": pair("odd.context_length", STRING, text("4096")),
    "the window as a list": pair("odd.context_length", ARRAY, array(UINT32, number("I", 4096))),
}


@pytest.mark.parametrize("before", [pytest.param(value, id=name) for name, value in BEFORE.items()])
def test_the_window_is_found_behind_other_values(before: bytes) -> None:
    assert gguf_window(BytesIO(gguf(*filter(None, [before]), WINDOW))) == 8192


def test_the_window_is_found_behind_all_of_them() -> None:
    assert gguf_window(BytesIO(gguf(*filter(None, BEFORE.values()), WINDOW, tensors=7) + b"tensors")) == 8192


def test_the_architecture_may_be_any_and_the_number_of_any_width() -> None:
    window = pair("qwen3.context_length", UINT64, number("Q", 1 << 20))
    assert gguf_window(BytesIO(gguf(BEFORE["string"], window))) == 1 << 20


def test_nothing_behind_the_window_is_read() -> None:
    file = BytesIO(gguf(WINDOW, BEFORE["array of strings"]) + b"tensors")
    assert gguf_window(file) == 8192
    assert file.tell() == len(gguf(WINDOW))


@pytest.mark.parametrize("pairs", [(), (BEFORE["string"], BEFORE["array of strings"])], ids=["empty", "others"])
def test_a_file_without_a_window_has_none(pairs: tuple[bytes, ...]) -> None:
    assert gguf_window(BytesIO(gguf(*pairs))) is None


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"gguf" + gguf(WINDOW)[4:]])
def test_a_file_that_is_no_gguf_has_none(content: bytes) -> None:
    assert gguf_window(BytesIO(content)) is None


def test_a_file_cut_short_anywhere_has_none() -> None:
    whole = gguf(*filter(None, BEFORE.values()), WINDOW)
    assert {gguf_window(BytesIO(whole[:length])) for length in range(len(whole))} == {None}


@pytest.mark.parametrize("length", [2**45, 2**63, 2**64 - 1])
def test_a_length_that_no_file_has_is_no_window(length: int) -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    assert gguf_window(BytesIO(header + struct.pack("<Q", length))) is None
    assert gguf_window(BytesIO(header + struct.pack("<Q1sIQ", 1, b"k", 8, length))) is None


def test_a_file_that_may_be_written_is_opened_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    with openable(file) as path:
        assert path == file
    with openable(tmp_path) as path:
        assert path == tmp_path


@pytest.mark.parametrize("nowhere_to_write", [False, True])
def test_a_file_that_may_not_be_written_is_opened_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere_to_write: bool
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + bytes(3_000_000))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    if nowhere_to_write:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with openable(file) as path:
        assert path.suffix == ".gguf"
        assert path.is_relative_to("/dev/shm") == nowhere_to_write
        with path.open("r+b") as opened:
            assert opened.read() == file.read_bytes()
            opened.write(b"not in the file")
    assert not path.parent.exists()
    assert file.stat().st_size == 3_000_004
