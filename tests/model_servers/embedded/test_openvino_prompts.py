"""Long prompts are read in pieces: what a pipeline that counts is given to read in each step."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from comps.model_servers.embedded.decoding import Chunks
from comps.model_servers.embedded.openvino_prompts import PromptReader

MOST = 256
CHUNKS = Chunks(0.00045, MOST, 576)
"""Of the bundled model on four cores."""
LONG = numpy.arange(8000)


class Pipeline:
    """Reads as OpenVINO GenAI does: up to 256 tokens in a step, and none that are in its cache."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        """Of each step, how many tokens were there before, and how many were read."""
        self.room = 10_000
        self._cached: list[bytes] = []
        self._running: list[Handle] = []
        self.asked: list[Handle] = []

    def forget(self) -> None:
        self._cached.clear()

    def add(self, ids: Any) -> Handle:
        asked = ids.tobytes()
        cached = max((len(one) for one in self._cached if asked.startswith(one)), default=0)
        handle = Handle(ids, min(cached // ids.itemsize, len(ids) - 1))
        self._running.append(handle)
        self.asked.append(handle)
        return handle

    def step(self) -> None:
        for handle in self._running:
            count = min(MOST, len(handle.ids) - handle.read)
            if handle.read + count > self.room:
                handle.status = "IGNORED"
            elif handle.status == "RUNNING":
                self.reads.append((handle.read, count))
                handle.read += count
                self._cached.append(handle.ids[: handle.read].tobytes())
                handle.status = "FINISHED" if handle.read == len(handle.ids) else "RUNNING"
        self._running = [handle for handle in self._running if handle.status == "RUNNING"]


class Handle:
    def __init__(self, ids: Any, read: int) -> None:
        self.ids, self.read, self.status = ids, read, "RUNNING"

    def get_status(self) -> Any:
        return SimpleNamespace(name=self.status)

    def cancel(self) -> None:
        self.status = "CANCEL"


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture
def reader(pipeline: Pipeline) -> PromptReader:
    return PromptReader(pipeline.add, CHUNKS)


def read(reader: PromptReader, pipeline: Pipeline, alone: bool = False) -> Iterator[int]:
    """The requests whose prompts are read, as long as there are any."""
    while reader.busy:
        if (number := reader.step(alone)) is not None:
            yield number
        pipeline.step()


@pytest.mark.parametrize("alone", [True, False])
def test_a_long_prompt_is_read_once_in_pieces_that_shrink_where_others_are_answered(
    pipeline: Pipeline, reader: PromptReader, alone: bool
) -> None:
    reader.add(1, LONG)
    assert list(read(reader, pipeline, alone)) == [1]
    pipeline.add(LONG)
    pipeline.step()
    assert all(count <= (MOST if alone else CHUNKS.after(before)) for before, count in pipeline.reads)
    assert [sum(one) for one in pipeline.reads[:-1]] == [before for before, _ in pipeline.reads[1:]]
    assert sum(count for _, count in pipeline.reads) == len(LONG)
    assert {before % 32 for before, _ in pipeline.reads} == {0}  # A block of the cache is written once.
    assert {count for _, count in pipeline.reads[:-1]} == ({MOST} if alone else {256, 128, 64, 32})


def test_pieces_shrink_as_soon_as_another_is_answered(pipeline: Pipeline, reader: PromptReader) -> None:
    reader.add(1, LONG)
    for alone in (True, True, False, False, True):
        assert reader.step(alone) is None
        pipeline.step()
    assert [count for _, count in pipeline.reads] == [256, 256, 128, 128, 256]


def test_only_a_prompt_for_which_steps_would_take_too_long_is_read_in_pieces(reader: PromptReader) -> None:
    fast = PromptReader(lambda ids: None, Chunks(1e-5, MOST, 576))
    assert [one.takes(numpy.arange(length)) for one in (reader, fast) for length in (100, 1024, 1025, 8000)] == [
        *(False, False, True, True),
        *(False, False, False, False),
    ]


def test_prompts_are_read_one_after_the_other_and_a_cancelled_one_no_further(
    pipeline: Pipeline, reader: PromptReader
) -> None:
    for number in range(1, 6):
        reader.add(number, LONG[:600] + number)
    reader.cancel(4)
    numbers = read(reader, pipeline)
    assert next(numbers) == 1
    reader.step(False)
    reader.cancel(2)
    assert list(numbers) == [3, 5]
    reader.cancel(5)
    assert reader.step(False) is None
    assert {handle.ids[0] for handle in pipeline.asked} == {1, 2, 3, 5}


def test_what_is_in_the_cache_is_not_read_in_pieces_again(pipeline: Pipeline, reader: PromptReader) -> None:
    answered = numpy.concatenate([LONG[:5000], LONG[:100]])
    for number, prompt in enumerate((LONG[:5000], LONG[:5000], answered)):
        pipeline.reads.clear()
        reader.add(number, prompt)
        assert list(read(reader, pipeline)) == [number]
        assert number == 0 or len(pipeline.reads) < 5
    pipeline.forget()
    pipeline.reads.clear()
    reader.add(9, LONG[:5000])
    assert list(read(reader, pipeline)) == [9]
    assert pipeline.reads[0] == (0, MOST)  # It was expected to be in the cache.
    assert all(count <= CHUNKS.after(before) for before, count in pipeline.reads[1:])
    assert sum(count for _, count in pipeline.reads) < 5000 + MOST


def test_a_prompt_for_whose_pieces_there_is_no_room_is_left_to_the_request_itself(
    pipeline: Pipeline, reader: PromptReader
) -> None:
    pipeline.room = 1000
    for number in (1, 2):
        reader.add(number, LONG + number)
    assert list(read(reader, pipeline)) == [1, 2]
    assert sum(count for _, count in pipeline.reads) < 2 * pipeline.room
