"""Settings: the environment before config.ini before the defaults, read once and frozen.

Each section is a class, each key a field of it; the field names its environment variables, the section's docstring and
the field's description are what config.ini and the README say of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from comps.core.errors import SettingsError

_SECRET = re.compile("key|token|secret|password")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
CONFIG_FILE = "config.ini"
"""Read from the current folder if no other file is named and it is there."""


def _unquoted(value: Any) -> Any:
    """OPEA's own configuration file has its values in quotes."""
    if isinstance(value, str):
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            return value[1:-1].strip()
    return value


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    items = (
        tuple(item.strip() for item in value.lower().split(",") if item.strip()) if isinstance(value, str) else value
    )
    if not items:
        raise ValueError("must name at least one")
    return items


def _key(default: Any, description: str, environment: str, *aliases: str, **bounds: Any) -> Any:
    """A key: its default, what it is, its environment variable, and what sibling deployments call that."""
    return Field(default, description=description, validation_alias=AliasChoices(environment, *aliases), **bounds)


class Section(BaseSettings):
    """A section of the configuration: what is passed in comes from the file, and the environment goes before it."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=True, loc_by_alias=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotes(cls, value: Any) -> Any:
        return _unquoted(value)


class Logging(Section):
    """What the service writes about itself."""

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = _key("INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL", "LOG_LEVEL", "OPEA_LOGGER_LEVEL")
    log_path: str = _key("", "the log file; empty: standard error", "LOG_PATH")


class Microservice(Section):
    """The service itself."""

    name: str = _key("opea_service@llm", "how the service calls itself", "USVC_NAME", min_length=1)
    host: str = _key("0.0.0.0", "the address it listens on", "USVC_HOST", min_length=1)
    port: int = _key(9000, "the port it listens on", "USVC_PORT", "LLM_USVC_PORT", ge=1, le=65535)
    max_body_mb: int = _key(16, "the largest request body that is read, in megabytes", "USVC_MAX_BODY_MB", gt=0)
    max_running: int = _key(256, "how many requests may generate at once", "USVC_MAX_RUNNING", gt=0)
    max_waiting: int = _key(1024, "how many more may wait; beyond that, 429", "USVC_MAX_WAITING", ge=0)
    drain_seconds: int = _key(60, "how long running answers may take to end at shutdown", "USVC_DRAIN_SECONDS", ge=0)


class Model(Section):
    """The model, and where it runs."""

    model_name: str = _key(
        "SmolLM2-135M-Instruct",
        "the model's name; for openvino also a path, or a Hugging Face repository",
        "LLM_NAME",
        "LLM_MODEL_NAME",
        "LLM_MODEL_ID",
        min_length=1,
    )
    framework: Annotated[
        Literal["langchain", "native"],
        BeforeValidator(lambda value: {"generic": "native"}.get(_lowered(value), _lowered(value))),
    ] = _key("langchain", "langchain or native: how the model server is reached", "FRAMEWORK", "LLM_CONNECTOR")
    model_server: Annotated[str, BeforeValidator(_lowered)] = _key(
        "openvino",
        "what runs the model: openvino, vllm, tgi, ray_serve, openai_api or scripted",
        "MODEL_SERVER",
        "LLM_MODEL_SERVER",
    )
    model_server_endpoint: str = _key(
        "",
        "the model server's URL; for scripted, a file of answers; for openvino, empty",
        "LLM_MODEL_SERVER_ENDPOINT",
        "LLM_ENDPOINT",
    )
    api_key: SecretStr = _key(
        SecretStr(""), "the model server's key; never in this file", "LLM_API_KEY", "LLM_VLLM_API_KEY", "OPENAI_API_KEY"
    )
    tls_skip_verify: bool = _key(False, "do not check the model server's certificate", "LLM_TLS_SKIP_VERIFY")
    device: str = _key("CPU", "for openvino: CPU, GPU or NPU", "LLM_DEVICE", min_length=1)


class Dialects(Section):
    """How the service is asked, and how it answers."""

    enabled: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = _key(
        ("opea",),
        "the dialects that are spoken, separated by commas; the first has what several claim",
        "LLM_DIALECTS",
    )
    opea_stream: Annotated[Literal["bytes", "text", "openai"], BeforeValidator(_lowered)] = _key(
        "bytes", "a query's stream: bytes (data: b'…'), text (data: '…') or openai (chunks)", "LLM_OPEA_STREAM"
    )
    messages: Annotated[Literal["openai", "enterprise_rag"], BeforeValidator(_lowered)] = _key(
        "openai", "a messages body is answered as by openai or enterprise_rag", "LLM_MESSAGES"
    )
    strict: bool = _key(False, "refuse a body with fields that would be ignored", "LLM_STRICT")
    disable_streaming: bool = _key(False, "answer whole, whatever is asked", "LLM_DISABLE_STREAMING")
    output_guard: bool = _key(
        False, "an output guard comes next: answer whole, with its parameters", "LLM_OUTPUT_GUARD_EXISTS"
    )


SECTIONS: dict[str, type[Section]] = {
    "Logging": Logging,
    "OPEA_Microservice": Microservice,
    "Model": Model,
    "Dialects": Dialects,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it stands, for whoever looks for the reason of something."""

    section: str
    key: str
    value: str
    """Secrets are masked."""
    source: str
    """`environment USVC_PORT`, the file's path, or `default`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a service."""

    logging: Logging
    microservice: Microservice
    model: Model
    dialects: Dialects
    listing: tuple[Setting, ...]
    """Every setting with its source."""


