"""Exporters of traces, chosen by OpenTelemetry's own environment variables; see `tracing`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def is_wanted() -> bool:
    """Returns whether the environment asks for traces: it names an exporter, or an endpoint of OTLP."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = os.environ.get(_EXPORTER, "").strip().lower()
    return exporters != "none" and bool(exporters or any(os.environ.get(name) for name in _ENDPOINTS))


def problem() -> str:
    """Returns why there are no traces although they are wanted; empty if there are, or are not wanted."""
    if not is_wanted():
        return ""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        mend = f"{sys.executable} -m pip install 'opea-llm-microservice[otel]'"
        return f"no traces are exported, since OpenTelemetry's SDK is not installed; mend it with: {mend}"
    known = {point.name for point in entry_points(group="opentelemetry_traces_exporter")}
    if missing := [name for name in _exporters() if name not in known]:
        there_are = ", ".join(sorted(known)) or "none"
        return f"no traces are exported, since no exporter {missing[0]} is installed; there are: {there_are}"
    return ""


def _exporters() -> list[str]:
    """Returns the names of the exporters, as packages register them."""
    names = [name.strip().lower() for name in (os.environ.get(_EXPORTER) or "otlp").split(",")]
    protocol = next((value for name in _PROTOCOLS if (value := os.environ.get(name))), "http/protobuf")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names if name]


def provider_for(name: str, version: str) -> Any:
    """Returns a provider of tracers with the exporters of the environment, which is not the global one."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": name, "service.version": version}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in _exporters():
        point = next(iter(entry_points(group="opentelemetry_traces_exporter", name=exporter)))
        provider.add_span_processor(BatchSpanProcessor(point.load()()))
    return provider
