"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of


def version() -> str:
    """Returns the installed version; 0 in a checkout that is not installed."""
    try:
        return version_of("opea-llm-microservice")
    except PackageNotFoundError:
        return "0"
