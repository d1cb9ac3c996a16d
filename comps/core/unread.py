"""Counts the parts of model servers' answers that were not understood, and were left out.

An answer is read part by part: a part that is not needed for the text never costs the text.
"""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("opea_llm")

UNREAD: Counter[str] = Counter()
"""How many parts were left out since the process began, by the name of the part."""


def left_out(part: str) -> None:
    """Count a part that was not understood.

    Args:
        part: Its name, such as `usage`; one of a few, since it is a label of a metric.
    """
    UNREAD[part] += 1
    log.debug("a part of the model server's answer was not understood: %s", part)
