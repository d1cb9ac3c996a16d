"""What goes along with the request that is being answered: its id (`X-Request-Id`), from the client to the log and the
model server, and its trace (W3C Trace Context), from the client to the model server."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")
"""The id of the running request; empty outside of one."""

TRACE_HEADERS: ContextVar[bytes] = ContextVar("TRACE_HEADERS", default=b"")
"""The lines of the headers `traceparent` and `tracestate` for the model server; empty if there is no trace."""
