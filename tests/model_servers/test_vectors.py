"""Texts on their way to vectors: read in chunks, their mean, and what makes none."""

from __future__ import annotations

import numpy
import pytest

from comps.core.errors import InvalidRequest, TextTooLong
from comps.model_servers.embedded.vectors import Texts, check_texts


def test_texts_are_read_in_chunks_one_after_another_and_become_their_mean_s_direction() -> None:
    texts = Texts(7, [[1, 2, 3, 4, 5], [6]])
    chunks = []
    while not texts.done:
        tokens, before = texts.chunk(2)
        chunks.append((list(tokens), before))
        texts.add(len(tokens), numpy.array([3.0, 4.0]) * len(tokens) * (1 if before else 2))
    assert chunks == [([1, 2], 0), ([3, 4], 2), ([5], 4), ([6], 0)]
    part = texts.part
    assert part.pop("vectors") == [pytest.approx([0.6, 0.8])] * 2
    assert part == {"id": 7, "prompt_tokens": 6, "last": True}


def test_no_texts_are_done_at_once() -> None:
    texts = Texts(1, [])
    assert texts.done
    assert texts.part["vectors"] == []


def test_a_text_makes_a_vector_if_it_has_tokens_and_no_more_than_fit() -> None:
    check_texts([[1, 2], [3]], 2)
    check_texts([[1, 2], [3]], None)
    check_texts([], 2)
    with pytest.raises(TextTooLong) as caught:
        check_texts([[1], [1, 2, 3], []], 2)
    assert (caught.value.prompt_tokens, caught.value.context_window) == (3, 2)
    with pytest.raises(InvalidRequest, match="a text is empty") as empty:
        check_texts([[1], []], 2)
    assert empty.value.field == "input"
