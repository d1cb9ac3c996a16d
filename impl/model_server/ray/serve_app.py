"""A model behind Ray Serve: OpenAI's routes over replicas that come and go with the load.

    python impl/model_server/ray/serve_app.py

It starts a Ray of its own, or joins the one that RAY_ADDRESS names, and serves until it gets TERM or Ctrl-C. On a CPU
each replica is this project's own service over an embedded engine; with the engine `vllm`, Ray's own builder over vLLM
makes the application. `.env` beside this file explains every variable.
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

# Found only with the line above, in a checkout that is not installed.
from comps.app import read_settings  # noqa: E402
from comps.core.errors import LLMError, SettingsError  # noqa: E402
from impl.microservice import ray_app  # noqa: E402
from impl.microservice.ray_app import FAILED, NODES_PATH, WRONG_SETTINGS, serve_until_told  # noqa: E402

MOST_REQUESTS = 256
"""How many requests a replica takes at once; the others wait in Ray."""


class Plan(BaseSettings):
    """What is served, and with how much: each field is read from the environment variable of its name, in capitals."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    llm_name: str = "SmolLM2-135M-Instruct"
    llm_device: str = Field(default="CPU", pattern="(?i)^(CPU|GPU|HPU|NPU)$")
    llm_ray_engine: str = ""
    """A kind of model server that embeds its engine (openvino, llama_cpp, transformers), or vllm; empty: openvino on a
    CPU, else vllm."""
    llm_ray_host: str = "0.0.0.0"
    llm_endpoint_port: int = Field(default=8008, ge=1, le=65535)
    llm_ray_min_replicas: int = Field(default=1, ge=1)
    llm_ray_max_replicas: int = Field(default=1, ge=1)
    llm_ray_replica_requests: float = Field(default=8, gt=0)
    """Answers under way at once in a replica, on average, beyond which there is another one."""
    llm_ray_upscale_seconds: float = Field(default=10, ge=0)
    llm_ray_downscale_seconds: float = Field(default=300, ge=0)
    llm_ray_drain_seconds: float = Field(default=30, ge=0, le=50)
    """How long answers under way may take to end at shutdown; Ray itself waits for 60."""
    llm_ray_cpus: float = Field(default=1, gt=0)
    """Cores that a replica takes from Ray's count of them."""
    llm_ray_accelerator_type: str | None = None
    vllm_tp_size: int = Field(default=1, ge=1)
    vllm_dtype: str = "auto"
    vllm_max_model_len: int | None = Field(default=None, ge=1)
    vllm_max_num_seqs: int = Field(default=256, ge=1)

    @property
    def device(self) -> str:
        """CPU, GPU, HPU (Gaudi) or NPU."""
        return self.llm_device.upper()

    @property
    def engine(self) -> str:
        """The engine, chosen by the device if it is not named."""
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
        """What a replica of ours is set up with, whatever its node's own environment says."""
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
    """The plan that the environment holds.

    Raises:
        SettingsError: A variable's value is none, or two make no sense together; it names them.
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
    """One copy of the model, with this project's own service around it. Ray calls it ready once the model is loaded."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it.
        # A configuration file that lies about is the microservice's, not ours.
        await super().__init__(await asyncio.to_thread(read_settings, Path(os.devnull)))


def own_application(plan: Plan) -> Any:
    """The application over an embedded engine of this project."""
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
    """The application that Ray's own builder makes over vLLM, on GPUs, Gaudis or CPUs."""
    from ray.serve.llm import LLMConfig, build_openai_app

    return build_openai_app({"llm_configs": [LLMConfig(**vllm_config(plan))]})


def vllm_config(plan: Plan) -> dict[str, Any]:
    """The arguments of `ray.serve.llm.LLMConfig`.

    Ray's builder knows GPUs by themselves. A Gaudi is a resource named HPU to it, which it takes only in bundles that
    are spelled out, and without an accelerator type.
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
        # Ray would hold pieces of text back for up to 50 ms, to send several at once.
        "experimental_configs": {"stream_batching_interval_ms": 0},
    }
    if plan.device == "GPU":
        return {**config, "accelerator_type": plan.llm_ray_accelerator_type}
    bundle = {"CPU": plan.llm_ray_cpus, **({"HPU": 1} if plan.device == "HPU" else {})}
    return {**config, "placement_group_config": {"bundle_per_worker": bundle}, "accelerator_config": {"kind": "cpu"}}


def application(plan: Plan) -> Any:
    """The application that the plan asks for."""
    return vllm_application(plan) if plan.engine == "vllm" else own_application(plan)


def run(plan: Plan) -> None:
    """Serve until told to stop.

    Raises:
        LLMError: The model cannot be served; says why.
    """
    serve_until_told(
        lambda: application(plan),
        "ray_serve",
        f"{plan.llm_name} ({plan.engine})",
        plan.llm_ray_host,
        plan.llm_endpoint_port,
        plan.llm_ray_drain_seconds,
    )


def main() -> int:
    """Run the application; the exit code says how that went."""
    try:
        run(read_plan())
    except LLMError as error:
        print(f"ray_serve: {error}", file=sys.stderr)
        return WRONG_SETTINGS if isinstance(error, SettingsError) else FAILED
    return 0


if __name__ == "__main__":
    # Under this name, replicas can import what is in here.
    from impl.model_server.ray.serve_app import main as imported_main

    sys.exit(imported_main())
