"""Retries: how many a budget has, and the pauses before them."""

from __future__ import annotations

import pytest

from comps.core.retries import Retries


def test_a_new_budget_has_ten_and_each_request_adds_its_share() -> None:
    retries = Retries(0.2)
    taken = 0
    for _ in range(1000):
        retries.add_request()
        taken += retries.take("unreachable")
    assert 0.2 * 1000 <= taken <= 10 + 0.2 * 1000


def test_a_budget_that_nobody_needs_does_not_grow_without_end() -> None:
    retries = Retries(1.0)
    for _ in range(100_000):
        retries.add_request()
    assert sum(retries.take("unreachable") for _ in range(1000)) <= 101


@pytest.mark.parametrize("none", [Retries(0), Retries(most=0)])
def test_without_a_share_or_a_number_there_are_none(none: Retries) -> None:
    none.add_request()
    assert not none.take("unreachable")
    assert none.pause(0, "unreachable") is None


def test_pauses_are_random_and_double() -> None:
    first = [Retries().pause(0, "unreachable") or 9 for _ in range(100)]
    second = [Retries().pause(1, "unreachable") or 9 for _ in range(100)]
    assert 0.05 <= min(first) < max(first) <= 0.1
    assert 0.1 <= min(second) < max(second) <= 0.2
    assert len(set(first)) > 50
    assert Retries(most=2).pause(2, "unreachable") is None


def test_retry_after_is_kept_where_it_is_short_and_fits_the_deadline() -> None:
    pauses = [Retries().pause(0, "unreachable", least=2) or 9 for _ in range(100)]
    assert 2 <= min(pauses) < max(pauses) <= 2.4
    retries = Retries(most=1000)
    assert retries.pause(0, "unreachable", least=2, within=1.9) is None
    assert retries.pause(0, "unreachable", least=30, within=300) is None
    assert sum(retries.take("unreachable") for _ in range(20)) == 10  # These two have taken none.
