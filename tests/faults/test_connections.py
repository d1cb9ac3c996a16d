"""Faults of connections that are not those of a reply: none can be made, none is read, TLS fails, a server restarts."""

from __future__ import annotations

import asyncio
import gc
import ssl
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import trustme

from comps.model_servers.remote import exchange, sse
from comps.model_servers.remote.client import HTTP
from comps.model_servers.remote.connection import Connection as Ours
from comps.model_servers.target import Access
from tests.faults.model_server import FaultyServer, Pause, Reply, Script, Then, nothing_wrong
from tests.faults.outcomes import Outcome, body, both, check, outcome
from tests.faults.scripts import closed_in_a_chunk, endless_line, until_it_leaves
from tests.faults.test_replies import KINDS, at_the_connection, deadlines, every_framework, served
from tests.process import Running, free_port, serving
from tests.service import PATIENCE, Service, until_idle


async def all_outcomes(service: Service) -> list[Outcome]:
    """Streamed and whole, of each kind."""
    return [one for pair in await asyncio.gather(*(both(service, kind) for kind in KINDS)) for one in pair]


@every_framework
async def test_a_connection_that_is_refused_is_a_503_with_the_reason(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with served(url, monkeypatch, tmp_path, framework) as service:
        told = {(got.status, got.error) for got in await all_outcomes(service)}
    assert told == {(503, "the model server cannot be reached: connection refused")}


@at_the_connection
async def test_a_name_that_cannot_be_resolved_is_a_503_with_the_reason(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with served("http://no-such-host.invalid", monkeypatch, tmp_path, framework) as service:
        told = {(got.status, got.error) for got in await all_outcomes(service)}
    assert told == {(503, "the model server cannot be reached: its name cannot be resolved")}


@at_the_connection
@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere.example"])
async def test_a_certificate_that_is_not_trusted_or_for_another_host_is_a_503_with_the_reason(
    framework: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert(name).configure_cert(context)
    trusted = authority if name != "127.0.0.1" else trustme.CA()
    trusted.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = {f"LLM_CA_FILE{end}": str(tmp_path / "ca.pem") for end in ("", "__VLLM", "__TGI")}
    async with (
        FaultyServer().listening(context) as server,
        served(server.url.replace("http", "https"), monkeypatch, tmp_path, framework, **settings) as service,
    ):
        told = {(got.status, got.error) for got in await all_outcomes(service)}
    assert told == {(503, "the model server cannot be reached: its certificate is not trusted here")}
    assert server.answers == 0


@at_the_connection
@pytest.mark.parametrize("first", [[Then.RESET], [Then.CLOSE], [b"SSH-2.0-OpenSSH_9.6\r\n", Then.HANG]], ids=str)
async def test_a_server_that_resets_closes_or_speaks_before_it_has_read_anything_is_an_error(
    framework: str, first: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        FaultyServer().listening() as server,
        served(server.url, monkeypatch, tmp_path, framework, LLM_CONTEXT_WINDOW="1000") as service,
    ):
        server.on_accept = first
        for _ in range(5):  # It depends on the moment whether the request has been written.
            for got in await all_outcomes(service):
                assert got.status == 502
                assert got.error.startswith("the connection to the model server broke: ")
        await until_idle(service)


@at_the_connection
async def test_a_peer_that_stops_reading_is_given_up_after_the_time_for_the_first_token(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        FaultyServer().listening() as server,
        served(server.url, monkeypatch, tmp_path, framework, **deadlines(1)) as service,
    ):
        server.reads = False
        question = "word " * 1_500_000  # More than the buffers of two sockets hold.
        got = await outcome(service, "openai_api", True, question)
        assert (got.status, got.error) == (504, "the model server did not begin in time")
        await until_idle(service)


@every_framework
async def test_a_fault_on_every_path_is_an_error_too(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server whose description, counts and templates break off as well."""

    def broken(reply: Reply) -> Script:
        yield reply.head(b"Content-Length: 1000")
        yield reply.body[:3]
        yield Then.RESET

    async with (
        FaultyServer(broken).listening() as server,
        served(server.url, monkeypatch, tmp_path, framework) as service,
    ):
        server.everywhere = True
        for got in await all_outcomes(service):
            assert (got.status, got.text) == (502, "")
            assert got.error.startswith("the connection to the model server broke: ")


@at_the_connection
async def test_a_line_of_100_000_characters_passes_whole(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        FaultyServer().listening() as server,
        served(server.url, monkeypatch, tmp_path, framework) as service,
    ):
        server.tokens = ["€" * 100_000, " 1€"]
        for got in await all_outcomes(service):
            assert (got.text == "".join(server.tokens), got.ended, got.error) == (True, True, "")


@every_framework
async def test_a_line_or_a_body_without_an_end_is_read_up_to_a_limit(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sse, "_LONGEST", 1_000_000)
    monkeypatch.setattr(exchange, "MOST_OF_WHOLE", 1_000_000)
    async with (
        FaultyServer(endless_line(10_000_000)).listening() as server,
        served(server.url, monkeypatch, tmp_path, framework) as service,
    ):
        for kind in KINDS:
            for got in await both(service, kind):
                check(got, server.tokens)
                assert got.error.startswith(
                    ("the model server sent an event without an end", "the model server's answer has more than")
                )
        server.fault = nothing_wrong
        for got in await all_outcomes(service):
            check(got, server.tokens)
            assert got.ended


@at_the_connection
async def test_a_model_server_that_restarts_under_load_breaks_what_it_had_begun_and_answers_again(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slowly(reply: Reply) -> Script:
        yield reply.head()
        for one in reply.chunks:
            yield one
            yield Pause(0.005)
        yield b"0\r\n\r\n"

    server, outcomes, done = FaultyServer(slowly), asyncio.Queue[Outcome](), asyncio.Event()

    async def client(number: int, service: Service) -> None:
        while not done.is_set():
            got = await outcome(service, KINDS[number % 3], streamed=number % 2 > 0)
            check(got, server.tokens)
            outcomes.put_nowait(got)

    async def until(number: int, ended: bool) -> None:
        while number:
            number -= (await asyncio.wait_for(outcomes.get(), PATIENCE)).ended is ended

    async with AsyncExitStack() as up:
        await up.enter_async_context(server.listening())
        async with served(server.url, monkeypatch, tmp_path, framework) as service:
            clients = [asyncio.ensure_future(client(number, service)) for number in range(12)]
            await until(30, ended=True)
            await up.aclose()
            await until(30, ended=False)
            async with server.listening():
                await until(30, ended=True)
                done.set()
                await asyncio.gather(*clients)
                await until_idle(service)


@at_the_connection
async def test_a_whole_answer_without_an_end_is_read_up_to_a_limit(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Token after token, each in time, where the service collects them."""

    def endless(reply: Reply) -> Script:
        yield reply.head()
        yield from until_it_leaves(b"".join(reply.chunks[:2]))

    monkeypatch.setattr(exchange, "MOST_OF_COLLECTED", 100_000)
    async with (
        FaultyServer(endless).listening() as server,
        served(server.url, monkeypatch, tmp_path, framework) as service,
    ):
        got = await outcome(service, "openai_api", streamed=False)
        assert (got.status, got.error) == (502, "the model server's answer has more than 100,000 bytes")
        await until_idle(service)


@at_the_connection
async def test_what_a_broken_answer_held_is_freed_at_once(
    framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its error's traceback refers to all that was read; in a circle, that would stay until garbage is collected."""
    async with (
        FaultyServer(endless_line(1_000_000)).listening() as server,
        served(server.url, monkeypatch, tmp_path, framework) as service,
    ):
        for server.fault in (closed_in_a_chunk, endless_line(1_000_000)):
            monkeypatch.setattr(sse, "_LONGEST", 500_000)
            monkeypatch.setattr(exchange, "MOST_OF_WHOLE", 500_000)
            gc.collect()
            gc.disable()
            try:
                await all_outcomes(service)
                await until_idle(service)
                found, loop = gc.get_objects(), asyncio.get_running_loop()
                held: list[object] = [
                    one for one in found if isinstance(one, exchange.Exchange) and one.deadlines.loop is loop
                ]
                held += [one for one in found if isinstance(one, Ours) and one._idle.loop is loop and not one.usable]
                del found
            finally:
                gc.enable()
            assert held == []


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
async def test_a_gigabyte_in_one_line_takes_no_more_memory_than_the_limit_however_often_it_comes(kind: str) -> None:
    async with FaultyServer(endless_line(1_000_000_000)).listening() as server:
        settings = {"MODEL_SERVER": kind, "LLM_NAME": kind, "LLM_MODEL_SERVER_ENDPOINT": server.url}
        with ExitStack() as stack:
            service = await asyncio.to_thread(stack.enter_context, serving(**settings))
            before = memory(service, "VmRSS")
            for streamed in (True, False) * 2:
                with await asyncio.to_thread(stack.enter_context, service.posting(body(kind, streamed))) as response:
                    said = (await asyncio.to_thread(response.read)).decode()
                assert "an event without an end" in said or "has more than 64,000,000 bytes" in said
            highest = memory(service, "VmHWM")
            print(f"{kind}: {before} MB before, at most {highest} MB")
            assert highest < before + 100


def memory(service: Running, name: str) -> int:
    """A figure of a process's memory, in MB; `VmHWM` is the highest so far."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) // 1000


async def test_a_name_service_that_hangs_is_asked_once_by_all_requests_and_each_gives_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look-up takes a thread until it ends, of which there are few."""
    looked_up = 0

    async def hanging(*_: object, **__: object) -> list[object]:
        nonlocal looked_up
        looked_up += 1
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hanging)
    http = HTTP("http://hangs.invalid", Access(connect_seconds=0.1))
    told = await asyncio.gather(*(http.response("/ask", {}) for _ in range(40)), return_exceptions=True)
    assert {str(error) for error in told} == {"the model server cannot be reached: no connection within 0.1 s"}
    assert looked_up == 1
    await http.aclose()
