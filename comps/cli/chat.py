"""`opea-llm chat`: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import typer

from comps.cli.answering import Answering, opened
from comps.cli.common import (
    URL,
    APIKey,
    ConfigFile,
    Documents,
    MaxTokens,
    OneModel,
    System,
    Temperature,
    expected_errors,
    let_interrupt,
)
from comps.cli.documents import asking
from comps.cli.printing import PrintedAnswer
from comps.core.errors import LLMError, for_operator
from comps.core.types import GenerationRequest, Message
from comps.exit_codes import FAILED
from comps.messages import message

_HELP = "/quit (or Ctrl-D) ends the chat, /reset forgets it, Ctrl-C stops an answer"


@expected_errors
def chat(
    document: Documents = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    system: System = "",
    model: OneModel = None,
    url: URL = "",
    api_key: APIKey = "",
    config: ConfigFile = None,
) -> None:
    """Ask one question after the other.

    Each line of the input is a question. The documents, if there are any, are there for all of them.

    /quit (or Ctrl-D) ends the chat, /reset forgets it, Ctrl-C stops an answer. If the questions come from a pipe or a
    file and one of them fails, the others are still asked, and the exit code is 1.

    \b
    Examples:
      opea-llm chat --document handbook.pdf
      opea-llm chat --url http://localhost:9000 --system "Answer briefly."
      printf 'Who are you?\\nAnd what do you do?\\n' | opea-llm chat
    """
    first = replace(asking((), document, max_tokens, temperature), model=model)
    answering = opened(config, url, api_key, model)
    can_stop, loop = let_interrupt(), asyncio.new_event_loop()
    try:
        loop.run_until_complete(answering.load())
        has_failed = _Conversation(loop, answering, first, system, can_stop).run()
    finally:
        loop.run_until_complete(answering.aclose())
        loop.close()
    if has_failed and not sys.stdin.isatty():
        raise typer.Exit(FAILED)


class _Conversation:
    """A conversation: reads questions from standard input, and prints the answers.

    Args:
        loop: Runs the answers.
        answering: What answers.
        first: A request without messages, with all else that each request has.
        system: The system message; empty: none.
        can_stop: Whether Ctrl-C can stop an answer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answering: Answering,
        first: GenerationRequest,
        system: str,
        can_stop: bool,
    ) -> None:
        self._loop = loop
        self._answering = answering
        self._request = first
        self._begin = (Message("system", system),) if system else ()
        self._messages = self._begin
        self._can_stop = can_stop
        self._has_failed = False

    def run(self) -> bool:
        """Answer until the end of the input, or /quit; returns whether a question has failed."""
        read = _reader()
        while (line := self._line(read)) is not None:
            question = line.strip()
            if question == "/quit":
                break
            if question == "/reset":
                self._messages = self._begin
                message("[the conversation is forgotten]")
            elif question.startswith("/") and question[1:].isalpha():
                message(f"[{_HELP}]")
            elif question:
                self._ask(question)
        return self._has_failed

    def _line(self, read: Callable[[], str | None]) -> str | None:
        while True:
            try:
                return read()
            except KeyboardInterrupt:
                message(f"\n[{_HELP}]")

    def _ask(self, question: str) -> None:
        """Answer a question. It and its answer are remembered, unless there is none."""
        asked = (*self._messages, Message("user", question))
        answer = PrintedAnswer(self._request.sampling.max_tokens)
        task = self._loop.create_task(self._answering.answer(replace(self._request, prompt=asked), answer))
        if self._can_stop:
            self._loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        except LLMError as error:
            self._has_failed = True
            message(f"opea-llm: {for_operator(error)}")
        finally:
            if self._can_stop:
                self._loop.remove_signal_handler(signal.SIGINT)
        if task.cancelled():
            print(flush=True)
            message("[stopped]")
        if said := "".join(answer.written):
            self._messages = (*asked, Message("assistant", said))


def _reader() -> Callable[[], str | None]:
    """Returns the function that reads a line, with a prompt, history and editing on a terminal; None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: sys.stdin.readline() or None
    with suppress(ImportError):
        import readline  # noqa: F401  # It gives `input` history and editing.
    message(f"[{_HELP}]")

    def read() -> str | None:
        try:
            return input("> ")
        except EOFError:
            print()
            return None

    return read
