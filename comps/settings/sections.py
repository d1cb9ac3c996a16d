"""The sections of the configuration: each section is a class, each key a field.

A field's alias lists its environment variables. config.ini and docs/settings.md have the docstrings of the sections and
the descriptions of the fields.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from comps.settings.field_types import (
    ExistingFile,
    LLMAPIFamily,
    PromptForm,
    key_of,
    listed,
    lowered,
)
from comps.settings.microservice import Microservice
from comps.settings.section import Section


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
        300,
        "how long an answer may take to begin; 0: no limit; the default is for model servers over HTTP alone",
        "LLM_FIRST_TOKEN_SECONDS",
        ge=0,
        allow_inf_nan=False,
    )
    between_tokens_seconds: float = key_of(
        120,
        "how long an answer may pause; 0: no limit; the default is for model servers over HTTP alone",
        "LLM_BETWEEN_TOKENS_SECONDS",
        ge=0,
        allow_inf_nan=False,
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


ALL = "all"
"""In `Dialects.enabled`: all dialects that are not named."""


class Dialects(Section):
    """How the service is asked, and how it answers."""

    enabled: Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)] = key_of(
        (ALL,),
        "the dialects that are spoken, separated by commas; the first has what several claim; all: those that are not "
        "named, in the order of docs/dialects.md",
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
    tgi_prompt: PromptForm = key_of("auto", "the same for inputs of tgi", "LLM_TGI_PROMPT")
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
