"""The table of faults in docs/faults.md."""

from __future__ import annotations

from tests.faults.__main__ import BESIDES, PAGE
from tests.faults.scripts import CASES
from tests.process import ROOT


def test_the_table_has_each_fault_and_each_test_that_it_names_is_there() -> None:
    page = PAGE.read_text("utf-8")
    assert [case.description for case in CASES if f"| {case.description} |" not in page] == []
    for fault, happens, test in BESIDES:
        assert f"| {fault} | {happens} | {test} |" in page
        assert (ROOT / "tests" / test).exists()
