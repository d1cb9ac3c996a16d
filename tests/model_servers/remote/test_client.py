"""The way to a model server: TLS, tokens, proxies, deadlines, pools; over real sockets, through a real proxy."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest
import trustme

from comps.core.answers import Collector
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Refused,
    SettingsError,
    Timeout,
    Unreachable,
    for_operator,
)
from comps.core.sockets import notice_silence
from comps.core.types import Message, Sampling
from comps.model_servers.remote import oauth
from comps.model_servers.remote.client import HTTP
from comps.model_servers.remote.failures import why_unreachable
from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.tgi import TGI
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.target import Access
from tests.model_servers.replay import Replay, Reply, replaying, sse

ASK = "/ask"
ANSWER = sse({"n": 1}, b"data: [DONE]\n\n")


class Events(Collector):
    """Reads the data of events, and can be told to wait."""

    is_complete = False

    def __init__(self) -> None:
        super().__init__()
        self.answer = self
        self.data: list[bytes] = []
        self.arrived = asyncio.Event()
        self.full = False
        self.drained = asyncio.Event()

    def event(self, data: bytes, name: bytes = b"") -> bool:
        self.data.append(data)
        self.arrived.set()
        return False

    async def drain(self) -> None:
        await self.drained.wait()
        self.full = False


async def events(http: HTTP) -> list[bytes]:
    """The data of all events that answer a question."""
    reader = Events()
    await http.stream(ASK, {}, reader)
    return reader.data


async def ask(url: str, access: Access | None = None) -> list[bytes]:
    """The same, on a connection of its own."""
    async with connected(url, access) as http:
        return await events(http)


@asynccontextmanager
async def connected(url: str, access: Access | None = None) -> AsyncIterator[HTTP]:
    # Certificates are read when a server is opened, which is before the event loop runs.
    http = await asyncio.to_thread(HTTP, url, access or Access())
    try:
        yield http
    finally:
        await http.aclose()


# --- connections ---


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    async with replaying({ASK: ANSWER}) as replay, connected(replay.url) as http:
        for _ in range(3):
            assert await events(http) == [b'{"n": 1}']
    assert (len(replay.asked), replay.connections) == (3, 1)


async def test_a_connection_that_the_server_closed_is_replaced_without_a_word() -> None:
    closed = Reply([], unanswered=True)
    async with replaying({ASK: [ANSWER, closed, ANSWER]}) as replay, connected(replay.url) as http:
        for _ in range(2):
            assert await events(http) == [b'{"n": 1}']
    assert (len(replay.asked), replay.connections) == (3, 2)


async def test_a_server_that_closes_a_new_connection_is_not_asked_again_since_it_may_have_begun() -> None:
    async with replaying({ASK: Reply([], unanswered=True)}) as replay:
        with pytest.raises(ModelServerError, match="broke"):
            await ask(replay.url)
    assert len(replay.asked) == 1


async def test_a_server_that_closes_every_connection_is_asked_twice_and_no_more() -> None:
    closed = Reply([], unanswered=True)
    async with replaying({ASK: [ANSWER, closed, closed, closed]}) as replay, connected(replay.url) as http:
        assert await events(http) == [b'{"n": 1}']
        with pytest.raises(ModelServerError, match="broke"):
            await events(http)
    assert (len(replay.asked), replay.connections) == (3, 2)


async def test_an_answer_that_had_begun_is_not_asked_for_again() -> None:
    async with replaying({ASK: Reply(ANSWER.pieces[:1], headers={}, break_off=True)}) as replay:
        with pytest.raises(ModelServerError, match="broke"):
            await ask(replay.url)
    assert len(replay.asked) == 1


async def test_five_hundred_streams_are_open_at_once() -> None:
    asked, everybody = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n{}")
        asked += 1
        if asked == 500:
            everybody.set()
        await everybody.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: 1\n\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    async with server, connected(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as http:

        async def one() -> list[bytes]:
            return await events(http)

        assert await asyncio.wait_for(asyncio.gather(*(one() for _ in range(500))), 60) == [[b"1"]] * 500


# --- deadlines ---


async def silence(url: str, access: Access) -> str:
    with pytest.raises(Timeout) as caught:
        await ask(url, access)
    return str(caught.value)


async def test_a_connection_that_is_never_accepted_is_unreachable() -> None:
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)  # The kernel's queue is full after one or two.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(Unreachable) as caught:
            await ask(url, Access(connect_seconds=0.2))
    assert both_texts(caught.value, CANNOT, url) == ["no connection within 0.2 s"] * 2


CANNOT = "the model server cannot be reached"


def both_texts(error: LLMError, what: str, address: str) -> list[str]:
    """What an error tells a caller and the operator after `what`; the operator alone learns the address."""
    caller, operator = str(error), for_operator(error)
    assert address not in caller
    assert caller.startswith(f"{what}: ")
    assert operator.startswith(f"{what}: {address}: ")
    return [caller.removeprefix(f"{what}: "), operator.removeprefix(f"{what}: {address}: ")]


@pytest.mark.parametrize(
    ("host", "why"), [("127.0.0.1:9", "connection refused"), ("[::1]:9", "connection refused|cannot assign")]
)
async def test_a_server_that_cannot_be_reached_is_told_with_the_reason_and_to_the_operator_with_its_address(
    host: str, why: str
) -> None:
    url = f"http://{host}/v1"
    with pytest.raises(Unreachable) as caught:
        await ask(url + "?key=hunter2")
    caller, operator = both_texts(caught.value, CANNOT, url)
    assert caller == operator
    assert re.match(why, caller)


async def test_a_name_that_cannot_be_resolved_is_told_as_such() -> None:
    with pytest.raises(Unreachable) as caught:
        await ask("http://nowhere.invalid:8008")
    caller, operator = both_texts(caught.value, CANNOT, "http://nowhere.invalid:8008")
    assert caller == "its name cannot be resolved"
    assert operator.startswith(caller + " (")


@pytest.mark.parametrize(
    ("numbers", "why"),
    [((111, 111), "connection refused"), ((99, 111), "cannot assign requested address, connection refused")],
)
def test_the_reasons_of_several_addresses_of_a_host_are_told_once_each(numbers: tuple[int, int], why: str) -> None:
    told = ", ".join(f"[Errno {number}] Connect call failed ('::1', 8008, 0, 0)" for number in numbers)
    assert why_unreachable(OSError(f"Multiple exceptions: {told}")) == (why, "")


async def test_every_failure_names_the_server_to_the_operator_and_not_to_the_caller() -> None:
    for reply in (
        Reply([b"no"], 500),
        Reply([], unanswered=True),
        Reply([b"<p>no</p>"], headers={"Content-Type": "text/html"}),
    ):
        async with replaying({ASK: reply}) as replay:
            with pytest.raises(ModelServerError) as caught:
                await ask(replay.url)
            assert for_operator(caught.value) == f"{replay.url}: {caught.value}"
            assert replay.url not in str(caught.value)


async def test_a_server_that_says_nothing_is_waited_for_no_longer_than_set() -> None:
    said = []
    async with replaying({ASK: Reply([], headers={}, hang=True)}) as replay:
        said.append(await silence(replay.url, Access(first_token_seconds=0.2)))
        await asyncio.wait_for(replay.left.wait(), 5)
        said.append(await silence(replay.url, Access(total_seconds=0.2)))
    assert said == ["the model server did not begin in time"] * 2


@pytest.mark.parametrize("access", [Access(first_token_seconds=0.2), Access(total_seconds=0.2)])
@pytest.mark.parametrize(
    "reply",
    [
        Reply([], 500, hang=True),
        Reply([b"half a wo"], 500, hang=True),
        Reply([], hang=True),
        Reply([b'{"half": '], hang=True),
    ],
    ids=["error without a body", "half an error", "no stream and no body", "half of no stream"],
)
async def test_a_body_that_is_no_answer_is_waited_for_no_longer_than_an_answer(reply: Reply, access: Access) -> None:
    async with replaying({ASK: reply}) as replay:
        assert await asyncio.wait_for(silence(replay.url, access), 30) == "the model server did not begin in time"
        await asyncio.wait_for(replay.left.wait(), 5)


@pytest.mark.parametrize(
    ("first", "then", "access", "said"),
    [
        ([], b": ping\n\ndata: ping\n\n", Access(first_token_seconds=0.2), "did not begin in time"),
        ([b"data: 1\n\n"], b": ping\n\n", Access(between_tokens_seconds=0.2), "did not go on in time"),
        ([b"data: 1\n\n"], b'data: "keep-alive"\n\n', Access(between_tokens_seconds=0.2), "did not go on in time"),
        ([b"data: 1\n\n"], b"data: 2\n\n", Access(total_seconds=0.3), "did not go on in time"),
        ([b"data: 1\n\n"], b": ping\n\n", Access(between_tokens_seconds=0, total_seconds=0.3), "go on in time"),
    ],
    ids=["first token", "between tokens", "between tokens, as data", "total", "total alone"],
)
async def test_signs_of_life_are_no_answer(first: list[bytes], then: bytes, access: Access, said: str) -> None:
    async with replaying({ASK: Reply(first, headers={}, again=then)}) as replay:
        assert said in await asyncio.wait_for(silence(replay.url, access), 10)


async def test_the_time_that_a_reader_takes_is_not_the_servers() -> None:
    reader = Events()
    reader.full = True
    first = b"1" * 5000  # Of less it is not looked whether it was taken on.
    rest = Reply([b"data: %b\n\n" % first, b"data: 2\n\n", b"data: [DONE]\n\n"], headers={})
    async with replaying({ASK: rest}) as replay, connected(replay.url, Access(between_tokens_seconds=0.1)) as http:
        asking = asyncio.ensure_future(http.stream(ASK, {}, reader))
        await asyncio.wait_for(reader.arrived.wait(), 5)
        await asyncio.sleep(0.25)  # Longer than the server may take.
        assert not asking.done()
        reader.drained.set()
        await asyncio.wait_for(asking, 5)
    assert reader.data == [first, b"2"]


async def test_one_timer_watches_all_of_an_answer_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    original = loop.call_at

    def call_at(when: float, callback: Callable[..., object], *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timer = original(when, callback, *arguments, **more)
        if getattr(callback, "__self__", None).__class__.__name__ == "Deadlines":
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_at", call_at)
    answer = sse(*({"n": number} for number in range(50)))
    async with replaying({ASK: answer}) as replay, connected(replay.url) as http:
        assert len(await events(http)) == 50
        reader = Events()
        asking = asyncio.ensure_future(http.stream(ASK, {}, reader))
        await asyncio.wait_for(reader.arrived.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert len(timers) == 2
    assert all(timer.cancelled() for timer in timers)


async def test_zero_means_without_a_limit() -> None:
    never = Access(connect_seconds=0, first_token_seconds=0, between_tokens_seconds=0, total_seconds=0)
    async with replaying({ASK: ANSWER}) as replay:
        assert await ask(replay.url, never) == [b'{"n": 1}']


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """Of a server with a certificate for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_certificate_of_an_unknown_authority_is_refused_with_the_reason(tls: ssl.SSLContext) -> None:
    async with replaying({ASK: ANSWER}, tls) as replay:
        with pytest.raises(Unreachable) as caught:
            await ask(replay.url)
    texts = both_texts(caught.value, "the model server cannot be reached", replay.url)
    assert texts[0] == "its certificate is not trusted here"
    assert "unable to get local issuer certificate" in texts[1]


