"""A stand-in for Text Generation Inference, which needs a GPU: a real server on loopback with a real tokenizer.

It does as TGI's router does (huggingface/text-generation-inference, router/src: server.rs, validation.rs, lib.rs,
chat.rs), and checks every request that it accepts and every reply that it gives against TGI's own schema; what does
not fit is in `violations`, and a field of a request that TGI would pass over in `unknown`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator
from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

# LangChain's package reads files when it is imported, which is not to happen while an event loop runs.
import comps.model_servers.langchain.chat_tgi  # noqa: F401

SCHEMA = Path(__file__).parent / "traffic" / "tgi" / "openapi.json"
BOS, EOS = "<s>", "</s>"
ANSWER = "".join(f" word{n}" for n in range(25))


@dataclass
class Model:
    """What is served, and what goes wrong; counts are of generated tokens."""

    answer: str = ANSWER
    model_id: str = "stand-in/tiny"
    max_input_tokens: int = 999
    max_total_tokens: int = 1000
    max_stop_sequences: int = 4
    template: bool = True
    double: bool = True
    """Whether the chat template begins with the token that the tokenizer puts before every text."""
    offsets: bool = True
    """Whether the tokenizer says where a token stands; one that is only there in Python does not."""
    missing: frozenset[str] = frozenset()
    """Paths that an older TGI does not have."""
    failing: list[str] = field(default_factory=list)
    """Paths that fail once each."""
    healthy: bool = True
    busy: bool = False
    fails_at: int | None = None
    ends_at: int | None = None
    hangs_at: int | None = None
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a test to end the hanging."""


