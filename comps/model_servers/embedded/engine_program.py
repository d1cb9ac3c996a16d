"""The program of an engine's process, whatever the engine: read requests, let the engine take steps, write parts.

Input, a JSON line each:
    {"id": n, "load": {…}}                                           first, and once
    {"id": n, "generate": {"prompt": text | messages, "tools": […], "constraint": {…} | null, "sampling": {…},
                           "logprobs": {"alternatives": number, "prompt": bool} | null}}
    {"id": n, "count": text}
    {"id": n, "tokenize": text}
    {"id": n, "count_prompt": {"prompt": text | messages, "tools": […]}}
    {"id": n, "render": {"prompt": messages, "tools": […]}}
    {"id": n, "embed": [text, …]}
    {"cancel": n}                                                    n may have ended already
    {"id": 0, "ping": true}                                          to see whether the engine still takes steps
Output, a JSON line for each step, a list of parts:
    {"id": n, "context_window": tokens | null, "longest_token": characters, "chat_template": text,
     "has_chat_template": bool, "last": true}                                 loaded
    {"id": n, "text": piece, "logprobs"?: [record, …]}                        see `logprobs`
    {"id": n, "text": piece, "logprobs"?: […], "reason": "stop" | "length", "usage": [prompt, completion], "last": true}
    {"id": n, "count": tokens, "last": true}
    {"id": n, "tokens": [id, …], "ends": [characters, …] | null, "last": true}
    {"id": n, "text": rendered, "last": true}
    {"id": n, "vectors": [[number, …], …], "prompt_tokens": tokens, "last": true}
    {"id": 0, "pong": true, "last": true}
    {"id": n, "error": text, "field"?: name, "too_long"?: [prompt, window], "last": true}
    {"id": n, "error": text, "setting": true, "last": true}                   not loaded for a setting that is wrong

One thread calls the engine, so nothing is locked. The program ends when its input does. `engine_process` is the other
end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, Protocol, TypeAlias, runtime_checkable

from comps.core.errors import InvalidRequest, ModelServerError, PromptTooLong, SettingsError
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.constraints import Constraint
from comps.model_servers.embedded.logprobs import Wanted
from comps.model_servers.embedded.text import TokenEnds

Part: TypeAlias = dict[str, JSON]
Messages: TypeAlias = list[dict[str, JSON]]
"""Messages with `role` and `content`, a text, and what else the model's chat template reads."""
EnginePrompt: TypeAlias = str | Messages


_TOKENS_PER_STEP = 64
"""Of a text whose tokens are told; they take some milliseconds."""


