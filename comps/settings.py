"""Settings: the environment before the configuration file before the defaults, read once and frozen.

Each section is a class, each key a field of it; the field names its environment variables, the section's docstring and
the field's description are what config.ini and the README say of it. A further model, `[Model.<name>]`, has a class
made for it: the keys of `[Model]`, whose variables end in its name and whose defaults are what `[Model]` says. What a
`[Conversation.<name>]` says, the dialect that knows conversation templates reads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from comps.config_files import read_config_file
from comps.config_files.base import ConfigFile, nearest
from comps.core.errors import SettingsError
from comps.core.types import JSON

_SECRET = re.compile("key|token|secret|password")
_ENGINE_SECRET = re.compile("(^|_)(api_?key|(access|auth|hf)_token|secret|password)$|^token$")
"""An engine has keys of its own with the word token in them that hide nothing: tokenizer, eos_token."""
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


def _items(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.lower().split(",") if item.strip())


def _listed(value: Any) -> Any:
    items = _items(value)
    if not items:
        raise ValueError("must name at least one")
    return items


def _existing(path: str) -> str:
    if path:
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


ExistingFile = Annotated[str, AfterValidator(_existing)]
"""The path of a file that is there when the settings are read; empty: none."""
LLMAPIFamily = Annotated[Literal["llama", "huggingface", "gptq_llama", "autoawq"], BeforeValidator(_lowered)]
"""A model family of llm-api."""


def _key(default: Any, description: str, environment: str, *aliases: str, **bounds: Any) -> Any:
    """A key: its default, what it is, its environment variable, and what sibling deployments call that."""
    return Field(default, description=description, validation_alias=AliasChoices(environment, *aliases), **bounds)


class Section(BaseSettings):
    """A section of the configuration: what is passed in, and for the rest the environment before the defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=True, loc_by_alias=False)

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
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items)] = _key(
        ("*",), "the origins whose web pages may ask, separated by commas; *: any, empty: none", "USVC_CORS_ORIGINS"
    )
    allow_shutdown: bool = _key(False, "let POST /shutdown end the service", "USVC_ALLOW_SHUTDOWN")
    drain_seconds: int = _key(60, "how long running answers may take to end at shutdown", "USVC_DRAIN_SECONDS", ge=0)


class Model(Section):
    """The model, and where it runs."""

    model_name: str = _key(
        "SmolLM2-135M-Instruct",
        "the model's name; for one that runs here also a path, or a Hugging Face repository",
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
        "what runs the model: openvino, llama_cpp, transformers, vllm, tgi, ray_serve, openai_api, langchain or "
        "scripted",
        "MODEL_SERVER",
        "LLM_MODEL_SERVER",
    )
    model_server_endpoint: str = _key(
        "",
        "the model server's URL, or those of its replicas, separated by commas; for scripted, a file of answers; "
        "empty where the model runs here",
        "LLM_MODEL_SERVER_ENDPOINT",
        "LLM_ENDPOINT",
    )
    api_key: SecretStr = _key(
        SecretStr(""), "the model server's key; never in this file", "LLM_API_KEY", "LLM_VLLM_API_KEY", "OPENAI_API_KEY"
    )
    token_url: str = _key(
        "", "where client_id and client_secret are changed for a token (OAuth 2.0)", "LLM_TOKEN_URL", "TOKEN_URL"
    )
    client_id: str = _key("", "who this service is at token_url", "LLM_CLIENT_ID", "CLIENTID")
    client_secret: SecretStr = _key(
        SecretStr(""), "what proves it there; never in this file", "LLM_CLIENT_SECRET", "CLIENT_SECRET"
    )
    tls_skip_verify: bool = _key(False, "do not check the model server's certificate", "LLM_TLS_SKIP_VERIFY")
    ca_file: ExistingFile = _key("", "a PEM file of the authorities to trust; empty: the system's", "LLM_CA_FILE")
    client_certificate: ExistingFile = _key(
        "", "a PEM file with this service's own certificate, for a model server that asks", "LLM_CLIENT_CERTIFICATE"
    )
    client_key: ExistingFile = _key(
        "", "a PEM file with the key of client_certificate; empty: that file has it", "LLM_CLIENT_KEY"
    )
    connect_seconds: float = _key(
        10, "how long a connection may take", "LLM_CONNECT_SECONDS", gt=0, allow_inf_nan=False
    )
    first_token_seconds: float = _key(
        300, "how long an answer may take to begin; 0: no limit", "LLM_FIRST_TOKEN_SECONDS", ge=0, allow_inf_nan=False
    )
    between_tokens_seconds: float = _key(
        120, "how long an answer may pause; 0: no limit", "LLM_BETWEEN_TOKENS_SECONDS", ge=0, allow_inf_nan=False
    )
    total_seconds: float = _key(
        0, "how long an answer may take as a whole; 0: no limit", "LLM_TOTAL_SECONDS", ge=0, allow_inf_nan=False
    )
    context_window: int = _key(
        0, "tokens that prompt and answer may have together; 0: ask the model server", "LLM_CONTEXT_WINDOW", ge=0
    )
    device: str = _key("CPU", "where the model runs here: CPU, GPU or NPU", "LLM_DEVICE", min_length=1)


