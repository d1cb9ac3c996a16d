"""Hugging Face transformers in this service: any causal language model, on whatever device PyTorch has."""

from __future__ import annotations

from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.constraints import CHOICE, GRAMMAR, JSON_SCHEMA, REGEX
from comps.model_servers.embedded.model_files import find_checkpoint


class Transformers(Embedded):
    """transformers.

    Its settings are arguments of `from_pretrained` (see `transformers_engine`), and `local_dir`: a folder that a
    repository's file of weights may be in, beside its config.json.
    """

    kind = "transformers"
    display_name = "transformers"
    program = "comps.model_servers.embedded.transformers_engine"
    checker = "comps.model_servers.embedded.transformers_loading"
    packages = ("torch", "transformers", "accelerate", "llguidance")
    takes_local_dir = True
    constraints = frozenset((JSON_SCHEMA, REGEX, CHOICE, GRAMMAR))

    @staticmethod
    def find(model_name: str, local_dir: str) -> str:
        return find_checkpoint(model_name, local_dir)
