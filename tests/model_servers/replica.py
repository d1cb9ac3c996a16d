"""A replica to be killed: a service in a process of its own, whose answers wait until its standard input says go on.

Of two answers one begins at once, and the other only when it may go on.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from comps.app import make_app, read_settings
from comps.model_servers.scripted import Scripted


async def serve() -> None:
    """Print the port and serve until the standard input is closed."""
    go_on = asyncio.Event()
    scripted = Scripted([["one", go_on, " two"], [go_on, "one", " two"]], name="served")
    settings = read_settings(None)
    app = make_app(settings, {"served": scripted})
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it.
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    go_on.set()
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(serve())