class Dialects(Section):
    """How the service is asked, and how it answers."""

    enabled: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = _key(
        ("opea", "openai", "square", "llm_api", "kaito", "llm_on_k8s"),
        "the dialects that are spoken, separated by commas; the first has what several claim",
        "LLM_DIALECTS",
    )
    opea_stream: Annotated[Literal["bytes", "text", "openai"], BeforeValidator(_lowered)] = _key(
        "bytes", "a query's stream: bytes (data: b'…'), text (data: '…') or openai (chunks)", "LLM_OPEA_STREAM"
    )
    messages: Annotated[Literal["openai", "enterprise_rag"], BeforeValidator(_lowered)] = _key(
        "openai", "a messages body is answered as by openai or enterprise_rag", "LLM_MESSAGES"
    )
    square_prompt: Annotated[Literal["conversation", "messages"], BeforeValidator(_lowered)] = _key(
        "conversation",
        "a chat of square goes to the model as text, by the conversation template of model_identifier, or as messages, "
        "for the model's own template",
        "LLM_SQUARE_PROMPT",
    )
    llm_api_family: LLMAPIFamily = _key(
        "llama",
        "whose sampling defaults an llm_api body has: those of llama, huggingface, gptq_llama or autoawq",
        "LLM_API_FAMILY",
    )
    strict: bool = _key(False, "refuse a body with fields that would be ignored", "LLM_STRICT")
    disable_streaming: bool = _key(False, "answer whole, whatever is asked", "LLM_DISABLE_STREAMING")
    output_guard: bool = _key(
        False, "an output guard comes next: answer whole, with its parameters", "LLM_OUTPUT_GUARD_EXISTS"
    )
    max_batch_size: int = _key(
        32, "prompts or dialogs that a body of kaito or llm_on_k8s may have", "LLM_MAX_BATCH_SIZE", gt=0
    )
    max_seq_len: int = _key(
        0,
        "tokens that a prompt of kaito's or llm_on_k8s's llama and its answer may have together; 0: no limit of ours",
        "LLM_MAX_SEQ_LEN",
        ge=0,
    )


SECTIONS: dict[str, type[Section]] = {
    "Logging": Logging,
    "OPEA_Microservice": Microservice,
    "Model": Model,
    "Dialects": Dialects,
}


FURTHER = "Model."
"""How the heading of a further model begins; its name is the rest."""
CONVERSATION = "Conversation."
"""How the heading of a conversation template begins; its name is the rest."""
ENGINE = "LLM_ENGINE_"
"""How the environment variable of an engine's own setting begins; the setting is the rest, in small letters."""

