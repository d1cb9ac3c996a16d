"""The log: where it is written, and in which form: text or JSON, a line for each record."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from comps.core.request_id import REQUEST_ID

log = logging.getLogger("opea_llm")

_TELL_AGAIN_SECONDS = 60.0
"""Seconds between two lines on standard error about a log file that cannot be written."""
_MOST_LINES, _LONGEST_MESSAGE = 200, 1000
"""Of a traceback in the log, and of the message of an error in it."""


class Logged(Protocol):
    """What a `RequestLine` is about."""

    def line(self, server: str) -> str:
        """Returns the line in text."""
        ...

    def fields(self, server: str) -> dict[str, Any]:
        """Returns what it says, by name."""
        ...


class RequestLine:
    """The message of a record about one request: text, or fields.

    Args:
        exchange: The request and its answer.
        server: The kind of the model's server.
    """

    __slots__ = ("_exchange", "_server")

    def __init__(self, exchange: Logged, server: str) -> None:
        self._exchange = exchange
        self._server = server

    def __str__(self) -> str:
        return self._exchange.line(self._server)

    def fields(self) -> dict[str, Any]:
        """Returns what it says, by name."""
        return self._exchange.fields(self._server)


def start_log(level: str, path: str, form: str = "text") -> None:
    """Write the log to a file, or to standard error if `path` is empty.

    Args:
        level: The level, by its name.
        path: The file.
        form: `text` or `json`.

    Raises:
        OSError: The file cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler()
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(formatter(form))
    # Fields that the format does not use are not collected: https://docs.python.org/3/howto/logging.html#optimization.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level)
    # uvicorn's lines about its own start say that it runs while the model still loads; ours say when it is ready.
    logging.getLogger("uvicorn").setLevel(max(log.level, logging.WARNING))


def formatter(form: str) -> logging.Formatter:
    """Returns what formats the log's records: as `text` or `json`."""
    return _JSONFormatter() if form == "json" else _Formatter()


def as_logged(text: str) -> str:
    """Returns a text for the operator in the form of the log: as it is, or as a line of JSON."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    if not any(isinstance(one, _JSONFormatter) for one in formatters):
        return text
    return _JSONFormatter().format(logging.LogRecord(log.name, logging.INFO, "", 0, text, None, None))


class _LogFile(logging.FileHandler):
    """The log file. If it cannot be written, as on a full disk, standard error tells so, and requests go on."""

    _told = -_TELL_AGAIN_SECONDS

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name.
        now = time.monotonic()
        if now - self._told >= _TELL_AGAIN_SECONDS:
            self._told = now
            with suppress(OSError):
                print(f"the log cannot be written: {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)


def log_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what an event loop reports, such as the error of a task that nobody awaits, without its `repr`."""
    log.error("%s", context["message"], exc_info=context.get("exception"))


class _Formatter(logging.Formatter):
    """Formats `[time] [level] logger: message`, each second only once. There is a line for every request.

    No text of a caller's or a model server's begins a line or moves a terminal's cursor: what is not displayed is
    escaped. A traceback has the places and the types of the errors, but their messages at the level DEBUG only, since
    they may quote prompts. A line at the level DEBUG has the id of the request.
    """

    _second = 0
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if record.levelno == logging.DEBUG and (said := REQUEST_ID.get()):
            record.message = f"{record.message} id={said}"
        line = self.formatMessage(record)
        if not line.isprintable():
            line = _displayed(line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name.
        error, lines = ei[1], list[str]()
        while error is not None and len(lines) < _MOST_LINES:
            places = traceback.extract_tb(error.__traceback__)
            told = f": {error}"[:_LONGEST_MESSAGE] if log.isEnabledFor(logging.DEBUG) else ""
            lines.append(_displayed(f"  {type(error).__qualname__}{told}"))
            lines += [f"    {one.filename}:{one.lineno} in {one.name}" for one in places]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n".join(lines)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name.
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, self.converter(record.created))
        return f"[{self._text},{int(record.msecs):03d}] [{record.levelname:>8}] {record.name}: {record.message}"


class _JSONFormatter(_Formatter):
    """Formats a JSON object in each line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, and `request_id` within
    a request; a request's own line has its fields, too. A traceback is a list of lines in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{begun}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, RequestLine):
            fields = record.msg.fields()
            said |= {"message": f"{fields['path']} {fields['outcome']}", **fields}
        else:
            said["message"] = record.getMessage()
            if request := REQUEST_ID.get():
                said["request_id"] = request
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info).splitlines()
        return json.dumps(said)


def _displayed(text: str) -> str:
    """Returns text with the characters that are not displayed, such as line breaks, as Python's escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
