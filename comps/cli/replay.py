"""`opea-llm replay`: runs a recorded request again, and shows what differs."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comps.cli.common import (
    AsJSON,
    ConfigFile,
    Endpoint,
    Framework,
    Kind,
    expected_errors,
    flags_of_model,
    load,
    run,
    settings_of,
)
from comps.cli.progress import progress
from comps.cli.record_diff import differences, not_asked_for, shown
from comps.core.answers import Collector
from comps.core.errors import LLMError, SettingsError
from comps.core.types import JSON, GenerationRequest
from comps.exit_codes import FOUND
from comps.messages import message

if TYPE_CHECKING:
    from comps.core.generator import TextGenerator
    from comps.recording.drafts import Draft
    from comps.settings import Settings


@expected_errors
def replay(
    file: Annotated[Path, typer.Argument(help="The record: a file in the folder that the setting record names.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's name there.")] = None,
    endpoint: Endpoint = None,
    model_server: Kind = None,
    framework: Framework = None,
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Run a recorded request again.

    It runs with the settings as they are here, or at another model server, and shows what differs: settings, prompt,
    tokens, answer and times. Times always differ, and so they do not count; nor does what the flags here change, such
    as the model's name. Another difference is exit code 3.

    A record without texts (record_prompts = false) cannot be run again; what it has is shown.

    \b
    Examples:
      opea-llm replay records/20260102T030405.678901Z-4f2a-17.1.json
      opea-llm replay FILE --model-server vllm --endpoint http://new:8000 --model Qwen/Qwen3-8B
    """
    from comps.logs import start_log
    from comps.opening import open_models
    from comps.recording.drafts import RecordedGenerator
    from comps.recording.record import record_of, request_in

    record = _read(file)
    try:
        request = request_in(record)
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None
    if request is None:
        _show_alone(record, as_json)
        raise SettingsError(
            f"{file}: it has the hash of the request alone, so that it cannot be run again; the service keeps texts "
            "of up to 2 MB with record_prompts = true"
        )
    flags = flags_of_model(model, endpoint, model_server, framework)
    settings = settings_of(config, {"Model": flags})
    start_log("WARNING", "")
    wanted = None if any(flags.values()) else _wanted(record, settings)
    drafts: list[Draft] = []
    generator = open_models(settings, generator_of=partial(RecordedGenerator, keep=drafts.append)).named(wanted)
    run(_run(settings, generator, replace(request, model=wanted), streamed=bool(record["times"]["chunks"])))
    again = json.loads(json.dumps(record_of(drafts[0], settings, with_texts=True)))
    if _differs(record, again, [key for key, value in flags.items() if value is not None], as_json):
        raise typer.Exit(FOUND)


def _read(file: Path) -> dict[str, JSON]:
    from comps.recording.record import FORMAT, check_form

    try:
        record = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{file}: no record: it is not JSON") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise SettingsError(f'{file}: no record of this version, which has "format": {FORMAT}')
    try:
        check_form(record)
    except ValueError as error:
        raise SettingsError(f"{file}: no complete record: {error}") from None
    return record


def _wanted(record: dict[str, Any], settings: Settings) -> str | None:
    """Returns the name of the recorded model, if it is served here; None: the first one."""
    name: str = record["model"]
    if name in settings.models:
        return name
    message(f"[{name}, the model of the record, is not served here]")
    return None


async def _run(settings: Settings, generator: TextGenerator, request: GenerationRequest, *, streamed: bool) -> None:
    """Run a request; an error of it is kept with all else."""
    try:
        await load(settings, generator.model, generator)
        with progress("Running it again"), suppress(LLMError):
            plan = await generator.plan(request)
            await (generator.answer(plan, Collector()) if streamed else generator.complete(plan))
    finally:
        await generator.server.aclose()


def _differs(record: dict[str, JSON], again: dict[str, JSON], flags: Collection[str], as_json: bool) -> bool:
    """Print what differs; returns whether that is more than what the flags changed."""
    found = differences(record, again)
    counted = not_asked_for(found, flags)
    by_flags = [name for name in found if name not in counted]
    told = {"record": record, "again": again, "differs": counted, "changed_by_flags": by_flags}
    print(json.dumps(told, ensure_ascii=False) if as_json else shown(found, record, again, counted))
    return bool(counted)


def _show_alone(record: dict[str, JSON], as_json: bool) -> None:
    print(json.dumps(record) if as_json else shown({}, record, None))
