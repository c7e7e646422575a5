"""What is private stays private: classes of the runtime are put together, not opened up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "puma_actors"
FILES = sorted(PACKAGE.rglob("*.py"))
OWN = ("self", "cls")
OF_NAMED_TUPLES = {"_replace", "_asdict"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def reached_into(source: str) -> list[str]:
    """Private attributes of anything but the object itself, and private names of other modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in OWN
            if not own and node.attr not in OF_NAMED_TUPLES:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found += [f"import {each.name}" for each in node.names if is_private(each.name)]
    return found


def classes(sources: list[str]) -> Iterator[ast.ClassDef]:
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                yield node


def overridden(sources: list[str]) -> list[str]:
    """Private methods that a class has from one of its bases, and defines anew."""
    known = {each.name: each for each in classes(sources)}

    def bases(found: ast.ClassDef) -> Iterator[ast.ClassDef]:
        for base in found.bases:
            above = known.get(base.id if isinstance(base, ast.Name) else "")
            if above is not None and above is not found:
                yield above
                yield from bases(above)

    return [
        f"{each.name}.{name}"
        for each in known.values()
        for name in private_methods(each)
        if any(name in private_methods(base) for base in bases(each))
    ]


def private_methods(found: ast.ClassDef) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {each.name for each in found.body if isinstance(each, kinds) and is_private(each.name)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nobody_reaches_into_another_object(file):
    assert reached_into(file.read_text("utf-8")) == []


def test_nobody_overrides_a_private_method():
    assert overridden([file.read_text("utf-8") for file in FILES]) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("self._a = cls._b", []),
        ("other.a.__class__", []),
        ("self.other._a", ["self.other._a"]),
        ("super()._a()", ["super()._a"]),
        ("pair._replace(a=1)", []),
        ("from a import _b, c", ["import _b"]),
    ],
)
def test_what_reaching_in_is(source, found):
    assert reached_into(source) == found


def test_what_overriding_is():
    above = "class A:\n def _a(self): ...\n def b(self): ...\n def __init__(self): ...\n"
    below = "class B(A):\n def b(self): ...\n def __init__(self): ...\n"
    assert overridden([above, below]) == []
    assert overridden([above, below, "class C(B):\n async def _a(self): ..."]) == ["C._a"]