class TGIError(Exception):
    """An error as TGI's router has it."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"error": message, "error_type": kind}


def invalid(message: str) -> TGIError:
    return TGIError(422, "validation", f"Input validation error: {message}")


@dataclass
class StandIn:
    """The running server."""

    model: Model
    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """The path and the body of each POST."""
    unknown: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has gone in the middle of an answer."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer hangs."""
    inputs: list[str] = field(default_factory=list)
    """What the model has read, special tokens and all."""

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    # Routes.

    async def health(self, request: web.Request) -> web.StreamResponse:
        if not self.model.healthy:
            return self._json("ErrorResponse", {"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return web.Response()

    async def info(self, request: web.Request) -> web.StreamResponse:
        if not self.model.healthy:
            return web.Response(status=503, text="no healthy upstream")
        document = {
            "model_id": self.model.model_id,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128,
            "max_best_of": 2,
            "max_stop_sequences": self.model.max_stop_sequences,
            "max_input_tokens": self.model.max_input_tokens,
            "max_total_tokens": self.model.max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.6-dev0",
            "sha": None,
            "docker_label": None,
        }
        return self._json("Info", document)

    async def models(self, request: web.Request) -> web.StreamResponse:
        # The schema has the listed model where the router answers with the list.
        model = {"id": self.model.model_id, "object": "model", "created": 0, "owned_by": self.model.model_id}
        self._check("ModelInfo", model)
        return web.json_response({"object": "list", "data": [model]})

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, "GenerateRequest")
        return self._json("TokenizeResponse", self._tokens(body["inputs"], encode(body["inputs"])))

    async def chat_tokenize(self, request: web.Request) -> web.StreamResponse:
        text = self._render(await self._body(request, "ChatRequest"))
        tokens = self._tokens(text, encode(text, specials=False))
        return self._json("ChatTokenizeResponse", {"tokenize_response": tokens, "templated_text": text})

    async def compatible(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, "CompatGenerateRequest")
        if body.get("stream"):
            return await self._stream(request, self._generation(body))
        return self._json("GenerateResponse", await self._whole(body), many=True)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return self._json("GenerateResponse", await self._whole(await self._body(request, "GenerateRequest")))

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._generation(await self._body(request, "GenerateRequest")))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, "ChatRequest")
        if body.get("response_format") and body.get("tools"):
            raise TGIError(422, "tool_error", "Tool error: Grammar and tools are mutually exclusive")
        inputs = {"inputs": self._render(body), "parameters": chat_parameters(body)}
        calling = bool(body.get("tools")) and body.get("tool_choice") != "none"
        answer = None
        if calling:
            name = body["tools"][0]["function"]["name"]
            answer = json.dumps({"function": {"_name": name, "city": "Paris"}})
        elif body.get("response_format"):
            answer = json.dumps({"city": "Paris"})
        generation = self._generation(inputs, specials=False, answer=answer)
        if body.get("stream"):
            return await self._chat_stream(request, body, generation, calling)
        events = [event async for event in generation]
        message: dict[str, Any] = {"role": "assistant", "content": events[-1]["generated_text"]}
        if calling:
            function = {"description": None, "name": name, "arguments": json.dumps({"city": "Paris"})}
            message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
        details = events[-1]["details"]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": chat_reason(details)}
        document = {**self._stamp(), "choices": [choice], "usage": usage(details)}
        self._check("ChatCompletion", document)
        return web.json_response({"object": "chat.completion", **document})

    # What they do.

    async def _body(self, request: web.Request, schema: str) -> Any:
        """The body, refused with a plain text if it cannot be deserialized."""
        body = await request.json()
        self.asked.append((request.path, body))
        body = spelled_out(body)
        for error in validator(schema).iter_errors(body):
            if error.validator in ("type", "required", "minimum", "oneOf", "anyOf"):
                path = ".".join(str(part) for part in error.absolute_path)
                raise web.HTTPUnprocessableEntity(
                    text="Failed to deserialize the JSON body into the target type: "
                    f"{path + ': ' if path else ''}{error.message} at line 1 column 1"
                )
        self.unknown += unknown_fields(schema, body)
        return body

    def _check(self, schema: str, document: Any) -> None:
        self.violations += [f"{schema}: {error.message}" for error in validator(schema).iter_errors(document)]

    def _json(self, schema: str, document: Any, status: int = 200, many: bool = False) -> web.Response:
        self._check(schema, document)
        return web.json_response([document] if many else document, status=status)

    def _tokens(self, text: str, encoding: Encoding) -> list[dict[str, Any]]:
        if not self.model.offsets:
            return [{"id": id, "text": "", "start": 0, "stop": 0} for id in encoding.ids]
        spans = [(len(text[:start].encode()), len(text[:stop].encode())) for start, stop in encoding.offsets]
        return [
            {"id": id, "text": text.encode()[start:stop].decode("utf-8", "replace"), "start": start, "stop": stop}
            for id, (start, stop) in zip(encoding.ids, spans, strict=True)
        ]

    def _render(self, body: Any) -> str:
        """The model's chat template."""
        if not self.model.template:
            raise TGIError(422, "template_error", "Template error: template not found")
        text = BOS if self.model.double else ""
        for at, message in enumerate(body["messages"]):
            if message["role"] == "system" and at:
                complaint = "Template error: syntax error: The system message comes first (in <string>:1)"
                raise TGIError(422, "template_error", complaint)
            content = message.get("content")
            if content is None:
                content = json.dumps(message["tool_calls"])
            if not isinstance(content, str):
                content = "".join(
                    part["text"] if part["type"] == "text" else f"![]({part['image_url']['url']})" for part in content
                )
            text += f"[{message['role']}]\n{content}\n"
        return text + "[assistant]\n"

    async def _whole(self, body: Any) -> dict[str, Any]:
        events = [event async for event in self._generation(body)]
        answer: dict[str, Any] = {"generated_text": events[-1]["generated_text"]}
        parameters = body.get("parameters") or {}
        if details := events[-1]["details"]:
            tokens = [event["token"] for event in events]
            answer["details"] = {name: details[name] for name in ("finish_reason", "generated_tokens", "seed")}
            answer["details"].update(prefill=[], tokens=tokens)
        if parameters.get("return_full_text"):
            answer["generated_text"] = body["inputs"] + answer["generated_text"]
        return answer

    async def _generation(
        self, body: Any, specials: bool = True, answer: str | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of an answer as StreamResponse has them."""
        if self.model.busy:
            raise TGIError(429, "overloaded", "Model is overloaded")
        parameters = body.get("parameters") or {"do_sample": True}
        encoding = encode(body["inputs"], specials)
        most = self._validate(body["inputs"], parameters, len(encoding.ids))
        self._check("GenerateParameters", body.get("parameters") or {})
        self.inputs.append("".join(tokenizer().id_to_token(id) or "" for id in encoding.ids))
        sampling = parameters.get("do_sample") or any(
            parameters.get(name) is not None for name in ("temperature", "top_k", "top_p", "typical_p")
        )
        seed = parameters.get("seed")
        seed = random.getrandbits(63) if seed is None else seed
        ids = self._ids(answer, seed if sampling else None)
        text = ""
        for number, id in enumerate(ids, 1):
            await self._mishap(number)
            if number - 1 == self.model.ends_at:
                raise TGIError(500, "incomplete_generation_stream", "Incomplete generation stream")
            special = id == tokenizer().token_to_id(EOS)
            piece = EOS if special else gained(ids[:number])
            text += piece
            token = {"id": id, "text": piece, "logprob": -0.5, "special": special}
            reason = "length" if number >= most else "eos_token" if special else None
            if not reason and any(text[-300:].endswith(stop) for stop in parameters.get("stop") or ()):
                reason = "stop_sequence"
            event = {"index": number, "token": token, "generated_text": None, "details": None}
            if reason:
                event["generated_text"] = text.removesuffix(EOS)
                if parameters.get("details"):
                    event["details"] = {
                        "finish_reason": reason,
                        "generated_tokens": number,
                        "seed": seed if sampling else None,
                        "input_length": len(encoding.ids),
                    }
            self._check("StreamResponse", event)
            yield event
            if reason:
                return

    async def _mishap(self, number: int) -> None:
        if number - 1 == self.model.fails_at:
            raise TGIError(424, "generation", "Request failed during generation: Server error: CUDA out of memory")
        if number - 1 == self.model.hangs_at:
            self.reached.set()
            await self.model.goes_on.wait()

    def _ids(self, answer: str | None, seed: int | None) -> list[int]:
        """The tokens of the answer and the end; of a sampled one, its words in another order."""
        text = self.model.answer if answer is None else answer
        if seed is not None and answer is None:
            words = text.split(" ")[1:]
            random.Random(seed).shuffle(words)
            text = "".join(f" {word}" for word in words)
        return [*encode(text, specials=False).ids, *tokenizer().encode(EOS, add_special_tokens=False).ids]

    def _validate(self, inputs: str, parameters: Any, length: int) -> int:
        """The most tokens to generate; the messages are TGI's."""
        limits: list[tuple[str, Callable[[Any], bool], str]] = [
            ("temperature", lambda value: value > 0, "must be strictly positive"),
            ("repetition_penalty", lambda value: value > 0, "must be strictly positive"),
            ("frequency_penalty", lambda value: -2 <= value <= 2, "must be >= -2.0 and <= 2.0"),
            ("top_p", lambda value: 0 < value < 1, "must be > 0.0 and < 1.0"),
            ("typical_p", lambda value: 0 < value < 1, "must be > 0.0 and < 1.0"),
            ("top_k", lambda value: value > 0, "must be strictly positive"),
            ("max_new_tokens", lambda value: value != 0, "must be strictly positive"),
        ]
        for name, allowed, complaint in limits:
            if (value := parameters.get(name)) is not None and not allowed(value):
                raise invalid(f"`{name}` {complaint}")
        model = self.model
        if (stops := len(parameters.get("stop") or ())) > model.max_stop_sequences:
            raise invalid(f"`stop` supports up to {model.max_stop_sequences} stop sequences. Given: {stops}")
        if not inputs:
            raise invalid("`inputs` cannot be empty")
        most: int | None = parameters.get("max_new_tokens")
        if most is None:
            most = max(model.max_total_tokens - length, 0)
        allotted = min(most, 1024)
        if length + allotted > model.max_total_tokens:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {model.max_total_tokens}. "
                f"Given: {length} `inputs` tokens and {allotted} `max_new_tokens`"
            )
        if length > model.max_input_tokens:
            raise invalid(f"`inputs` must have less than {model.max_input_tokens} tokens. Given: {length}")
        return most

    async def _stream(self, request: web.Request, generation: AsyncGenerator[dict[str, Any]]) -> web.StreamResponse:
        """Server-sent events; an error is one of them, and the status is 200 all the same."""
        response = await self._begin(request)
        try:
            async for event in generation:
                await self._send(response, event)
        except TGIError as error:
            self._check("ErrorResponse", error.document)
            await self._send(response, error.document)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    async def _chat_stream(
        self, request: web.Request, body: Any, generation: AsyncGenerator[dict[str, Any]], calling: bool
    ) -> web.StreamResponse:
        response = await self._begin(request)
        try:
            async for chunk in self._chat_chunks(body, generation, calling):
                self._check("ChatCompletionChunk", chunk)
                await self._send(response, {"object": "chat.completion.chunk", **chunk})
        except TGIError as error:  # Of another shape here, and not in the schema.
            await self._send(response, {"error": {"message": str(error), "http_status_code": 422}})
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _chat_chunks(
        self, body: Any, generation: AsyncGenerator[dict[str, Any]], calling: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        call = ToolCall() if calling else None
        async for event in generation:
            token, details = event["token"], event["details"]
            delta: dict[str, Any] | None
            if call:
                delta = call.push(token["text"])
            else:
                delta = {"role": "assistant", "content": "" if token["special"] else token["text"]}
            logprobs = None
            if body.get("logprobs"):
                logprobs = {"content": [{"token": token["text"], "logprob": token["logprob"], "top_logprobs": []}]}
            reason = chat_reason(details) if details else None
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            if delta:
                yield {**self._stamp(), "choices": [choice], "usage": None}
            if details and (body.get("stream_options") or {}).get("include_usage"):
                yield {**self._stamp(), "choices": [], "usage": usage(details)}

    def _stamp(self) -> dict[str, Any]:
        return {"id": "", "created": 0, "model": self.model.model_id, "system_fingerprint": "3.3.6-dev0-native"}

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    async def _send(self, response: web.StreamResponse, document: Any) -> None:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        await response.write(f"data: {text}\n\n".encode())

    @web.middleware
    async def errors(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        if request.path in self.model.missing:
            raise web.HTTPNotFound
        try:
            if request.path in self.model.failing:
                self.model.failing.remove(request.path)
                raise TGIError(500, "unknown", "Internal error")
            response: web.StreamResponse = await handler(request)
        except TGIError as error:
            return self._json("ErrorResponse", error.document, error.status)
        return response


class ToolCall:
    """What the router makes of generated JSON, `{"function": {"_name": …, …}}`: nothing before the name is known, then
    the arguments, and behind them nothing again, not even how it ended."""

    def __init__(self) -> None:
        self.text = ""
        self.buffering = True

    def push(self, piece: str) -> dict[str, Any] | None:
        self.text += piece
        name = None
        if self.buffering:
            name = called_name(self.text.rstrip(" \n\t,}") + "}}")
            if name is None:
                return None
            self.buffering, piece = False, "{"
        elif called_name(self.text):
            self.buffering, piece = True, piece.rstrip().removesuffix("}")
        function = {"name": name, "arguments": piece}
        return {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "0", "type": "function", "function": function}],
        }


