"""`Recorder`: writes records into a folder, beside the event loop."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from threading import Semaphore

from comps.core.errors import SettingsError
from comps.logs import log
from comps.messages import message
from comps.recording.drafts import Draft
from comps.recording.record import record_of
from comps.settings import Settings

MOST_FILES = 10_000
"""The files in a folder of records; the oldest go first."""
_MOST_PENDING = 1000
"""Records that wait to be written; what comes beyond that is not recorded."""
_LOOK_AGAIN = 50
"""After how many records the folder is looked at again, since other workers write into it as well."""
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[\w.-]*\.json")
"""The names of records; no other file of the folder is removed."""


class Recorder:
    """Writes records into a folder, of which the oldest files go when it is full.

    Args:
        settings: Those of the service.

    Raises:
        SettingsError: The folder cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        logging = settings.logging
        self._settings = settings
        self._folder = Path(logging.record)
        self._most = logging.record_mb * 1_000_000
        self._pool = ThreadPoolExecutor(1, "record")
        self._room = Semaphore(_MOST_PENDING)
        self._written = 0
        """Bytes since the folder was looked at."""
        self._number = 0
        self._failed = False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "permission denied")
        except OSError as error:
            raise SettingsError(f"[Logging] record = {logging.record}: cannot be written: {error.strerror}") from None

    @asynccontextmanager
    async def around(self, service: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Lifespan: that of the service, and then until all records are written."""
        logging = self._settings.logging
        what = "question, document and answer" if logging.record_prompts else "hash of question and answer"
        said = f"record = {self._folder}: every request is kept there, with the {what}; {logging.record_mb} MB at most"
        log.warning("%s", said)
        if logging.log_path:
            message(f"warning: {said}")
        async with service:
            yield
        await asyncio.to_thread(self._pool.shutdown)

    def keep(self, draft: Draft) -> None:
        """Write the record of a request, some time later."""
        if draft.model not in self._settings.models:
            return
        if self._room.acquire(blocking=False):
            self._pool.submit(self._write, draft)
        else:
            self._fail(f"{_MOST_PENDING} records wait to be written")

    def _write(self, draft: Draft) -> None:
        try:
            record = record_of(draft, self._settings, with_texts=self._settings.logging.record_prompts)
            data = json.dumps(record, ensure_ascii=False, indent=1, default=str).encode("utf-8", "replace")
            self._number += 1
            name = f"{datetime.fromtimestamp(draft.began, timezone.utc):%Y%m%dT%H%M%S.%fZ}-{_safe(draft.id)}"
            file = self._folder / f"{name}-{os.getpid()}.{self._number}.json"
            part = file.with_suffix(".part")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
                written.write(data)
            part.replace(file)
            self._written += len(data)
            if self._number % _LOOK_AGAIN == 1 or self._written > self._most // 20:
                self._make_room()
            self._failed = False
        except Exception as error:  # Whatever it is, no request fails of it.
            self._fail(str(error) if isinstance(error, OSError) else type(error).__name__)
        finally:
            self._room.release()

    def _fail(self, why: str) -> None:
        """Log, once, that a record is not written."""
        if not self._failed:
            log.error("record = %s: not all requests are recorded: %s", self._folder, why)
        self._failed = True

    def _make_room(self) -> None:
        """Remove the oldest records beyond the limits."""
        self._written = 0
        files = sorted(file for file in self._folder.iterdir() if _NAME.fullmatch(file.name))
        sizes = {file: file.stat().st_size for file in files}
        total = sum(sizes.values())
        for file in files:
            if total <= self._most and len(sizes) <= MOST_FILES:
                return
            file.unlink(missing_ok=True)
            total -= sizes.pop(file)


def _safe(name: str) -> str:
    """Returns a request's id, which its client may have chosen, as part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]