_OF_ONE_MODEL = frozenset(("model_name", "context_window"))
"""What another model never takes from [Model]."""
_OF_ONE_SERVER = frozenset(
    (
        "model_server_endpoint",
        "api_key",
        "token_url",
        "client_id",
        "client_secret",
        "tls_skip_verify",
        "ca_file",
        "client_certificate",
        "client_key",
    )
)
"""What a model at another model server does not take either: no credential goes to a server that it is not for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it stands, for whoever looks for the reason of something."""

    section: str
    key: str
    value: str
    """Secrets are masked."""
    source: str
    """`environment USVC_PORT`, the file's path, `[Model]` where a further model has its value, or `default`."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is served."""

    section: str
    """Where it is set."""
    model: Model
    engine: Mapping[str, JSON] = field(repr=False)
    """What is set that only its engine understands."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a service."""

    logging: Logging
    microservice: Microservice
    model: Model
    dialects: Dialects
    models: Mapping[str, Served]
    """Every model by the name that callers ask for; the first is [Model]'s, and answers where no name is given."""
    conversations: Mapping[str, Mapping[str, str]]
    """The keys of every conversation template, by the template's name, as they are written."""
    listing: tuple[Setting, ...]
    """Every setting with its source."""
    without_effect: tuple[str, ...] = ()
    """What the file says that does nothing here, with the reason; a sentence each."""


def load_settings(
    file: Path | None,
    kinds: Collection[str],
    dialects: Collection[str],
    without_engine: Collection[str],
) -> Settings:
    """The settings, checked.

    Args:
        file: The configuration file, ours or llm-api's (`.yaml`, `.yml`); None takes config.ini from the current folder
            if there is one.
        kinds: The model servers there are, by name.
        dialects: The dialects there are, by name.
        without_engine: Those of the kinds for which a key that is none of ours is a mistake. For the others it is a
            setting of their engine.

    Raises:
        SettingsError: Something is unknown, missing or wrong; it names the file or variable, the key and the value.
    """
    if file is None and Path(CONFIG_FILE).exists():
        file = Path(CONFIG_FILE)
    read = _read(file) if file else ConfigFile()
    parts = {name: _Part(name, kind, read) for name, kind in SECTIONS.items()}
    endings = _endings([heading for heading in read.sections if heading.startswith(FURTHER)], read)
    _refuse_variables_of_nobody(endings)
    lost = (*read.without_effect, *parts["Model"].leave_engine_of_another())
    for ending, heading in endings.items():
        parts[heading] = _further(parts["Model"], heading, ending, read)
    for part in parts.values():
        part.check(kinds, without_engine)
    for dialect in parts["Dialects"].values.enabled:
        parts["Dialects"].check_known("enabled", dialect, dialects)
    listing = [setting for part in parts.values() for setting in part.listing()]
    conversations = {
        _name_of(heading): keys for heading, keys in read.sections.items() if heading.startswith(CONVERSATION)
    }
    for name, keys in conversations.items():
        listing += [Setting(CONVERSATION + name, key, text, str(read)) for key, text in keys.items()]
    logging, microservice, model, chosen = (parts[name].values for name in SECTIONS)
    served = _served(parts.values(), read)
    return Settings(logging, microservice, model, chosen, served, conversations, tuple(listing), lost)


def _served(parts: Iterable[_Part], file: ConfigFile) -> dict[str, Served]:
    models: dict[str, Served] = {}
    for part in parts:
        if isinstance(part.values, Model):
            name = _name_of(part.name) if part.ending else part.values.model_name
            if name in models:
                raise SettingsError(f"{file}: [{part.name}]: the model of [Model] has that name")
            models[name] = Served(part.name, part.values, part.engine)
    return models


