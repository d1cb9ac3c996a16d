"""Opens the configured models: settings → model servers → `TextGenerator`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from comps.core.budget import Sharing
from comps.core.errors import SettingsError, SettingsProblems
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ordering import Ordering
from comps.core.ports import ChecksSettings, Loads, ModelServer
from comps.core.prompts import Templates
from comps.core.redaction import Redactor
from comps.core.retries import Retries
from comps.logs import log
from comps.model_servers import (
    control_token_escaper,
    open_model_server,
    through_framework,
    with_chat_template,
    with_deadlines,
    with_tokenizer,
)
from comps.model_servers.redacted import Redacted
from comps.model_servers.replicas import Replicas
from comps.model_servers.stream_test import STREAM_TEST, StreamTest
from comps.model_servers.target import Access, Target
from comps.relevance import by_relevance
from comps.settings import Model, ServedModel, Settings, read_templates


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
        set_up = [_as_set(one, served, access) for one in opened]
        replicas = [Redacted(one, redactor, logs_prompts=logs_prompts, model=name) for one in set_up]
        server = _as_one(replicas, name, model, access)
    with problems.caught():
        templates = read_templates(model.prompt_templates, model.model_name)
    with problems.caught():
        native = _native_documents(served)
    problems.raise_if_any()
    assert server
    shown = (name, model.chat_template or "the model server's", model.prompt_templates or "ours")
    log.debug("[%s] chat template: %s; prompt templates: %s", *shown)
    return generator_of(
        server,
        name,
        Sharing(model.min_answer_tokens, model.documents_first),
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


def _as_set(server: ModelServer, served: ServedModel, access: Access) -> ModelServer:
    """Returns the model server with the configured deadlines, framework, tokenizer and chat template."""
    model = served.model
    framework = "native" if model.model_server == "langchain" else model.framework  # It is LangChain's in any case.
    through = through_framework(with_deadlines(server, access), framework, model.model_name)
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
