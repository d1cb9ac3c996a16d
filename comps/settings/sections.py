"""The sections of the configuration: each section is a class, each key a field.

A field's alias lists its environment variables. config.ini and docs/settings.md have the docstrings of the sections and
the descriptions of the fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from comps.core.redaction import without_keys
from comps.settings.field_types import (
    ExistingFile,
    LLMAPIFamily,
    PromptForm,
    items_of,
    key_of,
    listed,
    lowered,
    network,
    unquoted,
    url_path,
    words_of,
)


class Section(BaseSettings):
    """Base class of the sections. Arguments override the environment, which overrides the defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=True, loc_by_alias=False)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Yields the settings without what looks like a key, such as the password in a URL."""
        for name, value in super().__repr_args__():
            yield name, without_keys(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotes(cls, value: Any) -> Any:
        return unquoted(value)


class Logging(Section):
    """What the service writes about itself."""

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = key_of("INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL", "LOG_LEVEL", "OPEA_LOGGER_LEVEL")
    log_format: Annotated[Literal["text", "json"], BeforeValidator(lowered)] = key_of(
        "text", "text or json: an object in each line", "LOG_FORMAT"
    )
    log_path: str = key_of("", "the log file; empty: standard error", "LOG_PATH")
    log_prompts: bool = key_of(
        False, "write every prompt to the log, with its documents, but without what looks like a key", "LOG_PROMPTS"
    )
    record: str = key_of(
        "", "a folder that gets a file for each request, to look at and to replay; empty: none", "LOG_RECORD"
    )
    record_prompts: bool = key_of(
        False,
        "the files have prompts, documents and answers, without what looks like a key; otherwise their hashes",
        "LOG_RECORD_PROMPTS",
    )
    record_mb: int = key_of(
        100, "how large the folder of record may become, in megabytes; the oldest files go", "LOG_RECORD_MB", gt=0
    )


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
        "the paths that need no key, separated by commas; /docs and /ui: the pages with what they load",
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
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(items_of)] = key_of(
        (), "the origins whose web pages may ask, separated by commas; *: any, empty: none", "USVC_CORS_ORIGINS"
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
        "out yet; not in streams of data: b'…'; 0: no comments",
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


class Model(Section):
    """The model, and where it runs."""

    model_name: str = key_of(
        "SmolLM2-135M-Instruct",
        "the model's name; for one that runs here also a path, or a Hugging Face repository",
        "LLM_NAME",
        "LLM_MODEL_NAME",
        "LLM_MODEL_ID",
        min_length=1,
    )
    framework: Annotated[
        Literal["langchain", "native"],
        BeforeValidator(lambda value: {"generic": "native"}.get(lowered(value), lowered(value))),
    ] = key_of("langchain", "langchain or native: how the model server is reached", "FRAMEWORK", "LLM_CONNECTOR")
    model_server: Annotated[str, BeforeValidator(lowered)] = key_of(
        "openvino",
        "what runs the model: openvino, llama_cpp, transformers, vllm, tgi, ray_serve, openai_api, langchain or "
        "scripted",
        "MODEL_SERVER",
        "LLM_MODEL_SERVER",
    )
    model_server_endpoint: str = key_of(
        "",
        "the model server's URL, or those of its replicas, separated by commas; for scripted, a file of answers; "
        "empty where the model runs here",
        "LLM_MODEL_SERVER_ENDPOINT",
        "LLM_ENDPOINT",
    )
    api_key: SecretStr = key_of(
        SecretStr(""),
        "the model server's key; OPENAI_API_KEY goes to OpenAI's own host alone; never in this file",
        "LLM_API_KEY",
        "LLM_VLLM_API_KEY",
        "OPENAI_API_KEY",
    )
    token_url: str = key_of(
        "", "where client_id and client_secret are changed for a token (OAuth 2.0)", "LLM_TOKEN_URL", "TOKEN_URL"
    )
    client_id: str = key_of("", "who this service is at token_url", "LLM_CLIENT_ID", "CLIENTID")
    client_secret: SecretStr = key_of(
        SecretStr(""), "what proves it there; never in this file", "LLM_CLIENT_SECRET", "CLIENT_SECRET"
    )
    tls_skip_verify: bool = key_of(False, "do not check the model server's certificate", "LLM_TLS_SKIP_VERIFY")
    ca_file: ExistingFile = key_of("", "a PEM file of the authorities to trust; empty: the system's", "LLM_CA_FILE")
    client_certificate: ExistingFile = key_of(
        "", "a PEM file with this service's own certificate, for a model server that asks", "LLM_CLIENT_CERTIFICATE"
    )
    client_key: ExistingFile = key_of(
        "", "a PEM file with the key of client_certificate; empty: that file has it", "LLM_CLIENT_KEY"
    )
    connect_seconds: float = key_of(
        10, "how long a connection may take", "LLM_CONNECT_SECONDS", gt=0, allow_inf_nan=False
    )
    first_token_seconds: float = key_of(
        300, "how long an answer may take to begin; 0: no limit", "LLM_FIRST_TOKEN_SECONDS", ge=0, allow_inf_nan=False
    )
    between_tokens_seconds: float = key_of(
        120, "how long an answer may pause; 0: no limit", "LLM_BETWEEN_TOKENS_SECONDS", ge=0, allow_inf_nan=False
    )
    total_seconds: float = key_of(
        0, "how long an answer may take as a whole; 0: no limit", "LLM_TOTAL_SECONDS", ge=0, allow_inf_nan=False
    )
    retries_per_request: int = key_of(
        2,
        "how often a request may be sent again that the model server did not begin, or that a replica lost before its "
        "answer began; 0: never",
        "LLM_RETRIES_PER_REQUEST",
        ge=0,
    )
    retry_budget: float = key_of(
        0.2,
        "retries per request, over all requests of the model, so that retries are no load of their own; 0: none",
        "LLM_RETRY_BUDGET",
        ge=0,
        le=1,
    )
    breaker_failures: int = key_of(
        1,
        "failures in a row after which a replica is set aside; one is enough if it cannot be reached",
        "LLM_BREAKER_FAILURES",
        gt=0,
    )
    breaker_seconds: float = key_of(
        30,
        "how long a replica that goes on failing is set aside at most, between one request and the next that tries it",
        "LLM_BREAKER_SECONDS",
        gt=0,
        allow_inf_nan=False,
    )
    whole_answers: Annotated[Literal["auto", "whole", "stream"], BeforeValidator(lowered)] = key_of(
        "auto",
        "how a whole answer is requested: whole, stream (for a proxy that cuts idle connections), or auto: whole where "
        "the kind of model server stops when its client leaves",
        "LLM_WHOLE_ANSWERS",
    )
    context_window: int = key_of(
        0, "tokens that prompt and answer may have together; 0: ask the model server", "LLM_CONTEXT_WINDOW", ge=0
    )
    tokenizer_file: ExistingFile = key_of(
        "",
        "the model's tokenizer.json, by which to count here; empty: the model server counts, or it is estimated",
        "LLM_TOKENIZER_FILE",
    )
    min_answer_tokens: int = key_of(
        256,
        "tokens that stay free for an answer, if it may have so many, before documents and earlier messages give way",
        "LLM_MIN_ANSWER_TOKENS",
        gt=0,
    )
    documents_first: bool = key_of(
        False,
        "earlier messages give way to all documents; otherwise to the best one alone, and the others to them",
        "LLM_DOCUMENTS_FIRST",
    )
    native_documents: bool = key_of(
        False,
        "vllm: leave it to the model's own chat template to write the documents down, if it does",
        "LLM_NATIVE_DOCUMENTS",
    )
    nothing_found: str = key_of(
        "",
        "the answer where a search found no documents, for which no model is asked; empty: the model answers",
        "LLM_NOTHING_FOUND",
    )
    order: Annotated[Literal["auto", "given", "relevance", "ends"], BeforeValidator(lowered)] = key_of(
        "auto",
        "the order of documents in the prompt: given (as sent; prompts share a prefix), relevance (by the words of the "
        "question), ends (the best first and last) or auto: by their scores, else as sent if reranked, else by "
        "relevance",
        "LLM_ORDER",
    )
    top_documents: int = key_of(0, "how many of the best documents are used; 0: all", "LLM_TOP_DOCUMENTS", ge=0)
    citations: Annotated[Literal["auto", "on", "off", "matched"], BeforeValidator(lowered)] = key_of(
        "auto",
        "how answers cite documents: on (documents are numbered, and the model is told to write marks), off, matched "
        "(each sentence is matched to the document with its words) or auto: numbered if the prompt asks for marks",
        "LLM_CITATIONS",
    )
    chat_template: str = key_of(
        "",
        "how a conversation becomes text: auto (by model_name), a template that is here, or a .jinja file; empty: the "
        "model server does it",
        "LLM_CHAT_TEMPLATE",
    )
    prompt_templates: str = key_of(
        "",
        "a folder with prompt templates: en.txt, en.system.txt, document.txt, and a folder of these for a family of "
        "models; empty: ours",
        "LLM_PROMPT_TEMPLATES",
    )
    device: str = key_of("CPU", "where the model runs here: CPU, GPU or NPU", "LLM_DEVICE", min_length=1)


class Dialects(Section):
    """How the service is asked, and how it answers."""

    enabled: Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)] = key_of(
        ("opea", "openai", "square", "llm_api", "kaito", "llm_on_k8s"),
        "the dialects that are spoken, separated by commas; the first has what several claim",
        "LLM_DIALECTS",
    )
    opea_stream: Annotated[Literal["bytes", "text", "openai", "text_completion"], BeforeValidator(lowered)] = key_of(
        "bytes",
        "a query's stream: bytes (data: b'…'), text (data: '…'), openai (chunks of a chat) or text_completion (chunks "
        "of a completion, for GenAIComps 1.3 and later)",
        "LLM_OPEA_STREAM",
    )
    messages: Annotated[Literal["openai", "enterprise_rag"], BeforeValidator(lowered)] = key_of(
        "openai", "a messages body is answered as by openai or enterprise_rag", "LLM_MESSAGES"
    )
    string_messages: Annotated[Literal["messages", "query"], BeforeValidator(lowered)] = key_of(
        "messages",
        "messages that are a string are answered like other messages, or like a query, for GenAIComps 1.3 and later",
        "LLM_STRING_MESSAGES",
    )
    square_prompt: Annotated[Literal["auto", "conversation", "messages"], BeforeValidator(lowered)] = key_of(
        "auto",
        "a chat of square goes to the model as text, by the conversation template of model_identifier (conversation), "
        "or as messages, for the model's own template; auto: as text if the model was trained with the template, and "
        "a completion as with llm_api_prompt",
        "LLM_SQUARE_PROMPT",
    )
    llm_api_prompt: PromptForm = key_of(
        "auto",
        "a prompt of llm_api goes to the model as text to continue, or as messages, to be answered; auto: as messages "
        "if the model has a chat template and the prompt is not rendered by one",
        "LLM_API_PROMPT",
    )
    kaito_prompt: PromptForm = key_of("auto", "the same for a prompt of kaito", "LLM_KAITO_PROMPT")
    llm_on_k8s_prompt: PromptForm = key_of("auto", "the same for a prompt of llm_on_k8s", "LLM_ON_K8S_PROMPT")
    llm_api_family: LLMAPIFamily = key_of(
        "llama",
        "whose sampling defaults an llm_api body has: those of llama, huggingface, gptq_llama or autoawq",
        "LLM_API_FAMILY",
    )
    strict: bool = key_of(False, "refuse a body with fields that would be ignored", "LLM_STRICT")
    disable_streaming: bool = key_of(False, "answer whole, whatever is asked", "LLM_DISABLE_STREAMING")
    output_guard: bool = key_of(
        False, "an output guard comes next: answer whole, with its parameters", "LLM_OUTPUT_GUARD_EXISTS"
    )
    max_batch_size: int = key_of(
        32, "prompts or dialogs that a body of kaito or llm_on_k8s may have", "LLM_MAX_BATCH_SIZE", gt=0
    )
    max_seq_len: int = key_of(
        0,
        "tokens that a prompt of kaito's or llm_on_k8s's llama and its answer may have together; 0: no limit of ours",
        "LLM_MAX_SEQ_LEN",
        ge=0,
    )


SECTIONS: dict[str, type[Section]] = {
    "Logging": Logging,
    "OPEA_Microservice": Microservice,
    "Model": Model,
    "Dialects": Dialects,
}
