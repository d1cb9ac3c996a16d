"""What the writer of a call makes of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from comps.core.types import Event, Finished, Report
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.framing import ResponseMetadata

METADATA = ResponseMetadata("0123456789abcdef0123456789abcdef", 1_700_000_000, "tiny")


def written(call: GenerationCall, *events: Event, reports: Mapping[int, Report] | None = None) -> list[bytes]:
    """The items of a whole streamed answer."""
    items: list[bytes] = []
    writer = call.writer(replace(METADATA, reports=reports or {}), items.append)
    for event in events:
        if isinstance(event, Finished):
            writer.finished(event)
        elif event.text and not event.extra:
            writer.text(event.text, event.choice)
        else:
            writer.delta(event)
    writer.close()
    return items
