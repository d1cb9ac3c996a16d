"""OPEA's orchestrator, with a search of yours and this service as its LLM.

Start the service (`make run`), and install `opea-comps` into an environment of its own: its package is called `comps`,
as ours is. Then:

    python examples/opea_orchestrator.py
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

from comps.cores.proto.docarray import LLMParams

from comps import MicroService, ServiceOrchestrator, ServiceType

URL = urlsplit(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9000")
DOCUMENTS = ["The bike weighs 21 kg.", "The battery has a warranty of three years.", "The frame is made of aluminium."]

pipeline = ServiceOrchestrator()
pipeline.add(
    MicroService(
        name="llm",
        host=URL.hostname,
        port=URL.port,
        endpoint="/v1/chat/completions",
        use_remote_service=True,
        service_type=ServiceType.LLM,
    )
)


async def ask(question: str, stream: bool) -> None:
    """Print the answer. The documents are those that a retriever before the LLM would pass on."""
    results, graph = await pipeline.schedule(
        initial_inputs={"query": question, "documents": DOCUMENTS},
        llm_parameters=LLMParams(max_tokens=64, temperature=0.01, stream=stream),
    )
    answer = results[graph.all_leaves()[-1]]
    if not stream:
        print(answer["text"])
        return
    async for piece in answer.body_iterator:
        print(piece.decode() if isinstance(piece, bytes) else piece, end="")


if __name__ == "__main__":
    asyncio.run(ask("How long is the warranty of the battery?", stream=False))
    asyncio.run(ask("How long is the warranty of the battery?", stream=True))
