"""Loads a model and its tokenizer with transformers, as the settings say.

Source: https://huggingface.co/docs/transformers/main_classes/model
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from comps.core.errors import SettingsError, SettingsProblems
from comps.core.types import JSON
from comps.model_servers.embedded.decoding import check_settings
from comps.model_servers.embedded.model_files import WEIGHTS

_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_NO_LIMIT = 1_000_000_000
"""A tokenizer without a limit has a number far above this."""
_WINDOW = 16_384
"""In tokens, where neither the model nor its tokenizer has a limit."""
_SHARED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA", "1"
"""The variable that has attention heads share the keys and values of a group, as PyTorch can on a CPU. Without it they
are copied for each head in each step, which takes longer than all the rest behind thousands of tokens:
transformers/integrations/sdpa_attention.py."""
_HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "trust_remote_code",
    "code_revision",
)
"""Arguments that say how to fetch from the Hugging Face hub."""
_ANY_REPOSITORY = ("cache_dir", "force_download", "local_files_only", "trust_remote_code")
"""Those of them that count for a tokenizer in another repository as well."""
_SETTINGS = (
    *_HUB,
    "at_once",
    "attn_implementation",
    "config_params",
    "cuda_visible_devices",
    "device_map",
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "tokenizer",
    "torch_dtype",
    "tp_plan",
    "use_safetensors",
    "variant",
    "weights_only",
)
"""Arguments of `from_pretrained`, and this engine's own settings."""


def load_model(model: str, device: str, settings: Mapping[str, JSON]) -> tuple[Any, Any]:
    """The model and its tokenizer; see `transformers_engine.Engine` for the arguments.

    Raises:
        SettingsError: A setting is unknown or has a wrong value, or the model cannot be loaded.
    """
    check(device, settings)
    options = {name: value for name, value in settings.items() if name != "at_once"}
    options.pop("cuda_visible_devices", None)
    hub = {name: options.pop(name) for name in _HUB if name in options}
    hub.setdefault("trust_remote_code", False)
    changes = _object(options, "config_params")
    tokenizer_name = options.pop("tokenizer", None)
    source = _source(model, hub, changes)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **hub)
        _change(config, changes)
        _complete(options, device, hasattr(config, "quantization_config"))
        return _from_pretrained(source, config, hub, options), _tokenizer(tokenizer_name, source, hub)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        # The first lines say what is missing, the others how to get it.
        raise SettingsError(f"{model} cannot be loaded: {' '.join(str(error).split())[:500]}") from None


def check(device: str, settings: Mapping[str, JSON]) -> None:
    """Check the device and the settings without a model.

    Raises:
        SettingsError: The device is not here, or a setting is unknown or has a wrong value.
    """
    if visible := settings.get("cuda_visible_devices"):
        os.environ["CUDA_VISIBLE_DEVICES"] = str(visible)  # Read by CUDA when it is first used.
    problems = SettingsProblems()
    with problems.caught():
        _device(device)
    with problems.caught():
        _object(dict(settings), "config_params")
    for name, value in settings.items():
        with problems.caught():
            check_settings([name], _SETTINGS, "transformers")
            if name in ("dtype", "torch_dtype") and value not in ("auto", None):
                kind = getattr(torch, str(value).removeprefix("torch."), None)
                if not isinstance(kind, torch.dtype):
                    raise SettingsError(f"{name} = {value}: no data type of PyTorch's, such as float16 or bfloat16")
    problems.raise_if_any()


def _from_pretrained(source: str, config: Any, hub: Mapping[str, JSON], options: Mapping[str, JSON]) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, config=config, **hub, **options)
    if model.device.type == "cpu":
        os.environ.setdefault(*_SHARED_HEADS)
    return model.eval()


def _tokenizer(name: str | None, source: str, hub: Mapping[str, JSON]) -> Any:
    """The tokenizer of that name, or else the one that is where the model is."""
    if name in (None, source):
        return transformers.AutoTokenizer.from_pretrained(source, **hub)
    elsewhere = {option: hub[option] for option in _ANY_REPOSITORY if option in hub}
    return transformers.AutoTokenizer.from_pretrained(name, **elsewhere)


def _source(model: str, hub: dict[str, JSON], changes: dict[str, JSON]) -> str:
    """The folder or repository of a model. A file that is named in it becomes an argument in `hub` or `changes`."""
    if model.endswith(".gguf"):
        file = Path(model)
        hub["gguf_file"] = file.name
        return str(file.parent)
    if not model.endswith(WEIGHTS):
        return model
    if Path(model).is_file():
        changes["transformers_weights"] = Path(model).name
        return str(Path(model).parent)
    owner, name, *weights = model.split("/")
    changes["transformers_weights"] = "/".join(weights)
    return f"{owner}/{name}"


def _object(options: dict[str, JSON], name: str) -> dict[str, JSON]:
    """Take an option out, which has to be an object."""
    value = options.pop(name, None) or {}
    if not isinstance(value, dict):
        raise SettingsError(f"{name} = {value}: not an object")
    return dict(value)


def _change(config: Any, changes: Mapping[str, JSON]) -> None:
    """Set attributes of a configuration; an object is merged into one that is there."""
    for name, value in changes.items():
        current: Any = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(current, "update"):
            current.update(value)
        else:
            setattr(config, name, value)


def _complete(options: dict[str, JSON], device: str, quantised: bool) -> None:
    """Complete the options with device and data type, and translate deprecated names into those of transformers 5."""
    target = _device(device)
    dtype = options.pop("torch_dtype", None) or options.get("dtype")
    # A CPU computes as fast in float32, and a seed repeats an answer; see CONTRIBUTING.md.
    default = "float32" if target == "cpu" and not quantised else "auto"
    options["dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype or default
    if isinstance(memory := options.get("max_memory"), dict):  # JSON has no numbers as names; GPUs have numbers here.
        options["max_memory"] = {int(name) if name.isdigit() else name: most for name, most in memory.items()}
    if target != "cpu":
        options.setdefault("device_map", target)
    bits = {name: options.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in options}
    if any(bits.values()):
        options["quantization_config"] = transformers.BitsAndBytesConfig(**bits)


def _device(name: str) -> str:
    """A device by PyTorch's name for it."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = "CPU" if found is None else f"CPU and GPU ({torch.accelerator.device_count()} x {found.type})"
    if name.upper() == "GPU":
        if found is None:
            raise SettingsError(f"device = {name}: PyTorch finds none here; it finds: {here}")
        return str(found.type)
    try:
        device = torch.device(name.lower())
    except RuntimeError:
        why = "neither CPU nor GPU, nor a device of PyTorch's"
        raise SettingsError(f"device = {name}: {why}; it finds here: {here}") from None
    missing = found is None or device.type != found.type or (device.index or 0) >= torch.accelerator.device_count()
    if device.type != "cpu" and missing:
        raise SettingsError(f"device = {name}: PyTorch finds none here; it finds: {here}")
    return str(device)


def end_tokens(defaults: Any, tokenizer: Any) -> set[int]:
    """The end-of-sequence tokens: those of the model's `GenerationConfig`, or else of its tokenizer."""
    ends = defaults.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def model_window(config: Any, tokenizer: Any) -> int:
    """The context window of a model in tokens, by its configuration, or else its tokenizer."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in _WINDOW_FIELDS]
    found.append(tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None)
    return next((int(tokens) for tokens in found if tokens), _WINDOW)
