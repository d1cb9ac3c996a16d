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
from comps.core.errors import LLMError, SettingsError, SettingsProblems
from comps.core.generator import TextGenerator
from comps.core.ports import ModelServer
from comps.core.types import JSON
from comps.dialects import DIALECTS, opea, open_dialect
from comps.dialects.llm_api import dialect as llm_api
from comps.dialects.shared import llama
from comps.dialects.shared.base import Dialect, Switches
from comps.dialects.square import dialect as square
from comps.dialects.square.conversations import Conversation, read_conversation
from comps.dialects.tgi import dialect as tgi
from comps.direct_routes import DirectRoutes
from comps.guard import Guarded
from comps.model_servers import (
    WITHOUT_ENGINE_SETTINGS,
    model_servers,
)
from comps.opening import open_models
from comps.pages import app_with_pages
from comps.recording.drafts import RecordedGenerator
from comps.recording.recorder import Recorder
from comps.routes import Service
from comps.settings import (
    CONVERSATION,
    Flags,
    Settings,
    gather_settings,
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


def make_dialects(settings: Settings) -> list[Dialect]:
    """Returns the enabled dialects, by precedence: a path that several have is served by the first.

    Raises:
        SettingsError: A conversation template is invalid.
    """
    chosen = settings.dialects
    whole = chosen.disable_streaming
    limits = (chosen.max_batch_size, chosen.max_seq_len)
    concurrent = settings.microservice.max_running + settings.microservice.max_waiting
    own: dict[str, Any] = {
        "opea": opea.Switches(chosen.opea_stream, chosen.messages, whole, chosen.output_guard, chosen.string_messages),
        "square": square.Switches(
            chosen.square_prompt, _conversations(settings), next(iter(settings.models), ""), whole
        ),
        "llm_api": llm_api.Switches(chosen.llm_api_family, chosen.llm_api_prompt, whole),
        "kaito": llama.Switches(*limits, chosen.kaito_prompt),
        "llm_on_k8s": llama.Switches(*limits, chosen.llm_on_k8s_prompt),
        "tgi": tgi.Switches(chosen.tgi_prompt, whole, concurrent),
    }
    return [open_dialect(name, own.get(name, Switches(whole))) for name in chosen.enabled]


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
