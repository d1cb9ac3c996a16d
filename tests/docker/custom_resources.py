"""Kinds that Kubernetes does not know by itself: what their definitions require, as far as it is used here.

The definitions are kaito.sh_workspaces.yaml of KAITO 0.12 and the API reference of the Prometheus operator.
"""

from __future__ import annotations

WORKSPACE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "resource", "inference"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "kaito.sh/v1beta1"},
        "kind": {"const": "Workspace"},
        "metadata": {"type": "object", "required": ["name"]},
        "resource": {
            "type": "object",
            "required": ["labelSelector"],
            "additionalProperties": False,
            "properties": {
                "instanceType": {"type": "string"},
                "labelSelector": {
                    "type": "object",
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": {"additionalProperties": {"type": "string"}}},
                },
            },
        },
        "inference": {
            "type": "object",
            "required": ["preset"],
            "additionalProperties": False,
            "properties": {
                "preset": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "presetOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"modelAccessSecret": {"type": "string"}},
                        },
                    },
                },
            },
        },
    },
}
SERVICE_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["endpoints", "selector"],
            "additionalProperties": False,
            "properties": {
                "selector": {"type": "object", "required": ["matchLabels"]},
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["port"],
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                        },
                    },
                },
            },
        },
    },
}
CUSTOM = {"Workspace": WORKSPACE, "ServiceMonitor": SERVICE_MONITOR}
"""Kinds that Kubernetes does not know by itself, with what their definitions require of what is used here."""
