"""The settings of the llama.cpp engine, checked and completed into the arguments of `llama_cpp.Llama`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import llama_cpp
from llama_cpp import llama_cpp as api
from pydantic import Field, TypeAdapter, ValidationError

from comps.core.errors import SettingsError, SettingsProblems
from comps.core.types import JSON
from comps.model_servers.embedded.decoding import check_settings
from comps.model_servers.embedded.gguf import gguf_window

_WINDOW = 16_384
"""The default of the context window, if the model's own is larger. The cells of the KV cache are allocated at the
start: 2 GB for a model of 8 billion parameters."""
_SEQUENCES = 8
"""The default of `n_seq_max`."""
_OBJECTS = {"model_path", "chat_handler", "draft_model", "tokenizer"}
_UNUSED = {"logits_all", "spm_infill", "vocab_only", "kwargs"}
_NO_SETTINGS = _OBJECTS | _UNUSED
"""Arguments of `llama_cpp.Llama` that are no settings."""
_LEAST = {"n_ctx": 0, "n_batch": 1, "n_ubatch": 1, "n_threads": 0, "n_threads_batch": 0}


@dataclass(frozen=True)
class Options:
    """How a model is loaded.

    Attributes:
        arguments: Those of `llama_cpp.Llama` beside the model.
        sequences: The most requests in a batch.
        chat_format: See `llama_cpp_chat_formats.chat_format`.
    """

    arguments: Mapping[str, JSON]
    sequences: int
    chat_format: JSON


def read_options(model: Path, device: str, settings: Mapping[str, JSON], window: int | None) -> Options:
    """The options of a model; see `llama_cpp_engine.Engine` for the arguments.

    Raises:
        SettingsError: A setting is unknown, has a wrong value, or does not fit this machine.
    """
    settings = check(device, settings)
    cores = physical_cores()
    arguments = {
        "n_threads": cores,
        "n_threads_batch": settings.get("n_threads", cores),
        "verbose": False,
        **settings,
    }
    arguments.setdefault("n_gpu_layers", _gpu_layers(device))
    arguments.setdefault("n_ctx", window or _default_window(model))
    chat_format = arguments.pop("chat_format", None)
    sequences = _take_sequences(arguments)
    return Options(arguments, sequences, chat_format)


def check(device: str, settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """Check the device and the settings without a model; returns the settings in the types of llama.cpp's arguments.

    Raises:
        SettingsError: The device is not here, or a setting is unknown or has a wrong value.
    """
    known = {*inspect.signature(llama_cpp.Llama).parameters, "n_seq_max"} - _NO_SETTINGS
    problems, typed = SettingsProblems(), {}
    if "n_gpu_layers" not in settings:
        with problems.caught():
            _gpu_layers(device)
    for name, value in settings.items():
        with problems.caught():
            check_settings([name], known, "llama_cpp")
            typed.update(_typed({name: value}))
    problems.raise_if_any()
    return typed


def _typed(settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """The settings in the types of `llama_cpp.Llama`'s arguments; llama.cpp's own errors name no argument."""
    types = get_type_hints(llama_cpp.Llama.__init__)
    typed = {}
    for name, value in settings.items():
        kind: Any = types.get(name, Any)
        with_range: Any = Annotated[kind, Field(ge=_LEAST[name])] if name in _LEAST else kind
        try:
            typed[name] = TypeAdapter(with_range).validate_python(value)
        except ValidationError as error:
            raise SettingsError(f"{name} = {value}: {error.errors()[0]['msg']}") from None
    return typed


def _gpu_layers(device: str) -> int:
    """How many layers of the model are loaded onto a GPU; -1: all."""
    if device.upper() == "CPU":
        return 0
    if device.upper() != "GPU":
        here = "CPU and GPU" if llama_cpp.llama_supports_gpu_offload() else "CPU alone"
        raise SettingsError(f"device = {device}: llama_cpp takes CPU or GPU; the one installed here has {here}")
    if not llama_cpp.llama_supports_gpu_offload():
        raise SettingsError(f"device = {device}: the llama-cpp-python installed here was built for CPUs only")
    return -1


def _take_sequences(arguments: dict[str, JSON]) -> int:
    """Take `n_seq_max` out of the arguments. A batch holds a token of each sequence, and one more of a prompt."""
    batch = arguments.get("n_batch", inspect.signature(llama_cpp.Llama).parameters["n_batch"].default)
    batch = min(batch, arguments["n_ctx"] or batch)
    most = min(max(batch - 1, 1), api.llama_max_parallel_sequences() - 1)
    sequences = arguments.pop("n_seq_max", min(_SEQUENCES, most))
    if not isinstance(sequences, int) or not 0 < sequences <= most:
        raise SettingsError(
            f"n_seq_max = {sequences}: from 1 to {most}, the tokens in a batch (n_batch, n_ctx) less one"
        )
    return sequences


def _default_window(model: Path) -> int:
    with model.open("rb") as file:
        return min(gguf_window(file) or 0, _WINDOW)


def physical_cores() -> int:
    """The physical cores that this process may use: two threads on one core slow each other down."""
    cores = set()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    for number in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        with suppress(OSError):
            cores.add(siblings.read_text())
    return len(cores) or len(allowed)
