"""`opea-llm models`: which models are served, and which the model servers know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comps.cli.answering import RunningService
from comps.cli.common import URL, APIKey, AsJSON, ConfigFile, expected_errors, run, settings_of
from comps.cli.progress import progress
from comps.core.errors import LLMError, SettingsError, for_operator
from comps.core.types import JSON

if TYPE_CHECKING:
    from comps.settings import Settings
    from comps.settings.sections import Model

_WITH_LIST = ("vllm", "ray_serve", "openai_api")
"""The kinds of model servers that list their models at `/v1/models`."""


@expected_errors
def models(url: URL = "", api_key: APIKey = "", as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """List the models that are served or known.

    They are those of the settings, with what each model server knows, or, with --url, those of a running service.

    \b
    Examples:
      opea-llm models
      opea-llm models --url http://localhost:9000 --json
    """
    if url and config:
        raise SettingsError("--config: no effect with --url: the service has settings of its own")
    run(_of_service(url, api_key, as_json) if url else _of_settings(settings_of(config), as_json))


async def _of_service(url: str, api_key: str, as_json: bool) -> None:
    service = RunningService(url, api_key)
    try:
        with progress(f"Waiting for {url}"):
            listed = await service.listed()
    finally:
        await service.aclose()
    if not listed:
        raise LLMError(f"{url} lists no models")
    rows = [
        {"name": one["id"], "context_window": one.get("max_model_len") or one.get("context_window")} for one in listed
    ]
    _show(rows, as_json)


async def _of_settings(settings: Settings, as_json: bool) -> None:
    rows = []
    for name, served in settings.models.items():
        row = {"name": name, "model_server": served.model.model_server, "endpoint": _endpoint(served.model)}
        try:
            with progress(f"Waiting for the model server of {name}"):
                row |= await _known(settings, name, served.model)
        except LLMError as error:
            row["error"] = for_operator(error)
        rows.append(row)
    _show(rows, as_json)
    if all("error" in row for row in rows):
        raise LLMError("no model server answers; see above")


async def _known(settings: Settings, name: str, model: Model) -> dict[str, JSON]:
    """Returns what a model server says: the context window, and the names of all its models."""
    from comps.core.ports import Loads
    from comps.opening import open_models

    if model.model_server in _WITH_LIST:
        url, key = model.model_server_endpoint.split(",")[0].strip(), model.api_key.get_secret_value()
        remote = RunningService(url, key, of_settings=True)
        try:
            known = [one["id"] for one in await remote.listed()]
        finally:
            await remote.aclose()
    else:
        known = []
    server = open_models(settings).named(name).server
    try:
        if isinstance(server, Loads):
            return {"here": _here()}
        return {"context_window": (await server.describe()).context_window, "known": known}
    finally:
        await server.aclose()


def _here() -> list[str]:
    """Returns the models that are on this machine already: the bundled one, and those in the hub's cache."""
    from comps.model_servers.embedded.model_files import models_here

    return models_here()


def _endpoint(model: Model) -> str:
    from comps.core.redaction import without_keys

    return without_keys(model.model_server_endpoint)


_SAID = {
    "context_window": "context window {}",
    "known": "it knows {}",
    "here": "on this machine: {}",
    "error": "does not answer: {}",
}


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        served = " at ".join(filter(None, (row.get("model_server"), row.get("endpoint"))))
        facts = [f"{row['name']} ({served})" if served else row["name"]]
        for key, said in _SAID.items():
            if value := row.get(key):
                facts.append(said.format(", ".join(value) if isinstance(value, list) else value))
        print("; ".join(facts))