async def test_a_connection_that_cannot_be_made_is_tried_once() -> None:
    connections = 0

    def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"this is no TLS\r\n")
        writer.close()

    async with await asyncio.start_server(no_tls, "127.0.0.1", 0) as server:
        with pytest.raises(Unreachable, match="no TLS connection could be made"):
            await ask(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert connections == 1


async def test_a_certificate_of_ones_own_authority_is_accepted(tls: ssl.SSLContext, ca_file: str) -> None:
    async with replaying({ASK: ANSWER}, tls) as replay:
        assert await ask(replay.url, Access(ca_file=ca_file)) == [b'{"n": 1}']


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA, ca_file: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    async with replaying({ASK: ANSWER}, context) as replay:
        with pytest.raises(Unreachable, match="not trusted") as caught:
            await ask(replay.url, Access(ca_file=ca_file))
    assert "IP address mismatch" in for_operator(caught.value)


async def test_with_verification_off_any_certificate_will_do(
    tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    own = str(tmp_path / "own.pem")
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(own)
    async with replaying({ASK: ANSWER}, tls) as replay:
        assert await ask(replay.url, Access(verify=False)) == [b'{"n": 1}']
        assert await ask(replay.url, Access(verify=False, client_certificate=own)) == [b'{"n": 1}']


# asyncio of Python 3.10 does not close what is left of a connection whose handshake the server refuses.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_client_certificate_is_shown_where_one_is_asked_for(
    tls: ssl.SSLContext, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    own = authority.issue_cert("client")
    certificate, key = str(tmp_path / "client.pem"), str(tmp_path / "client.key")
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    async with replaying({ASK: ANSWER}, tls) as replay:
        with pytest.raises(ModelServerError):
            await ask(replay.url, Access(ca_file=ca_file))
        shown = Access(ca_file=ca_file, client_certificate=certificate, client_key=key)
        assert await ask(replay.url, shown) == [b'{"n": 1}']


@pytest.mark.parametrize("field", ["ca_file", "client_certificate"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_a_setting_to_mend(
    field: str, content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "own.pem"
    if content:
        file.write_text(content)
    with pytest.raises(SettingsError, match=rf"^{field} = .*own\.pem: no usable certificate"):
        HTTP("https://127.0.0.1:9", Access(**{field: str(file)}))  # type: ignore[arg-type]


def test_a_key_with_a_line_break_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingsError, match=r"api_key \(LLM_API_KEY\): it has a line break") as caught:
        HTTP("http://127.0.0.1:9", Access(api_key="hush\nhush"))
    assert "hush" not in str(caught.value)


# --- OAuth ---

TOKENS = "/token"
SECRET = "s3cret"


def token(name: str, seconds: object = 300) -> Reply:
    return Reply([json.dumps({"access_token": name, "token_type": "bearer", "expires_in": seconds}).encode()])


def oauth_access(replay: Replay) -> Access:
    return Access(token_url=replay.url + TOKENS, client_id="me", client_secret=SECRET)


def shown_tokens(replay: Replay) -> list[str]:
    return [headers["authorization"] for path, headers, _ in replay.asked if path == ASK]


async def test_a_token_is_fetched_once_for_all_requests_and_shown_by_each() -> None:
    replies = {TOKENS: token("one"), ASK: ANSWER}
    async with replaying(replies) as replay, connected(replay.url, oauth_access(replay)) as http:

        async def one() -> None:
            assert await events(http) == [b'{"n": 1}']

        await asyncio.gather(*(one() for _ in range(20)))
    asked = [(headers, body) for path, headers, body in replay.asked if path == TOKENS]
    assert [body for _, body in asked] == [
        {"grant_type": "client_credentials", "client_id": "me", "client_secret": SECRET}
    ]
    assert shown_tokens(replay) == ["Bearer one"] * 20


async def test_where_tokens_are_had_the_model_servers_key_is_not_shown() -> None:
    async with replaying({TOKENS: token("one"), ASK: ANSWER}) as replay:
        access = replace(oauth_access(replay), api_key="hush")
        async with connected(replay.url, access) as http:
            assert await events(http) == [b'{"n": 1}']
        assert shown_tokens(replay) == ["Bearer one"]
    assert all("hush" not in str(headers) for _, headers, _ in replay.asked)


@pytest.mark.parametrize(("seconds", "lasts"), [(300, 265), (300.0, 265), ("300", 265), (10, 8), (None, 265)])
async def test_a_token_is_renewed_before_it_ends(seconds: object, lasts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(oauth, "monotonic", lambda: now)
    replies: dict[str, Reply | list[Reply]] = {TOKENS: [token("one", seconds), token("two")], ASK: ANSWER}
    async with replaying(replies) as replay, connected(replay.url, oauth_access(replay)) as http:
        for later in (0, lasts, 6):
            now += later
            await events(http)
    assert shown_tokens(replay) == ["Bearer one", "Bearer one", "Bearer two"]


async def test_a_token_that_is_not_accepted_is_renewed_once() -> None:
    no = Reply([b"{}"], 401)
    async with replaying({TOKENS: [token("one"), token("two")], ASK: [no, ANSWER]}) as replay:
        assert await ask(replay.url, oauth_access(replay)) == [b'{"n": 1}']
    assert shown_tokens(replay) == ["Bearer one", "Bearer two"]
    async with replaying({TOKENS: token("one"), ASK: no}) as replay:
        with pytest.raises(Refused, match="401"):
            await ask(replay.url, oauth_access(replay))
    assert len(shown_tokens(replay)) == 2


async def test_a_refusal_of_a_token_is_not_read_to_its_end() -> None:
    replies = {TOKENS: [token("one"), token("two")], ASK: [Reply([b"no"], 401, hang=True), ANSWER]}
    async with replaying(replies) as replay, connected(replay.url, oauth_access(replay)) as http:
        assert await events(http) == [b'{"n": 1}']
        await asyncio.wait_for(replay.left.wait(), 5)


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply([b'{"error": "invalid_client"}'], 401), ModelServerError, "answered 401: invalid_client"),
        (Reply([f'{{"error": "no {SECRET}!"}}'.encode()], 400), ModelServerError, "answered 400"),
        (Reply([b'{"token": "x"}']), ModelServerError, "answered 200"),
        (Reply([b"<html>"]), ModelServerError, "answered 200"),
        (Reply([], unanswered=True), Unreachable, "gives tokens"),
    ],
)
async def test_a_server_that_gives_no_token_is_an_error_without_the_secret(
    reply: Reply, error: type[Exception], said: str
) -> None:
    async with replaying({TOKENS: reply, ASK: ANSWER}) as replay:
        with pytest.raises(error, match=said) as caught:
            await ask(replay.url, oauth_access(replay))
    assert SECRET not in str(caught.value)
    assert shown_tokens(replay) == []


async def test_a_token_server_that_cannot_be_reached_is_told_as_such_and_to_the_operator_with_its_address() -> None:
    access = Access(token_url="http://127.0.0.1:9/token?tenant=hunter2", client_id="me", client_secret=SECRET)
    with pytest.raises(Unreachable) as caught:
        await ask("http://127.0.0.1:8", access)
    said = both_texts(caught.value, f"{oauth.NAME} cannot be reached", "http://127.0.0.1:9/token")
    assert said == ["connection refused"] * 2


async def test_a_token_server_that_hangs_is_waited_for_once_by_all_even_if_the_first_of_them_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oauth, "_SECONDS", 1.0)

    async def one(http: HTTP) -> None:
        await events(http)

    hanging = {TOKENS: Reply([], hang=True)}
    async with replaying(hanging) as replay, connected(replay.url, oauth_access(replay)) as http:
        asking = [asyncio.ensure_future(one(http)) for _ in range(4)]
        await asyncio.wait_for(replay.reached.wait(), 5)
        asking[0].cancel()
        first, *others = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 30)
    assert isinstance(first, asyncio.CancelledError)
    assert [type(one) for one in others] == [Unreachable] * 3
    assert [path for path, _, _ in replay.asked] == [TOKENS]


