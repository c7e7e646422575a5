"""Folders stay small enough to look through."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("puma_actors", "models", "protocols", "bench", "tests")
MOST = 15
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
