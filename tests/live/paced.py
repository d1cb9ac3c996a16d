"""A model server of known pace, in a process of its own: `python -m tests.live.paced PORT KEY`.

It has OpenAI's API with an API key, and says `w0 w1 w2 …`, a word every 20 ms, for as long as it may.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comps.app import make_app, read_settings
from comps.model_servers.scripted import Scripted

NAME = "paced"
SECONDS = 0.02
WORDS = tuple(f"w{number} " for number in range(10_000))


def serve(port: int, key: str) -> None:
    """Serve until told to stop."""
    os.environ |= {"LLM_NAME": NAME, "FRAMEWORK": "native", "LLM_DIALECTS": "openai", "USVC_MAX_RUNNING": "10000"}
    app = make_app(read_settings(Path(os.devnull)), {NAME: Scripted([WORDS], name=NAME, delay=SECONDS)})

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        known = dict(scope.get("headers", ())).get(b"authorization") == f"Bearer {key}".encode()
        open_to_all = scope["type"] != "http" or scope["path"] in ("/health", "/metrics")
        await (app if known or open_to_all else Response(status_code=401))(scope, receive, send)

    uvicorn.run(guarded, host="127.0.0.1", port=port, log_config=None, access_log=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
