"""The error tree: every class has a status, and the picture of the tree is the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import comps
from comps.core import errors
from comps.core.errors import (
    BodyTooLarge,
    BrokenOff,
    Forbidden,
    InvalidHTTP,
    InvalidRequest,
    LLMError,
    Malformed,
    ModelServerError,
    NotKept,
    NotSupported,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    TextTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    UnknownRoute,
    Unreachable,
    UnsupportedEncoding,
)
from comps.dialects.shared.base import STATUS, Style

EXPECTED: list[tuple[LLMError, int]] = [
    (LLMError("wrong"), 500),
    (InvalidRequest("wrong", "field"), 400),
    (Malformed("wrong", "field", []), 400),
    (PromptTooLong(9000, 8192), 400),
    (TextTooLong(9000, 8192), 400),
    (UnknownModel("this", "that"), 404),
    (BodyTooLarge("wrong", "body"), 413),
    (UnsupportedEncoding("br", "gzip"), 415),
    (InvalidHTTP("wrong", 431), 431),
    (UnknownRoute("wrong", 405), 405),
    (Forbidden("wrong"), 403),
    (Unauthorized("wrong"), 401),
    (NotKept("wrong"), 404),
    (NotSupported("wrong"), 400),
    (Overloaded("wrong"), 429),
    (ModelServerError("wrong"), 502),
    (Unreachable("wrong"), 503),
    (Timeout("wrong"), 504),
    (BrokenOff("wrong"), 502),
    (Refused(418, "no coffee"), 502),
    (SettingsError("wrong"), 500),
]

PLAIN = Style(str)


def tree(root: type[LLMError] = LLMError) -> Iterator[type[LLMError]]:
    """A class of the product and all that come from it."""
    yield root
    for child in root.__subclasses__():
        if child.__module__.partition(".")[0] == "comps":
            yield from tree(child)


def drawn() -> dict[str, str | None]:
    """The classes in the picture, each with the one that it hangs from."""
    assert errors.__doc__
    above: dict[int, str] = {}
    found: dict[str, str | None] = {}
    for line in errors.__doc__.splitlines():
        if picture := re.match(r"(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: {2,}|$)", line):
            depth = len(picture["branch"])
            found[picture["name"]] = above[depth - 4] if depth else None
            above[depth] = picture["name"]
    return found


@pytest.mark.parametrize(("error", "status"), EXPECTED, ids=lambda value: type(value).__name__)
def test_an_error_has_the_status_of_its_kind(error: LLMError, status: int) -> None:
    assert PLAIN.status(error) == status


def test_every_error_has_a_status() -> None:
    assert {type(error) for error, _ in EXPECTED} == set(tree())


def test_the_status_table_repeats_no_parent() -> None:
    for kind in STATUS:
        if kind is not LLMError:
            parent = next(parent for parent in kind.__mro__[1:] if parent in STATUS)
            assert STATUS[kind] != STATUS[parent], f"{kind.__name__} has the status of {parent.__name__} anyway"


def test_an_error_of_another_package_has_its_parent_s_status() -> None:
    class Asleep(Unreachable):
        """Of a model server that is not ours."""

    assert PLAIN.status(Asleep("zzz")) == 503


def test_a_dialect_may_have_a_status_of_its_own_for_a_kind_of_error() -> None:
    style = Style(str, {InvalidRequest: 422})
    assert [style.status(error) for error in (InvalidRequest("x"), PromptTooLong(2, 1), UnknownModel("x", "y"))] == [
        422,
        422,
        404,
    ]


def test_the_picture_of_the_tree_is_the_tree() -> None:
    parents = {kind.__name__: kind.__mro__[1].__name__ for kind in tree()}
    assert drawn() == {**parents, "LLMError": None}


def test_every_error_is_a_public_name() -> None:
    assert {kind.__name__ for kind in tree()} <= set(comps.__all__)


def test_a_message_begins_with_the_field_to_mend() -> None:
    error = InvalidRequest("must be positive", "max_tokens")
    assert (str(error), error.field) == ("max_tokens: must be positive", "max_tokens")
    bare = InvalidRequest("wrong")
    assert (str(bare), bare.field) == ("wrong", None)


def test_messages_carry_what_the_reader_needs() -> None:
    assert "9000 tokens" in str(PromptTooLong(9000, 8192))
    assert "8192" in str(PromptTooLong(9000, 8192))
    assert str(UnknownModel("this", "that")) == "model: 'this' is not served here; known: that"
    assert str(Refused(418, "no coffee")) == "the model server answered 418: no coffee"


@pytest.mark.parametrize("kind", [Overloaded, Unreachable])
def test_what_may_work_later_says_when(kind: type[Overloaded] | type[Unreachable]) -> None:
    assert kind("busy").retry_after == 1
    assert kind("busy", 30).retry_after == 30


def test_what_will_not_work_later_says_nothing_of_a_retry() -> None:
    retried = {type(error) for error, _ in EXPECTED if error.retry_after is not None}
    assert retried == {Overloaded, Unreachable}