def _further(model: _Part, heading: str, ending: str, file: ConfigFile) -> _Part:
    """A further model: what it does not say itself, [Model] says, as far as that makes sense for another one."""
    written = file.sections[heading]
    fields: dict[str, Any] = {}
    inherited: set[str] = set()
    elsewhere = any(
        key in written or _variable(Model.model_fields[key], ending)
        for key in ("model_server", "model_server_endpoint")
    )
    for key, info in Model.model_fields.items():
        default = info.default
        if not (key in _OF_ONE_MODEL or (elsewhere and key in _OF_ONE_SERVER)):
            default = getattr(model.values, key)
            inherited.add(key)
        elif key == "model_name":
            default = _name_of(heading)
        names = (f"{name}{ending}" for name in environment_names(info))
        fields[key] = (info.rebuild_annotation(), _key(default, info.description or "", *names))
    kind: type[Model] = create_model(heading, __base__=Model, **fields)
    part = _Part(heading, kind, file, ending=ending, inherited=inherited)
    if not elsewhere:
        part.engine_above = model
    return part


class _Part:
    """A section as it is read.

    Args:
        name: Its heading.
        kind: Its keys; a further model has a class of its own.
        file: What the file says, here and elsewhere.
        ending: Of the environment variables of a further model.
        inherited: The keys whose defaults come from [Model].

    Raises:
        SettingsError: A value is wrong.
    """

    engine_above: _Part | None = None
    """Where engine settings come from that are not set here."""

    def __init__(
        self,
        name: str,
        kind: type[Section],
        file: ConfigFile,
        *,
        ending: str = "",
        inherited: Collection[str] = (),
    ) -> None:
        self.name = name
        self.ending = ending
        self.engine: dict[str, JSON] = {}
        self._fields = kind.model_fields
        self._written = dict(file.sections.get(name, {}))
        self._file = file
        self._inherited = inherited
        self._engine_sources: dict[str, str] = {}
        try:
            self.values: Any = kind(**dict(self._given()))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            key = str(first["loc"][0])
            value = "***" if self._fields[key].annotation is SecretStr else first["input"]
            raise self._wrong(key, f" = {value!s}: {first['msg'].removeprefix('Value error, ')}") from None

    def _given(self) -> Iterator[tuple[str, str | SecretStr]]:
        """What the file says, and the files that the environment names; the rest is in the environment itself."""
        for key, info in self._fields.items():
            # Under the name of its variable, and only where none is set: so each value has one source.
            own, variable = next(environment_names(info)), _variable(info)
            if key in self._written and info.annotation is SecretStr:
                raise SettingsError(
                    f"{self._file}: [{self.name}] {key}: a secret comes from the environment only: {own}, or "
                    f"{_of_file(own)} with the path of a file"
                )
            if variable and variable not in environment_names(info):
                yield own, self._secret(key, variable)
            elif key in self._written and not variable:
                yield own, self._written[key]

    def _secret(self, key: str, variable: str) -> SecretStr:
        path = os.environ[variable]
        try:
            text = Path(path).read_text("utf-8").removesuffix("\n")
        except OSError as error:
            raise self._wrong(key, f": the file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._wrong(key, f": the file {path} cannot be read: it is not UTF-8 text") from None
        if not text:
            raise self._wrong(key, f": the file {path} is empty")
        return SecretStr(text)

    def leave_engine_of_another(self) -> Iterator[str]:
        """Forget the engine's settings of a file that came with its own model server, if the environment has another
        one; a sentence that says so."""
        own = self._written.get("model_server")
        if self._file.first_dialect and own != self.values.model_server:
            self._written = {key: text for key, text in self._written.items() if key in self._fields}
            kind, source = self.values.model_server, self._source("model_server")
            yield f"{self._file}: no effect here: its settings of {own}; {source} has {kind}"

    def check(self, kinds: Collection[str], without_engine: Collection[str]) -> None:
        """Raise if the section as a whole makes no sense; what is the engine's is known afterwards."""
        if not isinstance(self.values, Model):
            self._refuse_unknown()
            return
        self.check_known("model_server", self.values.model_server, kinds)
        if self.values.model_server in without_engine:
            self._refuse_unknown()
            for variable, key in self._engine_variables():
                why = f"{self.values.model_server} has no engine that could be set"
                raise SettingsError(f"environment {variable}: [{self.name}] {key}: {why}")
        self._read_engine()
        self._check_credentials()

    def check_known(self, key: str, value: str, known: Collection[str]) -> None:
        """Raise if the value is none of those that there are."""
        if value not in known:
            raise self._wrong(key, f" = {value}: unknown{nearest(value, known)}")

    def _refuse_unknown(self) -> None:
        for key in self._written:
            if key not in self._fields:
                raise self._unknown(key)

    def _unknown(self, key: str) -> SettingsError:
        shown = "***" if _SECRET.search(key) else self._written[key]
        source = self._file.source(self.name, key)
        return SettingsError(f"{source}: unknown key [{self.name}] {key} = {shown}{nearest(key, self._fields)}")

    def _read_engine(self) -> None:
        if self.engine_above:
            self.engine |= self.engine_above.engine
            self._engine_sources |= dict.fromkeys(self.engine, f"[{self.engine_above.name}]")
        for key, text in self._written.items():
            if key not in self._fields:
                source = self._file.source(self.name, key)
                if get_close_matches(key, self._fields, n=1, cutoff=_SLIP):
                    raise self._unknown(key)
                if _ENGINE_SECRET.search(key):
                    own = f"{ENGINE}{key.upper()}{self.ending}"
                    why = f"a secret comes from the environment only: {own}"
                    raise SettingsError(f"{source}: [{self.name}] {key}: {why}")
                self._take(key, text, source)
        for variable, key in self._engine_variables():
            self._take(key, os.environ[variable], f"environment {variable}")

    def _engine_variables(self) -> Iterator[tuple[str, str]]:
        for variable in os.environ:
            key, two, rest = variable.removeprefix(ENGINE).partition("__")
            if variable.startswith(ENGINE) and key and two + rest == self.ending:
                yield variable, key.lower()

    def _take(self, key: str, text: str, source: str) -> None:
        try:
            self.engine[key] = _typed(text)
        except ValueError as error:
            shown = "***" if _ENGINE_SECRET.search(key) else text
            raise SettingsError(f"{source}: [{self.name}] {key} = {shown}: {error}") from None
        self._engine_sources[key] = source

    def _check_credentials(self) -> None:
        """Raise if of what belongs together only a part is there."""
        for whole, needs in (
            ("token_url", ("client_id", "client_secret")),
            ("client_id", ("token_url",)),
            ("client_secret", ("token_url",)),
            ("client_key", ("client_certificate",)),
        ):
            for other in needs:
                if self._is_set(whole) and not self._is_set(other):
                    own = next(environment_names(self._fields[other]))
                    raise self._wrong(whole, f": needs {other} ({own}) as well")

    def _is_set(self, key: str) -> bool:
        value = getattr(self.values, key)
        return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)

    def listing(self) -> Iterator[Setting]:
        """Every setting of the section."""
        for key in self._fields:
            yield Setting(self.name, key, _shown(getattr(self.values, key)), self._source(key))
        for key, value in self.engine.items():
            yield Setting(self.name, key, _shown(_masked(key, value)), self._engine_sources[key])

    def _source(self, key: str) -> str:
        if variable := _variable(self._fields[key]):
            return f"environment {variable}"
        if key in self._written:
            return self._file.source(self.name, key)
        return "[Model]" if key in self._inherited else "default"

    def _wrong(self, key: str, what: str) -> SettingsError:
        return SettingsError(f"{self._source(key)}: [{self.name}] {key}{what}")


