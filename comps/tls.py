"""TLS for clients of the service: its certificate, read again when the files change, and theirs."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from comps.core.errors import SettingsError
from comps.settings import Settings
from comps.watched_files import WatchedFiles

log = logging.getLogger("opea_llm")

_SAID = b"This port speaks HTTPS; the request was plain HTTP.\n"
_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b" % (len(_SAID), _SAID)
)


class ServerTLS:
    """The TLS context of the server.

    uvicorn gets one context for all its life. When the files change, a new one is made, and each new connection is
    switched to it during its handshake; connections that are there stay as they are.

    Args:
        certificate: The path of a PEM file with the certificate, and those between it and its authority.
        key: The path of a PEM file with its key; empty: the file of the certificate has it.
        client_ca: The path of a PEM file with the authorities of clients; empty: clients need no certificate.

    Raises:
        SettingsError: A file is wrong.
    """

    def __init__(self, certificate: str, key: str, client_ca: str) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self.files = WatchedFiles([certificate, key, client_ca], self._reload_or_log)
        self._current = self._made()
        self.context = self._made()
        self.context.sslobject_class = _Handshake
        self.context.sni_callback = self._switch

    def _switch(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, whether the client says a name or not."""
        connection.context = self._current

    def _reload_or_log(self) -> None:
        try:
            self._current = self._made()
        except SettingsError as error:  # Perhaps the key comes a moment after its certificate.
            log.error("%s; the certificate stays as it was", error)
        else:
            log.info("%s: read again", self._certificate)

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key or None, password=_no_password)
        except (OSError, ValueError) as error:
            raise SettingsError(f"tls_certificate, tls_key: no certificate with its key: {_reason(error)}") from None
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise SettingsError(f"tls_client_ca: no certificates: {_reason(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed would not be checked against authorities that were taken away meanwhile.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context


class _Handshake(ssl.SSLObject):
    """Tells a client why its handshake fails; asyncio and uvloop close the connection without a word.

    A client that sends plain HTTP gets an answer in plain HTTP.
    """

    _outgoing: ssl.MemoryBIO
    _failed: ssl.SSLError | None = None

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> _Handshake:
        made = super()._create(incoming, outgoing, *args, **kwargs)  # type: ignore[misc]
        made._outgoing = outgoing
        return made  # type: ignore[no-any-return]

    def do_handshake(self) -> None:
        if self._failed:  # The client has not closed the connection, and sends more.
            raise self._failed
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.info("a TLS handshake failed: %s", _reason(error))
            if error.reason == "HTTP_REQUEST":
                self._outgoing.write(_PLAIN_HTTP)
            if not self._outgoing.pending:
                raise
            self._failed = error
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "to have sent what is to be sent") from None


def read_tls(settings: Settings) -> ServerTLS | None:
    """Returns the server's TLS; None if there is no certificate.

    Raises:
        SettingsError: A file is wrong, or there is a key or an authority without a certificate.
    """
    microservice = settings.microservice
    if microservice.tls_certificate:
        return ServerTLS(microservice.tls_certificate, microservice.tls_key, microservice.tls_client_ca)
    for key in ("tls_key", "tls_client_ca"):
        if getattr(microservice, key):
            raise SettingsError(f"[OPEA_Microservice] {key}: needs tls_certificate (USVC_TLS_CERTIFICATE) as well")
    return None


def _no_password() -> str:
    """Asked for the password of a key. Without this, OpenSSL would ask in the terminal."""
    raise ValueError("the key has a password; it must have none")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error)
