"""Composition root: creates the model servers, the generators, the dialects and the FastAPI application from
settings."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from comps.access import Keys
from comps.core.budget import Sharing
from comps.core.errors import LLMError, SettingsError, SettingsProblems
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ordering import Ordering
from comps.core.ports import ChecksSettings, Loads, ModelServer
from comps.core.prompts import Templates
from comps.core.redaction import Redactor
from comps.core.retries import Retries
from comps.core.types import JSON
from comps.dialects import DIALECTS, opea, open_dialect, openai
from comps.dialects.anthropic import dialect as anthropic
from comps.dialects.cohere import dialect as cohere
from comps.dialects.llm_api import dialect as llm_api
from comps.dialects.ollama import dialect as ollama
from comps.dialects.responses import dialect as responses
from comps.dialects.shared import llama
from comps.dialects.shared.base import Dialect
from comps.dialects.square import dialect as square
from comps.dialects.square.conversations import Conversation, read_conversation
from comps.dialects.tgi import dialect as tgi
from comps.direct_routes import DirectRoutes
from comps.guard import Guarded
from comps.logs import log
from comps.model_servers import (
    WITHOUT_ENGINE_SETTINGS,
    control_token_escaper,
    model_servers,
    open_model_server,
    through_framework,
    with_chat_template,
    with_tokenizer,
)
from comps.model_servers.redacted import Redacted
from comps.model_servers.replicas import Replicas
from comps.model_servers.stream_test import STREAM_TEST, StreamTest
from comps.model_servers.target import Access, Target
from comps.pages import app_with_pages
from comps.recording.drafts import RecordedGenerator
from comps.recording.recorder import Recorder
from comps.relevance import by_relevance
from comps.routes import Service
from comps.settings import (
    CONVERSATION,
    Flags,
    Model,
    ServedModel,
    Settings,
    gather_settings,
    read_templates,
    read_text,
)
from comps.tls import read_tls

_ABOUT = """A question and documents in, an answer out, whole or streamed.

