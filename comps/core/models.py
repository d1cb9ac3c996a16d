"""The served models, by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from comps.core.errors import Forbidden, UnknownModel
from comps.core.generator import TextGenerator
from comps.core.model_names import other_spelling


class Models:
    """The served models, by their public names.

    Args:
        generators: One for each model. The first is the default model.
        unlisted: A model that anybody may name, and that nothing lists; a served model of its name goes before it.
    """

    def __init__(self, generators: Sequence[TextGenerator], unlisted: TextGenerator | None = None) -> None:
        self._by_name = {generator.model: generator for generator in generators}
        self.unlisted = unlisted

    def __iter__(self) -> Iterator[TextGenerator]:
        return iter(self._by_name.values())

    def allowed(self, names: Collection[str]) -> list[TextGenerator]:
        """Returns the generators of the models with these names, or of all if there are no names."""
        return [generator for name, generator in self._by_name.items() if not names or name in names]

    def named(self, name: str | None, any_name: bool = False, allowed: Collection[str] = ()) -> TextGenerator:
        """Returns the generator of a model; for None or an empty name, that of the first model that may be used.

        Args:
            name: The model's public name; a tag `latest` may be there or not.
            any_name: If only one model is served, accept any name for it.
            allowed: The names of the models that may be used; none: all. They do not restrict the unlisted model.

        Raises:
            UnknownModel: No served model has that name.
            Forbidden: The model may not be used.
        """
        if name and self.unlisted and name == self.unlisted.model and name not in self._by_name:
            return self.unlisted
        if not name or (any_name and len(self._by_name) == 1):
            first = next(iter(self))
            if not allowed or first.model in allowed:
                return first
            name = next((one.model for one in self.allowed(allowed)), first.model)
        name = self.served_name(name)
        if name not in self._by_name:
            raise UnknownModel(name, ", ".join(one.model for one in self.allowed(allowed)))
        if allowed and name not in allowed:
            raise Forbidden(f"'{name}' may not be used with this API key", "model")
        return self._by_name[name]

    def served_name(self, name: str) -> str:
        """Returns the public name that a name stands for: with the tag `latest` or without it, if that is served."""
        other = other_spelling(name)
        return other if name not in self._by_name and other in self._by_name else name
