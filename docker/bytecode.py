"""Writes the bytecode of all that the service imports to PYTHONPYCACHEPREFIX, while an image is built.

The base image has none of the standard library, and in a container nothing can be written: each start would compile
all of it again. Bytecode that is not checked against its source is the same whenever it is made.
"""

from __future__ import annotations

import py_compile
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages

import comps

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH
LATE = (
    *("uvicorn.lifespan.on", "uvicorn.loops.uvloop", "uvicorn.protocols.http.httptools_impl", "fastapi.openapi.utils"),
    *("configparser", "http.client"),
)
"""What uvicorn and FastAPI import once they run, and the health check."""


def import_all(further: Sequence[str]) -> None:
    """Import every module of ours that can be with what is installed here, and further ones."""
    ours = [module.name for module in walk_packages(comps.__path__, "comps.")]
    for name in [*ours, *LATE, *further]:
        with suppress(ImportError):
            import_module(name)


def main() -> None:
    """Compile what is loaded then."""
    assert sys.pycache_prefix, "PYTHONPYCACHEPREFIX says where to"
    import_all(sys.argv[1:])
    for module in list(sys.modules.values()):
        source, cached = getattr(module, "__file__", None), getattr(module, "__cached__", None)
        if source and cached and source.endswith(".py"):
            py_compile.compile(source, cached, doraise=True, invalidation_mode=UNCHECKED)


if __name__ == "__main__":
    main()
