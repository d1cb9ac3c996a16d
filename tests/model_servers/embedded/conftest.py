"""What the tests of embedded models share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.model_servers.embedded.word_engine import Words


@pytest.fixture
async def words() -> AsyncIterator[Words]:
    """A loaded engine without a model."""
    server = Words("words")
    await server.load()
    yield server
    await server.aclose()
