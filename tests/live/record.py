"""Makes the recordings that the default tests play back: what a real model server answers, as it came over the wire.

`python -m tests.live.record SERVER` starts one of `tests/live/servers.py` and writes `traffic/SERVER/*.json`;
`python -m tests.live.record NAME URL MODEL` asks a server that runs already.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from comps.core.types import JSON
from tests.live.__main__ import prepare
from tests.live.conftest import started
from tests.live.servers import ROOT, SERVERS
from tests.model_servers.replay import TRAFFIC

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HEADERS = ("content-type", "transfer-encoding")
"""The headers that a client may go by; the others hold dates."""
LONGEST = 20_000
"""A recording is to be read by people as well."""
FUNCTION = {
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"word": {"type": "string", "maxLength": 8}}, "required": ["word"]},
}


def cases(model: str, stop: str) -> dict[str, tuple[str, JSON]]:
    """What is asked, by the recording's name: a path, and a body to post or None to get.

    Args:
        model: The served model's name.
        stop: A text that comes up in the answer to the question.
    """
    messages = [{"role": "user", "content": "What is Deep Learning?"}]
    chat = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    text = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    long = [{"role": "user", "content": "word " * 10_000}]
    called = {"type": "function", "function": {"name": FUNCTION["name"]}}
    return {
        "models": ("/v1/models", None),
        "health": ("/health", None),
        "tokenize": ("/tokenize", {"model": model, "prompt": "Once upon a time", "add_special_tokens": False}),
        "embeddings": ("/v1/embeddings", {"model": model, "input": ["one", "two"]}),
        "chat": (CHAT, chat),
        "chat_stream": (CHAT, {**chat, "stream": True}),
        "chat_stream_usage": (CHAT, {**chat, **stream}),
        "chat_stream_logprobs": (CHAT, {**chat, **stream, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}),
        "chat_stream_n2": (CHAT, {**chat, **stream, "temperature": 1, "seed": 1, "n": 2}),
        "chat_stream_stop": (CHAT, {**chat, **stream, "stop": [stop]}),
        "chat_stream_tool": (
            CHAT,
            {
                **{**chat, **stream, "max_tokens": 60},
                "tools": [{"type": "function", "function": FUNCTION}],
                "tool_choice": called,
            },
        ),
        "completions": (COMPLETIONS, text),
        "completions_stream": (COMPLETIONS, {**text, **stream}),
        "err_bad_temperature": (CHAT, {**chat, **stream, "temperature": -1}),
        "err_bad_max_tokens": (CHAT, {**chat, **stream, "max_tokens": -4}),
        "err_wrong_type": (CHAT, {**chat, **stream, "messages": "no list"}),
        "err_unknown_model": (CHAT, {**chat, **stream, "model": "no/such-model"}),
        "err_too_long": (CHAT, {**chat, **stream, "messages": long}),
    }


def ask(url: str, path: str, body: JSON) -> dict[str, Any]:
    """One request and its reply, in the form that `replay.recorded` reads; chunks are those of HTTP."""
    address = urlsplit(url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=300)
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    asked = time.monotonic()
    response = connection.getresponse()
    chunks: list[tuple[float, str]] = []
    while chunk := response.read1():  # At most what is left of an HTTP chunk.
        chunks.append((round(time.monotonic() - asked, 4), chunk.decode()))
    connection.close()
    return {
        "request": {"method": method, "path": path, "body": body if len(str(body)) < 4000 else "too long to be kept"},
        "status": response.status,
        "headers": {name: value for name in HEADERS if (value := response.headers.get(name))},
        "body_raw": "".join(chunk for _, chunk in chunks).replace(str(ROOT), ""),
        **({"chunks": chunks} if len(chunks) > 1 else {}),
    }


def record(server: str, url: str, model: str) -> None:
    """Ask all cases, and write those that the server knows the path of."""
    folder = TRAFFIC / server
    folder.mkdir(exist_ok=True)
    first = ask(url, *cases(model, "")["chat"])
    answer = json.loads(first["body_raw"])["choices"][0]["message"]["content"]
    for name, (path, body) in cases(model, stop=answer[5:8]).items():
        recording = ask(url, path, body)
        if recording["status"] in (404, 405) and name != "err_unknown_model":
            print(f"{server} has no {path}")
            continue
        if len(recording["body_raw"]) > LONGEST:
            print(f"{server} answers {name} at length; not kept")
            continue
        (folder / f"{name}.json").write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{folder.name}/{name}.json: {recording['status']}, {len(recording['body_raw'])} characters")


def main(arguments: list[str]) -> None:
    name, *where = arguments
    if where:
        url, model = where
        record(name, url, model)
        return
    server = SERVERS[name]
    if server.environment:
        prepare(server.environment)
    with tempfile.TemporaryDirectory() as folder, started(server, Path(folder)) as url:
        record(name, url, server.model_name)


if __name__ == "__main__":
    main(sys.argv[1:])
