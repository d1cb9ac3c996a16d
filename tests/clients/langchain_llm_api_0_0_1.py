"""llm-api's client for LangChain against the service at the address given, in an environment of its own; prints what
it got."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain.callbacks.base import CallbackManager
from langchain.callbacks.streaming_stdout import StreamingStdOutCallbackHandler
from langchain_llm_api import LLMAPI, APIEmbeddings

URL, QUESTION = sys.argv[1], "What is the capital of France?"
PARAMS = {"n_predict": 300, "temp": 0.2}


class Listener(StreamingStdOutCallbackHandler):  # type: ignore[misc]  # Not installed where types are checked.
    """Keeps what it hears, instead of printing it."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.heard.append(token)


def plain() -> Any:
    return LLMAPI(host_name=URL, params=dict(PARAMS))(QUESTION)


def stopped() -> Any:
    return LLMAPI(host_name=URL, params=dict(PARAMS))(QUESTION, stop=[" fun"])


def streamed() -> Any:
    listener = Listener()
    heard_by = CallbackManager([listener])
    llm = LLMAPI(host_name=URL, params=dict(PARAMS), streaming=True, verbose=True, callback_manager=heard_by)
    return [llm(QUESTION), listener.heard]


def embeddings() -> Any:
    client = APIEmbeddings(host_name=URL)
    return [client.embed_query("a"), client.embed_documents(["a", "bcd"])]


print(json.dumps({one.__name__: one() for one in (plain, stopped, streamed, embeddings)}))
