"""Kubernetes' Pod Security Standards: what "restricted" asks of a pod, the rules of "baseline" included.

After https://kubernetes.io/docs/concepts/security/pod-security-standards/, but for what only pods of Windows may say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.docker.manifests import HANDLERS, Document

Context = dict[str, Any]


def _hosts(container: Document) -> list[Any]:
    """The hosts that its probes and hooks ask; none is the pod itself."""
    hooks = [container.get(name, {}) for name in HANDLERS] + [*container.get("lifecycle", {}).values()]
    return [hook[kind]["host"] for hook in hooks for kind in ("httpGet", "tcpSocket") if hook.get(kind, {}).get("host")]


OF_A_POD: dict[str, Callable[[Document], bool]] = {
    "host namespaces": lambda pod: not any(pod.get(one) for one in ("hostNetwork", "hostPID", "hostIPC")),
    "sysctls": lambda pod: not pod.get("securityContext", {}).get("sysctls"),
    "volumes": lambda pod: all(
        volume.keys() - {"name"}
        <= {
            *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
            *("persistentVolumeClaim", "projected", "secret"),
        }
        for volume in pod.get("volumes", ())
    ),
}
OF_A_CONTAINER: dict[str, Callable[[Context, Document], bool]] = {
    "privileged": lambda context, _: not context.get("privileged"),
    "host process": lambda context, _: not context.get("windowsOptions", {}).get("hostProcess"),
    "host ports": lambda _, container: not any(port.get("hostPort") for port in container.get("ports", ())),
    "probed hosts": lambda _, container: not _hosts(container),
    "proc mount": lambda context, _: context.get("procMount", "Default") == "Default",
    "AppArmor": lambda context, _: (
        context.get("appArmorProfile", {}).get("type", "RuntimeDefault") in ("RuntimeDefault", "Localhost")
    ),
    "SELinux": lambda context, _: not context.get("seLinuxOptions"),
    "seccomp": lambda context, _: context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
    "privilege escalation": lambda context, _: context.get("allowPrivilegeEscalation") is False,
    "runs as non-root": lambda context, _: context.get("runAsNonRoot") is True and context.get("runAsUser") != 0,
    "drops all capabilities": lambda context, _: "ALL" in context.get("capabilities", {}).get("drop", ()),
}
"""What the Pod Security Standards ask under "restricted", by the name of the rule."""


def broken_rules(spec: Document) -> set[str]:
    """The names of the rules that a pod does not keep, and the capabilities that it adds."""
    broken = {rule for rule, holds in OF_A_POD.items() if not holds(spec)}
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        broken |= {rule for rule, holds in OF_A_CONTAINER.items() if not holds(context, container)}
        added = {*context.get("capabilities", {}).get("add", ())} - {"NET_BIND_SERVICE"}
        broken |= {f"adds {capability}" for capability in added}
    return broken
