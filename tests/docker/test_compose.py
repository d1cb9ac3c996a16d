"""The Compose files: what they start is there, goes by the name that others call it, and listens where it is asked."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from comps.app import read_settings
from comps.opening import open_models
from comps.settings import SECTIONS
from comps.settings.variables import environment_names, file_names
from tests.docker.engine_stand_in import Engine
from tests.impl.test_model_servers import used_in, variables
from tests.seeds import SEEDS
from tests.service import Able, running

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "compose"
IMAGES = ROOT / "docker" / "Dockerfile"
BASE, TLS = FOLDER / "microservice.yaml", FOLDER / "square.tls.yaml"
"""What others extend, and what Traefik reads."""
FILES = sorted(set(FOLDER.glob("*.yaml")) - {BASE, TLS})
SQUARE = FOLDER / "square.yaml"
ENVIRONMENT = variables(FOLDER)
DEVICES = ("cpu", "gaudi", "gpu")

OURS = {"opea/llm": "microservice", "opea/llm-embedded": "embedded", "opea/llm-ray": "ray"}
"""The images that are built here, with their targets."""
PROGRAMS = {"opea/llm": "python3", "opea/llm-embedded": "python3", "opea/llm-ray": "python3", "traefik": "traefik"}
"""What a health check of ours may call; those of impl/model_server have tests of their own."""
KNOWN = {
    name
    for section in SECTIONS.values()
    for info in section.model_fields.values()
    for name in (*environment_names(info), *file_names(info))
}
PROXIES = {"http_proxy", "https_proxy", "no_proxy"}
REPLACED = ("command", "entrypoint", "test")
"""Lists of which the one above counts; others are added up."""
ONLY_HERE = {"COMPOSE_PROJECT_NAME"}
"""Variables that Compose itself reads."""
DIFFERENT = {"LLM_NAME", "LLM_ENDPOINT_PORT", "DATA_PATH"}
"""Variables whose values differ from those of impl/model_server on purpose."""
MARGIN = 10
"""Seconds between the end of the drain and the end by force, in which the service closes what it holds."""
TRAEFIK = re.compile(
    r"global\.(checknewversion|sendanonymoususage)|ping"
    r"|providers\.docker(\.exposedbydefault|\.allowemptyservices)?|providers\.file\.filename"
    r"|entrypoints\.\w+\.(address|transport\.lifecycle\.gracetimeout)"
    r"|certificatesresolvers\.\w+\.acme\.(email|storage|tlschallenge)"
)
"""What Traefik 3.7 documents, of its options."""
LABELS = re.compile(
    r"traefik\.enable"
    r"|traefik\.http\.routers\.[\w-]+\.(rule|entrypoints|tls|tls\.certresolver|middlewares)"
    r"|traefik\.http\.middlewares\.[\w-]+\.(stripprefixregex\.regex|addprefix\.prefix)",
    re.IGNORECASE,
)
"""What Traefik 3.7 documents, of its labels."""

SEED = "[Model]\nmodel_name=tgi\nmodel_server=tgi\nmodel_server_endpoint=http://localhost:8080\n"
"""The settings file of the image, where docker/config.ini is not there yet."""
LIMITS = {"ReadonlyRootfs": True, "CapDrop": ["ALL"], "PidsLimit": 1024}
"""Some of what an engine is told of a microservice, with the types that it wants."""

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@cache
def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text("utf-8"))


def filled_in(value: Any, environment: Mapping[str, str]) -> Any:
    """A value with its variables replaced."""
    if isinstance(value, dict):
        return {key: filled_in(one, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [filled_in(one, environment) for one in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: environment[match[1]], value)
    return value


def over(below: Any, above: Any, key: str = "") -> Any:
    """What Compose makes of a service that extends another."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **above, **{both: over(below[both], above[both], both) for both in below.keys() & above}}
    if isinstance(below, list) and isinstance(above, list) and key not in REPLACED:
        return below + above
    return above


