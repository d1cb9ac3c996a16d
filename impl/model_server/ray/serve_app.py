"""A model server on Ray Serve: OpenAI's endpoints over autoscaled replicas.

    python impl/model_server/ray/serve_app.py

It serves until SIGTERM or Ctrl-C, on a new Ray instance or on the cluster at RAY_ADDRESS. On a CPU, each replica is
this project's service with an embedded engine. With the engine `vllm`, the application is made by Ray's own builder.
`.env` in this folder explains all variables.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# In a checkout that is not installed, these need the line above.
from comps.app import read_settings  # noqa: E402
from comps.core.errors import LLMError, SettingsError  # noqa: E402
from impl.microservice import ray_app  # noqa: E402
from impl.microservice.ray_app import FAILED, NODES_PATH, WRONG_SETTINGS, serve_until_signal  # noqa: E402

MOST_REQUESTS = 256
"""The maximum number of concurrent requests of a replica; others queue in Ray."""


class Plan(BaseSettings):
    """The settings of the application. Each field is read from the environment variable of its name, in upper case."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    llm_name: str = "SmolLM2-135M-Instruct"
    llm_device: str = Field(default="CPU", pattern="(?i)^(CPU|GPU|HPU|NPU)$")
    llm_ray_engine: str = ""
    """An embedded engine (openvino, llama_cpp, transformers) or vllm; empty: openvino on a CPU, otherwise vllm."""
    llm_ray_host: str = "0.0.0.0"
    llm_endpoint_port: int = Field(default=8008, ge=1, le=65535)
    llm_ray_min_replicas: int = Field(default=1, ge=1)
    llm_ray_max_replicas: int = Field(default=1, ge=1)
    llm_ray_replica_requests: float = Field(default=8, gt=0)
    """The average number of running requests of a replica above which another one is started."""
    llm_ray_upscale_seconds: float = Field(default=10, ge=0)
    llm_ray_downscale_seconds: float = Field(default=300, ge=0)
    llm_ray_drain_seconds: float = Field(default=30, ge=0, le=50)
    """The deadline for running requests at shutdown; Ray itself waits for 60 s."""
    llm_ray_cpus: float = Field(default=1, gt=0)
    """The logical CPUs of a replica."""
    llm_ray_accelerator_type: str | None = None
    vllm_tp_size: int = Field(default=1, ge=1)
    vllm_dtype: str = "auto"
    vllm_max_model_len: int | None = Field(default=None, ge=1)
    vllm_max_num_seqs: int = Field(default=256, ge=1)

    @property
    def device(self) -> str:
        """The device: CPU, GPU, HPU (Gaudi) or NPU."""
        return self.llm_device.upper()

    @property
    def engine(self) -> str:
        """The engine; by default, it depends on the device."""
        return self.llm_ray_engine or ("openvino" if self.device == "CPU" else "vllm")

    @property
    def autoscaling(self) -> dict[str, float]:
        """Ray Serve's `autoscaling_config`."""
        return {
            "min_replicas": self.llm_ray_min_replicas,
            "max_replicas": self.llm_ray_max_replicas,
            "target_ongoing_requests": self.llm_ray_replica_requests,
            "upscale_delay_s": self.llm_ray_upscale_seconds,
            "downscale_delay_s": self.llm_ray_downscale_seconds,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of our replicas, which overrides that of their nodes."""
        return {
            "MODEL_SERVER": self.engine,
            "LLM_MODEL_SERVER_ENDPOINT": "",
            "FRAMEWORK": "native",
            "LLM_NAME": self.llm_name,
            "LLM_DEVICE": self.device,
            "LLM_DIALECTS": "openai",
            "USVC_NAME": "ray_serve",
            "USVC_MAX_RUNNING": str(MOST_REQUESTS),
            "LOG_PATH": "",
        }


def read_plan() -> Plan:
    """Reads the settings from the environment.

    Raises:
        SettingsError: A value is invalid, or two values exclude each other.
    """
    try:
        plan = Plan()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise SettingsError(f"{str(first['loc'][0]).upper()} = {first['input']}: {first['msg']}") from None
    if plan.llm_ray_max_replicas < plan.llm_ray_min_replicas:
        raise SettingsError("LLM_RAY_MAX_REPLICAS: smaller than LLM_RAY_MIN_REPLICAS")
    if plan.engine == "vllm" and plan.device == "NPU":
        raise SettingsError("LLM_DEVICE = NPU: vllm has CPU, GPU and HPU; openvino has NPU")
    if plan.engine != "vllm" and plan.device == "HPU":
        raise SettingsError(f"LLM_DEVICE = HPU: {plan.engine} does not run on Gaudi; vllm does")
    return plan


class Replica(ray_app.Replica):
    """One replica: this project's service with an embedded engine. It is ready once the model is loaded."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it.
        # A config.ini in the current folder is for the microservice, so it is not read.
        await super().__init__(await asyncio.to_thread(read_settings, Path(os.devnull)))


def own_application(plan: Plan) -> Any:
    """Returns the application with an embedded engine of this project."""
    from ray import serve

    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name=plan.engine,
        autoscaling_config=plan.autoscaling,
        max_ongoing_requests=MOST_REQUESTS,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=plan.llm_ray_drain_seconds,
        ray_actor_options={
            "num_cpus": plan.llm_ray_cpus,
            "runtime_env": {"env_vars": {**plan.environment, **NODES_PATH}},
        },
    )
    return deployment.bind()


