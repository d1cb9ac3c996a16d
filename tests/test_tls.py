"""TLS in the service: certificates that change, clients that need one, and streams to slow readers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
import uvloop
from cryptography.hazmat.primitives import serialization

from comps import watched_files
from comps.app import read_settings
from comps.core.errors import SettingsError
from comps.model_servers.scripted import Scripted
from comps.server import ServerProtocol
from comps.tls import ServerTLS
from tests.service import PATH, Answer, Service, running

PIECES = 150
PIECE = "word " * 4000
QUERY = json.dumps({"query": "?", "stream": False}).encode()
STREAM = json.dumps({"query": "?", "max_tokens": 100_000}).encode()

each_loop = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


class Files:
    """An authority, and the files of a certificate that it has issued to the service."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.client_ca = (
            folder / name for name in ("cert.pem", "key.pem", "client_ca.pem")
        )
        self.authority = self.issue()
        self.clients = self.trust_clients()

    def issue(self) -> trustme.CA:
        """Replace the certificate by one of another authority, which is returned."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        return authority

    def trust_clients(self) -> trustme.CA:
        """Replace the authority of clients by another one, which is returned."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.client_ca)
        return authority

    @property
    def environment(self) -> dict[str, str]:
        return {"USVC_TLS_CERTIFICATE": str(self.certificate), "USVC_TLS_KEY": str(self.key)}


def trusting(authority: trustme.CA, client_of: trustme.CA | None = None) -> ssl.SSLContext:
    """A client's context, with a certificate of `client_of`."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client_of:
        client_of.issue_cert("client@example.com").configure_cert(context)
    return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def post(service: Service, context: ssl.SSLContext, body: bytes = QUERY) -> Answer:
    async with service.connect(context) as client:
        await client.send("POST", PATH, body)
        return await client.answer()


async def refusal(service: Service, context: ssl.SSLContext) -> str:
    """The reason for which a handshake fails; empty: it does not."""
    try:
        await post(service, context)
    except ssl.SSLError as error:
        return error.reason or ""
    return ""


async def until_trusted(service: Service, files: Files) -> None:
    """Ask until the service has read the files that are there now."""
    while await refusal(service, trusting(files.authority, files.clients)):
        pass


@each_loop
def test_answers_come_whole_and_streamed_to_a_slow_reader_too(
    new_loop: Callable[[], asyncio.AbstractEventLoop], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        paused, original = asyncio.Event(), ServerProtocol.pause_writing

        def pause_writing(self: ServerProtocol) -> None:
            paused.set()
            original(self)

        monkeypatch.setattr(ServerProtocol, "pause_writing", pause_writing)
        async with running(Scripted([[PIECE] * PIECES]), monkeypatch, files.environment) as service:
            for listening in service.server.servers[0].sockets:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            context = trusting(files.authority)
            whole = await post(service, context, json.dumps({"query": "?", "stream": False, "max_tokens": 2}).encode())
            assert whole.json["text"] == PIECE * 2
            async with service.connect(context) as client:
                await client.send("POST", PATH, STREAM)
                await asyncio.wait_for(paused.wait(), 60)
                streamed = await client.answer()
            assert streamed.chunks[:-1] == [f"data: b'{PIECE}'\n\n".encode()] * PIECES
            assert streamed.chunks[-1] == b"data: [DONE]\n\n"

    loop = new_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


@each_loop
def test_plain_http_is_answered_in_plain_http_and_garbage_with_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(Scripted(), monkeypatch, files.environment) as service:
            async with service.connect() as client:
                await client.send("POST", PATH, QUERY)
                refused = await client.answer()
                client.writer.write(b"GET /health HTTP/1.1\r\n\r\n")
                assert await client.reader.read() == b""
            async with service.connect() as client:
                client.writer.write(b"\x00\x01garbage\r\n\r\n")
                with suppress(ConnectionResetError):
                    assert await client.reader.read(4) != b"HTTP"
            assert (await post(service, trusting(files.authority))).status == 200
        assert refused.status == 400
        assert refused.body == b"This port speaks HTTPS; the request was plain HTTP.\n"

    loop = new_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


async def test_a_client_needs_a_certificate_if_its_authority_is_set(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**files.environment, "USVC_TLS_CLIENT_CA": str(files.client_ca)}
    async with running(Scripted(), monkeypatch, environment) as service:
        assert (await post(service, trusting(files.authority, files.clients))).status == 200
        assert await refusal(service, trusting(files.authority)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert await refusal(service, trusting(files.authority, trustme.CA())) == "TLSV1_ALERT_UNKNOWN_CA"


async def test_certificates_are_read_again_when_they_change(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_files, "CHECK_SECONDS", 0.01)
    told: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    log = logging.getLogger("opea_llm")
    monkeypatch.setattr(
        log, "filters", [lambda record: loop.call_soon_threadsafe(told.put_nowait, record.getMessage()) or True]
    )
    log.setLevel(logging.INFO)
    environment = {**files.environment, "USVC_TLS_CLIENT_CA": str(files.client_ca)}
    async with running(Scripted(), monkeypatch, environment) as service:
        before, clients = files.authority, files.clients
        kept = service.connect(trusting(before, clients))
        async with kept as connection:
            await connection.send("POST", PATH, QUERY)
            assert (await connection.answer()).status == 200
            files.certificate.write_text("broken")
            while "stays as it was" not in await asyncio.wait_for(told.get(), 60):
                pass
            assert (await post(service, trusting(before, clients))).status == 200
            files.authority, files.clients = files.issue(), files.trust_clients()
            await asyncio.wait_for(until_trusted(service, files), 60)
            for authority, client in ((before, clients), (before, files.clients), (files.authority, clients)):
                assert await refusal(service, trusting(authority, client))
            await connection.send("POST", PATH, QUERY)  # A connection that is there stays.
            assert (await connection.answer()).status == 200


def test_files_that_do_not_fit_are_mistakes(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key, authority = str(files.certificate), str(files.key), str(files.client_ca)
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    locked = tmp_path / "locked.pem"
    private = serialization.load_pem_private_key(files.key.read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"x")
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    wrong = {
        "tls_certificate, tls_key: ": [(certificate, "", ""), (certificate, str(other.key), ""), (key, key, "")],
        "the key has a password": [(certificate, str(locked), "")],
        "tls_client_ca: ": [(certificate, key, key)],
    }
    for said, settings in wrong.items():
        for one in settings:
            with pytest.raises(SettingsError, match=said):
                ServerTLS(*one)
    for variable, setting in (("USVC_TLS_KEY", key), ("USVC_TLS_CLIENT_CA", authority)):
        monkeypatch.setenv(variable, setting)
        with pytest.raises(SettingsError, match="needs tls_certificate"):
            read_settings(None)
        monkeypatch.delenv(variable)
