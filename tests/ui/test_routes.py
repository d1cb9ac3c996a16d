"""The page's files, what it is told, and the documents that are read for it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from comps import ui
from comps.admission import Admission
from comps.model_servers.scripted import Scripted
from tests.service import running
from tests.test_document_files import pdf

HOSTILE = re.compile(
    r"<script(?![^>]*src=)|<style|\son\w+=|style=|https?://|innerHTML|insertAdjacent|document\.write|eval\("
)


async def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        page = await service.get("/ui")
        names = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', page.body.decode())) | {"ui/dialects.js"}
        files = [await service.get(f"/{name}") for name in sorted(names)]
    assert names == {"ui/page.js", "ui/dialects.js", "ui/page.css", "ui/icon.svg"}
    for one in (page, *files):
        assert one.status == 200
        assert one.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert not HOSTILE.search(one.body.decode().replace("http://www.w3.org/2000/svg", ""))


async def test_it_is_told_the_models_and_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": "openai, opea", "USVC_NAME": "mine"}) as service:
        told = (await service.get("/ui/service.json")).json
    assert told.pop("version")
    assert told == {"name": "mine", "models": ["scripted"], "dialects": ["openai", "opea"]}


async def test_a_browser_finds_it_at_the_root_and_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, status, place in (("true", 200, "ui"), ("false", 404, "docs")):
        async with running(Scripted(), monkeypatch, {"USVC_SERVE_UI": value}) as service:
            root = await service.get("/", accept="text/html")
            assert (root.status, root.headers["location"]) == (307, place)
            assert (await service.get("/ui")).status == (await service.get("/ui/page.js")).status == status


async def test_a_file_is_read_and_one_that_cannot_be_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"USVC_MAX_BODY_MB": "1"}) as service:
        read = await service.post(pdf("Gaudi 2"), "/ui/read?name=a.pdf")
        broken = await service.post(b"Gaudi 2", "/ui/read?name=a.pdf")
        odd = await service.post(b"Gaudi 2", "/ui/read?name=%00%ff.p%00df")
        large = await service.post(b"x" * 1_000_001, "/ui/read?name=a.txt")
    assert (read.status, read.json) == (200, {"text": "Gaudi 2"})
    assert (odd.status, odd.json) == (200, {"text": "Gaudi 2"})
    assert broken.status == 400
    assert broken.json["detail"].startswith("body: it is no PDF file that can be read")
    assert (large.status, large.json["detail"]) == (413, "body: larger than the 1000000 bytes that are read")


async def test_few_files_are_read_at_once_and_others_wait_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, names, made = asyncio.Event(), list[str](), list[Admission]()

    class Noted(Admission):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    async def read(name: str, _: bytes) -> str:
        names.append(name)
        await gate.wait()
        return name

    monkeypatch.setattr(ui, "Admission", Noted)
    monkeypatch.setattr(ui, "read_apart", read)
    monkeypatch.setattr(ui, "_READ_AT_ONCE", 1)
    monkeypatch.setattr(ui, "_WAITING", 2)
    async with running(Scripted(), monkeypatch) as service, service.connect() as first, service.connect() as gone:
        for number, connection in enumerate((first, gone)):
            await connection.send("POST", f"/ui/read?name={number}", b"x", {})
            while made[0].running + made[0].waiting <= number:
                await service.get("/health")
        async with service.connect() as waiting:
            await waiting.send("POST", "/ui/read?name=2", b"x", {})
            while made[0].waiting < 2:
                await service.get("/health")
            refused = await service.post(b"x", "/ui/read?name=3")
            gone.close()
            await service.get("/health")  # By now the service knows that it left.
            gate.set()
            answered = [(await connection.answer()).json for connection in (first, waiting)]
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert answered == [{"text": "0"}, {"text": "2"}]
    assert names == ["0", "2"]
    assert (made[0].running, made[0].waiting) == (0, 0)


async def test_a_service_with_keys_shows_the_page_and_tells_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"USVC_API_KEYS": "web = secret-key-1"}) as service:
        for path in ("/ui", "/ui/page.js", "/ui/dialects.js", "/ui/page.css", "/ui/icon.svg"):
            assert (await service.get(path)).status == 200
        assert (await service.get("/ui/service.json")).status == 401
        assert (await service.post(b"x", "/ui/read?name=a.txt")).status == 401
        told = await service.get("/ui/service.json", authorization="Bearer secret-key-1")
    assert told.json["models"] == ["scripted"]
