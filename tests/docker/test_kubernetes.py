"""The Kubernetes manifests: valid by themselves and as Kustomize renders them, and true of the service that they run.

Each tree (the base, an overlay) is looked at twice: as its files say it, put together here, for which nothing is
needed; and as rendered by kustomize or kubectl, which is skipped where there is neither.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
import yaml
from kubernetes_validate import utils as kubernetes

import comps.cli
from comps.app import make_app, read_settings
from comps.settings import SECTIONS, Settings, environment_names
from comps.settings.variables import file_names
from comps.telemetry import Telemetry
from tests.docker.custom_resources import CUSTOM
from tests.docker.manifests import (
    FOLDER,
    HANDLERS,
    OVERLAYS,
    RENDERER,
    ROOT,
    TREES,
    Document,
    Tree,
    containers,
    kustomization,
    plain,
    pod,
    pod_labels,
    ports_of,
    read,
    rendered,
    selects,
    the_container,
    variables,
    written,
)
from tests.docker.pod_security import broken_rules

VLLM = ROOT / "impl" / "model_server" / "vllm"
MONITORING = FOLDER / "components" / "monitoring"
BY_ITSELF = {FOLDER / "namespace.yaml", MONITORING / "prometheus-adapter.yaml"}
"""What no kustomization names, but the README."""
VERSIONS = sorted(set(kubernetes.all_versions()), key=lambda version: [*map(int, version.split("."))])[-3:]
WAYS: dict[str, Callable[[Path], Tree]] = {"written": written, "rendered": rendered}
Here = Callable[[Tree, dict[str, str]], Path]

pytestmark = pytest.mark.xdist_group("kubernetes")
"""One worker reads and renders them."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Path], Tree]:
    return WAYS[request.param]


@pytest.fixture
def trees(way: Callable[[Path], Tree]) -> Iterator[Tree]:
    """All trees, one of the two ways; of a test that fails, the last name that is printed is the tree's."""

    def each() -> Iterator[Tree]:
        for name, folder in TREES.items():
            print(name)
            yield way(folder)

    return each()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """Lets this process see what the microservice's container sees: its variables, and files in a folder for its root.
    Gives the path of the settings file."""

    def move(tree: Tree, more: dict[str, str]) -> Path:
        volumes = {volume["name"]: volume for volume in pod(tree.microservice)["volumes"]}
        for mount in the_container(tree)["volumeMounts"]:
            inside = tmp_path / mount["mountPath"].lstrip("/")
            if config := volumes[mount["name"]].get("configMap"):
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.write_text(tree.one("ConfigMap", config["name"])["data"][mount["subPath"]], "utf-8")
            else:
                inside.mkdir(parents=True, exist_ok=True)
        for name, value in {**tree.environment, **more}.items():
            monkeypatch.setenv(name, value.replace("/run/secrets", f"{tmp_path}/run/secrets"))
        monkeypatch.chdir(tmp_path)
        args: list[str] = the_container(tree)["args"]
        return tmp_path / args[args.index("--config") + 1].lstrip("/")

    return move


def settings_of(tree: Tree, here: Here) -> Settings:
    return read_settings(here(tree, {}))


# ---- Valid


