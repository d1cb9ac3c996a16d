"""Long documents are encoded in pieces, as they are at once."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comps.core.types import JSON
from comps.dialects.shared.long_json import encoded_in_pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda within: st.lists(within, max_size=25) | st.dictionaries(st.text(), within, max_size=4),
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_a_document_in_pieces_is_the_same_as_at_once(document: JSON) -> None:
    assert b"".join(encoded_in_pieces(document)) == orjson.dumps(document)


@pytest.mark.parametrize(
    "items",
    [[1.5] * 25_000, [[1, "a"]] * 25, [{"a": []}] * 30, ["ü"] * 10_000],
    ids=["numbers", "lists", "objects", "texts"],
)
def test_a_long_list_has_all_its_items(items: JSON) -> None:
    pieces = encoded_in_pieces({"data": items * 20, "n": 1})
    assert len(pieces) > 1 or len(items) < 100
    assert b"".join(pieces) == orjson.dumps({"data": items * 20, "n": 1})
