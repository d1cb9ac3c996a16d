"""From a body to what a model server is sent: no sampling field gets lost on the way without a word."""

from __future__ import annotations

import json

import pytest

from comps.model_servers import FRAMEWORKS, open_model_server
from comps.model_servers.target import Access, Target
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import running

SAMPLING = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "typical_p": 0.8,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.3,
    "seed": 42,
    "stop": ["x"],
}
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["vllm", "ray_serve", "openai_api"])
async def test_every_sampling_field_is_sent_on_or_said_to_be_ignored(
    kind: str, framework: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": Reply([b'{"data": []}']),
        "/v1/chat/completions": sse({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]})
        if streamed
        else Reply([json.dumps({"choices": [choice]}).encode()]),
    }
    async with replaying(replies) as replay:
        server = open_model_server(kind, Target("m", replay.url, Access(whole_answers="whole")))
        async with running(server, monkeypatch, {"LLM_NAME": "m", "FRAMEWORK": framework}) as service:
            answer = await service.post({**QUESTION, **SAMPLING, "stream": streamed})
    assert answer.status == 200, answer.body
    sent = replay.asked[-1][2]
    ignored = set(filter(None, answer.headers.get("x-ignored-params", "").split(", ")))
    assert {name: sent[name] for name in SAMPLING if name in sent} == {
        name: value for name, value in SAMPLING.items() if name not in ignored
    }
    assert not ignored & set(sent)