def check_valid(document: Document, version: str) -> None:
    if document["kind"] in CUSTOM:
        jsonschema.validate(document, CUSTOM[document["kind"]])
    else:
        kubernetes.validate(document, version, strict=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schemas of a version are megabytes, which kubernetes-validate reads for every resource anew."""
    monkeypatch.setattr(kubernetes, "schema_contents", cache(kubernetes.schema_contents))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid_for_a_new_kubernetes(version: str) -> None:
    files = [
        file for file in FOLDER.rglob("*.yaml") if file.name not in ("kustomization.yaml", "prometheus-adapter.yaml")
    ]
    documents = [document for file in files for document in read(file)]
    assert {document["kind"] for document in documents} > CUSTOM.keys()
    if RENDERER:
        documents += [document for folder in TREES.values() for document in rendered(folder).documents]
    for document in {plain(json.dumps(one, sort_keys=True)): one for one in documents}.values():
        check_valid(document, version)


@pytest.mark.usefixtures("quick")
def test_a_field_that_kubernetes_does_not_know_is_not_valid() -> None:
    service = written(FOLDER / "base").one("Service", "opea-llm")
    service["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes.ValidationError, match="targetport"):
        check_valid(service, VERSIONS[-1])


def test_every_file_is_named_by_a_kustomization_or_the_readme() -> None:
    named = set(BY_ITSELF)
    for file in FOLDER.rglob("kustomization.yaml"):
        said = kustomization(file.parent)
        entries = [*said.get("resources", ()), *said.get("components", ())]
        entries += [name for one in said.get("configMapGenerator", ()) for name in one.get("files", ())]
        assert all((file.parent / entry).exists() for entry in entries)
        named |= {file, *((file.parent / entry).resolve() for entry in entries if (file.parent / entry).is_file())}
    assert named == {file for file in FOLDER.rglob("*") if file.is_file() and file.name != "README.md"}
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert all(file.name in readme for file in BY_ITSELF)
    assert all(f"overlays/{name}" in readme for name in OVERLAYS)


def names_in(tree: Tree, name: str) -> set[str]:
    """What a generated ConfigMap is called where the microservice's pods name it."""
    return set(re.findall(f"{name}[-a-z0-9]*", json.dumps(pod(tree.microservice))))


@pytest.mark.parametrize("name", TREES)
def test_what_is_rendered_is_what_the_files_say(name: str) -> None:
    def names(tree: Tree) -> list[tuple[str, str]]:
        return sorted((one["kind"], plain(one["metadata"]["name"])) for one in tree.documents)

    assert names(rendered(TREES[name])) == names(written(TREES[name]))


def test_a_changed_setting_is_a_rollout(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    before = rendered(TREES["vllm-cpu"])
    for file, old, new in (
        (folder / "base" / "config.ini", "max_waiting=1024", "max_waiting=512"),
        (folder / "overlays" / "vllm-cpu" / "kustomization.yaml", "LLM_NAME=Intel/", "LLM_NAME=intel/"),
    ):
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new), "utf-8")
    after = rendered(folder / "overlays" / "vllm-cpu")
    for name in ("opea-llm-config", "opea-llm-name"):
        assert names_in(before, name) != names_in(after, name)
    assert pod(before.model_servers[0]) != pod(after.model_servers[0]), "the model's name is the model server's as well"


def on_top_of(overlay: str, folder: Path, lines: str) -> Tree:
    """What is rendered of a kustomization on top of an overlay."""
    tools = os.path.relpath(TREES[overlay], folder.resolve())
    (folder / "kustomization.yaml").write_text(f"resources:\n  - {tools}\n{lines}", "utf-8")
    return rendered(folder)


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.startswith("vllm")])
def test_no_setting_of_the_microservice_restarts_vllm(overlay: str, tmp_path: Path) -> None:
    before = rendered(TREES[overlay])
    after = on_top_of(
        overlay,
        tmp_path,
        """configMapGenerator:
  - name: opea-llm-model
    behavior: merge
    literals:
      - LOG_LEVEL=DEBUG
      - LLM_MODEL_SERVER_ENDPOINT=http://opea-llm-vllm-0.opea-llm-vllm:8000,http://opea-llm-vllm-1.opea-llm-vllm:8000
""",
    )
    assert after.environment["LOG_LEVEL"] == "DEBUG"
    assert pod(after.microservice) != pod(before.microservice)
    assert after.model_servers == before.model_servers


def test_an_image_is_renamed_by_the_name_that_the_readme_says(tmp_path: Path) -> None:
    (name,) = re.findall(
        r"`overlays/embedded` the image to rename is `(\S+)`", (FOLDER / "README.md").read_text("utf-8")
    )
    images = f"images:\n  - {{name: {name}, newName: example.com/llm, newTag: 0.1.0}}\n"
    tree = on_top_of("embedded", tmp_path, images)
    assert {container["image"] for container in containers(tree.microservice)} == {"example.com/llm:0.1.0"}


