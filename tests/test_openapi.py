"""The OpenAPI document against the running service, with bodies that schemathesis makes of it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service import Able, running

HELD = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BEYOND_SCHEMAS = ("/chat", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/prompt")
"""Paths whose bodies have rules that their schema does not tell, such as what a model server takes."""
FEW = settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


async def test_every_answer_is_one_that_the_openapi_document_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([["Deep", " learning"]]), monkeypatch) as service:
        wrong, operations = await asyncio.to_thread(broken, service.url)
    assert wrong == {}
    assert operations > 20


CASES = 20_000
PHASES = ("examples", "coverage", "fuzzing", "stateful")
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)


@pytest.mark.soak
async def test_twenty_thousand_valid_and_invalid_requests_get_answers_that_the_document_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All phases of schemathesis; without links in the document, the stateful one has nothing to do."""
    async with running(Able([["Deep", " learning"]]), monkeypatch) as service:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{service.url}/openapi.json",
            "--no-color",
        ]
        options = ["--phases", ",".join(PHASES), "--checks", ",".join(CHECKS), "--mode", "all", "--continue-on-failure"]
        further = ["--max-examples", str(CASES // 10), "--request-timeout", "60", "--suppress-health-check", "all"]
        running_it = await asyncio.create_subprocess_exec(
            *command, *options, *further, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        told = (await running_it.communicate())[0].decode()
    assert running_it.returncode == 0, told
    found = re.search(r"([\d,]+) generated", told)
    assert found
    assert int(found[1].replace(",", "")) >= CASES, told


def checking(operation: Any, checks: list[Any]) -> Callable[[], None]:
    """A test of one operation."""

    @FEW
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=checks, timeout=20)

    return check


def broken(url: str) -> tuple[dict[str, str], int]:
    """What is not as the document says, by operation; and how many operations there are."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    wrong: dict[str, str] = {}
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    for operation in operations:
        accepted = [] if operation.path in BEYOND_SCHEMAS else [positive_data_acceptance]
        try:
            checking(operation, [*HELD, *accepted])()
        except FailureGroup as error:
            wrong[operation.label] = "; ".join(f"{one}" for one in error.exceptions)[:600]
    return wrong, len(operations)
