"""The base class of the sections of the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from comps.core.redaction import without_keys
from comps.settings.field_types import unquoted


class Section(BaseSettings):
    """Base class of the sections. Arguments override the environment, which overrides the defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=True, loc_by_alias=False)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Yields the settings without what looks like a key, such as the password in a URL."""
        for name, value in super().__repr_args__():
            yield name, without_keys(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotes(cls, value: Any) -> Any:
        return unquoted(value)
