"""OpenVINO GenAI in this service: a GGUF or OpenVINO model, many requests in one batch, on a CPU, GPU or NPU."""

from __future__ import annotations

from comps.core.types import Sampling
from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.constraints import CHOICE, GRAMMAR, JSON_SCHEMA, REGEX


class OpenVINO(Embedded):
    """OpenVINO GenAI. Its settings are OpenVINO's properties, and the fields of its `SchedulerConfig`.

    openvino-genai has logprobs of the tokens alone that it generates, before temperature, penalties and constraints.
    """

    kind = "openvino"
    display_name = "OpenVINO"
    program = "comps.model_servers.embedded.openvino_engine"
    checker = "comps.model_servers.embedded.openvino_options"
    packages = ("openvino", "openvino_genai", "numpy")
    honoured = frozenset(Sampling.__dataclass_fields__) - {"typical_p"}
    alternatives = False
    constraints = frozenset((JSON_SCHEMA, REGEX, CHOICE, GRAMMAR))
