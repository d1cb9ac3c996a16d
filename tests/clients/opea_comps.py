"""OPEA's orchestrator, with the pipelines of its examples, in front of the services at the addresses given, in an
environment of its own; prints what each pipeline got of each service.

The pipelines follow ChatQnA, SearchQnA, Translation, CodeGen and DocSum of
https://github.com/opea-project/GenAIExamples (3648f155), the services before the model those of
https://github.com/opea-project/GenAIComps (8130a3fb): what these return is made of the package's own types.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"

# By name, since types are checked where `comps` is another package.
opea: Any = importlib.import_module("comps")
api: Any = importlib.import_module("comps.cores.proto.api_protocol")
docs: Any = importlib.import_module("comps.cores.proto.docarray")
utils: Any = importlib.import_module("comps.cores.mega.utils")
fastapi: Any = importlib.import_module("fastapi")
requests: Any = importlib.import_module("requests")
Streamed: Any = importlib.import_module("fastapi.responses").StreamingResponse

QUESTION = "What is Deep Learning?"
FOUND = {
    "Bread is made of flour.": "http://bread",
    "Deep learning is fun.": "http://deep",
    "Gaudi 2 has 96 GB.": "http://gaudi",
}
BEST = 1
"""The place of what the reranker finds best."""


# The services before the model.


def embed(body: Any) -> Any:
    return [[0.5, 0.25]]  # TEI, for each of the inputs.


def embeddings(body: Any) -> Any:
    data = [api.EmbeddingResponseData(index=0, embedding=[0.5, 0.25])]
    return api.EmbeddingResponse(
        model="BAAI/bge-base-en-v1.5", data=data, usage=api.UsageInfo(prompt_tokens=6, total_tokens=6)
    )


def retrieval(body: Any) -> Any:
    if "messages" in body:
        request = api.ChatCompletionRequest(**body)
        request.retrieved_docs = [
            api.RetrievalResponseData(text=text, metadata={"url": url}) for text, url in FOUND.items()
        ]
        request.documents = list(FOUND)
        return request
    texts = [docs.TextDoc(text=text) for text in FOUND]
    metadata = [{"url": url} for url in FOUND.values()]
    return docs.SearchedMultimodalDoc(retrieved_docs=texts, initial_query=body["text"], metadata=metadata)


def web_retrieval(body: Any) -> Any:
    texts = [f"{text} \n title: A page \n \n source: {url} \n" for text, url in FOUND.items()]
    return docs.SearchedDoc(retrieved_docs=[docs.TextDoc(text=text) for text in texts], initial_query=body["text"])


def rerank(body: Any) -> Any:
    others = [place for place in range(len(body["texts"])) if place != BEST]
    return [{"index": place, "score": 1 / number} for number, place in enumerate((BEST, *others), 1)]  # TEI.


def reranking(body: Any) -> Any:
    texts = [document["text"] for document in body["retrieved_docs"]]
    best = [(texts[one["index"]], one["score"]) for one in rerank({"texts": texts})[: body["top_n"]]]
    if "messages" not in body:
        return docs.LLMParamsDoc(query=body["initial_query"], documents=[text for text, _ in best])
    request = api.ChatCompletionRequest(**body)
    request.reranked_docs = [api.RerankingResponseData(text=text, score=score) for text, score in best]
    request.documents = [text for text, _ in best]
    return request


SERVICES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "/embed": ("EMBEDDING", embed),
    "/v1/embeddings": ("EMBEDDING", embeddings),
    "/v1/retrieval": ("RETRIEVER", retrieval),
    "/v1/web_retrieval": ("WEB_RETRIEVER", web_retrieval),
    "/rerank": ("RERANK", rerank),
    "/v1/reranking": ("RERANK", reranking),
}


class Services(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = SERVICES[self.path][1](body)
        encoded = (json.dumps(said) if isinstance(said, list) else said.model_dump_json()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *args: Any) -> None:
        pass


before = ThreadingHTTPServer(("127.0.0.1", 0), Services)


# The pipelines.


class Pipeline(opea.ServiceOrchestrator):  # type: ignore[misc]  # Not installed where types are checked.
    """Services one after the other, the model's service last.

    Args:
        url: The address of the model's service.
        *paths: Those of the services before it.
    """

    def __init__(self, url: str, *paths: str) -> None:
        super().__init__()
        here = urlsplit(url)
        places = [(before.server_port, path, SERVICES[path][0]) for path in paths]
        previous = None
        for port, path, kind in [*places, (here.port, "/v1/chat/completions", "LLM")]:
            service = opea.MicroService(
                name={"EMBEDDING": "embedding", "RERANK": "rerank", "LLM": "llm"}.get(kind, "retriever"),
                host="127.0.0.1",
                port=port,
                endpoint=path,
                use_remote_service=True,
                service_type=opea.ServiceType[kind],
            )
            self.add(service)
            if previous:
                self.flow_to(previous, service)
            previous = service

    def kind(self, node: str) -> str:
        return str(self.services[node].service_type.name)

    async def result(self, inputs: Any, **parameters: Any) -> Any:
        """The last service's answer: an object, or the pieces of a stream."""
        results, graph = await self.schedule(initial_inputs=inputs, **parameters)
        answer = results[graph.all_leaves()[-1]]
        return [as_text(piece) async for piece in answer.body_iterator] if isinstance(answer, Streamed) else answer