def _read(path: Path) -> ConfigFile:
    """The file, with known headings; the dialect of the service that it was written for comes before the others."""
    file = read_config_file(path)
    for heading in file.sections:
        if heading not in SECTIONS and not (heading.startswith((FURTHER, CONVERSATION)) and _name_of(heading)):
            raise SettingsError(f"{file}: unknown section [{heading}]{nearest(heading, SECTIONS)}")
    if file.first_dialect:
        enabled = dict.fromkeys((file.first_dialect, *Dialects.model_fields["enabled"].default))
        dialects = {"enabled": ", ".join(enabled), **file.sections.get("Dialects", {})}
        file = replace(file, sections={**file.sections, "Dialects": dialects})
    return file


def _name_of(heading: str) -> str:
    return heading.partition(".")[2].strip()


def _endings(headings: Iterable[str], file: ConfigFile) -> dict[str, str]:
    """The headings of further models by what their environment variables end in."""
    endings: dict[str, str] = {}
    for heading in headings:
        ending = "__" + re.sub("[^A-Z0-9]", "_", _name_of(heading).upper())
        if other := endings.get(ending):
            raise SettingsError(
                f"{file}: [{heading}] and [{other}]: the variables of both would end in {ending}; rename one of them"
            )
        endings[ending] = heading
    return endings


