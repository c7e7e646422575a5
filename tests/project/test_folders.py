"""Folders stay small enough to look through, and files short enough to read."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("puma_actors", "models", "protocols", "bench", "tests")
MOST = 15
MOST_LINES = 400
APART = ("__init__.py", "conftest.py")
"""What every folder may have beside its modules."""


def crowded(root: Path) -> list[str]:
    """Folders with too many modules."""
    found = Counter(file.parent for file in root.rglob("*.py") if file.name not in APART)
    return sorted(
        f"{folder.relative_to(root.parent)}: {count} modules, at most {MOST}"
        for folder, count in found.items()
        if count > MOST
    )


def long_files(root: Path) -> list[str]:
    """Modules with too many lines."""
    counts = {file: len(file.read_bytes().splitlines()) for file in root.rglob("*.py")}
    return sorted(
        f"{file.relative_to(root.parent)}: {count} lines, at most {MOST_LINES}"
        for file, count in counts.items()
        if count > MOST_LINES
    )


def test_no_source_file_is_long():
    sources = PACKAGES[:-1]
    assert [each for package in sources for each in long_files(ROOT / package)] == []


def test_a_long_file_is_noticed(tmp_path: Path):
    """Negative control."""
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text("\n" * MOST_LINES)
    assert long_files(tmp_path / "package") == []
    file.write_text("\n" * (MOST_LINES + 1))
    assert long_files(tmp_path / "package") == ["package/module.py: 401 lines, at most 400"]


def test_no_folder_is_crowded():
    assert [each for package in PACKAGES for each in crowded(ROOT / package)] == []


def test_a_crowded_folder_is_noticed(tmp_path: Path):
    """Negative control."""
    folder = tmp_path / "package" / "wing"
    folder.mkdir(parents=True)
    for name in (*APART, *(f"module{number}.py" for number in range(MOST))):
        (folder / name).touch()
    assert crowded(tmp_path / "package") == []
    (folder / "last.py").touch()
    assert crowded(tmp_path / "package") == ["package/wing: 16 modules, at most 15"]
