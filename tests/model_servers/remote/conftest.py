"""The event loops that the tests of the client run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The service runs on uvloop; where it is used as a library, there is asyncio's own loop."""
    own: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return (
        {**own, "uvloop": uvloop.new_event_loop} if item.path.name in ("test_client.py", "test_connection.py") else own
    )
