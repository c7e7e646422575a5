"""Functions stay short, and none passes on keywords that mypy cannot follow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BRANCHES, LINES = 12, 60
_BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.BoolOp,
    ast.comprehension,
    ast.match_case,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
FILES = sorted(
    file
    for package in ("puma_actors", "models", "protocols")
    for file in ROOT.glob(f"{package}/**/*.py")
)


def functions(source: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def branches(function: Function) -> int:
    """Places where it may go another way, those of functions inside of it too."""
    return sum(isinstance(node, _BRANCHES) for node in ast.walk(function))


def lines(function: Function) -> int:
    """The lines of a function without its docstring."""
    first, last = function.body[0], function.end_lineno or 0
    said = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        said = (first.end_lineno or 0) - first.lineno + 1
    return last - function.lineno + 1 - said


def too_long(source: str) -> list[str]:
    return [
        f"{function.name}: {lines(function)} lines, {branches(function)} branches"
        for function in functions(source)
        if lines(function) > LINES or branches(function) > BRANCHES
    ]


def untyped(source: str) -> list[str]:
    return [
        function.name
        for function in functions(source)
        if function.args.kwarg is not None
        and ast.unparse(function.args.kwarg.annotation or ast.Name("Any")) == "Any"
    ]


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if "kernels" not in file.parts],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_functions_are_short(file):
    assert too_long(file.read_text("utf-8")) == []


def test_keywords_are_typed():
    found = {str(file): untyped(file.read_text("utf-8")) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_what_is_too_long_or_not_typed_is_noticed():
    """Negative control."""
    crowded = "def f(x):\n" + "    if x: pass\n" * (BRANCHES + 1)
    assert too_long(crowded) == [f"f: {BRANCHES + 2} lines, {BRANCHES + 1} branches"]
    assert too_long("def f():\n" + "    g()\n" * LINES) == [f"f: {LINES + 1} lines, 0 branches"]
    assert too_long("def f():\n    'said'\n" + "    g()\n" * (LINES - 1)) == []
    assert untyped("def f(**k: Any): pass\nasync def g(**k): pass") == ["f", "g"]
    assert untyped("def f(**k: Unpack[Options]): pass\ndef g(**k: bool): pass") == []
