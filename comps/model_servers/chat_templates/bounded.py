"""Jinja for chat templates, sandboxed and bounded: a template reaches nothing of Python, and it ends.

A template's own file may be from anywhere, and what it makes depends on what callers send. All that it does is work,
which is taken from what is left (see `Work`): its loops, macros, literals and operators by nodes that are put into its
tree, its filters, tests and calls by what is around them. More is an error, as of any template that does not take a
conversation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from comps.model_servers.chat_templates.work import CALL, Work

_NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = frozenset(("encode", "expandtabs", "striptags", "to_bytes", "translate"))
"""What no chat template uses, and what may take much longer, or make much more, than it is given."""
_QUICK = frozenset(("abs", "attr", "count", "d", "default", "first", "float", "items", "last", "length", "random"))
"""Filters that read no more than an item."""
_READING = (
    *("in", "eq", "ne", "lt", "gt", "le", "ge", "==", "!=", "<", ">", "<=", ">="),
    *("equalto", "lessthan", "greaterthan", "lower", "upper"),
)
"""Tests that read all of a value."""
_TEXTS = frozenset(("_made_text", "escape", "join", "lower", "replace", "string", "tojson", "trim", "upper"))
"""Filters that return texts."""
_REPEATS = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
"""The parts of a template that may run more than once."""
_OF_DICTS = frozenset(dir(dict))
_OF_COMPILER = ("_loop_vars", "_block_vars")
"""Arguments that Jinja's compiler adds to calls."""
_LONGEST_DATE = 100


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with the settings and functions that Hugging Face's transformers gives to chat templates, with limits."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.globals.update(raise_exception=_raise, strftime_now=_now, namespace=_Namespace)
        del self.globals["lipsum"]
        self._rendering = threading.local()
        """Of the rendering that runs in a thread: its `work`."""
        self.concat = self._joined  # type: ignore[method-assign]
        for name in _NO_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = self._json
        for name in self.filters.keys() - _QUICK:
            self.filters[name] = self._bounded("%" if name == "format" else name, self.filters[name])
        for name in _READING:
            self.tests[name] = self._bounded(name, self.tests[name])
        self.filters.update(_taking_work(self._rendering))

    def rendered(self, template: jinja2.Template, filled: int, most_work: int | None = None, **values: Any) -> str:
        """Returns the output of a template.

        Args:
            template: A template of this environment.
            filled: The characters that may be filled in.
            most_work: See `Work`.
            **values: What the template gets.

        Raises:
            TooMuchWork: It takes too much work.
            jinja2.TemplateError: It has too much text; and whatever the template raises.
        """
        self._rendering.work = work = Work(filled, most_work)
        output, length = [], 0
        try:
            for piece in template.generate(**values):
                output.append(piece)
                length += len(piece)
                work.check(length)
        finally:
            del self._rendering.work
        return "".join(output)

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        """Compile a template with nodes that take the work of its own nodes."""
        source = _Measuring().visit(source)
        repeats: Iterable[Any] = source.find_all(_REPEATS)
        for node in repeats:
            node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(""), "_step")).set_lineno(node.lineno))
        source.set_environment(self)
        return super()._generate(source, *arguments, **named)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # Its hash is made anew each time.
            self._rendering.work.read(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        work: Work = self._rendering.work
        work.operation(operator, left, right)
        result = self.binop_table[operator](left, right)
        return work.number(result) if type(result) is int else result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        work: Work = self._rendering.work
        if isinstance(obj, Macro):
            work.spend(CALL)
            return super().call(context, obj, *args, **kwargs)
        method = getattr(obj, "__wrapped__", obj)  # What is around `str.format`.
        if type(obj) is BuiltinMethodType and type(obj.__self__) is dict and args and type(args[0]) is str:
            work.spend(0)  # The method `get`.
            return obj(*args)
        values = [_listed(one) for one in args]
        if not isinstance(method, (BuiltinMethodType, MethodType)):
            work.spend(CALL)
            work.call("", ["", *values], kwargs)
            return work.made(super().call(context, obj, *values, **kwargs))
        if method.__name__ in _NO_METHODS:
            raise jinja2.TemplateError(f"a chat template has no {method.__name__}()")
        for name in _OF_COMPILER:
            kwargs.pop(name, None)
        work.call(method.__name__, [method.__self__, *values], kwargs)
        return work.made(obj(*values, **kwargs))

    def _bounded(self, name: str, function: Any) -> Callable[..., Any]:
        """A filter or a test whose work is taken. Iterators become lists, so that they can be measured."""
        rendering, passed = self._rendering, 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **named: Any) -> Any:
            work: Work = rendering.work
            values = [_listed(one) for one in args[passed:]]
            work.call(name, values, named)
            return work.made(function(*args[:passed], *values, **named))

        return bounded

    def _joined(self, pieces: Iterable[str]) -> str:
        """What a block or a macro has written."""
        work: Work = self._rendering.work
        pieces = list(pieces)
        work.check(sum(map(len, pieces)))
        text = "".join(pieces)
        work.made(text)
        return text

    def _json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """The filter `tojson`, as transformers has it."""
        if indent is None and separators is None:
            return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        text, length = [], 0
        for piece in encoder.iterencode(value):
            text.append(piece)
            self._rendering.work.check(length := length + len(piece))
        return "".join(text)