def as_text(piece: Any) -> str:
    return piece.decode() if isinstance(piece, bytes) else str(piece)


class ChatQnA(Pipeline):
    """It writes the prompt itself, and asks for a chat by a name of its own."""

    def align_inputs(self, inputs: Any, cur_node: str, graph: Any, parameters: Any, **kwargs: Any) -> Any:
        if self.kind(cur_node) == "EMBEDDING":
            inputs["inputs"] = inputs.pop("text")
        elif self.kind(cur_node) == "RETRIEVER":
            inputs.update(kwargs["retriever_parameters"].model_dump())
        elif self.kind(cur_node) == "LLM":
            return chat("meta-llama/Meta-Llama-3-8B-Instruct", inputs["inputs"], inputs, parameters)
        return inputs

    def align_outputs(self, data: Any, cur_node: str, inputs: Any, graph: Any, parameters: Any, **kwargs: Any) -> Any:
        kind = self.kind(cur_node)
        if kind == "EMBEDDING":
            return {"text": inputs["inputs"], "embedding": data[0]}
        if kind == "RETRIEVER":
            texts = [document["text"] for document in data["retrieved_docs"]]
            if graph.downstream(cur_node)[0].startswith("rerank"):
                return {"query": data["initial_query"], "texts": texts}
            return {"inputs": rag_prompt(data["initial_query"], texts)}
        if kind == "RERANK":
            best = [inputs["texts"][one["index"]] for one in data[: kwargs["reranker_parameters"].top_n]]
            return {"inputs": rag_prompt(inputs["query"], best)}
        return {"text": data["choices"][0]["message"]["content"]}

    def align_generator(self, gen: Any, **kwargs: Any) -> Iterator[str]:
        for chunk in gen:
            text = chunk.decode()
            start, end = text.find("{"), text.rfind("}") + 1
            if start == -1 or end <= start:
                continue
            choices = json.loads(text[start:end]).get("choices")
            if choices and choices[0]["delta"].get("content") is not None:
                yield f"data: {choices[0]['delta']['content'].encode()!r}\n\n"
        yield "data: [DONE]\n\n"


def rag_prompt(question: str, documents: list[str]) -> str:
    return f"### Search results: {' '.join(documents)}\n### Question: {question}\n### Answer:"


def chat(model: str, question: str, inputs: Any, parameters: Any) -> Any:
    laid = {name: inputs[name] for name in ("stream", "frequency_penalty", "temperature")}
    limits = {name: parameters[name] for name in ("max_tokens", "top_p")}
    return {"model": model, "messages": [{"role": "user", "content": question}], **limits, **laid}


