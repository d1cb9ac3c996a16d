"""`opea-llm check`: the settings, whether the model servers answer, and the path to a running service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from comps.cli.common import API_KEY, AsJSON, ConfigFile, expected_errors, load, run, settings_of
from comps.cli.progress import progress
from comps.core.errors import LLMError, SettingsError, for_operator
from comps.exit_codes import FOUND

if TYPE_CHECKING:
    from comps.core.ports import ModelServer
    from comps.settings import Settings


@expected_errors
def check(
    settings_only: Annotated[
        bool, typer.Option("--settings", help="Only the settings: no model is loaded, and no model server asked.")
    ] = False,
    through: Annotated[
        str, typer.Option(help="The URL of a running service, as its clients have it: check the path to it.")
    ] = "",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With --through: the model that must answer there.")
    ] = None,
    idle: Annotated[
        float, typer.Option(min=0, max=140, help="With --through: seconds of silence to try; 0: none.")
    ] = 65.0,
    api_key: Annotated[
        str,
        typer.Option(envvar=API_KEY, show_default=False, help="With --through: the key; better in the environment."),
    ] = "",
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Check settings, model servers, or a path.

    It shows every setting and where it comes from, and whether the model servers answer.

    With --through, a stream whose times are known is sent by the service and compared with what arrives here. It finds
    proxies that keep events back, join, split or compress them, close silent streams, or wait for acknowledgements; and
    wrong models, clocks and certificates. What is found is exit code 3.

    \b
    Examples:
      opea-llm check
      opea-llm check --settings --config /etc/opea-llm.ini
      opea-llm check --through https://llm.example.com --model Qwen/Qwen3-8B
      opea-llm check --through http://localhost:8080 --idle 0
    """
    if through:
        from comps.cli.path_check import PathCheck, report

        _refuse("with --through: it checks a service elsewhere", {"--settings": settings_only, "--config": config})
        if report(PathCheck(through, api_key, model, idle).findings(), as_json):
            raise typer.Exit(FOUND)
        return
    _refuse("without --through", {"--model": model, "--json": as_json})
    from comps.logs import start_log
    from comps.opening import open_models

    settings = settings_of(config)
    start_log("WARNING", "")
    width = max(len(f"[{one.section}] {one.key} = {one.value}") for one in settings.listing)
    for one in settings.listing:
        print(f"{f'[{one.section}] {one.key} = {one.value}':{width}}  ({one.source})")
    if settings_only:
        open_models(settings)  # Model servers check their own settings; nothing is connected yet.
    else:
        run(_check(settings))


def _refuse(when: str, flags: Mapping[str, object]) -> None:
    """Check that none of these flags is given.

    Raises:
        SettingsError: Those that are given have no effect.
    """
    if given := [flag for flag, value in flags.items() if value]:
        raise SettingsError(f"{' and '.join(given)}: no effect {when}")


async def _check(settings: Settings) -> None:
    """Print whether the model server of each model, or each of its replicas, answers."""
    from comps.opening import open_models, replicas_of

    failures: list[LLMError] = []
    asked = [(generator, server) for generator in open_models(settings) for server in replicas_of(generator)]
    for generator, server in asked:
        kind = settings.models[generator.model].model.model_server
        head = f"model server of {generator.model}: {kind}" if len(asked) > 1 else f"model server: {kind}"
        try:
            print(f"{head} answers with {await _described(settings, generator.model, server)}")
        except LLMError as error:
            failures.append(error)
            if len(asked) > 1:
                print(f"{head} does not answer: {for_operator(error)}")
        finally:
            await server.aclose()
    if failures:
        raise LLMError(f"{len(failures)} of {len(asked)} do not answer; see above") if len(asked) > 1 else failures[0]


async def _described(settings: Settings, model: str, server: ModelServer) -> str:
    await load(settings, model, server)
    with progress(f"Waiting for the model server of {model}"):
        info = await server.describe()
    window = f"{info.context_window} tokens" if info.context_window else "of unknown size"
    return f"{info.name}, context window {window}"
