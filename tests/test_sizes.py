"""Size limits: no file in comps and impl has more than 400 lines of code, and no function more than 40 lines."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.process import ROOT

MAX_FILE_LINES = 400
"""Lines that are neither blank, nor a comment, nor part of a docstring."""
MAX_FUNCTION_LINES = 40
"""Lines from `def` to the end, without the docstring."""
FILES = sorted(file for folder in ("comps", "impl") for file in (ROOT / folder).rglob("*.py"))
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines(node: ast.stmt) -> range:
    assert node.end_lineno
    return range(node.lineno, node.end_lineno + 1)


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a string alone: a docstring of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_lines(file: Path) -> set[int]:
    """The numbers of the lines that have code."""
    with file.open("rb") as source:
        tokens = [token for token in tokenize.tokenize(source.readline) if token.type not in NO_CODE]
    code = {number for token in tokens[1:] for number in range(token.start[0], token.end[0] + 1)}
    statements = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.stmt)]
    return code.difference(*map(lines, filter(is_docstring, statements)))


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """The name of each function with its number of lines."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, Function):
            docstring = len(lines(node.body[0])) if is_docstring(node.body[0]) else 0
            yield f"{node.name} at line {node.lineno}", len(lines(node)) - docstring


def test_a_file_has_at_most_400_lines_of_code() -> None:
    assert {file: size for file in FILES if (size := len(code_lines(file))) > MAX_FILE_LINES} == {}


def test_a_function_has_at_most_40_lines() -> None:
    sizes = [(file, *one) for file in FILES for one in functions(file)]
    assert [one for one in sizes if one[-1] > MAX_FUNCTION_LINES] == []


SAMPLE = '''"""A docstring
of two lines."""

# A comment.
value = """one

three"""  # Code.
"""The docstring of an attribute."""


def function(
    argument: int,
) -> None:
    """A docstring."""

    # A comment.
    print(argument)
'''


def test_only_code_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE)
    assert code_lines(file) == {5, 6, 7, 11, 12, 13, 17}
    assert list(functions(file)) == [("function at line 11", 6)]
