"""What the dashboard and the alert rules ask for is in the real metrics, and docs/metrics.md says what to do."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from comps.computing import OPERATIONS
from comps.core.errors import Unreachable
from comps.core.tallies import RETRIES, TIMEOUTS
from comps.core.unread import UNREAD
from comps.limits import CONNECTIONS
from comps.model_servers.scripted import Scripted
from tests.service import PATIENCE, Service, running
from tests.test_telemetry import QUERY, samples

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "metrics.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "docker" / "monitoring" / "grafana.json").read_text("utf-8"))
ALERTS = ROOT / "docker" / "monitoring" / "alerts.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
SCRAPED = {"job", "instance"}
"""The labels that Prometheus adds."""
FUNCTIONS = {"sum", "by", "rate", "histogram_quantile", "label_values", "max", "min"}


def expressions() -> Iterator[str]:
    """The queries of the dashboard, its variables among them, and of the alert rules."""
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (rule["expr"] for rule in RULES)


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of a query, each with the labels that it is asked for, or grouped by."""
    grouped = {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", names)}
    plain = re.sub(r"by \([^)]*\)", "", expression)
    if found := re.fullmatch(r"label_values\((.*), (\w+)\)", plain):
        plain, grouped = found[1], {found[2]}
    plain = re.sub(r"\[[^]]*\]", "", plain)
    for name, _, inside in re.findall(r"([a-z_]+[a-z0-9_]*)(\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', plain)):
        if name not in FUNCTIONS:
            yield name, grouped | set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))


@pytest.fixture
def counted() -> Iterator[None]:
    """What is counted for a process has something to tell."""
    for counts in (TIMEOUTS, UNREAD, CONNECTIONS.ended):
        counts["of a test"] += 1
    RETRIES["", "of a test"] += 1
    yield
    for counts in (TIMEOUTS, UNREAD, CONNECTIONS.ended):
        del counts["of a test"]
    del RETRIES["", "of a test"]


async def exercised(service: Service) -> Mapping[str, set[str]]:
    """The labels of each metric, after requests that were answered, refused, given up, and waited."""
    long = {**QUERY, "documents": ["word " * 900, "word " * 900], "max_tokens": 5}
    messages = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "word"}]
    await service.post({"messages": [*messages, {"role": "user", "content": "?"}], "documents": long["documents"]})
    await service.post({"query": 5})
    async with service.connect() as client:
        await client.send("POST", "/v1/chat/completions", json.dumps(QUERY).encode())
        await client.head()
        waiting = asyncio.ensure_future(service.post(QUERY))
        while (await samples(service))["opea_llm_requests_waiting"][0][1] < 1:
            pass
        await service.post(QUERY)
    await asyncio.wait_for(waiting, PATIENCE)
    await service.post(QUERY)
    told: dict[str, set[str]] = {}
    for name, found in (await samples(service)).items():
        told[name] = {label for labels, _ in found for label in labels}
    return told


async def test_every_query_of_the_dashboard_and_the_alerts_asks_for_metrics_and_labels_that_there_are(
    monkeypatch: pytest.MonkeyPatch, counted: None
) -> None:
    first = Scripted([["a", "b"], ["a", asyncio.Event()], ["a", "b"]], context_window=800)
    broken = Scripted([[Unreachable("away")]], context_window=800)
    environment = {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "1", "LLM_MODEL_SERVER_ENDPOINT": "http://a, http://b"}
    monkeypatch.setattr("comps.opening._open_replicas", lambda *_: [broken, first])
    async with running({}, monkeypatch, environment | {"MODEL_SERVER": "vllm"}) as service:
        there_are = await exercised(service)
    asked = [(expression, *one) for expression in expressions() for one in selectors(expression)]
    assert len(asked) > 60
    wrong = [
        (name, labels - SCRAPED, expression)
        for expression, name, labels in asked
        if name != "up" and not (name in there_are and labels - SCRAPED <= there_are[name])
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_each_alert_says_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == f"docs/metrics.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in DOCS
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    assert set(re.findall(r"^### (LLM\w+)$", DOCS, re.MULTILINE)) == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_dashboard_s_panels_have_places_and_numbers_of_their_own() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = {name for one in expressions() for name in re.findall(r"\$(\w+)", one)} - {
        "__rate_interval",
        "labels",
        "value",
    }
    assert used <= variables


def test_all_kinds_of_work_that_metrics_tell_apart_are_explained() -> None:
    (row,) = re.findall(r"^\| `gen_ai_operation_name` \|.*", DOCS, re.MULTILINE)
    assert {"chat", "text_completion", "prompt", *OPERATIONS.values()} == set(re.findall(r"`([a-z_]+)`", row)[1:])
