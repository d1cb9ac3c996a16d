"""The OpenAPI document against the running service, with bodies that schemathesis makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
