"""config.ini with every setting at its default, made from the sections."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from comps.settings.sections import SECTIONS
from comps.settings.variables import environment_names

_BEGIN = """# OPEA LLM Microservice: every setting, at its default.
# The environment goes before this file. Values may stand in quotes; a comment has a line of its own.
"""
_ENDS = {
    "Model": """\
# A key that is none of these goes to the engine of a model_server that has one, with its type: n_ctx=4096.
# env - LLM_ENGINE_<KEY>, such as LLM_ENGINE_N_CTX
#
# A secret may be in a file: its variable with _FILE has the path, such as LLM_API_KEY_FILE=/run/secrets/key.
#
# Further models have sections of their own, named as callers ask for them (the "model" of a request):
#   [Model.vicuna-7b-v1.3]
# A key that is not there has the value of [Model], but for model_name (else the section's name) and context_window.
# If model_server or model_server_endpoint is there, the model is at another model server, and takes no endpoint,
# credential, certificate, TLS switch or engine setting from [Model].
# env - the usual variable, __ and the name in capitals, such as LLM_API_KEY__VICUNA_7B_V1_3
""",
    "Dialects": """\
#
# Conversation templates of your own, by which square lays out a chat, have sections of their own:
#   [Conversation.neural-chat]
# match: parts of the names of its models, separated by commas, in small or large letters; else the section's name
# system_template, roles, sep_style, sep, sep2, stop_str, stop_token_ids: as in FastChat's Conversation;
# docs/dialects.md has one
""",
}
"""What follows the keys of a section."""


def example_file() -> str:
    """Returns the text of config.ini."""
    sections = (
        f"\n[{name}]\n{''.join(_lines(key, info) for key, info in section.model_fields.items())}{_ENDS.get(name, '')}"
        for name, section in SECTIONS.items()
    )
    return _BEGIN + "".join(sections)


def _lines(key: str, info: FieldInfo) -> str:
    return "".join(f"{line}\n" for line in _of_key(key, info))


def _of_key(key: str, info: FieldInfo) -> Iterator[str]:
    first, *aliases = environment_names(info)
    yield f"# {info.description}"
    also = f" (also {', '.join(aliases)})" if aliases else ""
    yield f"# env - {first}{also}"
    if info.annotation is SecretStr:
        yield f"# {key} is a secret: environment only"
    else:
        default = ", ".join(info.default) if isinstance(info.default, tuple) else info.default
        yield f"{key}={default}"
