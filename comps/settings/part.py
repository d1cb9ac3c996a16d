"""A section as it is read: the environment before the file before the defaults, each value with its source."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from comps.config_files.base import ConfigFile, nearest
from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.settings.engine_values import is_secret, masked, typed, written
from comps.settings.sections import Model, Section
from comps.settings.variables import environment_names, of_file, variable_of

ENGINE = "LLM_ENGINE_"
"""How the environment variable of an engine's own setting begins; the setting is the rest, in small letters."""

_SECRET = re.compile("key|token|secret|password")
_SLIP = 0.8
"""How alike a key that is none of ours must be to one of ours to be taken for a slip of the pen."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it stands, for whoever looks for the reason of something."""

    section: str
    key: str
    value: str
    """Secrets are masked."""
    source: str
    """`environment USVC_PORT`, the file's path, `[Model]` where a further model has its value, or `default`."""


class Part:
    """A section as it is read.

    Args:
        name: Its heading.
        kind: Its keys; a further model has a class of its own.
        file: What the file says, here and elsewhere.
        ending: Of the environment variables of a further model.
        inherited: The keys whose defaults come from [Model].

    Raises:
        SettingsError: A value is wrong.
    """

    engine_above: Part | None = None
    """Where engine settings come from that are not set here."""

    def __init__(
        self,
        name: str,
        kind: type[Section],
        file: ConfigFile,
        *,
        ending: str = "",
        inherited: Collection[str] = (),
    ) -> None:
        self.name = name
        self.ending = ending
        self.engine: dict[str, JSON] = {}
        self._fields = kind.model_fields
        self._written = dict(file.sections.get(name, {}))
        self._file = file
        self._inherited = inherited
        self._engine_sources: dict[str, str] = {}
        try:
            self.values: Any = kind(**dict(self._given()))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            key = str(first["loc"][0])
            value = "***" if self._fields[key].annotation is SecretStr else first["input"]
            raise self._wrong(key, f" = {value!s}: {first['msg'].removeprefix('Value error, ')}") from None

    def _given(self) -> Iterator[tuple[str, str | SecretStr]]:
        """What the file says, and the files that the environment names; the rest is in the environment itself."""
        for key, info in self._fields.items():
            # Under the name of its variable, and only where none is set: so each value has one source.
            own, variable = next(environment_names(info)), variable_of(info)
            if key in self._written and info.annotation is SecretStr:
                raise SettingsError(
                    f"{self._file}: [{self.name}] {key}: a secret comes from the environment only: {own}, or "
                    f"{of_file(own)} with the path of a file"
                )
            if variable and variable not in environment_names(info):
                yield own, self._secret(key, variable)
            elif key in self._written and not variable:
                yield own, self._written[key]

    def _secret(self, key: str, variable: str) -> SecretStr:
        path = os.environ[variable]
        try:
            text = Path(path).read_text("utf-8").removesuffix("\n")
        except OSError as error:
            raise self._wrong(key, f": the file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._wrong(key, f": the file {path} cannot be read: it is not UTF-8 text") from None
        if not text:
            raise self._wrong(key, f": the file {path} is empty")
        return SecretStr(text)

    def leave_engine_of_another(self) -> Iterator[str]:
        """Forget the engine's settings of a file that came with its own model server, if the environment has another
        one; a sentence that says so."""
        own = self._written.get("model_server")
        if self._file.first_dialect and own != self.values.model_server:
            self._written = {key: text for key, text in self._written.items() if key in self._fields}
            kind, source = self.values.model_server, self._source("model_server")
            yield f"{self._file}: no effect here: its settings of {own}; {source} has {kind}"

    def check(self, kinds: Collection[str], without_engine: Collection[str]) -> None:
        """Raise if the section as a whole makes no sense; what is the engine's is known afterwards."""
        if not isinstance(self.values, Model):
            self._refuse_unknown()
            return
        self.check_known("model_server", self.values.model_server, kinds)
        if self.values.model_server in without_engine:
            self._refuse_unknown()
            for variable, key in self._engine_variables():
                why = f"{self.values.model_server} has no engine that could be set"
                raise SettingsError(f"environment {variable}: [{self.name}] {key}: {why}")
        self._read_engine()
        self._check_credentials()

    def check_known(self, key: str, value: str, known: Collection[str]) -> None:
        """Raise if the value is none of those that there are."""
        if value not in known:
            raise self._wrong(key, f" = {value}: unknown{nearest(value, known)}")

    def _refuse_unknown(self) -> None:
        for key in self._written:
            if key not in self._fields:
                raise self._unknown(key)

    def _unknown(self, key: str) -> SettingsError:
        shown = "***" if _SECRET.search(key) else self._written[key]
        source = self._file.source(self.name, key)
        return SettingsError(f"{source}: unknown key [{self.name}] {key} = {shown}{nearest(key, self._fields)}")

    def _read_engine(self) -> None:
        if self.engine_above:
            self.engine |= self.engine_above.engine
            self._engine_sources |= dict.fromkeys(self.engine, f"[{self.engine_above.name}]")
        for key, text in self._written.items():
            if key not in self._fields:
                source = self._file.source(self.name, key)
                if get_close_matches(key, self._fields, n=1, cutoff=_SLIP):
                    raise self._unknown(key)
                if is_secret(key):
                    own = f"{ENGINE}{key.upper()}{self.ending}"
                    why = f"a secret comes from the environment only: {own}"
                    raise SettingsError(f"{source}: [{self.name}] {key}: {why}")
                self._take(key, text, source)
        for variable, key in self._engine_variables():
            self._take(key, os.environ[variable], f"environment {variable}")

    def _engine_variables(self) -> Iterator[tuple[str, str]]:
        for variable in os.environ:
            key, two, rest = variable.removeprefix(ENGINE).partition("__")
            if variable.startswith(ENGINE) and key and two + rest == self.ending:
                yield variable, key.lower()

    def _take(self, key: str, text: str, source: str) -> None:
        try:
            self.engine[key] = typed(text)
        except ValueError as error:
            shown = "***" if is_secret(key) else text
            raise SettingsError(f"{source}: [{self.name}] {key} = {shown}: {error}") from None
        self._engine_sources[key] = source

    def _check_credentials(self) -> None:
        """Raise if of what belongs together only a part is there."""
        for whole, needs in (
            ("token_url", ("client_id", "client_secret")),
            ("client_id", ("token_url",)),
            ("client_secret", ("token_url",)),
            ("client_key", ("client_certificate",)),
        ):
            for other in needs:
                if self._is_set(whole) and not self._is_set(other):
                    own = next(environment_names(self._fields[other]))
                    raise self._wrong(whole, f": needs {other} ({own}) as well")

    def _is_set(self, key: str) -> bool:
        value = getattr(self.values, key)
        return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)

    def listing(self) -> Iterator[Setting]:
        """Every setting of the section."""
        for key in self._fields:
            yield Setting(self.name, key, written(getattr(self.values, key)), self._source(key))
        for key, value in self.engine.items():
            yield Setting(self.name, key, written(masked(key, value)), self._engine_sources[key])

    def _source(self, key: str) -> str:
        if variable := variable_of(self._fields[key]):
            return f"environment {variable}"
        if key in self._written:
            return self._file.source(self.name, key)
        return "[Model]" if key in self._inherited else "default"

    def _wrong(self, key: str, what: str) -> SettingsError:
        return SettingsError(f"{self._source(key)}: [{self.name}] {key}{what}")
