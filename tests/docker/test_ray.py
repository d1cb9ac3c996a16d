"""The files that deploy the service on Ray say the same, and nothing that Ray, KubeRay or the service does not know.

Ray itself reads serve.yaml in tests/live/test_ray_front.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from comps.app import read_settings
from impl.microservice import ray_app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "ray"
SERVE = yaml.safe_load((FOLDER / "serve.yaml").read_text("utf-8"))
RAY_SERVICE = yaml.safe_load((FOLDER / "rayservice.yaml").read_text("utf-8"))
CLUSTER = RAY_SERVICE["spec"]["rayClusterConfig"]
HEAD, (WORKER,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
(APPLICATION,) = SERVE["applications"]
(DEPLOYMENT,) = APPLICATION["deployments"]
SETTINGS = APPLICATION["runtime_env"]["env_vars"]

# Of KubeRay 1.7's custom resource definition.
KNOWN: dict[str, tuple[Any, set[str], set[str]]] = {
    "spec": (
        RAY_SERVICE["spec"],
        {"rayClusterConfig"},
        {
            *("excludeHeadPodFromServeSvc", "managedBy", "rayClusterConfig", "rayClusterDeletionDelaySeconds"),
            *("serveConfigV2", "serveService", "suspend", "upgradeStrategy"),
        },
    ),
    "rayClusterConfig": (
        CLUSTER,
        {"headGroupSpec"},
        {
            *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
            *("headGroupSpec", "headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy"),
            *("rayVersion", "suspend", "tlsOptions", "upgradeStrategy", "workerGroupSpecs"),
        },
    ),
    "headGroupSpec": (
        HEAD,
        {"template"},
        {
            *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams", "resources"),
            *("serviceType", "template"),
        },
    ),
    "workerGroupSpecs": (
        WORKER,
        {"groupName", "maxReplicas", "minReplicas", "template"},
        {
            *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority"),
            *("rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template"),
        },
    ),
    "autoscalerOptions": (
        CLUSTER["autoscalerOptions"],
        set(),
        {
            *("args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources"),
            *("securityContext", "upscalingMode", "version", "volumeMounts"),
        },
    ),
}


def pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(group)["containers"]
    return dict(only)


def drain_seconds() -> int:
    return int(SETTINGS["USVC_DRAIN_SECONDS"])


def test_both_files_deploy_the_same() -> None:
    assert yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]) == SERVE


def test_they_name_what_there_is() -> None:
    module, _, name = APPLICATION["import_path"].partition(":")
    assert module == ray_app.__name__
    assert getattr(ray_app, name) is ray_app.app
    assert APPLICATION["name"] == ray_app.APPLICATION
    assert DEPLOYMENT["name"] == ray_app.DEPLOYMENT


def test_every_variable_is_a_setting_and_has_a_value_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    read = {setting.source for setting in read_settings(Path(os.devnull)).listing}
    assert {f"environment {name}" for name in SETTINGS} <= read


def test_no_secret_is_a_value_that_ray_shows() -> None:
    assert not [name for name in SETTINGS if re.search("KEY|SECRET|TOKEN", name) and not name.endswith("_FILE")]


@pytest.mark.parametrize("place", KNOWN)
def test_the_rayservice_has_fields_that_kuberay_knows_and_wants(place: str) -> None:
    said, required, known = KNOWN[place]
    assert required <= said.keys() <= known


def test_it_is_what_kuberay_takes_it_for() -> None:
    assert (RAY_SERVICE["apiVersion"], RAY_SERVICE["kind"]) == ("ray.io/v1", "RayService")
    pinned = re.search(r"^ray\[serve\]==(.+)$", (ROOT / "impl/model_server/ray/requirements.txt").read_text(), re.M)
    assert pinned
    assert CLUSTER["rayVersion"] == pinned[1]
    assert CLUSTER["authOptions"] == {"mode": "token"}


def test_requests_reach_the_port_that_ray_listens_on() -> None:
    port = SERVE["http_options"]["port"]
    assert SERVE["http_options"]["host"] == "0.0.0.0"
    for group in (HEAD, WORKER):
        assert {"name": "serve", "containerPort": port} in container(group)["ports"]


def test_a_pod_is_ready_when_its_proxy_answers_and_alive_as_long_as_its_node_is() -> None:
    assert container(WORKER)["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    for probe in (
        container(WORKER)["livenessProbe"],
        *(container(HEAD)[f"{name}Probe"] for name in ("liveness", "readiness")),
    ):
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_answers_have_the_time_to_end_that_the_settings_give_them() -> None:
    assert RAY_SERVICE["spec"]["rayClusterDeletionDelaySeconds"] > drain_seconds()
    assert pod(WORKER)["terminationGracePeriodSeconds"] > drain_seconds()


def test_all_replicas_have_a_place() -> None:
    scaling = DEPLOYMENT["autoscaling_config"]
    of_a_pod = int(WORKER["rayStartParams"]["num-cpus"]) // DEPLOYMENT["ray_actor_options"]["num_cpus"]
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert WORKER["minReplicas"] * of_a_pod >= scaling["min_replicas"] >= 2
    assert WORKER["maxReplicas"] * of_a_pod >= scaling["max_replicas"]
    assert scaling["target_ongoing_requests"] < int(SETTINGS["USVC_MAX_RUNNING"])


def test_the_pods_pass_the_restricted_pod_security_standard() -> None:
    for context in (*(container(group)["securityContext"] for group in (HEAD, WORKER)), _autoscaler()):
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for group in (HEAD, WORKER):
        assert pod(group)["securityContext"]["runAsNonRoot"] is True
        assert container(group)["image"] == "opea/llm-ray:latest"
        writable = {mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert writable == {"/tmp"}


def _autoscaler() -> dict[str, Any]:
    return dict(CLUSTER["autoscalerOptions"]["securityContext"])