# --- proxies ---


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real HTTP proxy that asks for a password; it writes down what passes."""
    folder = tmp_path_factory.mktemp("proxy")
    command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--num-workers", "1"]
    files = ["--port-file", str(folder / "port"), "--log-file", str(folder / "log"), "--data-dir", str(folder)]
    process = subprocess.Popen(
        [*command, *files, "--num-acceptors", "1", "--threaded", "--basic-auth", "me:pw"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    port = ""
    for _ in range(300):
        with_port = folder / "port"
        port = with_port.read_text().strip() if with_port.exists() else ""
        if port:
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError("the proxy has ended")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


async def test_the_proxy_of_the_environment_is_used_with_its_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:pw@{proxy}")
    async with replaying({ASK: ANSWER}) as replay:
        assert await ask(replay.url) == [b'{"n": 1}']
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        with pytest.raises(Refused, match="407"):
            await ask(replay.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert await ask(replay.url) == [b'{"n": 1}']
    assert ["via" in headers for _, headers, _ in replay.asked] == [True, False]


async def test_tls_goes_through_a_proxy_from_end_to_end(
    proxy: str, tls: ssl.SSLContext, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:pw@{proxy}")
    async with replaying({ASK: ANSWER}, tls) as replay:
        assert await ask(replay.url, Access(ca_file=ca_file)) == [b'{"n": 1}']
        assert ["via" in headers for _, headers, _ in replay.asked] == [False]
        monkeypatch.setenv("https_proxy", f"http://me:wrong@{proxy}")
        with pytest.raises(Unreachable, match=r"does not let this service through$") as caught:
            await ask(replay.url, Access(ca_file=ca_file))
        assert f"{replay.url} through http://{proxy}: it answers 407" in for_operator(caught.value)
        assert "wrong" not in for_operator(caught.value)


async def test_a_proxy_that_is_not_there_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "127.0.0.1:9")
    async with replaying({ASK: ANSWER}) as replay:
        with pytest.raises(Unreachable) as caught:
            await ask(replay.url)
    why = "the proxy before it does not answer: connection refused"
    assert both_texts(caught.value, CANNOT, f"{replay.url} through http://127.0.0.1:9") == [why] * 2


def test_a_proxy_of_another_kind_is_a_setting_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(SettingsError, match="http_proxy: only HTTP proxies are known here, no socks5"):
        HTTP("http://127.0.0.1:9", Access())


# --- what is passed on ---


@pytest.mark.parametrize("seconds", [7, 100, "date", "past", "soon"])
async def test_a_busy_servers_retry_after_is_passed_on(seconds: int | str) -> None:
    dates = {"date": formatdate(time() + 100, usegmt=True), "past": formatdate(time() - 100, usegmt=True)}
    async with replaying({ASK: Reply([b"{}"], 429, {"Retry-After": dates.get(str(seconds), str(seconds))})}) as replay:
        with pytest.raises(Overloaded) as caught:
            await ask(replay.url)
    assert caught.value.retry_after in {"date": range(70, 102), "past": [1], "soon": [1]}.get(str(seconds), [seconds])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "1.5"}, 2),
        ({"Retry-After": "0.2"}, 1),
        ({"Retry-After": "12s"}, 12),
        ({"retry-after-ms": "2500", "Retry-After": "3"}, 3),
        ({"Retry-After-Ms": "20"}, 1),
        ({"Retry-After-Ms": "soon", "Retry-After": "4"}, 4),
    ],
    ids=str,
)
async def test_a_retry_after_with_a_fraction_is_rounded_up(headers: dict[str, str], seconds: int) -> None:
    async with replaying({ASK: Reply([b"{}"], 429, headers)}) as replay:
        with pytest.raises(Overloaded) as caught:
            await ask(replay.url)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("said", ["\u00b2", "9" * 5000, "-3", "nan", "Mon, 01 Jan 99999 00:00:00 GMT"])
async def test_a_retry_after_that_makes_no_sense_is_no_reason_to_fail_otherwise(said: str) -> None:
    async with replaying({ASK: Reply([b"{}"], 429, {"Retry-After": said})}) as replay:
        with pytest.raises(Overloaded) as caught:
            await ask(replay.url)
    assert caught.value.retry_after in (0, 1)


async def test_an_error_is_read_to_its_end_however_it_arrives() -> None:
    async with replaying({ASK: Reply([b'{"error": {"mess', b'age": "too', b' bad"}}'], 400)}) as replay:
        with pytest.raises(InvalidRequest, match=r"refused it: too bad$"):
            await ask(replay.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_and_takes_nothing_elsewhere(status: int) -> None:
    async with replaying({ASK: ANSWER, TOKENS: token("one")}) as elsewhere:
        there = [Reply([], status, {"Location": elsewhere.url + path}) for path in (ASK, TOKENS)]
        async with replaying({ASK: there[0], TOKENS: there[1]}) as replay:
            with pytest.raises(Refused, match=f"answered {status}: it redirects to another URL"):
                await ask(replay.url, Access(api_key="key"))
            with pytest.raises(ModelServerError, match=f"gives tokens for the model server answered {status}"):
                await ask(replay.url, oauth_access(replay))
    assert elsewhere.asked == []


async def test_a_cookie_is_not_sent_back() -> None:
    answer = Reply(ANSWER.pieces, headers={**ANSWER.headers, "Set-Cookie": "sticky=1; Path=/"})
    # aiohttp keeps no cookies of a server that has an address and no name.
    async with replaying({ASK: answer}) as replay, connected(replay.url.replace("127.0.0.1", "localhost")) as http:
        for _ in range(2):
            assert await events(http) == [b'{"n": 1}']
    assert ["cookie" in headers for _, headers, _ in replay.asked] == [False, False]


async def test_cancelling_an_answer_closes_its_connection_even_before_the_first_event() -> None:
    async with replaying({ASK: Reply([], headers={}, hang=True)}) as replay, connected(replay.url) as http:
        asking = asyncio.ensure_future(events(http))
        await asyncio.wait_for(replay.reached.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(replay.left.wait(), 5)


# --- OpenAI's API ---


@pytest.mark.parametrize(
    ("endpoint", "api"),
    [
        ("", "/v1"),
        ("/", "/v1"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/v3", "/v3"),
        ("/v1beta/openai/", "/v1beta/openai"),
        ("/openai/v1", "/openai/v1"),
        ("/models/a", "/models/a/v1"),
        ("/pfad/\u00fc", "/pfad/%C3%BC/v1"),
    ],
)
async def test_an_endpoint_may_name_its_api_or_not(endpoint: str, api: str) -> None:
    models = Reply([b'{"data": [{"id": "m", "max_model_len": 7}]}'])
    async with replaying({f"{api}/models": models}) as replay:
        server = OpenAIAPI("m", replay.url + endpoint)
        assert (await server.describe()).context_window == 7
        await server.aclose()


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
def test_a_host_that_no_name_service_could_know_is_a_setting_to_mend(host: str) -> None:
    with pytest.raises(SettingsError, match=rf"^model_server_endpoint = http://{re.escape(host)}: "):
        HTTP(f"http://{host}", Access())


async def test_many_requests_at_once_ask_for_its_description_once() -> None:
    models = Reply([b'{"data": []}'])
    async with replaying({"/v1/models": models}) as replay:
        server = OpenAIAPI("m", replay.url)
        await asyncio.gather(*(server.describe() for _ in range(50)))
        await server.aclose()
    assert len(replay.asked) == 1


async def test_a_description_goes_on_when_one_of_those_who_wait_for_it_leaves() -> None:
    models = Reply([b'{"data": []}'])
    async with replaying({"/v1/models": models}) as replay:
        server = OpenAIAPI("m", replay.url)
        first, second = [asyncio.ensure_future(server.describe()) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).name == "m"
        await server.aclose()
    assert len(replay.asked) == 1


@pytest.mark.parametrize("closed", [False, True])
async def test_an_abandoned_description_logs_nothing(closed: bool) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with replaying({"/v1/models": Reply([], 500)}) as replay:
        server = OpenAIAPI("m", replay.url)
        before = asyncio.all_tasks()
        asked = asyncio.ensure_future(server.describe())
        await asyncio.sleep(0)
        (describing,) = asyncio.all_tasks() - before - {asked}
        asked.cancel()
        if closed:
            await server.aclose()
        await asyncio.wait((asked, describing), timeout=30)
        assert (describing.done(), describing.cancelled()) == (True, closed)
        await server.aclose()
    del server, asked, describing
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_list_of_models_is_there_all_the_same(status: int) -> None:
    async with replaying({"/v1/models": Reply([b"{}"], status)}) as replay:
        server = OpenAIAPI("m", replay.url, context_window=99)
        assert (await server.describe()).context_window == 99
        await server.aclose()


@pytest.mark.parametrize("status", [308, 407, 502, 504])
@pytest.mark.parametrize(("kind", "path"), [(OpenAIAPI, "/v1/models"), (TGI, "/health")])
async def test_a_server_that_a_proxy_does_not_reach_or_that_redirects_is_not_there(
    kind: type[OpenAIAPI], path: str, status: int
) -> None:
    async with replaying({path: Reply([b"{}"], status), "/info": Reply([b"{}"])}) as replay:
        server = kind("m", replay.url)
        with pytest.raises(Refused, match=str(status)):
            await server.describe()
        await server.aclose()


@pytest.mark.parametrize(
    "facts",
    [{"max_model_len": 7}, {"context_window": 7}, {"context_length": 7}, {"meta": {"n_ctx": 7}}],
    ids=["vLLM", "Groq", "OpenRouter", "llama.cpp"],
)
async def test_the_window_is_read_by_any_of_its_names_unless_it_is_set(facts: dict[str, object]) -> None:
    models = Reply([json.dumps({"data": [{"id": "other"}, {"id": "m", **facts}]}).encode()])
    async with replaying({"/v1/models": models}) as replay:
        told, fixed = OpenAIAPI("m", replay.url), OpenAIAPI("m", replay.url, context_window=3)
        assert [(await server.describe()).context_window for server in (told, fixed)] == [7, 3]
        await told.aclose()
        await fixed.aclose()


async def test_work_without_text_reads_a_byte_order_mark_and_errors_with_the_status_200() -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}
    vectors = b'\xef\xbb\xbf{"data": [{"index": 0, "embedding": [1.0]}]}'
    replies = [Reply([json.dumps(error).encode()]), Reply([vectors])]
    async with replaying({"/v1/embeddings": replies, "/tokenize": replies[0]}) as replay:
        server, tgi = VLLM("m", replay.url), TGI("m", replay.url)
        for asking in (server.embed(["a"]), server.count_tokens("a"), server.tokenize("a"), tgi.tokenize("a")):
            with pytest.raises(Overloaded, match="the model server is busy: slow down"):
                await asking
        assert (await server.embed(["a"])).vectors == ([1.0],)
        await server.aclose()
        await tgi.aclose()


async def test_a_gateways_error_is_no_sign_that_tgi_renders_no_conversation() -> None:
    async with replaying({"/chat_tokenize": Reply([b""], 502)}) as replay:
        server = TGI("m", replay.url)
        with pytest.raises(Refused, match="502"):
            await server.complete((Message("user", "?"),), Sampling(top_k=3), {})
        await server.aclose()


async def test_texts_are_embedded_in_their_order() -> None:
    data = [{"index": 1, "embedding": [3.0]}, {"index": 0, "embedding": [1.0]}]
    reply = Reply([json.dumps({"data": data, "usage": {"prompt_tokens": 5}}).encode()])
    async with replaying({"/v1/embeddings": reply}) as replay:
        server = OpenAIAPI("m", replay.url)
        embedded = await server.embed(["a", "b"])
        with pytest.raises(ModelServerError, match="2 vectors for 1 texts"):
            await server.embed(["a"])
        await server.aclose()
    assert (embedded.vectors, embedded.prompt_tokens) == (([1.0], [3.0]), 5)
    assert replay.asked[0][2] == {"model": "m", "input": ["a", "b"], "encoding_format": "float"}


async def test_a_connection_notices_that_the_model_servers_host_has_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    stalled: list[int] = []

    def noticed(connection: socket.socket, seconds: float) -> None:
        notice_silence(connection, seconds)
        stalled.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr("comps.model_servers.remote.connections.notice_silence", noticed)
    async with replaying({ASK: ANSWER}) as replay:
        assert await ask(replay.url)
    assert stalled == [20_000]
