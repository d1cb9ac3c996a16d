"""Long prompts of the OpenVINO engine, read in pieces between which other answers go on.

OpenVINO GenAI reads as many tokens of a prompt in a step as `max_num_batched_tokens` says, 256, however long that
takes: attention goes over all tokens before them. So a long prompt is asked as its beginning, then as a longer
beginning, and so on, each for one token that nobody reads. A beginning stays in the prefix cache when it is done, and
the next one is taken from there when it is added, so only what is new in it is read: a piece, in one step. The request
itself comes last, with what is left to read.

Small pieces cost time: attention unpacks the cache for each. So while nothing else is answered, pieces have 256 tokens.

Source: `restore_cached_blocks` and `schedule` in
https://github.com/openvinotoolkit/openvino.genai/tree/master/src/cpp/src/continuous_batching
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from comps.model_servers.embedded.decoding import LEAST_CHUNK, Chunks

_FIRST_PIECE = 2**63 + 1
"""The number of the first piece in the pipeline, above the numbers of all requests."""
_REMEMBERED = 8
"""How many of the prompts that were read are remembered."""
_SHORT = 4
"""A prompt that is read in so many steps of the pipeline is not long: attention has little to go over yet."""


class PieceAdder:
    """Adds beginnings of prompts to a pipeline, each for one token that nobody reads.

    Args:
        pipeline: OpenVINO GenAI's, with a prefix cache.
        tensor: OpenVINO's class.
    """

    def __init__(self, pipeline: Any, tensor: Callable[[Any], Any]) -> None:
        self._pipeline, self._tensor = pipeline, tensor
        self._numbers = count(_FIRST_PIECE)

    def add(self, ids: Any) -> Any:
        """Add the tokens in an array; returns OpenVINO's handle."""
        config = self._pipeline.get_config()
        config.max_new_tokens, config.do_sample = 1, False
        return self._pipeline.add_request(next(self._numbers), self._tensor(ids[None, :]), config)

    def seconds_per_token(self) -> float:
        """How long a token takes at the beginning of a prompt, measured on a short one."""
        import numpy

        took = []
        for token in range(4):  # The first run also sets up the model; others may be delayed by other programs.
            started = time.perf_counter()
            handle = self.add(numpy.full(LEAST_CHUNK, token))
            while not handle.can_read():
                self._pipeline.step()
            took.append(time.perf_counter() - started)
        return min(took) / LEAST_CHUNK


class PromptReader:
    """Reads long prompts in pieces, one prompt after the other.

    A prompt that begins as an earlier one did is first asked up to where it differs: mostly that is in the cache.

    Args:
        add: Adds a beginning to the pipeline and returns its handle; see `PieceAdder`.
        chunks: How large the pieces are. Their `most` is what the pipeline reads in a step.
    """

    def __init__(self, add: Callable[[Any], Any], chunks: Chunks) -> None:
        self._add, self._chunks = add, chunks
        self._waiting: deque[tuple[int, Any]] = deque()
        """The requests and the tokens of their prompts; the first one is being read."""
        self._piece: Any = None
        """The handle of the beginning that is in the pipeline."""
        self._end = 0
        """How many tokens it has."""
        self._expected = False
        """Whether it is expected in the cache as a whole."""
        self._read: deque[Any] = deque(maxlen=_REMEMBERED)
        """What was read of the latest prompts."""

    def takes(self, ids: Any) -> bool:
        """Whether a prompt of these tokens is so long that steps of the pipeline would take too long for it."""
        most = self._chunks.most
        return len(ids) > _SHORT * most and self._chunks.after(len(ids)) < most

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, ids: Any) -> None:
        """Add the prompt of a request.

        Args:
            number: The request's.
            ids: The tokens in an array; `takes` is true of them.
        """
        self._waiting.append((number, ids))

    def cancel(self, number: int) -> None:
        """Read no further in the prompt of a request, if it is here."""
        if self._piece and self._waiting[0][0] == number:
            self._piece.cancel()
            self._leave()
        self._waiting = deque(one for one in self._waiting if one[0] != number)

    def step(self, alone: bool) -> int | None:
        """Add the next piece, before a step of the pipeline.

        Args:
            alone: Whether nothing is being answered meanwhile.

        Returns:
            The request whose prompt is read as far as pieces go: it can be added to the pipeline itself.
        """
        if not self._waiting:
            return None
        ids = self._waiting[0][1]
        known = 0 if self._piece else self._known(ids)
        if self._piece:
            status = self._piece.get_status().name
            if status == "RUNNING" and not self._expected:
                return None
            if status == "RUNNING":  # The cache has lost it, and the pipeline would read it in its own steps.
                self._piece.cancel()
                self._end = 0
            elif status == "IGNORED":  # There is no room. If there is none later, the request itself is told so.
                return self._leave()
        size = self._chunks.most if alone else self._chunks.after(self._end)
        if self._end + size >= len(ids):
            return self._leave()
        self._expected = known > size
        self._end = max(self._end + size, known)
        self._piece = self._add(ids[: self._end])
        return None

    def _known(self, ids: Any) -> int:
        """How many tokens of a prompt were read before, with another one; all blocks of the cache that they fill."""
        return max((_common(ids, read) for read in self._read), default=0) // LEAST_CHUNK * LEAST_CHUNK

    def _leave(self) -> int:
        """Go on to the next prompt; returns the request whose prompt it was."""
        number, ids = self._waiting.popleft()
        self._read.append(ids[: self._end])
        self._piece, self._end, self._expected = None, 0, False
        return number


def _common(ids: Any, others: Any) -> int:
    """How many tokens two arrays have in common at their beginning."""
    length = min(len(ids), len(others))
    differs = ids[:length] != others[:length]
    return int(differs.argmax()) if differs.any() else length