def _refuse_variables_of_nobody(endings: Collection[str]) -> None:
    """A variable for a further model that there is not would be lost without a word."""
    known = {name for info in Model.model_fields.values() for name in (*environment_names(info), *_file_names(info))}
    for variable in os.environ:
        head, two, name = variable.partition("__")
        if two and (head in known or head.startswith(ENGINE)) and two + name not in endings:
            said = f"no section [{FURTHER}<name>] has variables that end in {two}{name}"
            raise SettingsError(f"environment {variable}: {said}{nearest(two + name, endings)}")


def environment_names(info: FieldInfo) -> Iterator[str]:
    """The environment variables of a key, the first that is set being the one that counts."""
    assert isinstance(info.validation_alias, AliasChoices)
    yield from map(str, info.validation_alias.choices)


def _file_names(info: FieldInfo) -> Iterator[str]:
    """The variables of a secret that hold the path of a file with it, one for each of `environment_names`."""
    if info.annotation is SecretStr:
        yield from map(_of_file, environment_names(info))


def _of_file(variable: str) -> str:
    name, two, ending = variable.partition("__")
    return f"{name}_FILE{two}{ending}"


def _variable(info: FieldInfo, ending: str = "") -> str | None:
    """The variable that a key has its value from, if it is one."""
    for name in environment_names(info):
        with_value, with_path = name + ending, _of_file(name + ending)
        if info.annotation is SecretStr and with_path in os.environ:
            if with_value in os.environ:
                raise SettingsError(f"environment {with_value} and {with_path}: both are set; one of them must go")
            return with_path
        if with_value in os.environ:
            return with_value
    return None


_WORDS: dict[str, JSON] = {"true": True, "false": False, "null": None, "none": None}
_SLIP = 0.8
"""How alike a key that is none of ours must be to one of ours to be taken for a slip of the pen."""


def _typed(text: str) -> JSON:
    """An engine's setting as its text says: a number, true, false, null, a JSON list or object, else text, which may
    stand in quotes.

    Raises:
        ValueError: It begins like a list or an object, and is none.
    """
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _unquoted(text) != text:
        return _unquoted(text)
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        if text[:1] in ("[", "{"):
            raise ValueError("not the JSON that it begins like; text that begins so stands in quotes") from None
        return text


def _no_number(word: str) -> JSON:
    raise ValueError(word)


def _masked(key: str, value: JSON) -> JSON:
    """An engine's setting without its secrets."""
    if _ENGINE_SECRET.search(key.lower()) and value:
        return "***"
    if isinstance(value, dict):
        return {name: _masked(name, inner) for name, inner in value.items()}
    return [_masked(key, inner) for inner in value] if isinstance(value, list) else value


def _shown(value: object) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else value
    return _CREDENTIALS.sub("//***@", json.dumps(text) if isinstance(text, list | dict) else str(text))
