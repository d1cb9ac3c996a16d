"""What is said where an extra of setup.cfg is not installed, and what works without."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from comps.app import read_settings
from comps.core.errors import SettingsError
from comps.model_servers import WITHOUT_ENGINE_SETTINGS
from comps.opening import open_models

ROOT = Path(__file__).parents[2]
LANGCHAIN = ("langchain_core", "langchain_huggingface", "langchain_openai")
GET_IT = f"mend it with: {sys.executable} -m pip install 'opea-llm-microservice[langchain]'"

NATIVELY = """
import os, sys
sys.modules.update(dict.fromkeys({absent}))
from comps.app import read_settings
from comps.opening import open_models
for kind in {kinds}:
    endpoint = "" if kind == "scripted" else "http://127.0.0.1:9"
    os.environ.update(MODEL_SERVER=kind, FRAMEWORK="native", LLM_MODEL_SERVER_ENDPOINT=endpoint)
    print(open_models(read_settings(None)).named(None).server)
"""


def extras() -> dict[str, set[str]]:
    """The packages of each extra in setup.cfg, by the names that they are imported by."""
    parser = configparser.ConfigParser(comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg")
    section = parser["options.extras_require"]
    return {
        extra: {re.split(r"[^\w.-]", line.strip())[0].replace("-", "_") for line in text.splitlines() if line.strip()}
        for extra, text in section.items()
    }


@pytest.fixture
def no_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in LANGCHAIN:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("no_langchain")
def test_the_framework_without_langchain_names_the_setting_and_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    with pytest.raises(SettingsError) as caught:
        open_models(read_settings(None))
    assert str(caught.value) == (
        f"[Model] framework = langchain: it needs {' and '.join(LANGCHAIN)}, not installed here; "
        f"{GET_IT}; or do without it: FRAMEWORK=native"
    )
    monkeypatch.setenv("FRAMEWORK", "native")
    assert open_models(read_settings(None))


@pytest.mark.usefixtures("no_langchain")
def test_the_kind_langchain_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL_SERVER": "langchain", "FRAMEWORK": "native", "LLM_ENGINE_CLASS": "a:B"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        open_models(read_settings(None))
    assert str(caught.value) == (
        f"[Model] model_server = langchain: it needs langchain_core, not installed here; {GET_IT}"
    )


def test_the_native_service_needs_neither_langchain_nor_openvino() -> None:
    absent = sorted(set.union(*(extras()[extra] for extra in ("langchain", "openvino"))))
    assert {*LANGCHAIN, "openvino", "openvino_genai", "numpy"} <= set(absent)
    code = NATIVELY.format(absent=absent, kinds=sorted(WITHOUT_ENGINE_SETTINGS))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(WITHOUT_ENGINE_SETTINGS)
