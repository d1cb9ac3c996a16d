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
from comps.settings import SECTIONS, Model, Section, Settings, environment_names, load_settings

KINDS = ("openvino", "scripted", "tgi", "vllm", "llama_cpp")
WITHOUT_ENGINE = ("openvino", "scripted", "tgi", "vllm")
DIALECTS = ("opea", "openai", "square", "llm_api", "kaito", "llm_on_k8s")
"""Some of the names."""
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
    "log_format": ("JSON", "json"),
    "log_prompts": ("true", True),
    "record": ("records", "records"),
    "record_prompts": ("true", True),
    "record_mb": ("5", 5),
    "name": ("mine", "mine"),
    "host": ("::1", "::1"),
    "port": ("8123", 8123),
    "tls_certificate": (__file__, __file__),
    "tls_key": (__file__, __file__),
    "tls_client_ca": (__file__, __file__),
    "trusted_proxies": ("10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
    "api_keys_file": (__file__, __file__),
    "api_keys": ("hush", SecretStr("hush")),
    "open_routes": ("/health, /Docs", ("/health", "/Docs")),
    "workers": ("3", 3),
    "max_body_mb": ("5", 5),
    "max_bodies_mb": ("64", 64),
    "max_header_kb": ("64", 64),
    "max_url_kb": ("16", 16),
    "max_connections": ("100", 100),
    "max_running": ("3", 3),
    "max_waiting": ("0", 0),
    "max_wait_seconds": ("1.5", 1.5),
    "cors_origins": (
        "https://One.example/, http://[::1]:3000, https://two.example:443",
        ("https://one.example", "http://[::1]:3000", "https://two.example"),
    ),
    "serve_docs": ("false", False),
    "serve_metrics": ("no", False),
    "serve_prompt": ("off", False),
    "serve_ui": ("false", False),
    "allow_shutdown": ("true", True),
    "show_endpoints": ("true", True),
    "header_seconds": ("2.5", 2.5),
    "body_seconds": ("60", 60),
    "idle_seconds": ("75", 75),
    "stalled_client_seconds": ("30", 30),
    "keepalive_seconds": ("2.5", 2.5),
    "pre_stop_seconds": ("2.5", 2.5),
    "drain_seconds": ("0", 0),
    "model_name": ("Intel/neural-chat-7b-v3-3", "Intel/neural-chat-7b-v3-3"),
    "framework": ("Native", "native"),
    "model_server": ("Scripted", "scripted"),
    "model_server_endpoint": ("http://localhost:8080", "http://localhost:8080"),
    "chat_template": ("llama-2", "llama-2"),
    "tokenizer_file": (__file__, __file__),
    "min_answer_tokens": ("64", 64),
    "documents_first": ("true", True),
    "native_documents": ("true", True),
    "nothing_found": ("I do not know.", "I do not know."),
    "order": ("ends", "ends"),
    "top_documents": ("3", 3),
    "citations": ("Matched", "matched"),
    "prompt_templates": ("/etc/prompts", "/etc/prompts"),
    "device": ("GPU", "GPU"),
    "api_key": ("hush", SecretStr("hush")),
    "token_url": ("https://login.example.com/token", "https://login.example.com/token"),
    "client_id": ("me", "me"),
    "client_secret": ("hush", SecretStr("hush")),
    "tls_skip_verify": ("yes", True),
    "ca_file": (__file__, __file__),
    "client_certificate": (__file__, __file__),
    "client_key": (__file__, __file__),
    "connect_seconds": ("0.5", 0.5),
    "first_token_seconds": ("7", 7.0),
    "between_tokens_seconds": ("0", 0.0),
    "total_seconds": ("60", 60.0),
    "retries_per_request": ("0", 0),
    "retry_budget": ("0.1", 0.1),
    "breaker_failures": ("5", 5),
    "breaker_seconds": ("60", 60.0),
    "whole_answers": ("Stream", "stream"),
    "context_window": ("4096", 4096),
    "enabled": ("OpenAI, opea", ("openai", "opea")),
    "opea_stream": ("text", "text"),
    "messages": ("enterprise_rag", "enterprise_rag"),
    "string_messages": ("Query", "query"),
    "square_prompt": ("Messages", "messages"),
    "llm_api_prompt": ("Messages", "messages"),
    "kaito_prompt": ("Text", "text"),
    "llm_on_k8s_prompt": ("TEXT", "text"),
    "tgi_prompt": ("messages", "messages"),
    "llm_api_family": ("autoawq", "autoawq"),
    "strict": ("true", True),
    "disable_streaming": ("True", True),
    "output_guard": ("1", True),
    "max_batch_size": ("4", 4),
    "max_seq_len": ("512", 512),
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

OAUTH = ("token_url", "client_id", "client_secret")
COMPANIONS = {
    **{key: tuple(other for other in OAUTH if other != key) for key in OAUTH},
    "client_key": ("client_certificate",),
}
"""What a key makes no sense without."""

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


@pytest.fixture
def accompany(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what a key makes no sense without, in the environment."""

    def accompanied(key: str) -> None:
        for companion in COMPANIONS.get(key, ()):
            monkeypatch.setenv(next(environment_names(SECTIONS["Model"].model_fields[companion])), VALUES[companion][0])

    return accompanied


def load(file: Path | None = None) -> Settings:
    return load_settings(file, KINDS, DIALECTS, WITHOUT_ENGINE)


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
def test_the_file_goes_before_the_default(
    write: Write, accompany: Callable[[str], None], section: str, key: str
) -> None:
    text, meant = VALUES[key]
    nothing = value(load(), section, key)
    accompany(key)
    file = write(f"[{section}]\n{key} = {text}\n")
    settings = load(file)
    assert value(settings, section, key) == meant
    assert value(settings, section, key) != nothing
    assert source(settings, key) == str(file)


@pytest.mark.parametrize("written", [True, False], ids=["over the file", "over the default"])
@pytest.mark.parametrize(("section", "key", "variable"), VARIABLES)
def test_the_environment_goes_before_all(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    accompany: Callable[[str], None],
    section: str,
    key: str,
    variable: str,
    written: bool,
) -> None:
    accompany(key)
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
        ("TOKEN_URL", "https://a/t", "Model", "token_url", "https://a/t"),
        ("CLIENTID", "me", "Model", "client_id", "me"),
        ("CLIENT_SECRET", "hush", "Model", "client_secret", SecretStr("hush")),
        ("LLM_TLS_SKIP_VERIFY", "True", "Model", "tls_skip_verify", True),
        ("LLM_USVC_PORT", "8123", "OPEA_Microservice", "port", 8123),
        ("OPEA_LOGGER_LEVEL", "WARNING", "Logging", "log_level", "WARNING"),
        ("LLM_DISABLE_STREAMING", "True", "Dialects", "disable_streaming", True),
        ("LLM_DISABLE_STREAMING", "false", "Dialects", "disable_streaming", False),
        ("LLM_OUTPUT_GUARD_EXISTS", "True", "Dialects", "output_guard", True),
    ],
)
def test_a_sibling_deployment_s_variable_is_understood(
    monkeypatch: pytest.MonkeyPatch,
    accompany: Callable[[str], None],
    variable: str,
    text: str,
    section: str,
    key: str,
    meant: object,
) -> None:
    accompany(key)
    monkeypatch.setenv(variable, text)
    assert value(load(), section, key) == meant


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_the_own_variable_goes_before_its_aliases(
    monkeypatch: pytest.MonkeyPatch, accompany: Callable[[str], None], section: str, key: str
) -> None:
    accompany(key)
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


def test_a_variable_in_lower_case_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        ("all", DIALECTS),
        ("kaito, ALL", ("kaito", "opea", "openai", "square", "llm_api", "llm_on_k8s")),
        ("all, opea", ("openai", "square", "llm_api", "kaito", "llm_on_k8s", "opea")),
        ("openai, opea, openai", ("openai", "opea")),
    ],
)
def test_all_stands_for_the_dialects_that_are_not_named(write: Write, text: str, enabled: tuple[str, ...]) -> None:
    assert load(write(f"[Dialects]\nenabled={text}\n")).dialects.enabled == enabled


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
        ("OPEA_Microservice", "max_wait_seconds", "-1"),
        ("OPEA_Microservice", "max_wait_seconds", "inf"),
        ("OPEA_Microservice", "drain_seconds", "soon"),
        ("OPEA_Microservice", "tls_certificate", "/no/such/file"),
        ("OPEA_Microservice", "tls_key", "/no/such/file"),
        ("OPEA_Microservice", "tls_client_ca", "/no/such/file"),
        ("OPEA_Microservice", "trusted_proxies", "proxy.example"),
        ("OPEA_Microservice", "trusted_proxies", "*"),
        ("OPEA_Microservice", "cors_origins", "chat.example"),
        ("OPEA_Microservice", "cors_origins", "https://chat.example/page"),
        ("OPEA_Microservice", "cors_origins", "null"),
        ("OPEA_Microservice", "open_routes", "health"),
        ("Logging", "log_level", "LOUD"),
        ("Model", "model_name", ""),
        ("Model", "framework", "llamaindex"),
        ("Model", "model_server", "tensorflow"),
        ("Model", "device", ""),
        ("Model", "ca_file", "/no/such/file"),
        ("Model", "client_certificate", "/"),
        ("Model", "client_key", "/no/such/file"),
        ("Model", "connect_seconds", "0"),
        ("Model", "connect_seconds", "inf"),
        ("Model", "first_token_seconds", "-1"),
        ("Model", "between_tokens_seconds", "nan"),
        ("Model", "total_seconds", "long"),
        ("Model", "context_window", "-1"),
        ("Model", "context_window", "8k"),
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
        ("[Model]\nmodel_server=zzz\n", "known: openvino, scripted, tgi, vllm, llama_cpp"),
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
def test_a_secret_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, accompany: Callable[[str], None], section: str, key: str
) -> None:
    accompany(key)
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


@pytest.mark.parametrize(("section", "key"), SECRETS)
def test_a_secret_may_be_in_a_file_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accompany: Callable[[str], None], section: str, key: str
) -> None:
    accompany(key)
    (tmp_path / "secret").write_text(' "hush"\n\n')
    for variable in environment_names(SECTIONS[section].model_fields[key]):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "secret"))
        settings = load()
        # As it stands there, but for the last line's end.
        assert value(settings, section, key).get_secret_value() == ' "hush"\n'
        assert source(settings, key) == f"environment {variable}_FILE"
        assert not [setting for setting in settings.listing if "hush" in setting.value]
        monkeypatch.delenv(f"{variable}_FILE")


def test_a_secret_s_file_goes_before_the_variables_that_come_after_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv("LLM_VLLM_API_KEY_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    assert load().model.api_key.get_secret_value() == "hush"
    monkeypatch.setenv("LLM_API_KEY", "own")
    assert load().model.api_key.get_secret_value() == "own"


def test_a_secret_s_file_that_is_empty_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("\n")
    monkeypatch.setenv("LLM_API_KEY_FILE", str(tmp_path / "secret"))
    file = tmp_path / "secret"
    assert mistake() == f"environment LLM_API_KEY_FILE: [Model] api_key: the file {file} is empty"


def test_a_secret_that_is_set_twice_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv("LLM_API_KEY_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("LLM_API_KEY", "shh")
    assert mistake() == "environment LLM_API_KEY and LLM_API_KEY_FILE: both are set; one of them must go"


@pytest.mark.parametrize("content", [None, b"\xffhush"], ids=["not there", "not UTF-8"])
def test_a_secret_s_file_that_cannot_be_read_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content:
        file.write_bytes(content)
    monkeypatch.setenv("LLM_API_KEY_FILE", str(file))
    message = mistake()
    assert message.startswith(f"environment LLM_API_KEY_FILE: [Model] api_key: the file {file}: cannot be read: ")
    assert "hush" not in message


def test_only_a_secret_is_looked_for_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("other")
    monkeypatch.setenv("LLM_NAME_FILE", str(tmp_path / "name"))
    assert load().model.model_name == "SmolLM2-135M-Instruct"


# All that is wrong


MANY = """\
[OPEA_Microservice]
port = many
max_running = 0
prt = 9000
[Model]
framework = llamaindex ; or native
model_server = vlm
context_window = 8k
ca_file = /no/such/file
api_key = hush # mine
[Model.small]
model_server = vllm
n_ctx = 8
client_id = me
[Dialects]
enabled = opea, klingon, open_ai
strict = perhaps
strict = true
[Modell]
x = y
this is no key
"""


def test_all_that_is_wrong_with_a_file_and_the_environment_is_told_at_once_each_in_a_line(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USVC_MAX_WAITING", "-1")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("LLM_DEVICE__TINY", "CPU")
    file = write(MANY)
    with pytest.raises(SettingsError) as caught:
        load(file)
    problems = caught.value.problems
    assert str(caught.value).splitlines() == list(problems)
    begins = [
        f"{file}: cannot be read: line 18: [Dialects] strict is there twice",
        f"{file}: cannot be read: line 21: ",
        f"{file}: line 6: [Model] framework: a comment needs a line of its own",
        f"{file}: line 10: [Model] api_key: a comment needs a line of its own",
        f"{file}: unknown section [Modell]",
        "environment LOG_LEVEL: [Logging] log_level = LOUD: ",
        f"{file}: [OPEA_Microservice] port = many: ",
        f"{file}: [OPEA_Microservice] max_running = 0: ",
        "environment USVC_MAX_WAITING: [OPEA_Microservice] max_waiting = -1: ",
        f"{file}: unknown key [OPEA_Microservice] prt = 9000; did you mean port?",
        f"{file}: [Model] framework = llamaindex: ",
        f"{file}: [Model] model_server = vlm: unknown; did you mean vllm?",
        f"{file}: [Model] context_window = 8k: ",
        f"{file}: [Model] ca_file = /no/such/file: cannot be read: ",
        f"{file}: [Model] api_key: a secret comes from the environment only: LLM_API_KEY",
        f"{file}: unknown key [Model.small] n_ctx = 8",
        f"{file}: [Model.small] client_id: needs token_url ",
        f"{file}: [Dialects] strict = perhaps: ",
        f"{file}: [Dialects] enabled = klingon: unknown",
        f"{file}: [Dialects] enabled = open_ai: unknown; did you mean openai?",
        "environment LLM_DEVICE__TINY: no section [Model.<name>] has variables that end in __TINY",
    ]
    told = {begin: [problem for problem in problems if problem.startswith(begin)] for begin in begins}
    assert [begin for begin, found in told.items() if len(found) != 1] == []
    assert len(problems) == len(begins), "nothing is told that follows from something else"
    assert "hush" not in str(caught.value)


def test_what_is_wrong_with_a_further_model_because_of_model_is_told_once(write: Write) -> None:
    file = write("[Model]\nframework=llamaindex\nmodel_server=vlm\nclient_id=me\n[Model.a]\n[Model.b]\n")
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert len(caught.value.problems) == 3


# A comment behind a value


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("model_name = x # comment", None),
        ("model_name = x ; comment", None),
        ("model_name = x\t#comment", None),
        ("model_name = # comment", None),
        ('model_name = "x" # comment', None),
        ('model_name = "x" # "comment"', None),
        ("model_name = a\n  b # comment", None),
        ('model_name = "x # no comment"', "x # no comment"),
        ("model_name = 'x ; no comment'", "x ; no comment"),
        ("model_name = x#y;z", "x#y;z"),
        ("model_name = http://host/a#b", "http://host/a#b"),
    ],
)
def test_a_comment_behind_a_value_is_refused_with_key_and_line_unless_it_is_in_quotes(
    write: Write, line: str, value: str | None
) -> None:
    file = write(f"# A comment\n[Logging]\n[Model]\nframework = native\n{line}\n; another\n")
    if value is None:
        assert mistake(file).startswith(f"{file}: line 5: [Model] model_name: a comment needs a line of its own")
    else:
        assert load(file).model.model_name == value


def test_values_that_hold_a_hash_of_their_own_are_kept(write: Write) -> None:
    engine = '[Model]\nmodel_server = llama_cpp\nchat_format = {"stop": "a # b"}\n'
    settings = load(write(f"{engine}[Conversation.x]\nroles = ### User, ### Assistant\n"))
    assert settings.models["SmolLM2-135M-Instruct"].engine == {"chat_format": {"stop": "a # b"}}
    assert settings.conversations["x"]["roles"] == "### User, ### Assistant"


# Variables that are none of ours


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LLM_NAEM", "LLM_NAME"),
        ("LLM_MODEL_SERVER_ENDPOIT", "LLM_MODEL_SERVER_ENDPOINT"),
        ("LLM_API_KEYS", "LLM_API_KEY"),
        ("LLM_APIKEY", "LLM_API_KEY"),
        ("LLM_NAME_FILE", "LLM_NAME"),
        ("UVSC_PORT", "USVC_PORT"),
        ("USVC_PROT", "USVC_PORT"),
        ("MODEL_SEVER", "MODEL_SERVER"),
        ("FRAMWORK", "FRAMEWORK"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("llm_name", "LLM_NAME"),
        ("LLM_NAEM__SECOND", "LLM_NAME__SECOND"),
        ("LLM_ENGIN_N_CTX", ""),
        ("LLM_WOBBLE", ""),
    ],
)
def test_a_variable_that_looks_like_ours_and_is_none_is_told_with_the_nearest_one(
    write: Write, monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "hush")
    (told,) = load(write("[Model.second]\n")).without_effect
    assert told.startswith(f"environment {variable}: no effect here: ")
    assert told.endswith(f"did you mean {meant}?" if meant else "no setting has this variable")
    assert "hush" not in told


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LLM_SERVICE_HOST", "10.0.0.1"),
        ("LLM_SERVICE_PORT", "9000"),
        ("LLM_SERVICE_PORT_HTTP", "9000"),
        ("LLM_PORT", "tcp://10.0.0.1:9000"),
        ("LLM_PORT_9000_TCP", "tcp://10.0.0.1:9000"),
        ("LLM_PORT_9000_TCP_ADDR", "10.0.0.1"),
        ("LLM_NAME_SERVICE_HOST", "10.0.0.1"),
        ("USVC_PORTS_PORT", "udp://10.0.0.1:9000"),
        ("OPEA_LLM_PORT", "tcp://10.0.0.1:9000"),
        ("OPEA_LLM_SERVICE_PORT", "9000"),
        ("LLM_API_URL", "http://elsewhere"),
        ("LLM_API_BASE", "http://elsewhere"),
        ("LLM_SERVER_HOST_IP", "10.0.0.1"),
        ("LLM_RAY_CPUS", "4"),
        ("USVC_CPUS", "4"),
        ("LOG_FILE", "x"),
        ("TOKEN_URI", "x"),
        ("CLIENT_ID", "x"),
        ("OPENAI_API_BASE", "x"),
        ("MODEL", "x"),
        ("NAME", "x"),
        ("HF_TOKEN", "x"),
    ],
)
def test_a_variable_of_another_program_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert [told for told in load().without_effect if f" {variable}:" in told] == []


# OPENAI_API_KEY


OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_API_KEY_FILE"])
@pytest.mark.parametrize(
    ("kind", "lines", "goes"),
    [
        ("openai_api", f"model_server_endpoint = {OPENAI}", True),
        ("openai_api", "model_server_endpoint = https://eu.api.openai.com/v1", True),
        ("openai_api", f"model_server_endpoint = {OPENAI}, https://us.api.openai.com/v1", True),
        ("openai_api", f"model_server_endpoint = {OPENAI}, http://localhost:8008", False),
        ("openai_api", "model_server_endpoint = http://api.openai.com/v1", False),
        ("openai_api", "model_server_endpoint = https://api.openai.com.example/v1", False),
        ("openai_api", "model_server_endpoint = https://myapi.openai.com.example", False),
        ("openai_api", "model_server_endpoint = https://x@evil.example/https://api.openai.com", False),
        ("vllm", "model_server_endpoint = http://localhost:8008", False),
        ("tgi", "model_server_endpoint = http://localhost:8008", False),
        ("langchain", "class = langchain_openai:ChatOpenAI", True),
        ("langchain", f"class = langchain_openai:ChatOpenAI\nbase_url = {OPENAI}", True),
        ("langchain", "class = langchain_openai:ChatOpenAI\nbase_url = http://localhost:8008/v1", False),
        ("langchain", "class = langchain_anthropic:ChatAnthropic", False),
    ],
)
def test_openai_s_key_goes_to_openai_alone(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, kind: str, lines: str, goes: bool
) -> None:
    (tmp_path / "key").write_text("hush")
    monkeypatch.setenv(variable, str(tmp_path / "key") if variable.endswith("_FILE") else "hush")
    file = write(f"[Model]\nmodel_server = {kind}\n{lines}\n")
    settings = load_settings(file, ("openai_api", "langchain", *KINDS), DIALECTS, ("openai_api", *WITHOUT_ENGINE))
    assert settings.model.api_key.get_secret_value() == ("hush" if goes else "")
    told = [one for one in settings.without_effect if one.startswith(f"environment {variable}: no effect here: ")]
    assert len(told) == (0 if goes or "://" not in lines else 1)
    assert all("LLM_API_KEY" in one for one in told)
    monkeypatch.setenv("LLM_API_KEY", "own")
    own = load_settings(file, ("openai_api", "langchain", *KINDS), DIALECTS, ("openai_api", *WITHOUT_ENGINE))
    assert own.model.api_key.get_secret_value() == "own"
    assert own.without_effect == ()


def test_openai_s_key_goes_to_no_further_model_at_another_server(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hush")
    elsewhere = "[Model.b]\nmodel_server_endpoint = http://localhost:8008\n"
    text = f"[Model]\nmodel_server = vllm\nmodel_server_endpoint = {OPENAI}\n[Model.a]\n{elsewhere}"
    models = load(write(text)).models
    assert [one.model.api_key.get_secret_value() for one in models.values()] == ["hush", "hush", ""]


# What belongs together


@pytest.mark.parametrize("key", COMPANIONS)
def test_half_of_what_belongs_together_is_a_mistake_that_names_the_other_half(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    variable, other = (next(environment_names(Model.model_fields[one])) for one in (key, COMPANIONS[key][0]))
    monkeypatch.setenv(variable, VALUES[key][0])
    assert mistake() == f"environment {variable}: [Model] {key}: needs {COMPANIONS[key][0]} ({other}) as well"


def test_a_certificate_may_hold_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_CLIENT_CERTIFICATE", __file__)
    assert load().model.client_certificate == __file__


# Further models

SHARED = """\
[Model]
model_name = first
model_server = vllm
model_server_endpoint = http://one:8000
framework = native
connect_seconds = 3
context_window = 512
tls_skip_verify = yes

"""


def test_a_model_by_itself_is_the_only_one() -> None:
    settings = load()
    assert {name: (one.section, one.model) for name, one in settings.models.items()} == {
        "SmolLM2-135M-Instruct": ("Model", settings.model)
    }


@pytest.mark.parametrize("name", ["second", "vicuna-7b-v1.3", "meta-llama/Llama-3", "./a b.gguf", "模型", "Model.x"])
def test_a_further_model_has_a_section_with_its_name(write: Write, name: str) -> None:
    file = write(f"{SHARED}[Model.{name}]\ndevice = GPU\n")
    settings = load(file)
    assert list(settings.models) == ["first", name]
    further = settings.models[name]
    assert (further.section, further.model.model_name, further.model.device) == (f"Model.{name}", name, "GPU")
    shown = [(one.key, one.source) for one in settings.listing if one.section == f"Model.{name}"]
    assert [key for key, _ in shown] == list(Model.model_fields)
    assert dict(shown)["device"] == str(file)
    assert dict(shown)["framework"] == "[Model]"
    assert dict(shown)["model_name"] == dict(shown)["context_window"] == "default"


def test_a_further_model_at_the_same_model_server_has_all_of_its_settings(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "hush")
    first, second = load(write(SHARED + "[Model.second]\nmodel_name = served name\n")).models.values()
    assert second.model.model_name == "served name"
    assert second.model.context_window == 0
    differ = {key for key in Model.model_fields if getattr(first.model, key) != getattr(second.model, key)}
    assert differ == {"model_name", "context_window"}


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("[Model]\nmodel_server = scripted\n", ["scripted"]),
        ("[Model]\nmodel_server = scripted\nmodel_name = SmolLM2-135M-Instruct\n", ["scripted"]),
        ("[Model]\nmodel_server = scripted\nmodel_name = mine\n", ["mine"]),
        ("[Model]\n[Model.two]\nmodel_server = scripted\n", ["SmolLM2-135M-Instruct", "two"]),
        ("[Model]\nmodel_server = scripted\n[Model.two]\n", ["scripted", "two"]),
    ],
)
def test_answers_written_beforehand_are_not_the_bundled_models(
    file: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.ini").write_text(file)
    monkeypatch.chdir(tmp_path)
    models = load().models
    assert [(name, served.model.model_name) for name, served in models.items()] == [(name, name) for name in names]
    monkeypatch.setenv("LLM_NAME", "SmolLM2-135M-Instruct")
    assert next(iter(load().models)) == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("line", ["model_server_endpoint = http://two:8000", "model_server = scripted"])
def test_no_credential_goes_to_a_model_server_that_it_is_not_for(
    write: Write, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "hush")
    monkeypatch.setenv("LLM_TOKEN_URL", "https://login/token")
    monkeypatch.setenv("LLM_CLIENT_ID", "me")
    monkeypatch.setenv("LLM_CLIENT_SECRET", "hush")
    monkeypatch.setenv("LLM_CLIENT_CERTIFICATE", __file__)
    settings = load(write(f"{SHARED}[Model.second]\n{line}\n"))
    second = settings.models["second"].model
    assert (second.api_key.get_secret_value(), second.client_secret.get_secret_value()) == ("", "")
    assert (second.token_url, second.client_id, second.client_certificate) == ("", "", "")
    assert second.tls_skip_verify is False
    assert "http://one:8000" not in second.model_server_endpoint
    assert (second.framework, second.connect_seconds) == ("native", 3)


@pytest.mark.parametrize("key", Model.model_fields)
def test_a_further_model_has_variables_of_its_own(
    write: Write, monkeypatch: pytest.MonkeyPatch, accompany: Callable[[str], None], key: str
) -> None:
    file = write("[Model]\nmodel_name = first\n[Model.vicuna-7b-v1.3]\nmodel_server = vllm\n")
    text, meant = VALUES[key]
    for variable in environment_names(Model.model_fields[key]):
        with monkeypatch.context() as environment:
            for companion in COMPANIONS.get(key, ()):
                name = next(environment_names(Model.model_fields[companion]))
                environment.setenv(f"{name}__VICUNA_7B_V1_3", VALUES[companion][0])
            environment.setenv(f"{variable}__VICUNA_7B_V1_3", text)
            settings = load(file)
        assert getattr(settings.models["vicuna-7b-v1.3"].model, key) == meant
        assert getattr(settings.model, key) != meant
        [source] = [one.source for one in settings.listing if (one.section, one.key) == ("Model.vicuna-7b-v1.3", key)]
        assert source == f"environment {variable}__VICUNA_7B_V1_3"


def test_a_further_model_s_secret_may_be_in_a_file(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hush\n")
    monkeypatch.setenv("LLM_API_KEY_FILE__SECOND", str(tmp_path / "secret"))
    first, second = load(write("[Model.second]\n")).models.values()
    assert first.model.api_key.get_secret_value() == ""
    assert second.model.api_key.get_secret_value() == "hush"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[Model.]\n", "unknown section [Model.]; did you mean Model?"),
        ("[Model. ]\n", "unknown section [Model. ]; did you mean Model?"),
        ("[model.x]\n", "unknown section [model.x]"),
        ("[Model.x]\ndevise = GPU\n", "unknown key [Model.x] devise = GPU; did you mean device?"),
        ("[Model.x]\nmodel_server = vlm\n", "[Model.x] model_server = vlm: unknown; did you mean vllm?"),
        ("[Model.x]\nframework = llamaindex\n", "[Model.x] framework = llamaindex: "),
        ("[Model.x]\napi_key = hush\n", "[Model.x] api_key: a secret comes from the environment only: LLM_API_KEY__X,"),
        ("[Model.SmolLM2-135M-Instruct]\n", "[Model.SmolLM2-135M-Instruct]: the model of [Model] has that name"),
        ("[Model.a-b]\n[Model.A.b]\n", "[Model.A.b] and [Model.a-b]: the variables of both would end in __A_B;"),
    ],
)
def test_what_is_wrong_with_a_further_model_is_said(write: Write, content: str, said: str) -> None:
    file = write(content)
    message = mistake(file)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert "hush" not in message


@pytest.mark.parametrize("variable", ["LLM_API_KEY__SECNOD", "LLM_API_KEY_FILE__SECNOD", "LLM_ENGINE_N_CTX__SECNOD"])
def test_a_variable_of_a_model_that_there_is_not_is_a_mistake(
    write: Write, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "hush")
    said = f"environment {variable}: no section [Model.<name>] has variables that end in __SECNOD"
    assert mistake() == said
    assert mistake(write("[Model.second]\n")) == f"{said}; did you mean __SECOND?"


def test_a_wrong_value_in_a_further_model_s_variable_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_CONTEXT_WINDOW__SECOND", "big")
    message = mistake(write("[Model.second]\n"))
    assert message.startswith("environment LLM_CONTEXT_WINDOW__SECOND: [Model.second] context_window = big: ")


# Settings of an engine

LLAMA = "[Model]\nmodel_server = llama_cpp\n"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("4096", 4096),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ('{"a": {"b": null}}', {"a": {"b": None}}),
        ("auto", "auto"),
        ("", ""),
        ("007", "007"),
        ("NaN", "NaN"),
        ("1_000", "1_000"),
        ("'4096'", "4096"),
        ('"true"', "true"),
        ('"[INST]"', "[INST]"),
        ("100%", "100%"),
    ],
)
def test_a_key_that_is_none_of_ours_goes_to_the_engine_with_its_type(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, meant: Any
) -> None:
    file = write(f"{LLAMA}n_ctx = {text}\n")
    settings = load(file)
    [engine] = [one.engine for one in settings.models.values()]
    assert engine == {"n_ctx": meant}
    assert type(engine["n_ctx"]) is type(meant)
    assert source(settings, "n_ctx") == str(file)
    monkeypatch.setenv("LLM_ENGINE_N_CTX", text)
    settings = load(write(LLAMA + "n_ctx = 8\n"))
    assert settings.models["SmolLM2-135M-Instruct"].engine == {"n_ctx": meant}
    assert source(settings, "n_ctx") == "environment LLM_ENGINE_N_CTX"


def test_engine_settings_of_models_at_one_model_server_are_shared(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_ENGINE_N_GPU_LAYERS__SECOND", "7")
    file = write(LLAMA + "n_ctx = 1\n[Model.second]\nn_batch = 2\n[Model.third]\nmodel_server = llama_cpp\n")
    settings = load(file)
    assert [one.engine for one in settings.models.values()] == [
        {"n_ctx": 1},
        {"n_ctx": 1, "n_batch": 2, "n_gpu_layers": 7},
        {},
    ]
    shown = {(one.section, one.key): (one.value, one.source) for one in settings.listing}
    assert shown["Model.second", "n_ctx"] == ("1", "[Model]")
    assert shown["Model.second", "n_gpu_layers"] == ("7", "environment LLM_ENGINE_N_GPU_LAYERS__SECOND")


@pytest.mark.parametrize("kind", WITHOUT_ENGINE)
def test_a_kind_without_an_engine_takes_none_of_its_settings(
    write: Write, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert "unknown key [Model] n_ctx = 8" in mistake(write(f"[Model]\nmodel_server = {kind}\nn_ctx = 8\n"))
    monkeypatch.setenv("LLM_ENGINE_N_CTX", "8")
    said = f"environment LLM_ENGINE_N_CTX: [Model] n_ctx: {kind} has no engine that could be set"
    assert mistake(write(f"[Model]\nmodel_server = {kind}\n")) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("devise = GPU", "unknown key [Model] devise = GPU; did you mean device?"),
        ("model_nam = x", "unknown key [Model] model_nam = x; did you mean model_name?"),
        ("hf_token = hush", "[Model] hf_token: a secret comes from the environment only: LLM_ENGINE_HF_TOKEN"),
        ("tensor_split = [1, 2", "[Model] tensor_split = [1, 2: not the JSON that it begins like"),
        ('api_secret = {"hush', "[Model] api_secret: a secret comes from the environment only"),
    ],
)
def test_what_is_wrong_with_an_engine_s_setting_is_said(write: Write, line: str, said: str) -> None:
    file = write(f"{LLAMA}{line}\n")
    message = mistake(file)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert "hush" not in message


def test_an_engine_s_secrets_are_shown_nowhere(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ENGINE_HF_TOKEN", "hush")
    monkeypatch.setenv("LLM_ENGINE_MODEL_KWARGS", '{"api_key": "hush", "list": [{"password": "hush"}], "base": 1}')
    monkeypatch.setenv("LLM_ENGINE_TOKENIZER", "shown")
    settings = load(write(LLAMA))
    assert settings.models["SmolLM2-135M-Instruct"].engine["hf_token"] == "hush"
    shown = {one.key: one.value for one in settings.listing}
    assert shown["hf_token"] == "***"
    assert shown["model_kwargs"] == '{"api_key": "***", "list": [{"password": "***"}], "base": 1}'
    assert shown["tokenizer"] == "shown"
    assert "hush" not in repr(settings)


# Conversation templates


def test_a_conversation_template_is_kept_as_it_is_written(write: Write) -> None:
    file = write('[Conversation.my.own]\nsep = " "\nRoles = USER, AI\n[Conversation.other]\n')
    settings = load(file)
    assert settings.conversations == {"my.own": {"sep": '" "', "roles": "USER, AI"}, "other": {}}
    assert [(one.section, one.key, one.value, one.source) for one in settings.listing[len(KEYS) :]] == [
        ("Conversation.my.own", "sep", '" "', str(file)),
        ("Conversation.my.own", "roles", "USER, AI", str(file)),
    ]


def test_a_conversation_template_needs_a_name(write: Write) -> None:
    assert "unknown section [Conversation.]" in mistake(write("[Conversation.]\n"))
