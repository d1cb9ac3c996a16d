"""GGUF files: numbers in the header, such as the context window, and a path by which OpenVINO can open the file.

The `gguf` package reads the header too, but the whole vocabulary as well: 2 s for 49,000 tokens, at every start.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type numbers of the format, as `struct` writes them."""
_STRING, _ARRAY = 8, 9


def gguf_window(file: IO[bytes]) -> int | None:
    """The context window of a GGUF file, in tokens; see `gguf_number`."""
    return gguf_number(file, "context_length")


def gguf_number(file: IO[bytes], name: str) -> int | None:
    """The `<architecture>.<name>` of a GGUF file; None if it has none, or is no GGUF file."""
    try:
        if file.read(4) != b"GGUF":
            return None
        _version, _tensors, count = struct.unpack("<IQQ", file.read(20))
        for _ in range(count):
            key = _string(file)
            value = _value(file, _number(file, "I"))
            if key.endswith(f".{name}".encode()) and isinstance(value, int):
                return value
    except (struct.error, ArithmeticError, MemoryError, OSError, RecursionError, ValueError):
        return None  # Truncated, or no GGUF file after all: the engine's own error says more.
    return None


@contextmanager
def openable(model: Path) -> Iterator[Path]:
    """A path by which OpenVINO GenAI can open a model: it opens a GGUF file for writing too, though it writes nothing.

    Of a GGUF file that may not be written, that is a copy in memory, which is freed when it is closed.
    """
    if model.is_dir() or os.access(model, os.W_OK):
        yield model
        return
    with os.fdopen(os.memfd_create(model.name), "wb") as copy:
        with model.open("rb") as source:
            shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        with TemporaryDirectory(prefix="opea-llm-", dir=_folder(), ignore_cleanup_errors=True) as folder:
            link = Path(folder) / "model.gguf"
            link.symlink_to(f"/proc/{os.getpid()}/fd/{copy.fileno()}")
            yield link


def _folder() -> str:
    """A folder for a link: a container whose file system is read-only has /dev/shm."""
    try:
        return gettempdir()
    except FileNotFoundError:
        return "/dev/shm"


def _value(file: IO[bytes], kind: int) -> int | float | None:
    """Read the next value, of that type; None for strings and arrays, which are skipped."""
    if kind == _STRING:
        file.seek(_number(file, "Q"), 1)
    elif kind == _ARRAY:
        item, length = _number(file, "I"), _number(file, "Q")
        if item in _SCALARS:
            file.seek(length * struct.calcsize(_SCALARS[item]), 1)
        else:
            for _ in range(length):
                _value(file, item)
    else:
        return _number(file, _SCALARS.get(kind, "Q"))
    return None


def _string(file: IO[bytes]) -> bytes:
    return file.read(_number(file, "Q"))


def _number(file: IO[bytes], kind: str) -> int:
    number: int = struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0]
    return number