def whole(described: dict[str, Any], folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """A service with what it extends, its relative paths from where they stand."""
    described = filled_in(described, environment)
    if "volumes" in described:
        described["volumes"] = [absolute(volume, folder) for volume in described["volumes"]]
    if "context" in described.get("build", {}):
        described["build"]["context"] = str((folder / described["build"]["context"]).resolve())
    if extends := described.pop("extends", None):
        file = folder / extends["file"]
        below = read(file.resolve())["services"][extends["service"]]
        return dict(over(whole(below, file.parent, environment), described))
    return described


def absolute(volume: str, folder: Path) -> str:
    source, _, rest = volume.partition(":")
    return f"{(folder / source).resolve()}:{rest}" if source.startswith(".") else volume


@cache
def services(file: Path, device: str = ENVIRONMENT["SQUARE_DEVICE"]) -> dict[str, dict[str, Any]]:
    """The services of a file, as Compose starts them."""
    environment = {**ENVIRONMENT, "SQUARE_DEVICE": device}
    return {name: whole(described, file.parent, environment) for name, described in read(file)["services"].items()}


def name_of(described: Mapping[str, Any]) -> str:
    """The name of a service's image."""
    return str(described["image"]).rpartition(":")[0]


def is_ours(described: Mapping[str, Any]) -> bool:
    return name_of(described) in ("opea/llm", "opea/llm-embedded")


def microservices(file: Path) -> list[dict[str, Any]]:
    found = [described for described in services(file).values() if is_ours(described)]
    assert found
    return found


def published(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each published port: where on this machine, and which of the container's."""
    for port in described.get("ports", ()):
        where, _, inside = port.rpartition(":")
        yield where, inside


def asked_port(described: Mapping[str, Any]) -> int:
    """The port that a service's health check asks."""
    (port,) = re.findall(r"http://localhost:(\d+)/", " ".join(described["healthcheck"]["test"]))
    return int(port)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def named_model(described: Mapping[str, Any]) -> str:
    """The name that a model server has its model served under."""
    command, environment = described.get("command", []), described["environment"]
    if "--served-model-name" in command:
        return option(command, "--served-model-name")
    if "--model" in command:
        return option(command, "--model")
    return str(environment.get("MODEL_ID") or environment["LLM_NAME"])


def test_there_is_a_file_for_every_model_server_and_device() -> None:
    named = {f"{server}.{device}" for server in ("tgi", "vllm", "ray") for device in DEVICES}
    assert {file.stem for file in FILES} == named | {"embedded", "remote", "square"}


@every_file
def test_the_readme_tells_of_every_file(file: Path) -> None:
    server, _, device = file.stem.partition(".")
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert f"`{file.name}`" in readme or (device in DEVICES and f"`{server}.DEVICE.yaml`" in readme)


@every_file
def test_a_microservice_gets_settings_that_load(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = IMAGES.with_name("config.ini")
    config, key = tmp_path / "config.ini", tmp_path / "key"
    config.write_text(shipped.read_text("utf-8") if shipped.exists() else SEED)
    key.write_text("hush\n")
    for described in microservices(file):
        environment = described["environment"]
        assert environment.keys() <= KNOWN | PROXIES
        with monkeypatch.context() as container:
            for name, value in environment.items():
                container.setenv(name, str(value).replace("/run/secrets/llm_api_key", str(key)))
            container.setenv("FRAMEWORK", "native")  # LangChain's classes take seconds to import.
            settings = read_settings(config)
            open_models(settings)
        assert settings.microservice.port == 9000
        assert settings.model.model_server == environment["MODEL_SERVER"]
        assert settings.model.model_server_endpoint == environment["LLM_MODEL_SERVER_ENDPOINT"], "not config.ini's"
        assert settings.model.api_key.get_secret_value() == ("hush" if "secrets" in described else "")


@every_file
def test_a_microservice_knows_its_model_server(file: Path) -> None:
    there = services(file)
    for described in microservices(file):
        environment = described["environment"]
        url = urlsplit(environment["LLM_MODEL_SERVER_ENDPOINT"])
        if file.stem in ("embedded", "remote"):
            assert url.hostname not in there
            assert "depends_on" not in described
            continue
        assert url.hostname is not None
        server = there[url.hostname]
        assert environment["LLM_NAME"] == named_model(server)
        assert described["depends_on"] == {url.hostname: {"condition": "service_healthy"}}
        assert url.port == asked_port(server)
        assert [inside for _, inside in published(server)] == [str(url.port)]
        if "--port" in server.get("command", []):
            assert option(server["command"], "--port") == str(url.port)
        assert file.stem == "square" or environment["MODEL_SERVER"] in (url.hostname, f"{url.hostname}_serve")


@every_file
def test_a_microservice_may_do_no_more_than_it_has_to(file: Path) -> None:
    for described in microservices(file):
        assert described["read_only"] is True
        assert [mount.partition(":")[0] for mount in described["tmpfs"]] == ["/tmp"]
        assert described["cap_drop"] == ["ALL"]
        assert described["security_opt"] == ["no-new-privileges:true"]
        assert described["user"] == "10001:10001"
        assert not described.keys() & {"cap_add", "privileged", "ipc", "pid", "network_mode"}
        assert {"mem_limit", "cpus", "pids_limit"} <= described.keys()
        assert isinstance(described["pids_limit"], int), "docker-compose 1.29 takes no variable here"
        assert all(volume.endswith(":ro") for volume in described["volumes"])


@every_file
def test_a_service_comes_back_and_its_log_does_not_grow(file: Path) -> None:
    for described in services(file).values():
        assert described["restart"] == "unless-stopped"
        assert described["logging"]["options"].keys() == {"max-size", "max-file"}
        assert "mem_limit" in described


@every_file
def test_what_drains_is_not_ended_before(file: Path) -> None:
    drain = int(ENVIRONMENT["USVC_DRAIN_SECONDS"])
    for described in microservices(file):
        assert described["environment"]["USVC_DRAIN_SECONDS"] == str(drain)
        assert int(described["stop_grace_period"].removesuffix("s")) >= drain + MARGIN
    if "traefik" in services(file):
        traefik = services(file)["traefik"]
        assert f"--entrypoints.websecure.transport.lifecycle.gracetimeout={drain}s" in traefik["command"]
        assert int(traefik["stop_grace_period"].removesuffix("s")) >= drain + MARGIN


@every_file
def test_every_image_is_pinned_or_built_here(file: Path) -> None:
    targets = re.findall(r"(?im)^FROM .* AS (\S+)", IMAGES.read_text("utf-8")) if IMAGES.exists() else OURS.values()
    for described in services(file).values():
        name, tag = described["image"].rsplit(":", 1)
        if name not in OURS:
            assert "build" not in described
            assert re.search(r"\d", tag) or re.search(r"/vllm-\d+\.\d+\.\d+-ptupstream", name)
            continue
        assert described["pull_policy"] == "never"
        assert described["build"]["context"] == str(ROOT)
        assert described["build"]["dockerfile"] == str(IMAGES.relative_to(ROOT))
        assert described["build"]["target"] == OURS[name]
        assert described["build"]["target"] in targets


@every_file
def test_a_health_check_calls_what_the_image_has(file: Path) -> None:
    for described in services(file).values():
        check = described["healthcheck"]
        kind, *command = check["test"]
        assert kind == "CMD", "an image need not have a shell"
        assert {"interval", "timeout", "retries"} <= check.keys()
        if name_of(described) in PROGRAMS:
            assert command[0] == PROGRAMS[name_of(described)]
        if is_ours(described):
            assert command[1:] == ["/app/healthcheck.py"]
            assert int(check["timeout"].removesuffix("s")) > 8, "the script itself gives up after 8 s, with the reason"
            assert IMAGES.with_name("healthcheck.py").exists() or not IMAGES.exists()


def test_the_model_that_is_chosen_is_built_into_the_image() -> None:
    (described,) = services(FOLDER / "embedded.yaml").values()
    assert described["build"]["args"]["MODEL"] == "SmolLM2-135M-Instruct"


@every_file
def test_no_port_of_this_machine_is_published_twice(file: Path) -> None:
    places = [where for described in services(file).values() for where, _ in published(described)]
    fixed = [where for where in places if not where.endswith(":")]  # The others are any free one.
    assert len(fixed) == len(set(fixed))


@every_file
def test_only_what_is_asked_is_open_to_the_network(file: Path) -> None:
    for name, described in services(file).items():
        for where, inside in published(described):
            if is_ours(described):
                assert (where, inside) == (ENVIRONMENT["USVC_PORT"], described["environment"]["USVC_PORT"])
            elif name == "traefik":
                assert (where, inside) == (ENVIRONMENT["SQUARE_PORT"], "8443")
                assert "--entrypoints.websecure.address=:8443" in described["command"]
            else:
                assert where.startswith("127.0.0.1:"), "a model server asks for no key"


@every_file
def test_what_is_mounted_is_there(file: Path) -> None:
    declared = read(file).get("volumes", {})
    mounted = {volume.partition(":")[0] for described in services(file).values() for volume in described["volumes"]}
    assert declared.keys() == {source for source in mounted if "/" not in source}
    for source in mounted - declared.keys() - {ENVIRONMENT["DOCKER_SOCKET"]}:
        path = (FOLDER / source).resolve()
        assert path.exists() or (path.parent == IMAGES.parent and not IMAGES.exists()), path


def test_every_variable_is_explained_and_used() -> None:
    extended = [ROOT / "impl" / "model_server" / server for server in ("tgi", "vllm", "ray")]
    readers = [*FILES, BASE, *(folder / f"compose.{device}.yaml" for folder in extended for device in DEVICES)]
    assert set().union(*map(used_in, readers)) == ENVIRONMENT.keys() - ONLY_HERE
    for folder in extended:
        for name in variables(folder).keys() & ENVIRONMENT.keys() - DIFFERENT:
            assert ENVIRONMENT[name] == variables(folder)[name], f"{name} is another one in {folder}"


def test_no_secret_stands_in_a_file() -> None:
    assert not [name for name in ENVIRONMENT if re.search("TOKEN$|KEY$|SECRET|PASSWORD", name) and ENVIRONMENT[name]]
    assert (FOLDER / "private" / ".gitignore").read_text("utf-8").split() == ["*", "!.gitignore"]
    for file in FILES:
        for described in microservices(file):
            assert not described["environment"].keys() & {"LLM_API_KEY", "LLM_CLIENT_SECRET"}


@pytest.mark.parametrize("device", DEVICES)
def test_square_runs_on_each_device_with_a_card_a_model(device: str) -> None:
    cards = []
    for described in services(SQUARE, device).values():
        if "--served-model-name" in described.get("command", []):
            environment = described["environment"]
            assert environment["CUDA_VISIBLE_DEVICES"] == environment["HABANA_VISIBLE_DEVICES"]
            cards.append(environment["CUDA_VISIBLE_DEVICES"])
    assert sorted(cards) == ["0", "1"]


def labels(described: Mapping[str, Any]) -> dict[str, str]:
    return dict(label.split("=", 1) for label in described["labels"])


def routers(described: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The keys of each of Traefik's routers."""
    found: dict[str, dict[str, str]] = {}
    for label, value in labels(described).items():
        if match := re.fullmatch(r"traefik\.http\.routers\.([\w-]+)\.(.*)", label):
            found.setdefault(match[1], {})[match[2]] = value
    return found


def through_traefik(described: Mapping[str, Any], path: str) -> str:
    """The path that a service sees: what Traefik documents of these two middlewares."""
    (router,) = routers(described).values()
    prefix = re.fullmatch(r"PathPrefix\(`(.*)`\)", router["rule"])
    assert prefix
    assert path.startswith(prefix[1])
    for name in filter(None, router.get("middlewares", "").split(",")):
        of = {label.lower(): value for label, value in labels(described).items() if f".middlewares.{name}." in label}
        ((label, value),) = of.items()
        path = re.sub(f"^{value}", "", path) if label.endswith(".stripprefixregex.regex") else value + path
    return path


def test_square_says_what_traefik_knows() -> None:
    traefik = services(SQUARE)["traefik"]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in traefik["command"])
    assert all(TRAEFIK.fullmatch(name) for name in options)
    assert options["providers.docker.exposedbydefault"] == "false"
    mounted = [volume.split(":")[1] for volume in traefik["volumes"]]
    assert options["providers.file.filename"] in mounted
    assert str(Path(options["certificatesresolvers.le.acme.storage"]).parent) in mounted
    for described in microservices(SQUARE):
        assert all(map(LABELS.fullmatch, labels(described)))
        (router,) = routers(described).values()
        assert f"entrypoints.{router['entrypoints']}.address" in options
        assert f"certificatesresolvers.{router['tls.certresolver']}.acme.storage" in options
        assert router["tls"] == "true"
        assert described["expose"] == ["9000"], "the port that Traefik takes"
    names = [name for described in microservices(SQUARE) for name in routers(described)]
    assert len(names) == len(set(names)), "one would take the other's place"


def test_square_has_the_labels_that_its_documentation_prints() -> None:
    printed = re.findall(r'- ("traefik\..*?")', SEEDS["square-llm-ops"])
    assert len(printed) == 8
    assert all(f"- {label}\n" in SQUARE.read_text("utf-8") for label in printed)


@pytest.mark.parametrize("name", ["llama", "vicuna"])
async def test_a_path_of_square_ends_where_the_service_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    described = services(SQUARE)[name]
    model = described["environment"]["LLM_NAME"]
    body = {"model_identifier": model, "messages": [{"role": "user", "text": "Hello!"}], "generation_mode": "chat"}
    async with running(Able(), monkeypatch, {"LLM_NAME": model}) as service:
        answer = await service.post(body, through_traefik(described, f"/api/{model}/worker_generate"))
    assert (answer.status, answer.json["error_code"]) == (200, 0)


def test_each_certificate_of_square_is_one_that_traefik_can_find() -> None:
    traefik = services(SQUARE)["traefik"]
    cases = re.split(r"{{ (?:else )?if eq \(env \"SQUARE_TLS\"\) \"(\w+)\" }}|{{ end }}", TLS.read_text("utf-8"))
    acme, own = (
        yaml.safe_load(re.sub(r"{{ env \"(\w+)\" }}", r"\1", cases[cases.index(case) + 1]))["tls"]["stores"]["default"]
        for case in ("acme", "own")
    )
    generated = acme["defaultGeneratedCert"]
    assert f"--certificatesresolvers.{generated['resolver']}.acme.tlschallenge=true" in traefik["command"]
    assert generated["domain"]["main"] in traefik["environment"]
    mounted = [volume.split(":")[1] for volume in traefik["volumes"]]
    assert all(str(Path(path).parent) in mounted for path in own["defaultCertificate"].values())


@dataclass(frozen=True)
class Compose:
    """A real Compose."""

    command: str
    slow: bool
    """The one in Python takes a second for each file."""

    async def run(self, file: Path, *arguments: str, **environment: str) -> str:
        """What it says of a file to standard output."""
        run = await asyncio.create_subprocess_exec(
            *self.command.split(),
            *("-f", str(file), *arguments),
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await asyncio.wait_for(run.communicate(), 60)
        assert run.returncode == 0, errors.decode()
        assert b"is not set" not in errors, errors.decode()
        return said.decode()


@pytest.fixture(scope="module")
def compose() -> Compose:
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return Compose("docker compose", slow=False)
    if found := shutil.which("docker-compose"):
        return Compose(found, slow=Path(found).read_bytes().startswith(b"#!"))
    pytest.skip("there is no Compose here: install docker-compose, or Docker with its plug-in")


async def test_compose_reads_the_files_as_these_tests_do(compose: Compose) -> None:
    files = [SQUARE] if compose.slow else FILES
    answers = await asyncio.gather(*(compose.run(file, "config") for file in files))
    for file, answer in zip(files, answers, strict=True):
        found = yaml.safe_load(answer)["services"]
        assert found.keys() == services(file).keys()
        for name, described in services(file).items():
            assert seen(found[name]) == seen(described), f"{file.name}: {name}"


async def test_compose_starts_a_microservice_once_its_model_server_is_healthy(compose: Compose) -> None:
    async def start(file: Path) -> None:
        engine = Engine()
        async with engine.listening() as address:
            await compose.run(file, "up", "--detach", "--no-build", DOCKER_HOST=address)
        told = {one.service: one.body for one in engine.containers.values()}
        assert told.keys() == services(file).keys()
        assert all(("started", name) in engine.happened for name in told)
        for name, described in services(file).items():
            assert told[name]["Image"] == described["image"]
            for server in described.get("depends_on", ()):
                assert engine.happened.index(("healthy", server)) < engine.happened.index(("started", name))
            if is_ours(described):
                assert {key: told[name]["HostConfig"][key] for key in LIMITS} == LIMITS

    await asyncio.gather(*map(start, [FOLDER / "ray.cpu.yaml"] if compose.slow else FILES))


def seen(described: Mapping[str, Any]) -> dict[str, Any]:
    """What both kinds of Compose, and these tests, write in the same way."""
    same = ("image", "command", "entrypoint", "user", "read_only", "cap_drop", "cap_add", "restart", "runtime", "ipc")
    found: dict[str, Any] = {key: described.get(key) for key in same}
    found["environment"] = {name: str(value) for name, value in described["environment"].items()}
    found["depends_on"] = sorted(described.get("depends_on", {}))
    found["context"] = described.get("build", {}).get("context")
    found["mounted"] = sorted(map(mounted_at, described["volumes"]))
    found["published"] = sorted(map(published_at, described.get("ports", ())))
    return found


def mounted_at(volume: Any) -> str:
    short = volume if isinstance(volume, str) else f"{volume['source']}:{volume['target']}"
    source, target, *_ = short.split(":")
    return f"{(FOLDER / source).resolve() if source.startswith('.') else source}:{target}"


def published_at(port: Any) -> str:
    if isinstance(port, str):
        return port.removesuffix("/tcp")
    where = ":".join(filter(None, [port.get("host_ip"), str(port.get("published", ""))]))
    return f"{where if port.get('published') else where + ':'}:{port['target']}"
