"""`opea-llm ask`: one question, one answer."""

from __future__ import annotations

import json
from dataclasses import replace

from comps.cli.answering import Answering, opened
from comps.cli.common import (
    URL,
    APIKey,
    AsJSON,
    ConfigFile,
    Documents,
    MaxTokens,
    OneModel,
    Question,
    System,
    Temperature,
    expected_errors,
    run,
)
from comps.cli.documents import request_of
from comps.cli.printing import PrintedAnswer
from comps.core.answers import Collector
from comps.core.citations import ANNOTATIONS, UNKNOWN
from comps.core.types import JSON, Generation, GenerationRequest


@expected_errors
def ask(
    question: Question,
    document: Documents = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    system: System = "",
    model: OneModel = None,
    url: URL = "",
    api_key: APIKey = "",
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Answer one question, from documents if there are any.

    A model in this process answers, or, with --url, a running service. The answer goes to standard output; what became
    of the documents, and why an answer is short, to standard error.

    \b
    Examples:
      opea-llm ask "How much memory does Gaudi 2 have?" --document gaudi.txt
      opea-llm ask "What changed?" --document reports/ --system "Answer in French." --json
      git diff | opea-llm ask - --url http://localhost:9000 --max-tokens 200
    """
    request = replace(request_of(question, document, max_tokens, temperature, system), model=model)
    run(_ask(opened(config, url, api_key, model), request, as_json))


async def _ask(answering: Answering, request: GenerationRequest, as_json: bool) -> None:
    try:
        await answering.load()
        if not as_json:
            printed = PrintedAnswer(request.sampling.max_tokens)
            await answering.answer(request, printed)
            return
        collector = Collector()
        facts = await answering.answer(request, collector)
        print(json.dumps(_object(collector.generation(), facts), ensure_ascii=False))
    finally:
        await answering.aclose()


def _object(generation: Generation, facts: dict[str, JSON]) -> dict[str, JSON]:
    usage = generation.usage
    return {
        "model": facts.pop("model"),
        "answer": generation.text,
        "finish_reason": generation.reason,
        "usage": usage and {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        **{
            name: generation.extra[name]
            for name in (ANNOTATIONS, UNKNOWN)
            if generation.extra and name in generation.extra
        },
        **facts,
    }