Begin with `POST /v1/chat/completions`: it takes a question (`query`) or a conversation (`messages`), with documents.
The routes are grouped by the API that they belong to. A route of several APIs is in each of their groups; the key in
the body says which kind of body it is.
"""


def read_settings(file: Path | None, flags: Flags = MappingProxyType({})) -> Settings:
    """Loads the settings, and checks them against the model servers and dialects that exist.

    Args:
        file: The configuration file; see `load_settings`.
        flags: The settings of the command line, which override all others.

    Raises:
        SettingsError: Settings are unknown, missing or wrong; it has all of them. See `load_settings`.
    """
    problems = SettingsProblems()
    settings = gather_settings(file, model_servers(), DIALECTS, WITHOUT_ENGINE_SETTINGS, problems, flags)
    with problems.caught():
        make_dialects(settings)
    if problems.found:  # So that whatever else is wrong is told with it.
        with problems.caught():
            open_models(settings)
    for read in (read_keys, read_tls):
        with problems.caught():
            read(settings)
    if problems.found:
        raise SettingsError(*settings.without_effect, *problems.found)
    return settings


def read_keys(settings: Settings) -> Keys | None:
    """Returns the API keys; None if none are set.

    Raises:
        SettingsError: They cannot be read, or are set twice.
    """
    microservice = settings.microservice
    sources = {one.key: one.source for one in settings.listing if one.section == "OPEA_Microservice"}
    file, listed = microservice.api_keys_file, microservice.api_keys.get_secret_value()
    if file:
        # The variable with the file's path sets both, as for any secret.
        if listed and sources["api_keys"] != sources["api_keys_file"]:
            where = f"{sources['api_keys']} and {sources['api_keys_file']}"
            raise SettingsError(f"{where}: api_keys and api_keys_file are both set; one of them must go")
        return Keys(lambda: read_text(Path(file)), file, file, settings.models)
    return Keys(lambda: listed, sources["api_keys"], known_models=settings.models) if listed else None


def open_models(
    settings: Settings,
    servers: Mapping[str, ModelServer] = MappingProxyType({}),
    generator_of: Callable[..., TextGenerator] = TextGenerator,
) -> Models:
    """Returns the configured models. Nothing is loaded or connected yet.

    Args:
        settings: The settings.
        servers: Model servers by model name, which replace the configured ones.
        generator_of: Makes the generator of a model; it has the arguments of `TextGenerator`.

    Raises:
        SettingsError: A model server does not support its settings.
    """
    problems = SettingsProblems()
    generators = []
    for name, served in settings.models.items():
        with problems.caught(f"[{served.section}] "):
            logs_prompts = settings.logging.log_prompts
            generators.append(_open_model(name, served, servers, generator_of, logs_prompts=logs_prompts))
    for generator in generators:
        with problems.caught(f"[{settings.models[generator.model].section}] "):
            _check_workers(generator, settings)
    problems.raise_if_any()
    return Models(generators, unlisted=TextGenerator(StreamTest(), STREAM_TEST))


def _check_workers(generator: TextGenerator, settings: Settings) -> None:
    """Check that the model does not run in a service of several workers.

    Raises:
        SettingsError: Each worker would load it.
    """
    workers = settings.microservice.workers
    if workers > 1 and any(isinstance(server, Loads) for server in replicas_of(generator)):
        kind = settings.models[generator.model].model.model_server
        raise SettingsError(
            f"model_server = {kind}: the model would be loaded by each of the workers ([OPEA_Microservice] workers = "
            f"{workers}). Use workers = 1, or a model server."
        )


def _open_model(
    name: str,
    served: ServedModel,
    servers: Mapping[str, ModelServer],
    generator_of: Callable[..., TextGenerator],
    *,
    logs_prompts: bool,
) -> TextGenerator:
    """Returns one model; see `open_models`. The errors do not name its section."""
    model, problems = served.model, SettingsProblems()
    server, templates, native = servers.get(name), Templates(), False
    redactor = Redactor(
        (model.api_key.get_secret_value(), model.client_secret.get_secret_value()),
        (*model.model_server_endpoint.split(","), model.token_url),
    )
    with problems.caught():
        endpoints = _endpoints(model)
        access = _access(name, model, repeats=len(endpoints) == 1)
        opened = [server] if server else _open_replicas(served, endpoints, access)
        replicas = [Redacted(_as_set(one, served), redactor, logs_prompts=logs_prompts, model=name) for one in opened]
        server = _as_one(replicas, name, model, access)
    with problems.caught():
        templates = read_templates(model.prompt_templates, model.model_name)
    with problems.caught():
        native = _native_documents(served)
    problems.raise_if_any()
    assert server
    shown = (name, model.chat_template or "the model server's", model.prompt_templates or "ours")
    log.debug("[%s] chat template: %s; prompt templates: %s", *shown)
    sharing = Sharing(model.min_answer_tokens, model.documents_first)
    return generator_of(
        server,
        name,
        sharing,
        model.nothing_found,
        templates=templates,
        escape=control_token_escaper(model.chat_template, model.model_name),
        native=native,
        ordering=Ordering(model.order, model.top_documents, by_relevance),
        citations=model.citations,
    )


def _endpoints(model: Model) -> list[str]:
    """Returns the endpoints of a model; `model_server_endpoint` may list several URLs, of replicas."""
    endpoint = model.model_server_endpoint
    endpoints = [one.strip() for one in endpoint.split(",")] if "://" in endpoint else [endpoint]
    if "" in endpoints[1:] or (not endpoints[0] and endpoint):
        raise SettingsError(f"model_server_endpoint = {endpoint}: a comma has no URL on one of its sides")
    if len(set(endpoints)) < len(endpoints):
        raise SettingsError("model_server_endpoint: it names the same replica twice")
    return endpoints


def _access(name: str, model: Model, repeats: bool) -> Access:
    return Access(
        api_key=model.api_key.get_secret_value(),
        token_url=model.token_url,
        client_id=model.client_id,
        client_secret=model.client_secret.get_secret_value(),
        verify=not model.tls_skip_verify,
        ca_file=model.ca_file,
        client_certificate=model.client_certificate,
        client_key=model.client_key,
        connect_seconds=model.connect_seconds,
        first_token_seconds=model.first_token_seconds,
        between_tokens_seconds=model.between_tokens_seconds,
        total_seconds=model.total_seconds,
        whole_answers=model.whole_answers,
        retries=Retries(model.retry_budget, model.retries_per_request, name),
        repeats=repeats,
    )


def _open_replicas(served: ServedModel, endpoints: Sequence[str], access: Access) -> list[ModelServer]:
    """Returns one model server for each endpoint of a model."""
    model, problems, opened = served.model, SettingsProblems(), []
    for one in endpoints:
        target = Target(model.model_name, one, access, model.context_window or None, model.device, served.engine)
        with problems.caught():
            server = open_model_server(model.model_server, target)
            if isinstance(server, ChecksSettings):
                server.check_settings()
            opened.append(server)
    problems.raise_if_any()
    return opened


def _as_one(replicas: Sequence[ModelServer], name: str, model: Model, access: Access) -> ModelServer:
    if len(replicas) == 1:
        return replicas[0]
    failures, longest = model.breaker_failures, model.breaker_seconds
    return Replicas(replicas, model=name, retries=access.retries, failures=failures, longest_pause=longest)


def _as_set(server: ModelServer, served: ServedModel) -> ModelServer:
    """Returns the model server wrapped in the configured framework, tokenizer and chat template."""
    model = served.model
    through = through_framework(server, model.framework, model.model_name)
    through = with_tokenizer(through, model.tokenizer_file)
    if model.chat_template and model.model_server == "langchain":
        raise SettingsError(f"chat_template = {model.chat_template}: a chat model takes no text to continue")
    return with_chat_template(through, model.chat_template, model.model_name)


def _native_documents(served: ServedModel) -> bool:
    """Returns whether documents are passed as an option, for the model's own chat template to render.

    Raises:
        SettingsError: `native_documents` is set, but the model server does not support it.
    """
    model = served.model
    if model.native_documents and (model.model_server != "vllm" or model.chat_template):
        why = "chat_template writes them down" if model.chat_template else f"{model.model_server} takes none"
        raise SettingsError(f"native_documents = true: {why}")
    return model.native_documents


def replicas_of(generator: TextGenerator) -> Sequence[ModelServer]:
    """Returns the model servers of a model: its replicas, or the only one."""
    return generator.server.servers if isinstance(generator.server, Replicas) else (generator.server,)


def make_dialects(settings: Settings) -> list[Dialect]:
    """Returns the enabled dialects, by precedence: a path that several have is served by the first.

    Raises:
        SettingsError: A conversation template is invalid.
    """
    chosen = settings.dialects
    whole = chosen.disable_streaming
    limits = (chosen.max_batch_size, chosen.max_seq_len)
    concurrent = settings.microservice.max_running + settings.microservice.max_waiting
    switches: dict[str, Any] = {
        "opea": opea.Switches(chosen.opea_stream, chosen.messages, whole, chosen.output_guard, chosen.string_messages),
        "openai": openai.Switches(whole),
        "square": square.Switches(
            chosen.square_prompt, _conversations(settings), next(iter(settings.models), ""), whole
        ),
        "llm_api": llm_api.Switches(chosen.llm_api_family, chosen.llm_api_prompt, whole),
        "kaito": llama.Switches(*limits, chosen.kaito_prompt),
        "llm_on_k8s": llama.Switches(*limits, chosen.llm_on_k8s_prompt),
        "responses": responses.Switches(whole),
        "anthropic": anthropic.Switches(whole),
        "cohere": cohere.Switches(whole),
        "ollama": ollama.Switches(whole),
        "tgi": tgi.Switches(chosen.tgi_prompt, whole, concurrent),
    }
    return [open_dialect(name, switches.get(name)) for name in chosen.enabled]


def _conversations(settings: Settings) -> tuple[Conversation, ...]:
    """Returns the configured conversation templates, in the order of the file."""

    problems, found = SettingsProblems(), []
    for name, keys in settings.conversations.items():
        with problems.caught(f"[{CONVERSATION}{name}] "):
            found.append(read_conversation(name, keys))
    problems.raise_if_any()
    return tuple(found)


def example(settings: Settings) -> tuple[str, JSON]:
    """Returns a path and an example body of the first dialect, with documents if it has one."""
    path, calls = next(iter(make_dialects(settings)[0].calls.items()))
    examples = list(calls[0].examples.values())
    return path, next((body for body in examples if "documents" in body), examples[0])


def make_app(
    settings: Settings,
    servers: Mapping[str, ModelServer] = MappingProxyType({}),
    on_loaded: Callable[[LLMError | None], None] | None = None,
    *,
    on_state: Callable[[Mapping[str, LLMError]], None] | None = None,
    shut_down: Callable[[], None] | None = None,
    further: Sequence[Dialect] = (),
) -> FastAPI:
    """Returns the service as a FastAPI application.

    Args:
        settings: The settings.
        servers: Model servers by model name, which replace the configured ones.
        on_loaded: Called once loading has ended, with None if a model was loaded, or else with an error.
        on_state: Called after that if a model was loaded, with the models that do not answer and the reason for each,
            and again when one more of them answers.
        shut_down: Stops the service after the running requests. Called for POST /shutdown, if the settings allow it.
        further: Dialects with precedence over the configured ones.

    Raises:
        SettingsError: A setting is invalid.
    """
    dialects = [*further, *make_dialects(settings)]
    others = [open_dialect(name, None) for name in DIALECTS if name not in settings.dialects.enabled]
    keys, tls = read_keys(settings), read_tls(settings)
    watched = [one.files for one in (keys, tls) if one]
    recorder = Recorder(settings) if settings.logging.record else None
    models = open_models(
        settings, servers, partial(RecordedGenerator, keep=recorder.keep) if recorder else TextGenerator
    )
    service = Service(settings, models, dialects, shut_down, keys, others, watched)

    def lifespan(_: FastAPI) -> AbstractAsyncContextManager[None]:
        opened = service.open(on_loaded, on_state)
        return recorder.around(opened) if recorder else opened

    mimetypes.init()  # It reads files, which would otherwise happen in the event loop, at the first page.
    app = app_with_pages(
        settings.microservice.serve_docs,
        title="OPEA LLM microservice",
        version=service.version,
        description=_ABOUT,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    service.add_routes(app)
    _add_middlewares(app, service, settings.microservice.cors_origins)
    app.state.service = service
    app.state.tls = tls
    return app


def _add_middlewares(app: FastAPI, service: Service, origins: Sequence[str]) -> None:
    """Add the guard, if keys are set, and before it what answers web pages, if they may ask."""
    if service.guard:
        service.guard.keys.warn()
        app.add_middleware(Guarded, guard=service.guard)
    if origins:
        # Without credentials: cookies of a page's user have no meaning here. It answers preflights, which have no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["*"],
        )


def direct(app: FastAPI) -> DirectRoutes:
    """Returns the application for an ASGI server, with direct routes to the handlers; see `DirectRoutes`."""
    service: Service = app.state.service
    handlers = {handler.endpoint.path: handler for handler in service.handlers}
    return DirectRoutes(app, handlers, service.guard, service.refusal, service.limits)
