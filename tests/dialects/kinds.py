"""The kinds of bodies of all dialects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from comps.dialects import DIALECTS, open_dialect
from comps.dialects.shared.base import Call, Dialect, GenerationCall


@dataclass(frozen=True)
class Kind:
    """A kind of body, and where it is read."""

    dialect: str
    route: str
    call: type[Call]

    def __str__(self) -> str:
        return f"{self.dialect}{self.route}{f'[{self.call.marker}]' if self.call.marker else ''}"

    @property
    def path(self) -> str:
        """Where to post; if the path has the model's name in it, with the one that is served."""
        return self.route.replace("{model:path}", "scripted")

    @property
    def examples(self) -> list[dict[str, Any]]:
        return list(self.call.examples.values())

    def bodies(self, streamed: bool | None = None) -> list[dict[str, Any]]:
        """Its examples, streamed and not; or those that are (not) answered by a stream."""
        if not issubclass(self.call, GenerationCall):
            return [] if streamed else self.examples
        ways: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": False}]
        bodies = [{**example, **way} for example in self.examples for way in ways]
        return [body for body in bodies if streamed is None or self._is_streamed(body) is streamed]

    def _is_streamed(self, body: dict[str, Any]) -> bool:
        call = self.call.model_validate({**body, **self.variables})
        assert isinstance(call, GenerationCall)
        return call.streamed

    def reads(self, body: dict[str, Any]) -> bool:
        """Whether there is nothing wrong with any field."""
        try:
            self.call.model_validate({**body, **self.variables})
        except ValidationError:
            return False
        return True

    def answers(self, body: dict[str, Any]) -> int:
        """How many answers of a model it asks for."""
        call = self.call.model_validate({**body, **self.variables})
        return len(call.requests()) if isinstance(call, GenerationCall) else 1

    @property
    def variables(self) -> dict[str, str]:
        """What the path says."""
        return {"model": "scripted"} if "{model" in self.route else {}


def dialects() -> list[Dialect]:
    return [open_dialect(name, None) for name in DIALECTS]


KINDS = [Kind(one.name, path, call) for one in dialects() for path, calls in one.calls.items() for call in calls]
