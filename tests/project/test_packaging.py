"""The package: names, types, floors, and the modules that importing it loads."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest

import puma_actors

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocols", "models", "puma_actors")
LOWER = ("protocols", "models")
BANNED = ("anyio", "asyncio", "msgpack", "socket", "structlog", "torch")
"""Never loaded by the lower packages, directly or indirectly."""
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_else_owns_the_name(package):
    owners = set(packages_distributions().get(package, []))
    assert owners <= {"puma-actors"}, f"pip uninstall {owners - {'puma-actors'}}"


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (files(package) / "py.typed").is_file()
    assert "py.typed" in project()["tool"]["setuptools"]["package-data"][package]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_under_test_is_this_one(package):
    assert Path(str(files(package))).resolve() == ROOT / package
    assert package in project()["tool"]["setuptools"]["packages"]["find"]["include"]


def test_the_floors_are_written_down():
    contracts = project()["tool"]["importlinter"]["contracts"]
    layers = [c for c in contracts if c["type"] == "layers"]
    assert [c["layers"] for c in layers if "containers" not in c] == [
        ["puma_actors", "models", "protocols"]
    ]
    ordered = {c["containers"][0]: set(c["layers"]) for c in layers if "containers" in c}
    assert ordered.keys() == set(PACKAGES)
    for package, wings in ordered.items():  # none stands outside of the order
        named = {name.strip() for layer in wings for name in layer.split("|")}
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= named, package
    forbidden = {
        (source, module)
        for c in contracts
        if c["type"] == "forbidden"
        for source in c["source_modules"]
        for module in c["forbidden_modules"]
    }
    for package in LOWER:
        for module in ("anyio", "asyncio", "msgpack", "structlog", "socket", "torch"):
            assert (package, module) in forbidden
    assert ("puma_actors", "torch") in forbidden


@pytest.mark.parametrize(
    ("old", "name"),
    [("cluster", "LocalCluster"), ("pipelines", "pipeline"), ("private", "PrivateModel")],
)
def test_what_programs_import(old, name):
    assert getattr(puma_actors, name) is getattr(import_module(f"puma_actors.{old}"), name)


def test_every_dependency_is_imported():
    """Except transformers, whose objects `from_model` takes without importing it."""
    named = {re.split(r"[<>=]", line)[0] for line in project()["project"]["dependencies"]}
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert named - {name.replace("_", "-") for name in imported} == {"transformers"}


def test_the_package_is_light_and_strict():
    assert not {"numpy", "numba", "anyio"} & loaded(["puma_actors"])
    with pytest.raises(AttributeError, match="has no attribute 'Cluster'"):
        puma_actors.Cluster  # noqa: B018


def modules_of(package):
    """Dotted names of a package's modules."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded(names):
    """sys.modules of a fresh interpreter after importing `names`."""
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += "print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_lower_packages_loads_no_runtime():
    names = [name for package in LOWER for name in modules_of(package)]
    assert len(names) > 30
    modules = loaded(names)
    assert not modules & {*BANNED, "puma_actors"}


@pytest.mark.parametrize("package", LOWER)
def test_the_bare_package_loads_nothing_heavy(package):
    modules = loaded([package])
    assert not modules & {*BANNED, "numba", "transformers"}


def test_the_cryptography_needs_no_models_and_no_checkpoint_reader():
    modules = loaded(modules_of("protocols"))
    assert not modules & {"models", "gguf", "safetensors", "tokenizers", "transformers", "jinja2"}


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\bnp\.random\b|\bnumpy\.random\b|default_rng", "NumPy's generators are no masks"),
        (r"\bpickle\b|allow_pickle\s*=\s*True", "a pickle runs code"),
        (r"^\s*(import|from)\s+torch\b", "torch is for tests"),
    ],
)
def test_shipped_code_never_uses(pattern, why):
    assert len(SOURCES) > 40
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, code_of(line))
    ]
    assert not found, f"{why}: {found}"


def test_masks_never_come_from_pythons_generator():
    """Sampling a token with a seed is the client's affair; below it, every coin is the PRF's."""
    for path in sorted((ROOT / "protocols").rglob("*.py")):
        assert not re.search(r"(?m)^\s*(import|from)\s+random\b", path.read_text()), path.name


def code_of(line):
    """A line without its comment and its string literals."""
    return re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", line)


@pytest.mark.parametrize("package", LOWER)
def test_the_lower_packages_import_no_event_loop(package):
    wanted = re.compile(r"^\s*(?:import|from)\s+(anyio|asyncio|msgpack|structlog|socket)\b")
    for path in sorted((ROOT / package).rglob("*.py")):
        for line in path.read_text().splitlines():
            assert not wanted.match(line), f"{path.name}: {line}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "prompt",
    [
        "plain",
        """both "kinds" of 'quotes'""",
        "$HOME $(shell touch run) ${PATH} $$ $1 `touch run` $(touch run)",
        "two\nlines\\n; touch run && # * ! | > run %",
        "-n",
        "\u00fc \u754c",
    ],
)
def test_a_demo_asks_what_was_given(prompt, tmp_path):
    (tmp_path / "bin").mkdir()
    puma = tmp_path / "bin" / "puma"
    puma.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    puma.chmod(0o755)
    for name in ("bin/python", ".demo"):  # newer than their sources
        (tmp_path / name).touch()
    makefile = ROOT / "Makefile"
    for way in ("argument", "environment"):
        given = {**os.environ, **({"PROMPT": prompt} if way == "environment" else {})}
        command = ["make", "-C", str(ROOT), "-f", str(makefile), "demo", f"VENV={tmp_path}"]
        command += [f"PROMPT={prompt}"] if way == "argument" else []
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
        line = next(each for each in found.stdout.splitlines() if each.startswith("["))
        arguments = json.loads(line)
        assert arguments[:3] == ["generate", "--prompt", prompt], way
        assert not (ROOT / "run").exists()
