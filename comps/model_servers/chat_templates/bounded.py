"""Jinja for chat templates, sandboxed and bounded: a template reaches nothing of Python, and it ends.

A template's own file may be from anywhere, and what it makes depends on what callers send. Its steps, the lengths of
what it joins, and its output have limits; more is an error, as of any template that does not take a conversation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sized
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_STEPS, _STEPS_OF_ITEM = 20_000, 20
"""Rounds of loops and calls of macros: of any template, and more for each message."""
_CHARACTERS, _TIMES = 1_000_000, 4
"""Characters of the output, and of each text on its way: of any template, and more for each that is filled in."""
_POWER_BITS = 10_000
_REPEATS: tuple[Any, ...] = (nodes.For, nodes.Macro, nodes.CallBlock)
"""The parts of a template that may run more than once."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with the settings and functions that Hugging Face's transformers gives to chat templates, with limits."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
        del self.globals["lipsum"]
        self.filters["tojson"] = _json
        self._left = threading.local()
        """Of the rendering that runs in a thread: `steps`, and `characters` of any text."""

    def rendered(self, template: jinja2.Template, filled: int, items: int, **values: Any) -> str:
        """Returns the output of a template.

        Args:
            template: A template of this environment.
            filled: The characters that may be filled in.
            items: The messages.
            **values: What the template gets.

        Raises:
            jinja2.TemplateError: It takes too many steps, or has too much text; and whatever the template raises.
        """
        self._left.steps = _STEPS + _STEPS_OF_ITEM * items
        self._left.characters = most = _CHARACTERS + _TIMES * filled
        output, length = [], 0
        for piece in template.generate(**values):
            output.append(piece)
            length += len(piece)
            if length > most:
                raise _too_long(most)
        return "".join(output)

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        """Compile a template whose loops and macros count their steps, and whose joined texts are measured."""
        for node in source.find_all(_REPEATS):
            node.body.insert(0, nodes.ExprStmt(_call("step")).set_lineno(node.lineno))
        for joined in list(source.find_all(nodes.Concat)):
            parts = nodes.Concat(joined.nodes)
            joined.nodes = [_call("measured", parts)]
        source.set_environment(self)
        return super()._generate(source, *arguments, **named)

    def step(self) -> None:
        """Count a step."""
        self._left.steps -= 1
        if self._left.steps < 0:
            raise jinja2.TemplateError("it does not come to an end")

    def measured(self, value: Any) -> Any:
        """Returns a value that is not too long."""
        if isinstance(value, Sized) and len(value) > self._left.characters:
            raise _too_long(self._left.characters)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        most = self._left.characters
        for one, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, Sized) and isinstance(times, int) and len(one) * times > most:
                raise _too_long(most)
        are_integers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and are_integers and left.bit_length() * right > _POWER_BITS:
            raise jinja2.TemplateError("a number in it is too large")
        return self.measured(super().call_binop(context, operator, left, right))


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    """Returns the call of a method of the environment."""
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def _too_long(most: int) -> jinja2.TemplateError:
    return jinja2.TemplateError(f"it makes more than {most} characters of this conversation")


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