def _taking_work(rendering: threading.local) -> dict[str, Callable[..., Any]]:
    """Filters that take work and return the value. They have a context, so that none is applied when it is compiled."""

    @pass_context
    def step(_: Context, value: Any) -> Any:
        rendering.work.spend(0)
        return value

    @pass_context
    def made(_: Context, value: Any) -> Any:
        return rendering.work.made(value)

    @pass_context
    def read(_: Context, value: Any) -> Any:
        return rendering.work.read(value)

    @pass_context
    def shown(_: Context, value: Any) -> Any:
        return value if type(value) is str else rendering.work.read(value)

    @pass_context
    def searched(_: Context, value: Any) -> Any:
        return value if type(value) is dict else rendering.work.read(value)

    return {"_step": step, "_made": made, "_made_text": made, "_read": read, "_shown": shown, "_searched": searched}


class _Measuring(NodeTransformer):
    """Puts filters into a template that take the work of its literals, operators, loops and outputs."""

    def get_visitor(self, node: nodes.Node) -> Any:
        """The method for a node: the name of its class in lower case is behind `measure_`."""
        return getattr(self, f"measure_{type(node).__name__.lower()}", None)

    def measure_output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_taken(one, "_shown") for one in node.nodes]
        return node

    def measure_concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_taken(one, "_shown") for one in node.nodes]
        return _filtered(node, "_made_text")

    def measure_for(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _taken(cast("nodes.Expr", node.iter), "_made")
        return node

    def measure_compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        looked_in = [one for one in node.ops if one.op in ("in", "notin")]
        for one in looked_in:
            one.expr = _taken(one.expr, "_searched")
        if looked_in or not all(_is_constant(one.expr) for one in node.ops):
            node.expr = _taken(node.expr, "_read")
        return node

    def measure_list(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _taken(node, "_made")

    def measure_tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _taken(node, "_made") if node.ctx == "load" else node

    def measure_dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _taken(pair.key, "_read")
        return _taken(node, "_made")

    def measure_getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _taken(node, "_made") if isinstance(node.arg, nodes.Slice) else node


class _Generation(Extension):
    """The tag `generation`: what the model has written, for those who train it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace whose text does not have its values, which may be namespaces again."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _is_constant(node: nodes.Expr) -> bool:
    return isinstance(node, nodes.Literal) and all(isinstance(one, nodes.Const) for one in node.iter_child_nodes())


def _taken(node: nodes.Expr, name: str) -> nodes.Expr:
    """The node, behind which a filter takes its work; a constant has none, and nor has a text that was made."""
    is_text = isinstance(node, nodes.Filter) and name == "_shown" and node.name in _TEXTS
    return node if _is_constant(node) or is_text else _filtered(node, name)


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    filtered = nodes.Filter(node, name, [], [], None, None)
    filtered.lineno = node.lineno
    return filtered


def _listed(value: Any) -> Any:
    return list(value) if hasattr(value, "__next__") else value


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    if len(form) > _LONGEST_DATE:
        raise jinja2.TemplateError("the form of a date in it is too long")
    return datetime.now().strftime(form)
