"""The limits of a body, whatever its fields are."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from comps.dialects.openai import CHAT, openai
from comps.dialects.shared.base import Call, Switches
from comps.dialects.shared.endpoint import Endpoint, RequestError


def read(further: Any) -> Call:
    return Endpoint(CHAT, [openai(Switches())]).read(orjson.dumps({"messages": "?", "further": further}), {})


def nested(levels: int) -> Any:
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_as_many_levels_as_are_read() -> None:
    assert read(nested(100)).model_extra == {"further": nested(100)}
    with pytest.raises(RequestError, match="100 levels are read"):
        read(nested(101))


@pytest.mark.parametrize("text", ["[" * 200, "{" * 200, "," * 20_000])
def test_brackets_and_commas_in_a_text_are_no_levels_and_no_values(text: str) -> None:
    assert read(text).model_extra == {"further": text}


@pytest.mark.parametrize("most", [[0] * 10_000, [[0] * 10_000] * 9, {str(number): 0 for number in range(10_000)}])
def test_as_many_values_as_are_read(most: Any) -> None:
    assert read(most).model_extra == {"further": most}
