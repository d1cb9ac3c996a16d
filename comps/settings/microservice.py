"""The section of the service itself: where it listens, who may ask, and its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from comps.settings.field_types import (
    ExistingFile,
    key_of,
    network,
    origin,
    url_path,
    words_of,
)
from comps.settings.section import Section


class Microservice(Section):
    """The service itself."""

    name: str = key_of("opea_service@llm", "how the service calls itself", "USVC_NAME", min_length=1)
    host: str = key_of("0.0.0.0", "the address it listens on", "USVC_HOST", min_length=1)
    port: int = key_of(9000, "the port it listens on", "USVC_PORT", "LLM_USVC_PORT", ge=1, le=65535)
    workers: int = key_of(
        1,
        "how many processes answer on the port; more than 1 only if no model runs here; all limits are those of each",
        "USVC_WORKERS",
        ge=1,
    )
    tls_certificate: ExistingFile = key_of(
        "",
        "a PEM file with the service's own certificate, and those between it and its authority; empty: no TLS",
        "USVC_TLS_CERTIFICATE",
    )
    tls_key: ExistingFile = key_of(
        "", "a PEM file with the key of tls_certificate, without a password; empty: that file has it", "USVC_TLS_KEY"
    )
    tls_client_ca: ExistingFile = key_of(
        "",
        "a PEM file of the authorities of which clients must have a certificate; empty: clients need none",
        "USVC_TLS_CLIENT_CA",
    )
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(network)], ...], NoDecode, BeforeValidator(words_of)
    ] = key_of(
        (),
        "the addresses or networks of proxies whose X-Forwarded-For and -Proto are believed, separated by commas",
        "USVC_TRUSTED_PROXIES",
    )
    api_keys_file: ExistingFile = key_of(
        "",
        "a file of the API keys that callers need, name = key in a line; read again when it changes; empty: no keys",
        "USVC_API_KEYS_FILE",
    )
    api_keys: SecretStr = key_of(
        SecretStr(""), "the same keys, separated by commas; never in this file", "USVC_API_KEYS"
    )
    open_routes: Annotated[
        tuple[Annotated[str, AfterValidator(url_path)], ...], NoDecode, BeforeValidator(words_of)
    ] = key_of(
        ("/", "/health", "/ready", "/healthz", "/v1/health_check", "/check", "/ui"),
        "the paths that need no key, separated by commas; /: for GET alone; /docs and /ui: the pages with what they "
        "load",
        "USVC_OPEN_ROUTES",
    )
    max_body_mb: int = key_of(16, "the largest request body that is read, in megabytes", "USVC_MAX_BODY_MB", gt=0)
    max_bodies_mb: int = key_of(
        128,
        "megabytes that bodies above 64 kB may have together until they are answered; further ones are read later",
        "USVC_MAX_BODIES_MB",
        gt=0,
    )
    max_header_kb: int = key_of(
        32, "the largest headers of a request, in kilobytes; beyond that, 431", "USVC_MAX_HEADER_KB", gt=0
    )
    max_url_kb: int = key_of(8, "the longest URL, in kilobytes; beyond that, 414", "USVC_MAX_URL_KB", gt=0)
    max_connections: int = key_of(
        4096,
        "how many connections may be open; beyond that, 503 (GET is still answered)",
        "USVC_MAX_CONNECTIONS",
        gt=0,
    )
    max_running: int = key_of(256, "how many requests each model may answer at once", "USVC_MAX_RUNNING", gt=0)
    max_waiting: int = key_of(
        1024,
        "how many more may wait for each model; beyond that, 429; callers with keys take turns, and share the places",
        "USVC_MAX_WAITING",
        ge=0,
    )
    max_wait_seconds: float = key_of(
        60, "how long a request may wait; then 429; 0: no limit", "USVC_MAX_WAIT_SECONDS", ge=0, allow_inf_nan=False
    )
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(origin)], ...], NoDecode, BeforeValidator(words_of)] = (
        key_of((), "the origins whose web pages may ask, separated by commas; *: any, empty: none", "USVC_CORS_ORIGINS")
    )
    serve_docs: bool = key_of(True, "have the pages GET /docs and /openapi.json", "USVC_SERVE_DOCS")
    serve_metrics: bool = key_of(True, "have GET /metrics", "USVC_SERVE_METRICS")
    serve_prompt: bool = key_of(True, "have POST /v1/prompt", "USVC_SERVE_PROMPT")
    serve_ui: bool = key_of(True, "have the page /ui, to try the service in a browser", "USVC_SERVE_UI")
    allow_shutdown: bool = key_of(False, "let POST /shutdown end the service", "USVC_ALLOW_SHUTDOWN")
    show_endpoints: bool = key_of(
        False, "let POST /v1/prompt tell its callers the model server's URL", "USVC_SHOW_ENDPOINTS"
    )
    header_seconds: float = key_of(
        10,
        "how long the headers of a request may take, and the first request after a connection is made; 0: no limit",
        "USVC_HEADER_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    body_seconds: float = key_of(
        30,
        "how long a request's body may take, with a second more for each 16 kB of it; 0: no limit",
        "USVC_BODY_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    idle_seconds: float = key_of(
        5,
        "how long a connection stays open without a request; 0: no limit",
        "USVC_IDLE_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    stalled_client_seconds: float = key_of(
        120,
        "how long a client may take nothing of its answer; 0: no limit",
        "USVC_STALLED_CLIENT_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    keepalive_seconds: float = key_of(
        0.0,
        "how long a stream may be silent before a comment (: keep-alive) is sent, with the status line if that is not "
        "out yet; not in streams of data: b'…', of JSON lines or of frames; 0: no comments",
        "USVC_KEEPALIVE_SECONDS",
        ge=0,
    )
    pre_stop_seconds: float = key_of(
        0.0,
        "how long it still accepts requests when told to end, already not ready; for those who watch its readiness",
        "USVC_PRE_STOP_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    drain_seconds: int = key_of(60, "how long running answers may take to end at shutdown", "USVC_DRAIN_SECONDS", ge=0)

    @property
    def needs_key(self) -> bool:
        """Whether callers need an API key."""
        return bool(self.api_keys_file or self.api_keys.get_secret_value())
