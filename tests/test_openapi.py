"""The OpenAPI document against the running service, with bodies that schemathesis makes of it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from comps.openapi_examples import PIECES
from tests.service import Able, Service, running

MODEL = "SmolLM2-135M-Instruct"
STREAMS = ("stream", "streaming")
HELD = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BEYOND_SCHEMAS = (
    *("/chat", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/prompt", "/v1/responses"),
    *("/v1/responses/input_tokens", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v2/chat", "/v2/embed", "/v1/embed"),
    *("/api/chat", "/api/generate", "/api/show", "/api/embed", "/api/embeddings"),
    *("/", "/generate", "/generate_stream", "/chat_tokenize"),
)
"""Paths whose bodies have rules that their schema does not tell, such as what a model server takes."""
OF_THE_MODEL = ("/embeddings", "/embed", "/show", "tokenize")
"""How paths end whose answers have vectors, tokens or facts of the model."""
FEW = settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
LIMITS = {"maxItems", "maxLength"}
CASES = 20_000
PHASES = ("examples", "coverage", "fuzzing", "stateful")
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)


async def with_low_limits(service: Service) -> Any:
    """The OpenAPI document with low limits: schemathesis makes values that are just too large, such as 10,000 lists of
    10,000 items, and walks through all of them for minutes."""

    def lowered(part: Any) -> Any:
        if isinstance(part, list):
            return [lowered(one) for one in part]
        if not isinstance(part, dict):
            return part
        return {key: min(one, 20) if key in LIMITS and type(one) is int else lowered(one) for key, one in part.items()}

    return lowered((await service.get("/openapi.json")).json)


async def test_every_answer_is_one_that_the_openapi_document_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([["Deep", " learning"]]), monkeypatch) as service:
        wrong, operations = await asyncio.to_thread(broken, await with_low_limits(service), service.url)
    assert wrong == {}
    assert operations > 20


def alike(text: str) -> list[str]:
    """The items of a text without what differs from answer to answer: ids, numbers, and whose item comes first."""
    return sorted(re.sub(r"\d+", "0", re.sub(r"[0-9a-f]{32}", "id", text)).split("\n\n"))


def posted(document: Any) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Every example of a body: its path, its name, itself, and what the document tells of its answer."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "requestBody" in operation:
                examples = operation["requestBody"]["content"]["application/json"]["examples"]
                for name, example in examples.items():
                    yield (
                        path.replace("{model}", MODEL),
                        name,
                        example["value"],
                        operation["responses"]["200"]["content"],
                    )


def undescribed(schema: Any) -> Iterator[str]:
    """Yields the fields of a schema that have no description, at any depth."""
    for field, told in schema.get("properties", {}).items():
        if not told.get("description"):
            yield field
        yield from undescribed(told)
    for one in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])):
        yield from undescribed(one)


def names(value: Any) -> Any:
    """The names of the fields of a JSON value, at any depth."""
    if isinstance(value, dict):
        return {name: names(one) for name, one in value.items() if name not in ("model_server", "sampling")}
    return [names(one) for one in value] if isinstance(value, list) else None


async def test_every_example_of_a_body_gets_the_answer_that_the_document_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([PIECES]), monkeypatch, {"LLM_NAME": MODEL}) as service:
        document = (await service.get("/openapi.json")).json
        told = document["paths"]["/v1/prompt"]["post"]
        shown = told["responses"]["200"]["content"]["application/json"]["example"]
        previewed = await service.post(
            told["requestBody"]["content"]["application/json"]["examples"]["QueryCall-2"]["value"], "/v1/prompt"
        )
        assert names({**previewed.json, "ignored": []}) == names(shown)
        assert previewed.json["prompts"][0]["messages"] == shown["prompts"][0]["messages"]
        compared = set[tuple[str, str]]()
        for path, name, body, told in posted(document):
            asking = [body]
            if "text/event-stream" in told:
                asking.append({**body, **dict.fromkeys([key for key in STREAMS if key in body] or ["stream"], True)})
            for asked in asking:
                answer = await service.post(asked, path)
                media_type = answer.headers["content-type"].partition(";")[0]
                assert answer.status == 200, (path, name, answer.body)
                assert media_type in told, (path, name)
                text = answer.body.decode()
                if media_type == "application/json":
                    jsonschema.validate(
                        answer.json, {**told[media_type]["schema"], "components": document["components"]}
                    )
                    text = json.dumps(answer.json)
                if example := told[media_type].get("examples", {}).get(name):
                    expected = example["value"]
                    expected = expected if media_type != "application/json" else json.dumps(expected)
                    if not path.endswith(OF_THE_MODEL):
                        assert alike(text) == alike(expected), (path, name)
                    compared.add((path, media_type))
    assert len(compared) > 14
    assert len(list(posted(document))) > 40


async def test_all_routes_are_grouped_and_told_with_opeas_and_openais_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(
        Able([PIECES]), monkeypatch, {"LLM_DIALECTS": "kaito, openai, llm_api, square, llm_on_k8s, opea"}
    ) as service:
        document = (await service.get("/openapi.json")).json
        page = (await service.get("/docs")).body.decode()
    groups = [tag["name"] for tag in document["tags"]]
    assert groups == ["opea", "openai", "kaito", "llm_api", "square", "llm_on_k8s", "service"]
    assert all(tag["description"] for tag in document["tags"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["tags"], path
            assert set(operation["tags"]) <= set(groups), path
            assert operation["summary"], path
            assert all(one["description"] for one in operation["responses"].values()), path
            for media_type, told in operation["responses"]["200"].get("content", {}).items():
                if media_type == "text/event-stream":
                    assert all(one["value"].count("data: ") > 1 for one in told["examples"].values()), path
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Answer"):
            assert schema["description"], name
        assert list(undescribed(schema)) == [], name
    assert document["paths"]["/shutdown"]["post"]["responses"]["200"]["content"]["application/json"]["example"] == {}
    for path, operations in document["paths"].items():
        for status, told in next(iter(operations.values()))["responses"].items():
            assert ("Retry-After" in told.get("headers", {})) == (status in ("429", "503")), (path, status)
    assert document["paths"]["/generate"]["post"]["tags"] == ["kaito", "llm_api", "llm_on_k8s"]
    first = {
        tag: next(path for path, one in document["paths"].items() if tag in next(iter(one.values()))["tags"])
        for tag in groups
    }
    assert first["opea"] == first["openai"] == "/v1/chat/completions"
    assert first["service"] == "/v1/prompt"
    assert "http" not in re.sub(r"<!--.*?-->", "", page).replace("http-equiv", "")


@pytest.mark.soak
async def test_twenty_thousand_valid_and_invalid_requests_get_answers_that_the_document_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All phases of schemathesis; without links in the document, the stateful one has nothing to do."""
    async with running(Able([["Deep", " learning"]]), monkeypatch) as service:
        told = tmp_path / "openapi.json"
        told.write_text(json.dumps(await with_low_limits(service)))
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(told), "--url", service.url]
        options = ["--phases", ",".join(PHASES), "--checks", ",".join(CHECKS), "--mode", "all", "--continue-on-failure"]
        further = ["--max-examples", "50", "--request-timeout", "60", "--suppress-health-check", "all", "--seed", "1"]
        running_it = await asyncio.create_subprocess_exec(
            *command, *options, *further, "--no-color", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said = (await running_it.communicate())[0].decode()
    assert running_it.returncode == 0, said
    found = re.search(r"([\d,]+) generated", said)
    assert found
    with capsys.disabled():
        print(f"\n{found[1]} requests; {said.strip().splitlines()[-1].strip(' =')}")
    assert int(found[1].replace(",", "")) >= CASES, said


def checking(operation: Any, checks: list[Any], mode: Any) -> Callable[[], None]:
    """A test of one operation."""

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=checks, timeout=20)

    return check


def broken(document: Any, url: str) -> tuple[dict[str, str], int]:
    """What is not as the document says, by operation; and how many operations there are. Each gets some requests that
    it allows, and, if it has a body, some that it does not."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    wrong: dict[str, str] = {}
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    for operation in operations:
        accepted = [] if operation.path in BEYOND_SCHEMAS else [positive_data_acceptance]
        try:
            checking(operation, [*HELD, *accepted], GenerationMode.POSITIVE)()
            if operation.body:
                checking(operation, HELD, GenerationMode.NEGATIVE)()
        except FailureGroup as error:
            wrong[operation.label] = "; ".join(f"{one}" for one in error.exceptions)[:600]
    return wrong, len(operations)
