"""The served models, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comps.core.errors import UnknownModel
from comps.core.generator import TextGenerator


class Models:
    """The served models, by their public names.

    Args:
        generators: One for each model. The first is the default model.
    """

    def __init__(self, generators: Sequence[TextGenerator]) -> None:
        self._by_name = {generator.model: generator for generator in generators}

    def __iter__(self) -> Iterator[TextGenerator]:
        return iter(self._by_name.values())

    def named(self, name: str | None, any_name: bool = False) -> TextGenerator:
        """Returns the generator of a model; for None or an empty name, that of the default model.

        Args:
            name: The model's public name.
            any_name: If only one model is served, accept any name for it.

        Raises:
            UnknownModel: No served model has that name.
        """
        if not name or (any_name and len(self._by_name) == 1):
            return next(iter(self))
        if name not in self._by_name:
            raise UnknownModel(name, ", ".join(self._by_name))
        return self._by_name[name]
