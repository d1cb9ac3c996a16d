"""The id of the request that is being answered: `X-Request-Id`, from the client to the log and the model server."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")
"""The id of the running request; empty outside of one."""