@pytest.mark.skipif(not RENDERER, reason="neither kustomize nor kubectl is on the PATH")
def test_what_the_readme_has_for_a_folder_of_ones_own_renders(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = os.path.relpath(FOLDER, (tmp_path / "0").resolve())
    folders: list[Path] = []
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.+?)```", (FOLDER / "README.md").read_text("utf-8"), re.DOTALL):
        if name == "kustomization.yaml":
            folders.append(tmp_path / str(len(folders)))
            folders[-1].mkdir()
        (folders[-1] / name).write_text(text.replace("../opea-llm-microservice/docker/kubernetes", tools), "utf-8")
    gpu, elsewhere = map(rendered, folders)
    (monitor,) = gpu.of("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert gpu.model_servers[0]["spec"]["selector"] == rendered(TREES["vllm-gpu"]).model_servers[0]["spec"]["selector"]
    assert the_container(gpu)["image"] == "registry.example.com/opea/llm:0.1.0"
    assert gpu.environment["MODEL_SERVER"] == "vllm", "the overlay's literals stay"
    (vllm,) = containers(gpu.model_servers[0])
    assert variables(gpu, vllm)["LLM_NAME"] == "meta-llama/Llama-3.1-8B-Instruct"
    config = here(gpu, {})
    key = tmp_path / gpu.environment["LLM_API_KEY_FILE"].lstrip("/")
    key.write_text("secret-key\n")
    assert read_settings(config).model.api_key.get_secret_value() == "secret-key"
    monkeypatch.delenv("LLM_API_KEY_FILE")
    assert settings_of(elsewhere, here).model.model_server_endpoint == "https://models.example.com"
    assert not elsewhere.model_servers
    assert len(elsewhere.of("NetworkPolicy")) == 2


# ---- Wired


def test_selectors_find_the_pods_that_are_meant(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for workload in tree.workloads:
            assert selects(workload["spec"]["selector"]["matchLabels"], pod_labels(workload))
            for spread in pod(workload).get("topologySpreadConstraints", ()):
                assert selects(spread["labelSelector"]["matchLabels"], pod_labels(workload))
        for document in tree.of("Service", "PodDisruptionBudget", "NetworkPolicy"):
            selector = document["spec"].get("selector") or document["spec"]["podSelector"]
            found = tree.selected(selector.get("matchLabels", selector))
            assert [pod_labels(one) for one in found] == [document["metadata"]["labels"]], "its labels say whose it is"


def test_a_service_leads_to_a_port_of_its_pods(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for service in tree.of("Service"):
            (workload,) = tree.selected(service["spec"]["selector"])
            (port,) = service["spec"]["ports"]
            assert port["targetPort"] in ports_of(workload)
            # Of a Service without an address, the names lead to the pods themselves, and so do the ports.
            if service["spec"].get("clusterIP") == "None":
                assert port["port"] == ports_of(workload)[port["targetPort"]]
                assert workload["spec"]["serviceName"] == service["metadata"]["name"]


def test_the_microservice_listens_where_it_is_asked(trees: Iterator[Tree], here: Here) -> None:
    for tree in trees:
        assert ports_of(tree.microservice) == {"http": settings_of(tree, here).microservice.port}


def test_network_policies_open_the_ports_that_pods_listen_on(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for policy in tree.of("NetworkPolicy"):
            (workload,) = tree.selected(policy["spec"]["podSelector"]["matchLabels"])
            for rule in policy["spec"].get("ingress", ()):
                assert rule["from"], "nobody would be everybody"
                assert [port["port"] for port in rule["ports"]] == [*ports_of(workload).values()]


def test_the_label_that_the_readme_gives_to_clients_lets_them_in() -> None:
    label = re.search(r"kubectl label namespace \S+ (\S+)=(\S+)", (FOLDER / "README.md").read_text("utf-8"))
    policy = yaml.safe_load((FOLDER / "base" / "networkpolicy.yaml").read_text("utf-8"))
    assert label
    (rule,) = policy["spec"]["ingress"]
    peers = [selector["matchLabels"] for peer in rule["from"] for selector in peer.values()]
    assert peers == [{label[1]: label[2]}] * 2


def test_the_microservice_may_ask_for_names_and_ask_its_model_server_and_nobody_else(trees: Iterator[Tree]) -> None:
    for tree in trees:
        own = tree.microservice
        policies = [one["spec"] for one in tree.of("NetworkPolicy")]
        assert any(
            "Egress" in one["policyTypes"] and selects(one["podSelector"]["matchLabels"], pod_labels(own))
            for one in policies
        )
        names, *asked = [rule for one in policies for rule in one.get("egress", ())]
        assert [*names["to"][0]] == ["namespaceSelector"]
        assert {(port["protocol"], port["port"]) for port in names["ports"]} == {("UDP", 53), ("TCP", 53)}
        assert len(asked) == len(tree.model_servers) + len(tree.of("Workspace"))
        for rule, server in zip(asked, tree.model_servers, strict=False):
            (peer,) = rule["to"]
            assert tree.selected(peer["podSelector"]["matchLabels"]) == [server]
            assert [port["port"] for port in rule["ports"]] == [*ports_of(server).values()]
            assert [*peer] == ["podSelector"]


def test_the_microservice_asks_the_model_server_that_is_there_for_the_model_that_it_has(
    trees: Iterator[Tree], here: Here
) -> None:
    for tree in trees:
        model = settings_of(tree, here).model
        url = urlsplit(model.model_server_endpoint)
        for server in tree.model_servers:
            pod_name, _, service = str(url.hostname).partition(".")
            assert pod_name == f"{server['metadata']['name']}-0"
            assert [(service, url.port)] == [
                (one["metadata"]["name"], one["spec"]["ports"][0]["port"])
                for one in tree.of("Service")
                if one["spec"].get("clusterIP") == "None"
            ]
            (container,) = containers(server)
            assert container["args"][:2] == ["--model", "$(LLM_NAME)"]
            assert variables(tree, container)["LLM_NAME"] == model.model_name
            assert container["args"][container["args"].index("--port") + 1] == str(url.port)
        for workspace in tree.of(
            "Workspace"
        ):  # KAITO's Service has its name, port 80, and vLLM on the pods' port 5000.
            assert (url.hostname, url.port) == (workspace["metadata"]["name"], None)
            assert model.model_name == workspace["inference"]["preset"]["name"]
            (rule,) = tree.one("NetworkPolicy", "opea-llm-to-kaito")["spec"]["egress"]
            assert rule["to"] == [
                {"podSelector": {"matchLabels": {"kaito.sh/workspace": workspace["metadata"]["name"]}}}
            ]
            assert rule["ports"] == [{"protocol": "TCP", "port": 5000}]
        if model.model_server == "openvino":
            assert not model.model_server_endpoint


def test_of_the_settings_vllm_reads_the_models_name_alone(trees: Iterator[Tree]) -> None:
    for tree in trees:
        assert tree.one("ConfigMap", "opea-llm-name")["data"].keys() == {"LLM_NAME"}
        assert "LLM_NAME" not in tree.one("ConfigMap", "opea-llm-model")["data"]
        last = the_container(tree)["envFrom"][-1]["configMapRef"]
        assert plain(last["name"]) == "opea-llm-name", "it goes before a name in another"
        for server in tree.model_servers:
            named = re.findall(r"opea-llm-(?:config|model|name)", json.dumps(pod(server)))
            assert named == ["opea-llm-name"]


def test_every_reference_leads_somewhere(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for workload in tree.workloads:
            volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
            claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
            for container in containers(workload):
                for mount in container["volumeMounts"]:
                    assert mount["name"] in volumes.keys() | claims
                    if config := volumes.get(mount["name"], {}).get("configMap"):
                        assert mount["subPath"] in tree.one("ConfigMap", config["name"])["data"]
                variables(tree, container)
            if account := pod(workload).get("serviceAccountName"):
                assert tree.one("ServiceAccount", account)


def test_no_secret_is_here_and_none_must_be_there(trees: Iterator[Tree]) -> None:
    for tree in trees:
        assert not tree.of("Secret")
        for workload in tree.workloads:
            for volume in pod(workload)["volumes"]:
                assert volume.get("secret", {"optional": True})["optional"]
            for container in containers(workload):
                assert not any(re.search("KEY|TOKEN|SECRET|PASSWORD", name) for name in variables(tree, container))
                for one in container.get("env", ()):
                    assert one.get("valueFrom", {}).get("secretKeyRef", {"optional": True})["optional"]


def test_the_secret_that_the_readme_makes_is_the_one_that_both_sides_read(trees: Iterator[Tree]) -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    # Not of a file, which would end in a newline: the microservice takes that away, vLLM does not.
    made = re.findall(r'^printf %s "\$KEY" \| kubectl create secret generic .* (\S+) --from-file=(\w+)=', readme, re.M)
    ((secret, key),) = made
    (file,) = re.findall(r"- LLM_API_KEY_FILE=(\S+)", readme)
    for tree in trees:
        volumes = {volume["name"]: volume for volume in pod(tree.microservice)["volumes"]}
        (mounted,) = [
            mount["mountPath"]
            for mount in the_container(tree)["volumeMounts"]
            if volumes[mount["name"]].get("secret", {}).get("secretName") == secret
        ]
        assert file == f"{mounted}/{key}"
        for server in tree.model_servers:
            (container,) = containers(server)
            (reads,) = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if one["name"] == "VLLM_API_KEY"]
            assert (reads["name"], reads["key"]) == (secret, key)


# ---- Hardened


EXCEPTIONS = {
    "vllm/vllm-openai-cpu": set[str](),
    "vllm/vllm-openai": set[str](),
    "habanalabs/vllm": {"runs as non-root", "drops all capabilities", "adds SYS_NICE"},
}
"""What a model server's image does not pass."""


def test_pods_are_under_the_restricted_standard_but_for_the_exceptions_that_are_named(trees: Iterator[Tree]) -> None:
    for tree in trees:
        assert broken_rules(pod(tree.microservice)) == set()
        for server in tree.model_servers:
            (container,) = containers(server)
            name = re.sub(r"^.*(habanalabs/vllm)-.*$", r"\1", container["image"].rpartition(":")[0])
            assert broken_rules(pod(server)) == EXCEPTIONS[name]


def test_the_readme_says_which_overlays_the_namespace_does_not_take() -> None:
    (namespace,) = read(FOLDER / "namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    readme = (FOLDER / "README.md").read_text("utf-8")
    for name in OVERLAYS:
        tree = written(TREES[name])
        levels = {"privileged"} if any(broken_rules(pod(one)) for one in tree.workloads) else set()
        if tree.of("Workspace"):
            levels.add("baseline")  # KAITO makes pods without a word about security of it.
        (row,) = re.findall(rf"^\| `overlays/{name}` .*$", readme, re.M)
        assert set(re.findall(r"`enforce: (\w+)`", row)) == levels


def test_a_pod_without_a_word_about_security_breaks_the_rules() -> None:
    unsaid = {"seccomp", "privilege escalation", "runs as non-root", "drops all capabilities"}
    assert broken_rules({"containers": [{"name": "any"}]}) == unsaid
    volume = {"name": "host", "hostPath": {"path": "/"}}
    allowed = {"name": "any", "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}}
    more = {"host namespaces", "volumes", "privileged", "adds SYS_ADMIN"}
    assert broken_rules({"hostIPC": True, "volumes": [volume], "containers": [allowed]}) == unsaid | more


def test_the_microservice_has_a_read_only_root_and_the_user_of_the_image(trees: Iterator[Tree]) -> None:
    for tree in trees:
        context = pod(tree.microservice)["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)
        for container in containers(tree.microservice):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_no_pod_has_a_token_or_variables_of_other_services(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for workload in tree.workloads:
            assert pod(workload)["automountServiceAccountToken"] is False
            assert pod(workload)["enableServiceLinks"] is False, "they would be settings that nobody made"


def test_every_container_says_what_it_needs(trees: Iterator[Tree]) -> None:
    for tree in trees:
        for workload in tree.workloads:
            for container in containers(workload):
                assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
                assert "memory" in container["resources"]["limits"]


# ---- True of the service


def test_probes_ask_routes_that_the_service_has(trees: Iterator[Tree], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    monkeypatch.setenv("FRAMEWORK", "native")
    routes = {getattr(route, "path", "") for route in make_app(read_settings(None)).routes}
    for tree in trees:
        asked = {name: the_container(tree)[name]["httpGet"] for name in HANDLERS}
        assert {name: one["path"] for name, one in asked.items()} == {
            "startupProbe": "/health",
            "livenessProbe": "/health",
            "readinessProbe": "/ready",
        }
        assert {one["path"] for one in asked.values()} <= routes
        assert {one["port"] for one in asked.values()} <= ports_of(tree.microservice).keys()


def test_every_variable_is_one_that_the_settings_know(trees: Iterator[Tree]) -> None:
    fields = [info for section in SECTIONS.values() for info in section.model_fields.values()]
    known = {name for info in fields for name in (*environment_names(info), *file_names(info))}
    for tree in trees:
        for container in containers(tree.microservice):
            assert variables(tree, container).keys() <= known


def test_settings_load_and_come_from_the_file_and_the_environment(trees: Iterator[Tree], here: Here) -> None:
    for tree in trees:
        config = here(tree, {})
        sources = {one.source for one in read_settings(config).listing} - {"default"}
        assert sources == {str(config), *(f"environment {name}" for name in tree.environment)}


def test_the_check_sees_what_the_service_will_see(trees: Iterator[Tree]) -> None:
    for tree in trees:
        check, service = the_container(tree, "check"), the_container(tree)
        assert [check.get(key) for key in ("image", "envFrom", "env", "volumeMounts", "command")] == [
            service.get(key) for key in ("image", "envFrom", "env", "volumeMounts", "command")
        ]
        file = ["--config", "/app/config.ini"]
        assert (check["args"], service["args"]) == (["check", "--settings", *file], ["serve", *file])


def test_a_pod_has_time_to_be_forgotten_and_to_finish_its_answers(trees: Iterator[Tree], here: Here) -> None:
    for tree in trees:
        service = settings_of(tree, here).microservice
        assert service.pre_stop_seconds >= 5
        assert "lifecycle" not in the_container(tree)
        grace = pod(tree.microservice)["terminationGracePeriodSeconds"]
        assert grace >= service.pre_stop_seconds + service.drain_seconds + 5
        for server in tree.model_servers:
            (container,) = containers(server)
            sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod(server)["terminationGracePeriodSeconds"] >= sleep + 10


def test_a_rollout_takes_nothing_away_before_the_new_pod_is_ready(trees: Iterator[Tree]) -> None:
    for tree in trees:
        spec = tree.microservice["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        startup = the_container(tree)["startupProbe"]
        assert spec["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]
        assert tree.one("PodDisruptionBudget", "opea-llm")["spec"]["maxUnavailable"] == 1


def test_replicas_are_in_no_file_and_the_autoscaler_goes_by_a_metric_that_the_service_has(
    trees: Iterator[Tree], here: Here
) -> None:
    for tree in trees:
        (autoscaler,) = tree.of("HorizontalPodAutoscaler")
        target = autoscaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", tree.microservice["metadata"]["name"])
        for workload in tree.workloads:
            assert "replicas" not in workload["spec"], "it would undo what the autoscaler or `kubectl scale` did"
        assert autoscaler["spec"]["minReplicas"] >= 2
        (metric,) = [one["pods"] for one in autoscaler["spec"]["metrics"]]
        assert f"\n{metric['metric']['name']} 0.0\n" in Telemetry().metrics().decode()
        assert int(metric["target"]["averageValue"]) <= settings_of(tree, here).microservice.max_running / 2


def test_prometheus_reads_the_metric_and_hands_it_to_the_autoscaler() -> None:
    tree = written(FOLDER / "base")
    (monitor,) = read(MONITORING / "servicemonitor.yaml")
    service = tree.one("Service", "opea-llm")
    assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    (policy,) = read(MONITORING / "networkpolicy.yaml")
    assert tree.selected(policy["spec"]["podSelector"]["matchLabels"]) == [tree.microservice]
    (rule,) = policy["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [*ports_of(tree.microservice).values()]
    (adapter,) = read(MONITORING / "prometheus-adapter.yaml")
    (peer,) = rule["from"]
    asked = urlsplit(adapter["prometheus"]["url"])
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert (asked.scheme, str(asked.hostname).split(".", 1)[1], asked.port) == ("http", f"{namespace}.svc", None)
    assert adapter["prometheus"]["port"] == 9090, "the chart puts it behind the URL"
    (handed,) = adapter["rules"]["custom"]
    (metric,) = tree.one("HorizontalPodAutoscaler", "opea-llm")["spec"]["metrics"]
    assert handed["seriesQuery"].partition("{")[0] == metric["pods"]["metric"]["name"]
    assert {one["resource"] for one in handed["resources"]["overrides"].values()} == {"namespace", "pod"}


def test_the_images_are_ours(trees: Iterator[Tree]) -> None:
    for tree in trees:
        images = {container["image"] for container in containers(tree.microservice)}
        embedded = tree.environment["MODEL_SERVER"] == "openvino"
        assert images == {"opea/llm-embedded:latest" if embedded else "opea/llm:latest"}


def test_the_image_is_what_the_pods_take_for_granted(trees: Iterator[Tree]) -> None:
    dockerfile = ROOT / "docker" / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("there is no docker/Dockerfile")
    said = dockerfile.read_text("utf-8")
    for tree in trees:
        context, container = pod(tree.microservice)["securityContext"], the_container(tree)
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in said
        assert "command" not in container, "the image knows it"
        assert 'ENTRYPOINT ["opea-llm"]' in said
        assert container["args"][-1] in {mount["mountPath"] for mount in container["volumeMounts"]}


# ---- The same model servers as with Compose

COMPOSED = {"vllm-cpu": "cpu", "vllm-gaudi": "gaudi", "vllm-gpu": "gpu"}
NOT_THE_SAME = {
    *("http_proxy", "https_proxy", "no_proxy"),  # The cluster's matter.
    "HF_TOKEN",  # A Secret.
    "HABANA_VISIBLE_DEVICES",  # The device plugin hands cards out.
    "VLLM_CPU_OMP_THREADS_BIND",  # To bind would take rights and cores of its own.
}


def composed(device: str) -> Document:
    """vLLM's service in its compose file, with the values of .env, but with LLM_NAME as Kubernetes writes it."""
    lines = (VLLM / ".env").read_text("utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#")) | {
        "LLM_NAME": "$(LLM_NAME)"
    }
    (described,) = read(VLLM / f"compose.{device}.yaml")
    text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], json.dumps(described["services"]["vllm"]))
    service: Document = json.loads(text)
    return service


@pytest.mark.parametrize(("overlay", "device"), COMPOSED.items())
def test_vllm_is_started_as_its_compose_file_starts_it(overlay: str, device: str, way: Callable[[Path], Tree]) -> None:
    tree, compose = way(TREES[overlay]), composed(device)
    (container,) = containers(tree.model_servers[0])
    assert container["image"] == compose["image"]
    assert container.get("command") == compose.get("entrypoint")
    port = container["args"].index("--port") + 1
    assert container["args"][:port] + container["args"][port + 1 :] == (
        compose["command"][:port] + compose["command"][port + 1 :]
    )
    given = variables(tree, container)
    same = compose["environment"].keys() - NOT_THE_SAME
    assert {name: given.get(name) for name in same} == {name: compose["environment"][name] for name in same}
    startup = container["startupProbe"]
    assert f"{startup['periodSeconds'] * startup['failureThreshold'] // 60}m" == compose["healthcheck"]["start_period"]
    path = startup["httpGet"]["path"]
    assert any(f"{path}'" in word for word in compose["healthcheck"]["test"])
    assert all(container[name]["httpGet"] == startup["httpGet"] for name in HANDLERS)


@pytest.mark.parametrize(
    ("overlay", "device"), [("vllm-cpu", None), ("vllm-gaudi", "habana.ai/gaudi"), ("vllm-gpu", "nvidia.com/gpu")]
)
def test_vllm_has_the_device_shared_memory_and_a_place_for_weights(
    overlay: str, device: str | None, way: Callable[[Path], Tree]
) -> None:
    tree = way(TREES[overlay])
    (server,) = tree.model_servers
    (container,) = containers(server)
    needs, limits = container["resources"]["requests"], container["resources"]["limits"]
    cards = container["args"][container["args"].index("--tensor-parallel-size") + 1]
    assert {name: count for name, count in limits.items() if "/" in name} == ({device: int(cards)} if device else {})
    extended = [name for name in limits if "/" in name or name.startswith("hugepages")]
    assert all(needs[name] == limits[name] for name in extended), "the API server wants the same"
    volumes = {volume["name"]: volume for volume in pod(server)["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    (claim,) = server["spec"]["volumeClaimTemplates"]
    assert mounts[variables(tree, container)["HF_HOME"]] == claim["metadata"]["name"]


# ---- A wrong setting stops a rollout


def run(tree: Tree, name: str, config: Path) -> int | None:
    """How a container of the microservice ends, run with its own arguments in this process."""
    *args, file = the_container(tree, name)["args"]
    assert str(config).endswith(file)
    with pytest.raises(SystemExit) as ended:
        comps.cli.cli([*args, str(config)])
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code


@pytest.mark.parametrize(
    ("file", "environment", "named"),
    [
        (("drain_seconds=60", "drain_seconds=soon"), {}, ("config.ini", "drain_seconds = soon")),
        (("max_running", "max_runing"), {}, ("config.ini", "max_runing", "max_running")),
        (("", ""), {"MODEL_SERVER": "vlllm"}, ("environment MODEL_SERVER", "vlllm")),
        (("", ""), {"LLM_MODEL_SERVER_ENDPOINT": "opea-llm-vllm:8000"}, ("opea-llm-vllm:8000", "a URL is needed")),
        (("", ""), {"LLM_API_KEY_FILE": "/run/secrets/opea-llm/api_key"}, ("LLM_API_KEY_FILE", "opea-llm/api_key")),
    ],
    ids=["value", "key", "model server", "endpoint", "no secret"],
)
@pytest.mark.parametrize("container", ["check", "opea-llm"])
def test_a_wrong_setting_ends_both_containers_with_one_line_and_exit_code_2(
    container: str,
    file: tuple[str, str],
    environment: dict[str, str],
    named: tuple[str, ...],
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = written(TREES["vllm-cpu"])
    config = here(tree, environment)
    monkeypatch.setenv("FRAMEWORK", "native")
    config.write_text(config.read_text("utf-8").replace(*file), "utf-8")
    assert run(tree, container, config) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in named)


def test_without_its_model_server_a_pod_passes_the_check_and_lives_and_is_not_ready(
    here: Here,
) -> None:
    tree = written(TREES["vllm-cpu"])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    config = here(tree, {"LLM_MODEL_SERVER_ENDPOINT": f"http://127.0.0.1:{port}", "FRAMEWORK": "native"})
    assert not run(tree, "check", config)
    app = make_app(read_settings(config))

    async def probe(name: str) -> httpx.Response:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod") as kubelet,
        ):
            return await kubelet.get(the_container(tree)[name]["httpGet"]["path"])

    assert asyncio.run(probe("startupProbe")).status_code == 200
    assert asyncio.run(probe("livenessProbe")).status_code == 200
    ready = asyncio.run(probe("readinessProbe"))
    assert ready.status_code == 503
    assert "cannot be reached" in ready.text
