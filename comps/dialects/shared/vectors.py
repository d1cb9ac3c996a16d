"""How vectors are encoded."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Sequence


def in_base64(vector: Sequence[float]) -> str:
    """A vector as little-endian float32 in base64."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