class Engine(Protocol):
    """A model, and the requests that it works on. What its methods raise becomes the request's error."""

    context_window: int | None
    """In tokens; None: unknown."""
    longest_token: int
    """How many characters the longest token has."""
    chat_template: str
    """The model's chat template, in Jinja; empty: it has none, or it is unknown."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def start(
        self,
        number: int,
        prompt: EnginePrompt,
        sampling: Sampling,
        constraint: Constraint | None = None,
        tools: Sequence[JSON] = (),
        logprobs: Wanted | None = None,
    ) -> None:
        """Add a request to generate.

        Args:
            number: The request's id, which its parts carry.
            prompt: Text to continue, or messages.
            sampling: How to choose tokens, and how many.
            constraint: What the answer matches; only of a kind that the kind of model server has.
            tools: What the chat template renders of functions.
            logprobs: The records that its parts have; those of the prompt come before the last part.

        Raises:
            InvalidRequest: It cannot be served (`PromptTooLong` for the window).
        """
        ...

    def cancel(self, number: int) -> None:
        """Drop a request, if it is there."""
        ...

    def count(self, text: str) -> int:
        """The tokens of `text`, without special tokens."""
        ...

    def tokenize(self, text: str) -> Sequence[int]:
        """The ids of the tokens of `text` as the model reads it, with special tokens."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, in which special tokens have none."""
        ...

    def name_of(self, token: int) -> str:
        """The text of one token; of a special one its name, such as `<|im_start|>`."""
        ...

    def count_prompt(self, prompt: EnginePrompt, tools: Sequence[JSON] = ()) -> int:
        """The tokens of a prompt as the model reads it, with special tokens; raises like `start`."""
        ...

    def render(self, messages: Messages, tools: Sequence[JSON] = ()) -> str:
        """A conversation in the chat template, as the model reads it; raises like `start`."""
        ...

    def step(self) -> list[Part]:
        """Compute for at most a few hundred milliseconds; returns the parts that this made."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """An engine that can also embed texts."""

    def start_embedding(self, number: int, texts: Sequence[str]) -> None:
        """Add texts to embed, which `step` reads; raises like `Engine.start`."""
        ...


class MessageReader:
    """Reads messages from a file descriptor, one JSON document a line.

    Args:
        source: The file descriptor.
    """

    def __init__(self, source: int) -> None:
        self._source = source
        self._incomplete: list[bytes] = []
        """The pieces of a line whose end has not arrived; to join them with each piece would take quadratic time."""

    def read(self, wait: bool) -> list[dict[str, JSON]] | None:
        """All messages that have arrived, if any; None at the end of the input.

        Args:
            wait: Block until input has arrived. It may be less than a message.
        """
        arrived: list[dict[str, JSON]] = []
        while wait or select.select([self._source], [], [], 0)[0]:
            wait = False
            chunk = os.read(self._source, 1 << 20)
            if not chunk:
                return arrived or None
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                arrived.append(json.loads(b"".join((*self._incomplete, end))))
                self._incomplete = []
            self._incomplete.append(rest)
        return arrived


class PartWriter:
    """Writes parts to the standard output. What libraries print there goes to the standard error instead."""

    def __init__(self) -> None:
        self._output: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def write(self, parts: list[Part]) -> None:
        """Write parts as one line; nothing if there are none."""
        if parts:
            self._output.write(json.dumps(parts).encode() + b"\n")
            self._output.flush()


def serve(load: Callable[..., Engine]) -> None:
    """Load an engine as the first message says, and serve the standard input until it ends.

    Args:
        load: Makes the engine, of `model`, `device`, `settings` and `window`.
    """
    # A signal may be sent to all processes; the service decides when its engine ends, by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    reader, writer, loaded = MessageReader(0), PartWriter(), threading.Event()
    threading.Thread(target=_end_with_input, args=(loaded,), daemon=True).start()
    with suppress(BrokenPipeError):  # The service is gone.
        while (messages := reader.read(wait=True)) == []:
            pass
        if messages and (engine := _loaded(load, messages.pop(0), writer)):
            loaded.set()
            _serve(engine, messages, reader, writer)


def _end_with_input(loaded: threading.Event) -> None:
    """End the process if its input ends before the model is loaded: until then, nobody reads it."""
    hang_up = select.poll()
    hang_up.register(0, 0)
    hang_up.poll()
    if not loaded.is_set():
        os._exit(1)


def _loaded(load: Callable[..., Engine], message: dict[str, JSON], writer: PartWriter) -> Engine | None:
    """The engine, if it can be loaded; writes the part that tells so, or why it cannot."""
    try:
        engine = load(**message["load"])
    except Exception as error:  # Whatever it is, it goes to whoever waits for this engine.
        wrong, said = {}, last_line(error)
        if isinstance(error, SettingsError):
            wrong, said = {"setting": True}, "; ".join(error.problems)
        writer.write([{"id": message["id"], "error": said, **wrong, "last": True}])
        return None
    facts = {name: getattr(engine, name) for name in ("context_window", "longest_token", "chat_template")}
    facts["has_chat_template"] = _has_chat_template(engine)
    writer.write([{"id": message["id"], **facts, "last": True}])
    return engine


def _has_chat_template(engine: Engine) -> bool:
    try:
        engine.render([{"role": "user", "content": "?"}])
    except Exception:  # Each engine has its own.
        return False
    return True


def _serve(engine: Engine, messages: list[dict[str, JSON]], reader: MessageReader, writer: PartWriter) -> None:
    """Handle messages and take steps, until the input ends."""
    arrived: list[dict[str, JSON]] | None = messages
    unfinished: set[int] = set()
    """The requests that were added and have no last part yet."""
    tokenizing = Tokenizing(engine)
    while arrived is not None:
        writer.write([part for message in arrived if (part := _handle(engine, message, unfinished, tokenizing))])
        if tokenizing.busy:
            writer.write(tokenizing.step())
        if engine.busy:
            try:
                parts = engine.step()
            except Exception as error:  # Whatever it is, the engine's state cannot be relied on any longer.
                writer.write([{"id": number, "error": last_line(error), "last": True} for number in unfinished])
                raise
            unfinished.difference_update(part["id"] for part in parts if part.get("last"))
            writer.write(parts)
        arrived = reader.read(wait=not (engine.busy or tokenizing.busy))


class Tokenizing:
    """The texts whose tokens are told. It takes a step between those of the engine, since an answer would have to wait
    for all tokens of a long text.

    Args:
        engine: Makes the tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[int, tuple[list[int], TokenEnds]] = {}

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._running)

    def start(self, number: int, text: str) -> None:
        """Add a text."""
        ids = list(self._engine.tokenize(text))
        self._running[number] = ids, TokenEnds(ids, self._engine.decode, self._engine.name_of, text)

    def cancel(self, number: int) -> None:
        """Forget a text; nothing happens if it is not there."""
        self._running.pop(number, None)

    def step(self) -> list[Part]:
        """Look at some tokens of the first text; returns its part when all are done."""
        number, (ids, ends) = next(iter(self._running.items()))
        try:
            if not ends.advance(_TOKENS_PER_STEP):
                return []
            told: Part = {"tokens": ids, "ends": ends.found()}
        except Exception as error:  # A library may raise anything, and no request may end the engine.
            told = {"error": last_line(error)}
        self.cancel(number)
        return [{"id": number, **told, "last": True}]


