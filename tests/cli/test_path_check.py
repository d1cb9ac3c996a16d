"""`check --through`: each fault of a proxy is named, and a path without faults has none."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme

from comps.model_servers.scripted import Scripted
from tests.cli import faulty_proxy
from tests.cli.faulty_proxy import before
from tests.cli.invoking import Ran, invoke
from tests.process import free_port
from tests.service import PATIENCE, Service, running


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream has so few events that their times are not judged."""
    monkeypatch.setattr("comps.cli.path_check.PAUSES", [0.0, 0.0])


@pytest.fixture
def timed(_untimed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is judged, and takes half a second."""
    monkeypatch.setattr("comps.cli.path_check.PAUSES", [0.0, *([0.03] * 6), *([0.06, 0.004] * 6)])


def faults(ran: Ran) -> dict[str, str]:
    """The names of the faults that a check has found, with what it says of them; each has a remedy."""
    found = json.loads(ran.out)
    assert ran.code == (3 if any(one["is_fault"] for one in found) else 0)
    assert all(one["mend"] for one in found if one["is_fault"])
    return {one["name"]: one["said"] for one in found if one["is_fault"]}


async def checked(port: int, *arguments: str, idle: float = 0, scheme: str = "http", **environment: str) -> Ran:
    url = f"{scheme}://localhost:{port}" if scheme == "https" else f"{scheme}://127.0.0.1:{port}"
    return await invoke("check", "--through", url, "--idle", str(idle), "--json", *arguments, environment=environment)


@pytest.mark.usefixtures("timed")
async def test_a_path_without_faults_has_none_and_a_terminal_gets_a_line_for_each_thing_that_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["yes"]]), monkeypatch) as service, before(service.port) as port:
        assert faults(await checked(port, "--model", "scripted", idle=0.1)) == {}
        shown = await invoke("check", "--through", f"http://127.0.0.1:{service.port}/v1", "--idle", "0")
    assert shown.code == 0
    assert [line[:12] for line in shown.out.splitlines()] == [
        "ok    clock:",
        "ok    clock:",
        "ok    stream",
        "ok    model:",
    ]
    assert "\x1b" not in shown.out


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize(
    ("relay", "name", "said"),
    [
        (faulty_proxy.buffering, "buffering", "19 of 19 events came at once"),
        (faulty_proxy.in_blocks, "buffering", " blocks instead of one by one"),
        (faulty_proxy.joining, "joined", " pairs of events came as one HTTP chunk"),
        (faulty_proxy.splitting, "split", " of 19 events came in several parts"),
        (faulty_proxy.compressing, "gzip", "the stream is compressed (gzip)"),
        (faulty_proxy.with_nagle, "step", "it waits for the acknowledgement of the first"),
        (faulty_proxy.short, "cut", "the stream ended after 5 of 19 events"),
    ],
)
async def test_what_a_proxy_does_to_streams_is_named(
    relay: faulty_proxy.Relay, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Scripted([["yes"]]), monkeypatch) as service, before(service.port, relay) as port:
        found = faults(await checked(port))
    assert list(found) == [name]
    assert said in found[name]


async def test_a_silent_stream_that_a_proxy_closes_is_named_and_comments_keep_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        running(Scripted([["yes"]]), monkeypatch) as service,
        before(service.port, faulty_proxy.impatient) as port,
    ):
        cut = faults(await checked(port, idle=0.8))
    monkeypatch.setenv("USVC_KEEPALIVE_SECONDS", "0.1")
    async with (
        running(Scripted([["yes"]]), monkeypatch) as service,
        before(service.port, faulty_proxy.impatient) as port,
    ):
        kept = await checked(port, idle=0.8)
    assert list(cut) == ["idle"]
    assert re.fullmatch(r"a silent stream was cut after 0\.\d s \(the connection was closed\)", cut["idle"])
    assert faults(kept) == {}
    assert "in which" in kept.out


async def test_another_model_another_clock_and_another_program_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["yes"]]), monkeypatch) as service:
        not_there = faults(await checked(service.port, "--model", "large"))
        async with before(service.port, of_head=faulty_proxy.another_clock) as port:
            clock = faults(await checked(port))
        async with before(
            service.port, of_body=lambda body: body.replace(b'"scripted","choices', b'"another!","choices')
        ) as port:
            renamed = faults(await checked(port))
    assert not_there == {"model": "large is not served there; served: scripted"}
    assert list(clock) == ["clock"]
    assert re.match(r"the header Date is (3599|360\d) s ahead of ", clock["clock"])
    assert renamed == {"model": "scripted was asked, and another! answered"}


async def test_a_service_that_answers_whole_or_otherwise_or_elsewhere_or_not_at_all_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["yes"]]), monkeypatch, {"LLM_DISABLE_STREAMING": "true"}) as service:
        whole = faults(await checked(service.port))
    monkeypatch.setattr("comps.cli.path_check.STREAM_TEST", "no-such-model")
    others = []
    for dialects in ("openai", "opea, openai"):  # The one refuses the name, the other answers whatever it is.
        environment = {"LLM_DISABLE_STREAMING": "false", "LLM_DIALECTS": dialects}
        async with running(Scripted([["yes"]]), monkeypatch, environment) as service:
            others.append(faults(await checked(service.port, idle=0.1)))
    async with running(Scripted([["yes"]]), monkeypatch) as service:
        async with before(
            service.port, of_head=lambda _: b"HTTP/1.1 308 Moved\r\nlocation: https://x/\r\n\r\n"
        ) as port:
            moved = faults(await checked(port))
        async with before(service.port, of_head=lambda head: head.replace(b" 200 OK", b" 504 Gateway")) as port:
            late = faults(await checked(port, idle=0.1))
    nobody = faults(await checked(free_port()))
    assert "the answer came whole, as application/json" in whole["stream"]
    assert all("has no no-such-model: it is another program, or an older version" in one["stream"] for one in others)
    assert moved == {"status": "GET /models is redirected (308) to https://x/"}
    assert late["status"].startswith("POST /chat/completions is answered with status 504")
    assert late["idle"].endswith("(status 504)")
    assert nobody == {"connection": nobody["connection"]}
    assert "connection refused" in nobody["connection"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("good", ""),
        ("expired", "its certificate has expired"),
        ("soon", "the certificate of localhost expires in 2 days"),
        ("another host", "its certificate is for another host"),
        ("unknown authority", "of an authority that is not known here"),
        ("none", "speaks no TLS"),
    ],
)
async def test_what_is_wrong_with_tls_is_named(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, trusted = trustme.CA(), tmp_path / "ca.pem"
    (trustme.CA() if name == "unknown authority" else authority).cert_pem.write_to_path(str(trusted))
    days = {"expired": -1, "soon": 2.1}.get(name)
    until = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    host = "elsewhere.example" if name == "another host" else "localhost"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, not_after=until).configure_cert(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with running(Scripted([["yes"]]), monkeypatch) as service, before(service.port, tls=context) as port:
        port = service.port if name == "none" else port
        ran = await checked(port, scheme="https")
        asked = await invoke("ask", "?", "--url", f"https://localhost:{port}")
    assert (asked.out == "yes\n") is (name in ("good", "soon"))
    found = faults(ran)
    assert list(found) == (["tls"] if said else [])
    assert said in found.get("tls", "")
    assert said or "the certificate of localhost is valid until " in ran.out


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{service}; {more} }}
    }}
}}
"""
GZIP = "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;"


@pytest.mark.usefixtures("timed")
@pytest.mark.skipif(not shutil.which("nginx"), reason="the command nginx is missing: install nginx-light")
@pytest.mark.parametrize(
    ("more", "idle", "names"),
    [
        ("proxy_http_version 1.1; proxy_buffering off;", 0, []),
        ("proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;", 0, ["buffering"]),
        ("proxy_http_version 1.1; proxy_ignore_headers X-Accel-Buffering;", 0, ["step"]),
        (GZIP, 0, ["gzip"]),
        (f"proxy_ignore_headers X-Accel-Buffering; {GZIP}", 0, ["gzip", "buffering"]),
        ("proxy_read_timeout 1s;", 2.5, ["idle"]),
    ],
)
async def test_what_a_real_nginx_does_is_named(
    more: str, idle: float, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Scripted([["yes"]]), monkeypatch) as service:
        port, file = free_port(), tmp_path / "nginx.conf"
        file.write_text(NGINX.format(folder=tmp_path, port=port, service=service.port, more=more))
        nginx = await asyncio.create_subprocess_exec("nginx", "-c", str(file), "-p", str(tmp_path))
        try:
            await _until_it_listens(port)
            found = faults(await checked(port, idle=idle))
        finally:
            nginx.terminate()
            await nginx.wait()
    assert list(found) == names


async def _until_it_listens(port: int) -> None:
    async def connect() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    await asyncio.wait_for(connect(), PATIENCE)


# The stream test in the service


@pytest.mark.parametrize(
    "said", ["hello", "[]", "[-1]", "[1e9]", '["x"]', "[0" + ",0" * 200 + "]", "[" * 100_000, "{}", "[null]", "[NaN]"]
)
async def test_the_stream_test_refuses_what_is_no_list_of_pauses(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.post(stream_test(said))
    assert answer.status == 400
    assert b"stream-test takes a JSON list of 1 to 200 pauses" in answer.body


def stream_test(pauses: Any) -> dict[str, Any]:
    said = pauses if isinstance(pauses, str) else json.dumps(pauses)
    return {"model": "stream-test", "stream": True, "messages": [{"role": "user", "content": said}]}


async def test_the_stream_test_needs_a_key_where_all_do_is_listed_nowhere_and_has_few_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"USVC_API_KEYS": "me = one-key; models=scripted"}
    sent = {"Authorization": "Bearer one-key"}
    async with running(Scripted(), monkeypatch, keys) as service:
        assert (await service.post(stream_test([0]))).status == 401
        assert (await service.post(stream_test([0]), **sent)).status == 200
        listed = (await service.get("/v1/models", **sent)).body
        metrics = (await service.get("/metrics", **sent)).body
        running_ones = [asyncio.ensure_future(_begun(service, sent)) for _ in range(9)]
        statuses = [await one for one in running_ones]
    assert b"scripted" in listed
    assert b"stream-test" not in listed
    assert re.search(rb'opea_llm_requests_total\{[^}]*model="stream-test"', metrics)  # Apart from the model's own.
    assert sorted(statuses) == [200] * 8 + [429]


async def _begun(service: Service, sent: dict[str, str]) -> int:
    """The status of a stream that goes on until all others have begun."""
    async with service.connect() as connection:
        await connection.send("POST", "/v1/chat/completions", json.dumps(stream_test([0, 0.5])).encode(), sent)
        return (await connection.answer()).status