def called_name(text: str) -> str | None:
    try:
        name: str = json.loads(text)["function"]["_name"]
    except (ValueError, KeyError):
        return None
    return name


def chat_parameters(body: Any) -> dict[str, Any]:
    """How the Messages API asks its own model."""
    temperature = body.get("temperature")
    penalty = body.get("presence_penalty")
    parameters = {
        "temperature": temperature or None,
        "repetition_penalty": None if penalty is None else penalty + 2.0,
        "frequency_penalty": body.get("frequency_penalty"),
        "top_p": body.get("top_p"),
        "max_new_tokens": body.get("max_tokens"),
        "stop": body.get("stop") or [],
        "seed": body.get("seed"),
        "top_n_tokens": body.get("top_logprobs"),
        "grammar": body.get("response_format"),
    }
    told = {name: value for name, value in parameters.items() if value is not None}
    return {**told, "do_sample": temperature != 0, "details": True}


def chat_reason(details: Any) -> str:
    """`stop_sequence` is not translated there."""
    reason: str = details["finish_reason"]
    return "stop" if reason == "eos_token" else reason


def usage(details: Any) -> dict[str, int]:
    prompt, answer = details.get("input_length", 0), details["generated_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


@cache
def tokenizer() -> Tokenizer:
    """Byte pairs, trained on a few words, with a token before every text."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=[BOS, EOS], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    # As in a real vocabulary, `",` is one token: the router counts on that in a tool call.
    made.train_from_iterator([ANSWER, "The capital of France is Paris.", '{"a": "b", "c": "d"}' * 3], trainer)
    made.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))])
    return made


def encode(text: str, specials: bool = True) -> Encoding:
    return tokenizer().encode(text, add_special_tokens=specials)


def gained(ids: list[int]) -> str:
    """The text of the last token; that of a character's first bytes is empty."""
    before, after = tokenizer().decode(ids[:-1]), tokenizer().decode(ids)
    if after.endswith("\ufffd"):
        return ""
    return after[len(before.rstrip("\ufffd")) :]


@cache
def document() -> Any:
    """TGI's schema as JSON Schema: OpenAPI 3.0 writes `nullable` for another type."""

    def rewritten(node: Any) -> Any:
        if isinstance(node, list):
            return [rewritten(one) for one in node]
        if not isinstance(node, dict):
            return node
        rest = {name: rewritten(value) for name, value in node.items() if name not in ("nullable", "discriminator")}
        if node.get("nullable") is not True:
            return rest
        if "type" in rest:
            return {**rest, "type": [rest["type"], "null"]}
        return {"anyOf": [rest, {"type": "null"}]}

    made = rewritten(json.loads(SCHEMA.read_text("utf-8")))
    parameters = made["components"]["schemas"]["GenerateParameters"]["properties"]
    for name in ("seed", "frequency_penalty"):  # The router takes 0 and -2 as well.
        del parameters[name]["exclusiveMinimum"]
    return made


def spelled_out(body: Any) -> Any:
    """A body with the other names that the router's types have for a field, and the schema has not."""
    body = json.loads(json.dumps(body))
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    for tool in body.get("tools") or ():
        if "parameters" in tool["function"]:
            tool["function"]["arguments"] = tool["function"].pop("parameters")
    for grammar in (body.get("response_format"), (body.get("parameters") or {}).get("grammar")):
        if grammar and grammar.get("type") == "json_object":
            grammar["type"] = "json"
    return body


@cache
def validator(schema: str) -> Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{schema}", "components": document()["components"]}
    return Draft202012Validator(root)


def unknown_fields(schema: str, body: Any) -> Iterator[str]:
    """The fields of a body that TGI's types do not have, and that it passes over."""
    schemas = document()["components"]["schemas"]
    yield from sorted(set(body) - set(schemas[schema]["properties"]))
    if parameters := body.get("parameters"):
        yield from sorted(set(parameters) - set(schemas["GenerateParameters"]["properties"]))


@asynccontextmanager
async def standing_in(model: Model | None = None) -> AsyncIterator[StandIn]:
    """The server; whatever does not fit the schema fails the test at the end."""
    stand_in = StandIn(model or Model())
    application = web.Application(middlewares=[stand_in.errors])
    application.add_routes(
        [
            web.get("/health", stand_in.health),
            web.get("/info", stand_in.info),
            web.get("/v1/models", stand_in.models),
            web.post("/", stand_in.compatible),
            web.post("/generate", stand_in.generate),
            web.post("/generate_stream", stand_in.generate_stream),
            web.post("/tokenize", stand_in.tokenize),
            web.post("/chat_tokenize", stand_in.chat_tokenize),
            web.post("/v1/chat/completions", stand_in.chat),
        ]
    )
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield stand_in
    finally:
        await runner.cleanup()
    assert not stand_in.violations
