"""Settings: the environment before the file before the defaults, and an error that says what to mend and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

import comps
from comps.core.errors import SettingsError
from comps.settings import SECTIONS, Section, Settings, environment_names, load_settings

KINDS: dict[str, object] = {"openvino": None, "scripted": None, "tgi": None, "vllm": None}
DIALECTS: dict[str, object] = {"opea": None, "openai": None}
SHIPPED = Path(comps.__file__).parents[1] / "config.ini"

SEED = """\
# OPEA LLM Microservice Configuration File
[Logging]
# env - LOG_LEVEL
log_level=INFO
# env - LOG_PATH
log_path=/tmp/opea/microservices/llm/llm.log

[OPEA_Microservice]
# env - USVC_NAME
name=opea_service@llm
# env - USVC_HOST
host=0.0.0.0
# env - USVC_PORT
port=9000

[Model]
# env - LLM_NAME
model_name="Intel/neural-chat-7b-v3-3"
# env - FRAMEWORK
framework="langchain"
# env - MODEL_SERVER
model_server="tgi"
# env - LLM_MODEL_SERVER_ENDPOINT
model_server_endpoint="http://localhost:8080"

"""

# For every key: what may be written, and what is meant. None of it is a default.
VALUES: dict[str, tuple[str, Any]] = {
    "log_level": ("debug", "DEBUG"),
    "log_path": ("llm.log", "llm.log"),
    "name": ("mine", "mine"),
    "host": ("::1", "::1"),
    "port": ("8123", 8123),
    "max_body_mb": ("5", 5),
    "max_running": ("3", 3),
    "max_waiting": ("0", 0),
    "drain_seconds": ("0", 0),
    "model_name": ("Intel/neural-chat-7b-v3-3", "Intel/neural-chat-7b-v3-3"),
    "framework": ("Native", "native"),
    "model_server": ("Scripted", "scripted"),
    "model_server_endpoint": ("http://localhost:8080", "http://localhost:8080"),
    "device": ("GPU", "GPU"),
    "api_key": ("hush", SecretStr("hush")),
    "tls_skip_verify": ("yes", True),
    "enabled": ("OpenAI, opea", ("openai", "opea")),
    "opea_stream": ("text", "text"),
    "messages": ("enterprise_rag", "enterprise_rag"),
    "strict": ("true", True),
    "disable_streaming": ("True", True),
    "output_guard": ("1", True),
}

KEYS = [(section, key) for section, kind in SECTIONS.items() for key in kind.model_fields]
SECRETS = [(section, key) for section, key in KEYS if SECTIONS[section].model_fields[key].annotation is SecretStr]
WRITTEN = [(section, key) for section, key in KEYS if (section, key) not in SECRETS]
"""What the file may have; a secret comes from the environment."""
VARIABLES = [
    (section, key, variable)
    for section, kind in SECTIONS.items()
    for key, info in kind.model_fields.items()
    for variable in environment_names(info)
]

Write = Callable[[str | bytes], Path]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config.ini in the current folder but the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: str | bytes) -> Path:
        file = tmp_path / "my.ini"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


def load(file: Path | None = None) -> Settings:
    return load_settings(file, KINDS, DIALECTS)


def sections(settings: Settings) -> dict[str, Section]:
    values = [getattr(settings, field.name) for field in fields(settings)]
    return dict(zip(SECTIONS, (value for value in values if isinstance(value, Section)), strict=True))


def value(settings: Settings, section: str, key: str) -> Any:
    return getattr(sections(settings)[section], key)


def spelled(default: object) -> str:
    """A default as config.ini has it."""
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def source(settings: Settings, key: str) -> str:
    [found] = [setting.source for setting in settings.listing if setting.key == key]
    return found


def mistake(file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(file)
    return str(caught.value)


# The file that is shipped


def test_the_shipped_file_has_every_setting_in_order_at_its_default() -> None:
    defaults = [(section, key, spelled(SECTIONS[section].model_fields[key].default)) for section, key in WRITTEN]
    written, section = [], ""
    for line in SHIPPED.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"\[(.+)\]", line):
            section = heading[1]
        elif line and not line.startswith("#"):
            key, equals, text = line.partition("=")
            assert equals
            written.append((section, key, text))
    assert written == defaults


def test_the_shipped_file_says_what_each_setting_is_and_what_its_variables_are() -> None:
    lines = SHIPPED.read_text("utf-8").splitlines()
    for section, kind in SECTIONS.items():
        for key, info in kind.model_fields.items():
            begins = f"# {key} is a secret" if (section, key) in SECRETS else f"{key}="
            start = lines.index(f"[{section}]")
            at = next(i for i, line in enumerate(lines) if i > start and line.startswith(begins))
            first, *aliases = environment_names(info)
            also = f" (also {', '.join(aliases)})" if aliases else ""
            assert lines[at - 2 : at] == [f"# {info.description}", f"# env - {first}{also}"]


def test_the_shipped_file_changes_nothing() -> None:
    assert sections(load(SHIPPED)) == sections(load())


def test_no_variable_belongs_to_two_settings() -> None:
    names = [variable for _, _, variable in VARIABLES]
    assert len(names) == len(set(names))


# Where a value comes from


def test_without_file_and_environment_there_are_defaults() -> None:
    settings = load()
    assert (settings.microservice.host, settings.microservice.port) == ("0.0.0.0", 9000)
    assert (settings.model.model_name, settings.model.model_server) == ("SmolLM2-135M-Instruct", "openvino")
    assert settings.model.framework == "langchain"
    assert {one.source for one in settings.listing} == {"default"}
    assert [(one.section, one.key) for one in settings.listing] == KEYS


def test_the_seed_s_file_works_as_printed(write: Write) -> None:
    settings = load(write(SEED))
    assert settings.model.model_name == "Intel/neural-chat-7b-v3-3"
    assert settings.model.framework == "langchain"
    assert settings.model.model_server == "tgi"
    assert settings.model.model_server_endpoint == "http://localhost:8080"
    assert settings.logging.log_path == "/tmp/opea/microservices/llm/llm.log"
    assert settings.microservice.port == 9000


@pytest.mark.parametrize(("section", "key"), WRITTEN)
def test_the_file_goes_before_the_default(write: Write, section: str, key: str) -> None:
    text, meant = VALUES[key]
    file = write(f"[{section}]\n{key} = {text}\n")
    settings = load(file)
    assert value(settings, section, key) == meant
    assert value(settings, section, key) != value(load(), section, key)
    assert source(settings, key) == str(file)


@pytest.mark.parametrize("written", [True, False], ids=["over the file", "over the default"])
@pytest.mark.parametrize(("section", "key", "variable"), VARIABLES)
def test_the_environment_goes_before_all(
    write: Write, monkeypatch: pytest.MonkeyPatch, section: str, key: str, variable: str, written: bool
) -> None:
    text, meant = VALUES[key]
    monkeypatch.setenv(variable, text)
    settings = load(write(SHIPPED.read_text("utf-8")) if written else None)
    assert value(settings, section, key) == meant
    assert source(settings, key) == f"environment {variable}"


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "meant"),
    [
        ("LLM_MODEL_NAME", "m", "Model", "model_name", "m"),
        ("LLM_MODEL_ID", "m", "Model", "model_name", "m"),
        ("LLM_MODEL_SERVER", "vllm", "Model", "model_server", "vllm"),
        ("LLM_MODEL_SERVER_ENDPOINT", "http://a:1", "Model", "model_server_endpoint", "http://a:1"),
        ("LLM_ENDPOINT", "http://a:1", "Model", "model_server_endpoint", "http://a:1"),
        ("LLM_CONNECTOR", "generic", "Model", "framework", "native"),
        ("LLM_CONNECTOR", "GENERIC", "Model", "framework", "native"),
        ("LLM_CONNECTOR", "langchain", "Model", "framework", "langchain"),
        ("LLM_VLLM_API_KEY", "hush", "Model", "api_key", SecretStr("hush")),
        ("OPENAI_API_KEY", "hush", "Model", "api_key", SecretStr("hush")),
        ("LLM_TLS_SKIP_VERIFY", "True", "Model", "tls_skip_verify", True),
        ("LLM_USVC_PORT", "8123", "OPEA_Microservice", "port", 8123),
        ("OPEA_LOGGER_LEVEL", "WARNING", "Logging", "log_level", "WARNING"),
        ("LLM_DISABLE_STREAMING", "True", "Dialects", "disable_streaming", True),
        ("LLM_DISABLE_STREAMING", "false", "Dialects", "disable_streaming", False),
        ("LLM_OUTPUT_GUARD_EXISTS", "True", "Dialects", "output_guard", True),
    ],
)
def test_a_sibling_deployment_s_variable_is_understood(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, section: str, key: str, meant: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert value(load(), section, key) == meant


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_the_own_variable_goes_before_its_aliases(monkeypatch: pytest.MonkeyPatch, section: str, key: str) -> None:
    own, *aliases = environment_names(SECTIONS[section].model_fields[key])
    for alias in aliases:
        monkeypatch.setenv(alias, "not a number, nor a model server")
    text, meant = VALUES[key]
    monkeypatch.setenv(own, text)
    settings = load()
    assert value(settings, section, key) == meant
    assert source(settings, key) == f"environment {own}"


def test_config_ini_of_the_current_folder_is_read_if_no_other_is_named(tmp_path: Path, write: Write) -> None:
    (tmp_path / "config.ini").write_text("[OPEA_Microservice]\nport=8001\n", "utf-8")
    settings = load()
    assert settings.microservice.port == 8001
    assert source(settings, "port") == "config.ini"
    assert load(write("[OPEA_Microservice]\nname=other\n")).microservice.port == 9000


def test_a_variable_in_small_letters_is_somebody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llm_name", "other")
    assert load().model.model_name == "SmolLM2-135M-Instruct"


# How a value is written


@pytest.mark.parametrize("text", ["'a b'", '"a b"', ' "a b" ', "a b", " a b "])
def test_quotes_and_outer_spaces_are_taken_off(write: Write, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load(write(f"[Model]\nmodel_name={text}\n")).model.model_name == "a b"
    monkeypatch.setenv("LLM_NAME", text)
    assert load().model.model_name == "a b"


@pytest.mark.parametrize("text", ["\"half'", '"', 'say "hi"', "it's"])
def test_quotes_that_are_no_pair_around_the_value_stay(write: Write, text: str) -> None:
    assert load(write(f"[Model]\nmodel_name={text}\n")).model.model_name == text


@pytest.mark.parametrize("text", ["%", "100%", "%(name)s", "%%", "http://host/a%20b", "$HOME", "${LLM_NAME}", "a=b;#c"])
def test_a_value_is_read_as_it_stands(write: Write, text: str) -> None:
    assert load(write(f"[Model]\nmodel_server_endpoint={text}\n")).model.model_server_endpoint == text


def test_quoted_numbers_switches_and_choices_are_understood(write: Write) -> None:
    settings = load(
        write(
            "[OPEA_Microservice]\nport='8123'\n[Logging]\nlog_level=\"warning\"\n"
            "[Dialects]\nstrict='yes'\nenabled=\"opea,openai\"\n[Model]\nframework='generic'\n"
        )
    )
    assert settings.microservice.port == 8123
    assert settings.logging.log_level == "WARNING"
    assert settings.dialects.strict is True
    assert settings.dialects.enabled == ("opea", "openai")
    assert settings.model.framework == "native"


def test_a_file_may_have_any_language(write: Write) -> None:
    assert load(write("# Kommentar: grüß Gott\n[OPEA_Microservice]\nname=服务\n")).microservice.name == "服务"


# What is wrong


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("OPEA_Microservice", "port", "0"),
        ("OPEA_Microservice", "port", "65536"),
        ("OPEA_Microservice", "port", "-1"),
        ("OPEA_Microservice", "port", "9000x"),
        ("OPEA_Microservice", "port", ""),
        ("OPEA_Microservice", "name", ""),
        ("OPEA_Microservice", "host", ""),
        ("OPEA_Microservice", "max_body_mb", "0"),
        ("OPEA_Microservice", "max_running", "0"),
        ("OPEA_Microservice", "max_waiting", "-1"),
        ("OPEA_Microservice", "drain_seconds", "soon"),
        ("Logging", "log_level", "LOUD"),
        ("Model", "model_name", ""),
        ("Model", "framework", "llamaindex"),
        ("Model", "model_server", "tensorflow"),
        ("Model", "device", ""),
        ("Dialects", "enabled", "opea, klingon"),
        ("Dialects", "enabled", ""),
        ("Dialects", "opea_stream", "json"),
        ("Dialects", "messages", "mistral"),
        ("Dialects", "strict", "perhaps"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_where_it_stands(
    write: Write, monkeypatch: pytest.MonkeyPatch, section: str, key: str, text: str
) -> None:
    file = write(f"[{section}]\n{key}={text}\n")
    shown = text.removeprefix("opea, ")
    assert mistake(file).startswith(f"{file}: [{section}] {key} = {shown}: ")
    for variable in environment_names(SECTIONS[section].model_fields[key]):
        monkeypatch.setenv(variable, text)
        assert mistake(file).startswith(f"environment {variable}: [{section}] {key} = {shown}: ")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("text", ["''", '""', "  "])
def test_an_empty_model_name_in_quotes_is_empty(write: Write, text: str) -> None:
    file = write(f"[Model]\nmodel_name={text}\n")
    assert mistake(file).startswith(f"{file}: [Model] model_name = : ")


def test_a_wrong_value_under_an_alias_names_that_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USVC_PORT", "many")
    assert mistake().startswith("environment LLM_USVC_PORT: [OPEA_Microservice] port = many: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[Model]\nmodel_nam=x\n", "unknown key [Model] model_nam = x; did you mean model_name?"),
        ("[Model]\nport=9\n", "unknown key [Model] port = 9"),
        ("[OPEA_Microservice]\nPrt=9\n", "unknown key [OPEA_Microservice] prt = 9; did you mean port?"),
        ("[Logging]\nloglevel=INFO\n", "did you mean log_level?"),
        ("[model]\nmodel_name=x\n", "unknown section [model]; did you mean Model?"),
        ("[Modell]\n", "unknown section [Modell]; did you mean Model?"),
        ("[OPEA_Microservices]\n", "did you mean OPEA_Microservice?"),
        ("[DEFAULT]\nport=9\n", "unknown section [DEFAULT]"),
        ("[zzz]\n", "unknown section [zzz]; known: Logging, OPEA_Microservice, Model, Dialects"),
        ("[Model]\nmodel_server=vlm\n", "[Model] model_server = vlm: unknown; did you mean vllm?"),
        ("[Model]\nmodel_server=zzz\n", "known: openvino, scripted, tgi, vllm"),
        ("[Dialects]\nenabled=opea,open_ai\n", "[Dialects] enabled = open_ai: unknown; did you mean openai?"),
    ],
)
def test_an_unknown_name_names_the_nearest_known_one(write: Write, content: str, said: str) -> None:
    file = write(content)
    message = mistake(file)
    assert message.startswith(f"{file}: ")
    assert said in message


@pytest.mark.parametrize(
    "content",
    [
        b"port=9000\n",
        b"[Model\nmodel_name=x\n",
        b"[Model]\nmodel_name\n",
        b"[Model]\nmodel_name=x\nmodel_name=y\n",
        b"[Model]\n[Model]\n",
        b"[Model]\nmodel_name=\xff\xfe\n",
        "[Model]\nmodel_name=x\n".encode("utf-16"),
    ],
    ids=["no section", "open bracket", "no value", "key twice", "section twice", "not UTF-8", "UTF-16"],
)
def test_a_file_that_makes_no_sense_is_named_in_one_line(write: Write, content: bytes) -> None:
    file = write(content)
    message = mistake(file)
    assert message.startswith(f"{file}: cannot be read: ")
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert mistake(tmp_path / "no.ini").startswith(f"{tmp_path / 'no.ini'}: cannot be read: ")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert mistake(tmp_path).startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "config.ini").mkdir()
    assert mistake().startswith("config.ini: cannot be read: ")


# Secrets


@pytest.mark.parametrize(("section", "key"), SECRETS)
def test_a_secret_in_the_file_is_refused_and_not_repeated(write: Write, section: str, key: str) -> None:
    file = write(f"[{section}]\n{key}=hush\n")
    message = mistake(file)
    assert message.startswith(f"{file}: [{section}] {key}: ")
    assert "environment" in message
    assert "hush" not in message


@pytest.mark.parametrize(("section", "key"), SECRETS)
def test_a_secret_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch, section: str, key: str) -> None:
    monkeypatch.setenv(next(environment_names(SECTIONS[section].model_fields[key])), "hush")
    settings = load()
    assert value(settings, section, key).get_secret_value() == "hush"
    assert "hush" not in repr(settings)
    assert "hush" not in str(sections(settings)[section])


# What is read stays as it is


def test_settings_are_frozen() -> None:
    settings = load()
    for field in fields(settings):
        with pytest.raises(FrozenInstanceError):
            setattr(settings, field.name, None)
    for section in sections(settings).values():
        for key in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, key, None)


def test_settings_do_not_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load()
    monkeypatch.setenv("USVC_PORT", "8123")
    assert settings.microservice.port == 9000


def test_a_variable_that_happens_to_have_a_keys_name_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("port", "1234")
    monkeypatch.setenv("strict", "true")
    settings = load()
    assert (settings.microservice.port, settings.dialects.strict) == (9000, False)


def test_secrets_are_shown_neither_in_the_listing_nor_in_an_error(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "hunter2")
    monkeypatch.setenv("LLM_ENDPOINT", "http://user:hunter2@host/v1")
    shown = [setting.value for setting in load().listing]
    assert not [value for value in shown if "hunter2" in value]
    assert "http://***@host/v1" in shown
    assert "hunter2" not in mistake(write("[Model]\nopenai_api_key=hunter2\n"))
