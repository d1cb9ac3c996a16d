"""Bodies that are made to harm: bombs, odd JSON, addresses and files in fields, templates."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from comps.core.errors import InvalidRequest, SettingsError
from comps.core.types import JSON, Message
from comps.model_servers.chat_templates.templates import chat_template
from comps.model_servers.scripted import Scripted
from tests.dialects.kinds import KINDS
from tests.model_servers.replay import replaying
from tests.service import Able, running

BODY = b'{"query": "Hi", "stream": false}'
EMPTY = gzip.compress(b"")


def layered(times: int) -> bytes:
    body = BODY
    for _ in range(times):
        body = gzip.compress(body)
    return body


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        pytest.param(layered(1), "gzip", 200, id="gzip"),
        pytest.param(gzip.compress(BODY[:9]) + EMPTY * 500 + gzip.compress(BODY[9:]), "gzip", 200, id="some members"),
        pytest.param(layered(3), "gzip, gzip, gzip", 200, id="three layers"),
        pytest.param(layered(4), "gzip, gzip, gzip, gzip", 415, id="four layers"),
        pytest.param(BODY, ",".join(["identity"] * 3000), 415, id="thousands of layers"),
        pytest.param(gzip.compress(bytes(20_000_000)), "gzip", 413, id="a bomb"),
        pytest.param(zlib.compress(bytes(20_000_000)), "deflate", 413, id="a bomb in zlib"),
        pytest.param(EMPTY * 500_000, "gzip", 413, id="nothing, in 500,000 members"),
        pytest.param(layered(1)[:-1], "gzip", 400, id="cut"),
        pytest.param(layered(1) + b"x", "gzip", 400, id="with something behind it"),
    ],
)
async def test_a_compressed_body_costs_no_more_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, body: bytes, encoding: str, status: int
) -> None:
    async with running(Scripted([["Hi"]]), monkeypatch) as service:
        began = time.thread_time()
        answer = await service.post(body, **{"Content-Encoding": encoding})
    assert answer.status == status
    assert time.thread_time() - began < 2  # 500,000 members took half a minute.


DEEP = 10_000
ODD: dict[str, tuple[bytes, int, str]] = {
    "deep lists": (b'{"query": "Hi", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", 400, ""),
    "deep objects": (b'{"query": "Hi", "x": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", 400, ""),
    "deep and open": (b"[" * 1_000_000, 400, ""),
    "deep in a list": (b'{"query": [' * DEEP, 400, ""),
    "200 levels": (b'{"query": "Hi", "x": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "levels"),
    "a million commas": (b'{"query": "Hi", "x": [' + b"1," * 1_000_000 + b"1]}", 400, "body"),
    "1e999": (b'{"query": "Hi", "temperature": 1e999}', 400, "temperature"),
    "-1e999": (b'{"query": "Hi", "temperature": -1e999}', 400, "temperature"),
    "NaN": (b'{"query": "Hi", "temperature": NaN}', 400, "temperature"),
    "Infinity": (b'{"query": "Hi", "top_p": Infinity}', 400, "top_p"),
    "NaN in nothing": (b'{"query": "Hi", "x": NaN}', 400, ""),
    "a large integer": (b'{"query": "Hi", "max_tokens": %d}' % 10**400, 400, "max_tokens"),
    "an integer of 10,000 digits": (b'{"query": "Hi", "seed": ' + b"9" * 10_000 + b"}", 400, ""),
    "a float of 10,000 digits": (b'{"query": "Hi", "x": 0.' + b"9" * 10_000 + b"}", 200, ""),
    "half of a character": (b'{"query": "Hi \\ud800"}', 400, "query"),
    "half of a character in a name": (b'{"query": "Hi", "\\udc00": 1}', 400, ""),
    "two halves the wrong way round": (b'{"query": "\\udc00\\ud800"}', 400, "query"),
    "a whole character": (b'{"query": "Hi \\ud83c\\udf0a"}', 200, ""),
    "NUL": (b'{"query": "Hi \\u0000"}', 200, ""),
    "a control character": (b'{"query": "Hi \x00"}', 400, ""),
    "overlong UTF-8": (b'{"query": "Hi \xc0\xaf"}', 400, "UTF-8"),
    "a surrogate in UTF-8": (b'{"query": "Hi \xed\xa0\x80"}', 400, ""),
    "twice the same name": (b'{"query": "No", "query": "Yes"}', 200, ""),
    "twice, the last of another type": (b'{"query": "No", "query": 5}', 400, "query"),
    "__proto__": (b'{"query": "Hi", "__proto__": {"a": 1}, "constructor": 1, "__class__": "x"}', 200, ""),
    "names of our own": (b'{"query": "Hi", "model_fields_set": 1, "_switches": {}, "model_extra": {}}', 200, ""),
    "two documents": (b'{"query": "Hi"}{"query": "Hi"}', 400, ""),
    "a comment": (b'{"query": "Hi" /* */}', 400, ""),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/prompt"])
async def test_odd_json_is_read_or_refused_in_words(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    scripted = Scripted([["Hi"]])
    async with running(scripted, monkeypatch) as service:
        for name, (body, status, says) in ODD.items():
            answer = await service.post(body[:-1] + b', "stream": false}' if status == 200 else body, path)
            assert answer.status == status, (name, answer.body[:300])
            assert status == 200 or says in str(answer.json["detail"]), (name, answer.body[:300])
    assert "Yes" in str([prompt[-1].content for prompt, _, _ in scripted.asked]) or path == "/v1/prompt"  # type: ignore[union-attr]


# No field names a host or a file.


def everywhere(value: Any, said: str) -> list[Any]:
    """The bodies in which one text after the other is replaced."""
    if isinstance(value, str):
        return [said]
    if isinstance(value, dict):
        return [{**value, name: one} for name in value for one in everywhere(value[name], said)]
    if isinstance(value, list):
        return [[*value[:n], one, *value[n + 1 :]] for n in range(len(value)) for one in everywhere(value[n], said)]
    return []


def further(said: str) -> dict[str, JSON]:
    """Fields that other services take for an address or a file."""
    return {
        **dict.fromkeys(("model", "base_url", "api_base", "endpoint", "url", "proxy", "webhook", "callback"), said),
        **dict.fromkeys(("chat_template", "template", "file", "file_id", "path", "tokenizer", "lora"), said),
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": said}}},
        "guided_json": {"$ref": said},
        "guided_grammar": f'%import "{said}"',
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": said}}}],
        "documents": [{"text": "a", "url": said, "metadata": {"source": said}}],
        "extra_headers": {"Host": said},
    }


PART = {"image_url": "url", "input_audio": "data", "file": "file_data"}


async def test_no_field_makes_the_service_ask_a_host_or_read_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary of a file", "utf-8")
    async with replaying({}) as canary, running(Able([["Hi"]]), monkeypatch) as service:
        url = f"{canary.url}/x.json"
        for kind in KINDS:
            bodies = everywhere(kind.examples[0], url)
            for said in (url, f"file://{secret}", f"{{% include '{secret}' %}}", str(secret)):
                parts = [{"type": name, name: {field: said}} for name, field in PART.items()]
                bodies += [kind.examples[0] | further(said), {"messages": [{"role": "user", "content": parts}]}]
            for body in bodies:
                answer = await service.post(body, kind.path)
                assert answer.status < 500, (body, answer.body)
                assert b"canary of a file" not in answer.body, body
        assert canary.connections == 0
        canary_would_notice = (await asyncio.open_connection("127.0.0.1", int(canary.url.rpartition(":")[2])))[1]
        canary_would_notice.close()
        await asyncio.sleep(0)
    assert canary.connections == 1


@pytest.mark.parametrize("said", ["x" * 20_000, "half of a character: \ud800"], ids=["long", "surrogate"])
async def test_an_error_about_any_text_can_be_written_and_is_short(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    refused = 0
    async with running(Able([["Hi"]]), monkeypatch) as service:
        for kind in KINDS:
            for body in (one for example in kind.examples for one in everywhere(example, said)):
                answer = await service.post(body, kind.path)
                assert answer.status < 500, (kind, body)
                if answer.status >= 400:
                    refused += 1
                    assert len(answer.body) < 10_000, (kind, answer.body[:300])
    assert refused > 20


# Templates.


@pytest.mark.parametrize(
    "opening", ["{{ 7 * 191 }}", "{% for x in range(1337) %}1337{% endfor %}", "{{ ''.__class__ }}"]
)
async def test_a_template_of_a_caller_is_not_rendered_here(monkeypatch: pytest.MonkeyPatch, opening: str) -> None:
    scripted = Scripted([["Hi"]])
    async with running(scripted, monkeypatch) as service:
        for kind in KINDS:
            for body in [*everywhere(kind.examples[0], opening)[:3], kind.examples[0] | {"chat_template": opening}]:
                answer = await service.post(body, kind.path)
                assert answer.status < 500
                assert b"1337" not in answer.body.replace(opening.encode(), b"")
                assert b"<class" not in answer.body
    assert "<class" not in str([prompt for prompt, _, _ in scripted.asked])


def rendered(tmp_path: Path, template: str) -> str:
    file = tmp_path / "t.jinja"
    file.write_text(template, "utf-8")
    return chat_template(str(file), "m").render([Message("user", "Hi")])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_chat_template_reaches_nothing_beyond_its_conversation(tmp_path: Path, template: str) -> None:
    try:
        text = rendered(tmp_path, template)
    except (InvalidRequest, SettingsError):
        return
    assert "class" not in text
    assert "root:" not in text
