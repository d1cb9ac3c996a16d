"""The settings of the OpenVINO engine: fields of its scheduler, and OpenVINO's properties."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from comps.core.errors import SettingsError, SettingsProblems
from comps.core.types import JSON
from comps.model_servers.embedded.engine_program import last_line

_VIRTUAL_DEVICES = ("AUTO", "BATCH", "HETERO", "MULTI")
"""https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes.html"""


def configure(scheduler: Any, settings: Mapping[str, JSON], known: Collection[str]) -> dict[str, JSON]:
    """Set the fields of a `SchedulerConfig`; returns the settings that are none, those in `known` under that name."""
    properties = {}
    for name, value in settings.items():
        if not hasattr(scheduler, name):
            # Keys of config.ini and of variables are in small letters, OpenVINO's properties in capitals.
            properties[name.upper() if name.upper() in known else name] = value
            continue
        try:
            setattr(scheduler, name, value)
        except TypeError:
            raise SettingsError(f"{name} = {value}: not a value of OpenVINO's SchedulerConfig.{name}") from None
    return properties


def reads_in_pieces(scheduler: Any) -> bool:
    """Whether a long prompt can be read in pieces, each of which finds those before it in the cache as they were."""
    changes_cache = scheduler.use_cache_eviction or scheduler.use_sparse_attention
    return scheduler.enable_prefix_caching and scheduler.dynamic_split_fuse and not changes_cache


def check(device: str, settings: Mapping[str, JSON]) -> None:
    """Check the device and the settings without a model.

    Raises:
        SettingsError: The device is not here, or a value is wrong.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    import openvino_genai

    core, scheduler, problems = openvino.Core(), openvino_genai.SchedulerConfig(), SettingsProblems()
    here = core.available_devices
    virtual, _, members = device.upper().partition(":")
    wanted = [device.upper()]
    if virtual in _VIRTUAL_DEVICES:
        wanted = [re.sub(r"^-|\(.*\)$", "", name) for name in members.split(",") if name]
    for name in wanted:
        if name not in (*here, *(one.partition(".")[0] for one in here)):
            why = f"OpenVINO finds no {name} here; it finds: {', '.join(here)}"
            problems.add(SettingsError(f"device = {device}: {why}"))
    known = properties_of(core)
    for key, value in settings.items():
        with problems.caught():
            for name, given in configure(scheduler, {key: value}, known).items():
                _check_property(core, key, name, given, {*known, *dir(scheduler)})
    problems.raise_if_any()


def properties_of(core: Any) -> set[str]:
    """Returns the names of the properties of a CPU."""
    return {str(name) for name in core.get_property("CPU", "SUPPORTED_PROPERTIES")}


def _check_property(core: Any, key: str, name: str, value: JSON, known: Collection[str]) -> None:
    """Refuse a property that is misspelled, or has a wrong value; other devices and OpenVINO GenAI have further ones.

    Args:
        core: OpenVINO.
        key: The key in the settings.
        name: The name of the property.
        value: Its value.
        known: The CPU's properties, and the fields of `SchedulerConfig`.
    """
    if name in known:
        try:
            core.set_property("CPU", {name: value})
        except (RuntimeError, TypeError) as error:
            raise SettingsError(f"{key} = {value}: OpenVINO does not take it: {last_line(error)}") from None
    elif near := get_close_matches(key.lower(), [one.lower() for one in known], n=1, cutoff=0.8):
        raise SettingsError(f"{key} = {value}: OpenVINO has no such setting; did you mean {near[0]}?")