class SearchQnA(Pipeline):
    """It passes on what OPEA's own services return."""

    def align_outputs(self, data: Any, cur_node: str, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.kind(cur_node) == "EMBEDDING":
            return {"text": inputs["input"], "embedding": data["data"][0]["embedding"], "k": 1}
        return data


class CodeGen(Pipeline):
    def align_inputs(self, inputs: Any, cur_node: str, graph: Any, parameters: Any, **kwargs: Any) -> Any:
        return chat("Qwen/Qwen2.5-Coder-7B-Instruct", inputs["query"], inputs, parameters)


class DocSum(Pipeline):
    """It asks with messages that are a string, and all fields of a `ChatCompletionRequest`."""

    def align_inputs(self, inputs: Any, cur_node: str, graph: Any, parameters: Any, **kwargs: Any) -> Any:
        inputs["messages"] = inputs.pop("text")
        further = kwargs["docsum_parameters"].model_dump()
        del further["messages"]
        inputs.update(further)
        return {name: value for name, value in inputs.items() if name not in ("id", "max_new_tokens", "input")}

    def align_generator(self, gen: Any, **kwargs: Any) -> Iterator[str]:
        for chunk in gen:
            text = chunk.decode()
            start, end = text.find("{"), text.rfind("}") + 1
            found = text[start:end] if -1 < start < end else ""
            try:
                choice = json.loads(found)["choices"][0]
                if choice["finish_reason"] != "eos_token" and "content" in choice["delta"]:
                    yield f"data: {choice['delta']['content'].encode()!r}\n\n"
            except Exception:
                yield f"data: {found.encode()!r}\n\n"
        yield "data: [DONE]\n\n"


class Objects(Pipeline):
    """A `ChatCompletionRequest` that retriever and reranker fill, one after the other."""


# What an example's service makes of a request, streamed or whole.


def llm_parameters(stream: bool) -> Any:
    return docs.LLMParams(max_tokens=64, stream=stream)


class Megaservice:
    """ChatQnA as a service, which user interfaces ask; `url` is that of the model, `paths` are those before it."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: tuple[str, ...] = ()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.listening = threading.Event()

    def run(self) -> None:
        service = opea.MicroService(
            "ChatQnAService",
            service_role=opea.ServiceRoleType.MEGASERVICE,
            host="127.0.0.1",
            port=self.port,
            endpoint=str(opea.MegaServiceEndpoint.CHAT_QNA),
            input_datatype=api.ChatCompletionRequest,
            output_datatype=api.ChatCompletionResponse,
        )
        service.add_route(service.endpoint, self.handle_request, methods=["POST"])
        self.listening.set()
        service.start()

    async def handle_request(self, request: fastapi.Request) -> fastapi.Response:
        asked = api.ChatCompletionRequest.model_validate(await request.json())
        results, graph = await ChatQnA(self.url, *self.paths).schedule(
            initial_inputs={"text": utils.handle_message(asked.messages)},
            llm_parameters=llm_parameters(asked.stream),
            retriever_parameters=docs.RetrieverParms(),
            reranker_parameters=docs.RerankerParms(top_n=asked.top_n),
        )
        answer = results[graph.all_leaves()[-1]]
        if isinstance(answer, Streamed):
            return answer
        message = api.ChatMessage(role="assistant", content=answer["text"])
        choice = api.ChatCompletionResponseChoice(index=0, message=message, finish_reason="stop")
        whole = api.ChatCompletionResponse(model="chatqna", choices=[choice], usage=api.UsageInfo())
        return fastapi.Response(whole.model_dump_json(), media_type="application/json")

    async def asked(self, url: str, stream: bool, *paths: str) -> Any:
        self.url, self.paths = url, paths
        return await asyncio.to_thread(self._asked, stream)

    def _asked(self, stream: bool) -> Any:
        # As the user interface asks, with its own idea of the model.
        body = {"model": "meta-llama/Meta-Llama-3-8B-Instruct", "messages": [{"role": "user", "content": QUESTION}]}
        address = f"http://127.0.0.1:{self.port}{opea.MegaServiceEndpoint.CHAT_QNA}"
        with requests.post(address, json={**body, "stream": stream}, stream=True) as response:
            if stream:
                return [as_text(piece) for piece in response.iter_content(None)]
            return response.json()["choices"][0]["message"]["content"] if response.ok else response.text


async def chatqna(url: str, stream: bool) -> Any:
    return await megaservice.asked(url, stream, "/embed", "/v1/retrieval", "/rerank")


async def chatqna_without_rerank(url: str, stream: bool) -> Any:
    return await megaservice.asked(url, stream, "/embed", "/v1/retrieval")


async def searchqna(url: str, stream: bool) -> Any:
    pipeline = SearchQnA(url, "/v1/embeddings", "/v1/web_retrieval", "/v1/reranking")
    got = await pipeline.result({"input": QUESTION}, llm_parameters=llm_parameters(stream))
    return got if stream else got["choices"][0]["text"]


async def translation(url: str, stream: bool) -> Any:
    # The example always streams, which is the default; what it reads of a whole answer is this.
    further = {} if stream else {"llm_parameters": llm_parameters(stream)}
    got = await Pipeline(url).result({"query": QUESTION}, **further)
    return got if stream else got["text"]


async def codegen(url: str, stream: bool) -> Any:
    got = await CodeGen(url).result({"query": QUESTION}, llm_parameters=llm_parameters(stream))
    return got if stream else got["choices"][0]["message"]["content"]


async def docsum(url: str, stream: bool) -> Any:
    parameters = api.DocSumChatCompletionRequest(messages="", stream=stream)
    got = await DocSum(url).result(
        {"text": QUESTION}, llm_parameters=llm_parameters(stream), docsum_parameters=parameters
    )
    return got if stream else got["text"]


async def objects(url: str, stream: bool) -> Any:
    request = api.ChatCompletionRequest(messages=QUESTION, input=QUESTION, embedding=[0.5, 0.25], stream=stream)
    pipeline = Objects(url, "/v1/retrieval", "/v1/reranking")
    got = await pipeline.result(request.model_dump(), llm_parameters=llm_parameters(stream))
    return got if stream else got["choices"][0]


async def gotten(url: str) -> Any:
    got: dict[str, Any] = {}
    for one in (chatqna, chatqna_without_rerank, searchqna, translation, codegen, docsum, objects):
        for stream in (False, True):
            try:
                got[f"{one.__name__} {'streamed' if stream else 'whole'}"] = await one(url, stream)
            except KeyError as missing:  # What the pipeline reads is not in the answer.
                got[f"{one.__name__} {'streamed' if stream else 'whole'}"] = repr(missing)
    return got


megaservice = Megaservice()
with contextlib.redirect_stdout(sys.stderr):  # Which uvicorn writes its log to.
    for service in (before.serve_forever, megaservice.run):
        threading.Thread(target=service, daemon=True).start()
    assert megaservice.listening.wait(60)
    everything = {url: asyncio.run(gotten(url)) for url in sys.argv[1:]}
print(json.dumps(everything))