def vllm_application(plan: Plan) -> Any:
    """Returns the application of Ray's own builder with vLLM, on GPUs, Gaudis or CPUs."""
    from ray.serve.llm import LLMConfig, build_openai_app

    return build_openai_app({"llm_configs": [LLMConfig(**vllm_config(plan))]})


def vllm_config(plan: Plan) -> dict[str, Any]:
    """Returns the arguments of `ray.serve.llm.LLMConfig`.

    Ray's builder detects GPUs. A Gaudi is the custom resource HPU, which needs explicit placement bundles and no
    accelerator type.
    """
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": plan.llm_name, "model_source": plan.llm_name},
        "deployment_config": {
            "autoscaling_config": plan.autoscaling,
            "max_ongoing_requests": MOST_REQUESTS,
            "graceful_shutdown_timeout_s": plan.llm_ray_drain_seconds,
        },
        "engine_kwargs": {
            "tensor_parallel_size": plan.vllm_tp_size,
            "dtype": plan.vllm_dtype,
            "max_num_seqs": plan.vllm_max_num_seqs,
            **({"max_model_len": plan.vllm_max_model_len} if plan.vllm_max_model_len else {}),
        },
        # By default, Ray batches text for up to 50 ms.
        "experimental_configs": {"stream_batching_interval_ms": 0},
    }
    if plan.device == "GPU":
        return {**config, "accelerator_type": plan.llm_ray_accelerator_type}
    bundle = {"CPU": plan.llm_ray_cpus, **({"HPU": 1} if plan.device == "HPU" else {})}
    return {**config, "placement_group_config": {"bundle_per_worker": bundle}, "accelerator_config": {"kind": "cpu"}}


def application(plan: Plan) -> Any:
    """Returns the application for these settings."""
    return vllm_application(plan) if plan.engine == "vllm" else own_application(plan)


def run(plan: Plan) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        LLMError: The model cannot be served.
    """
    serve_until_signal(
        lambda: application(plan),
        "ray_serve",
        f"{plan.llm_name} ({plan.engine})",
        plan.llm_ray_host,
        plan.llm_endpoint_port,
        plan.llm_ray_drain_seconds,
    )


def main() -> int:
    """Run the application; returns the exit code."""
    try:
        run(read_plan())
    except LLMError as error:
        print(f"ray_serve: {error}", file=sys.stderr)
        return WRONG_SETTINGS if isinstance(error, SettingsError) else FAILED
    return 0


if __name__ == "__main__":
    # Replicas can import this module under this name.
    from impl.model_server.ray.serve_app import main as imported_main

    sys.exit(imported_main())
