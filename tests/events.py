"""Events of an answer, put together for tests."""

from __future__ import annotations

from collections.abc import Iterable

from comps.core.answers import Collector
from comps.core.redaction import texts_of
from comps.core.types import Event, Finished, Generation, Prompt


def gathered(events: Iterable[Event]) -> Generation:
    """The whole answer that events make; raises as `Collector.generation`."""
    collector = Collector()
    for event in events:
        if isinstance(event, Finished):
            collector.finished(event)
        else:
            collector.delta(event)
    return collector.generation()


def texts(prompt: Prompt) -> str:
    """All texts in a prompt, a line each."""
    return "\n".join(texts_of(prompt))
