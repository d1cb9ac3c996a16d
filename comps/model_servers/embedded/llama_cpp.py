"""llama.cpp in this service: a GGUF model, several requests in one batch, on a CPU or GPU."""

from __future__ import annotations

from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.constraints import CHOICE, GRAMMAR, JSON_SCHEMA
from comps.model_servers.embedded.model_files import find_gguf


class LlamaCpp(Embedded):
    """llama.cpp.

    Its settings are the arguments of `llama_cpp.Llama` and `n_seq_max` (see `llama_cpp_engine`), and `local_dir`: the
    folder that a repository's file is in, or is downloaded into.
    """

    kind = "llama_cpp"
    display_name = "llama.cpp"
    program = "comps.model_servers.embedded.llama_cpp_engine"
    checker = "comps.model_servers.embedded.llama_cpp_options"
    packages = ("llama_cpp",)
    takes_local_dir = True
    constraints = frozenset((JSON_SCHEMA, CHOICE, GRAMMAR))

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        return str(find_gguf(model_name, local_dir))