def load_settings(file: Path | None, kinds: Mapping[str, object], dialects: Mapping[str, object]) -> Settings:
    """The settings, checked.

    Args:
        file: The configuration file; None takes config.ini from the current folder if there is one.
        kinds: The model servers there are, by name.
        dialects: The dialects there are, by name.

    Raises:
        SettingsError: Something is unknown, missing or wrong; it names the file or variable, the key and the value.
    """
    if file is None and Path(CONFIG_FILE).exists():
        file = Path(CONFIG_FILE)
    written = _read(file) if file else {}
    sections = {name: _section(name, written.get(name, {}), file) for name in SECTIONS}
    listing = tuple(
        Setting(name, key, _shown(getattr(section, key)), _source(info, key in written.get(name, {}), file))
        for name, section in sections.items()
        for key, info in type(section).model_fields.items()
    )
    settings = Settings(*sections.values(), listing)  # type: ignore[arg-type, call-arg]  # The order of SECTIONS.
    _known("model_server", settings.model.model_server, kinds, listing)
    for dialect in settings.dialects.enabled:
        _known("enabled", dialect, dialects, listing)
    return settings


def _shown(value: object) -> str:
    return _CREDENTIALS.sub("//***@", ", ".join(value) if isinstance(value, tuple) else str(value))


def _read(file: Path) -> dict[str, dict[str, str]]:
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        with file.open(encoding="utf-8") as lines:
            parser.read_file(lines, source=str(file))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: cannot be read: it is not UTF-8 text") from None
    except ConfigParserError as error:
        raise SettingsError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    for section in parser.sections():
        if section not in SECTIONS:
            raise SettingsError(f"{file}: unknown section [{section}]{_nearest(section, SECTIONS)}")
        fields = SECTIONS[section].model_fields
        for key, value in parser[section].items():
            if key not in fields:
                shown = "***" if _SECRET.search(key) else value
                raise SettingsError(f"{file}: unknown key [{section}] {key} = {shown}{_nearest(key, fields)}")
            if fields[key].annotation is SecretStr:
                raise SettingsError(f"{file}: [{section}] {key}: a secret comes from the environment only")
    return {section: dict(parser[section]) for section in parser.sections()}


def _section(name: str, written: Mapping[str, str], file: Path | None) -> Section:
    try:
        # Under the name of its variable, and only where none is set: so each value has one source.
        fields = SECTIONS[name].model_fields
        values = {key: value for key, value in written.items() if not _in_environment(fields[key])}
        return SECTIONS[name](**{next(environment_names(fields[key])): value for key, value in values.items()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = str(first["loc"][0])
        info = SECTIONS[name].model_fields[key]
        source = _source(info, key in written, file)
        value = "***" if info.annotation is SecretStr else first["input"]
        raise SettingsError(
            f"{source}: [{name}] {key} = {value!s}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


def environment_names(info: FieldInfo) -> Iterator[str]:
    """The environment variables of a key, the first that is set being the one that counts."""
    assert isinstance(info.validation_alias, AliasChoices)
    yield from map(str, info.validation_alias.choices)


def _in_environment(info: FieldInfo) -> str | None:
    return next((name for name in environment_names(info) if name in os.environ), None)


def _source(info: FieldInfo, in_file: bool, file: Path | None) -> str:
    if variable := _in_environment(info):
        return f"environment {variable}"
    return str(file) if in_file else "default"


def _known(key: str, value: str, known: Mapping[str, object], listing: tuple[Setting, ...]) -> None:
    if value not in known:
        setting = next(setting for setting in listing if setting.key == key)
        raise SettingsError(f"{setting.source}: [{setting.section}] {key} = {value}: unknown{_nearest(value, known)}")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.5) or get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