def _handle(engine: Engine, message: dict[str, JSON], unfinished: set[int], tokenizing: Tokenizing) -> Part | None:
    """Handle a message; returns its part, if there is one at once."""
    if "cancel" in message:
        unfinished.discard(message["cancel"])
        tokenizing.cancel(message["cancel"])
        engine.cancel(message["cancel"])
        return None
    number = message["id"]
    try:
        if "tokenize" in message:
            tokenizing.start(number, message["tokenize"])
            return None
        if part := _answered_at_once(engine, message):
            return {"id": number, **part, "last": True}
        _start(engine, message)
    except PromptTooLong as error:
        lengths = [error.prompt_tokens, error.context_window]
        return {"id": number, "error": "too long", "too_long": lengths, "last": True}
    except InvalidRequest as error:
        return {"id": number, "error": error.args[0], "field": error.field, "last": True}
    except Exception as error:  # A library may raise anything, and no request may end the engine.
        return {"id": number, "error": last_line(error), "last": True}
    unfinished.add(number)
    return None


def _answered_at_once(engine: Engine, message: dict[str, JSON]) -> Part | None:
    """What answers a message that needs no step; None for the others."""
    if "ping" in message:
        return {"pong": True}
    if "count" in message:
        return {"count": engine.count(message["count"])}
    if "count_prompt" in message:
        return {"count": engine.count_prompt(message["count_prompt"]["prompt"], message["count_prompt"]["tools"])}
    if "render" in message:
        return {"text": engine.render(message["render"]["prompt"], message["render"]["tools"])}
    return None


def _start(engine: Engine, message: dict[str, JSON]) -> None:
    """Add a request that takes steps."""
    if "generate" in message:
        asked = message["generate"]
        sampling = Sampling(**{**asked["sampling"], "stop": tuple(asked["sampling"]["stop"])})
        constraint = asked["constraint"] and Constraint(**asked["constraint"])
        logprobs = asked["logprobs"] and Wanted(**asked["logprobs"])
        engine.start(message["id"], asked["prompt"], sampling, constraint, asked["tools"], logprobs)
    elif isinstance(engine, Embeds):
        engine.start_embedding(message["id"], message["embed"])
    else:
        raise ModelServerError("this engine makes no embeddings")


def last_line(error: Exception) -> str:
    """The last line of an error's text: in those before it, OpenVINO writes paths of the machine it was built on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
