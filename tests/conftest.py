"""What every test stands on: no network but loopback, a clean environment, no blocking call in the event loop."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from blockbuster import BlockBuster, blockbuster_ctx

from comps.core.ports import ModelServer
from comps.model_servers import FRAMEWORKS, through_framework
from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_model
from comps.model_servers.embedded.openvino import OpenVINO
from comps.settings import SECTIONS, environment_names

pytest.register_assert_rewrite("tests.model_servers.contract")

# PYTHONDONTWRITEBYTECODE would have each run rewrite all assertions anew, a third of the time to collect the tests, and
# each process that a test starts compile the service anew, a quarter of its start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SETTINGS = {
    name for section in SECTIONS.values() for info in section.model_fields.values() for name in environment_names(info)
}
OTHERS = ("LLM_API_", "LLM_ENGINE_", "LANGSMITH_", "LANGCHAIN_", "HF_", "OPENAI_", "OTEL_")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collecting makes half a million objects that stay. Neither now nor beside a test are they looked through for
    garbage, which would take a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups, each of which one worker runs in a row, begin first: else all others would wait for their ends."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A file is named by its argument: one that holds its time, as DOCX does, would differ from worker to worker."""
    return argname if isinstance(val, bytes) and len(val) > 100 else None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own reaches a test, and nothing that a test starts looks for a network."""
    for name in list(os.environ):
        setting = name.partition("__")[0].removesuffix("_FILE")
        if {name, setting} & SETTINGS or name.startswith(OTHERS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command that runs in a test's own process sets up a log, which is not the next test's."""
    before = [(log, log.level, list(log.handlers)) for log in map(logging.getLogger, ("root", "opea_llm", "uvicorn"))]
    yield
    for log, level, handlers in before:
        log.setLevel(level)
        log.handlers[:] = handlers


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call of ours inside the event loop fails the test."""
    with blockbuster_ctx("comps") as blockbuster:
        yield blockbuster


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bundled model is once it is loaded (`model.gguf`), also in OpenVINO's own format, and where its process
    has its temporary files (`tmp`)."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture(scope="session")
def engine(engine_folder: Path) -> Iterator[OpenVINO]:
    """The bundled model, loaded once; tests that use it carry the mark `xdist_group("engine")`."""

    def linked(model_name: str, local_dir: str) -> str:
        link = engine_folder / "model.gguf"
        link.unlink(missing_ok=True)
        link.symlink_to(find_model(model_name))
        return str(link)

    server = OpenVINO(BUNDLED_MODEL, settings={"enable_save_ov_model": True})
    server.find = linked  # type: ignore[method-assign]
    # A fixture may be asked for while a loop runs in this thread.
    with start_blocking_portal() as portal, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TMPDIR", str(engine_folder / "tmp"))
        portal.call(server.load)
        monkeypatch.undo()
        yield server
        portal.call(server.aclose)


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Callable[[ModelServer], ModelServer]:
    """The way to a model server."""
    return lambda server: through_framework(server, request.param)
