"""A user's module that hides one of our packages is named, whichever is imported first."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocols", "models", "puma_actors")
IMPORTS = (
    "import puma_actors",
    "from puma_actors import PrivateModel",
    "from puma_actors.cluster import LocalCluster",
    "import puma_actors.hosts.config",
)


def start(
    *arguments: object, path: tuple[object, ...] = (ROOT,), cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run Python without what the environment adds, but with `path`."""
    places = os.pathsep.join(map(str, path))
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONSAFEPATH": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def last(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 1, run
    return run.stderr.rstrip().splitlines()[-1]


def hiding(folder: Path, package: str, kind: str) -> Path:
    """Something of a user's that has a package's name; it must not be run."""
    if kind == "file":
        path = folder / f"{package}.py"
        path.write_text("raise SystemExit('it was run')\n")
        return path
    path = folder / package
    path.mkdir()
    (path / "__init__.py").write_text("raise SystemExit('it was run')\n")
    return path


@pytest.mark.parametrize("statement", IMPORTS)
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("package", ["models", "protocols"])
def test_what_lies_beside_a_script_is_named(tmp_path, package, kind, statement):
    path = hiding(tmp_path, package, kind)
    script = tmp_path / "script.py"
    script.write_text(f"{statement}\n")
    assert last(start(script, cwd=tmp_path.parent)) == (
        f"ImportError: {path} hides the package '{package}' of puma-actors: rename it"
    )


def test_the_command_names_it_too(tmp_path):
    path = hiding(tmp_path, "models", "file")
    assert f"{path} hides" in last(start("-m", "puma_actors", "--version", cwd=tmp_path))


def test_a_script_of_that_name_is_named(tmp_path):
    script = tmp_path / "models.py"
    script.write_text("import puma_actors\n")
    assert f"{script} hides the package 'models'" in last(start(script))


def test_a_folder_without_init_hides_an_editable_install(tmp_path):
    """Its finder is asked last, after every folder of the path: setuptools writes such a one."""
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "finder.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(ROOT)!r}]) if path is None else None\n"
        "sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)] + [Finder]\n"
    )
    script = tmp_path / "script.py"
    script.write_text("import finder, puma_actors\n")
    found = last(start(script, path=()))
    assert f"{tmp_path / 'models'} hides the package 'models'" in found
    (tmp_path / "models" / "checkpoints").rmdir()
    (tmp_path / "models").rmdir()
    script.write_text("import finder, puma_actors, models.programs.families\n")
    assert start(script, path=()).returncode == 0


def test_another_projects_package_is_to_be_uninstalled(tmp_path):
    site = tmp_path / "site-packages"
    site.mkdir()
    path = hiding(site, "protocols", "folder")
    found = last(start("-c", "import puma_actors", path=(site, ROOT), cwd=tmp_path))
    assert found.startswith(f"ImportError: {path} hides the package 'protocols' of puma-actors: un")


def test_one_that_was_imported_before_is_named(tmp_path):
    path = tmp_path / "models.py"
    path.write_text("")
    script = tmp_path / "script.py"
    script.write_text("import models, puma_actors\n")
    found = last(start(script, path=(ROOT,)))
    assert f"{path} hides" in found
    assert found.endswith("rename it, and restart Python")


# -- no false alarm --------------------------------------------------------------------------------

USE = "import puma_actors, models.programs.families, protocols.kernels, protocols.errors"


def works(*arguments: object, path: tuple[object, ...], cwd: Path) -> None:
    run = start(*arguments, path=path, cwd=cwd)
    assert run.returncode == 0, run.stderr


def test_a_checkout_is_no_alarm(tmp_path):
    works("-c", USE, path=(), cwd=ROOT)
    works("-c", USE, path=(ROOT,), cwd=tmp_path)
    works("-c", USE, path=(os.path.relpath(ROOT, tmp_path),), cwd=tmp_path)
    works("-c", USE, path=(ROOT / "tests" / "..",), cwd=tmp_path)


def test_folders_without_init_are_no_alarm(tmp_path):
    """`tests/models` is one: a package further down the path goes before it."""
    assert not (ROOT / "tests" / "models" / "__init__.py").exists()
    works("-c", USE, path=(ROOT / "tests", ROOT), cwd=tmp_path)


def test_a_copy_is_no_alarm(tmp_path):
    compiled = shutil.ignore_patterns("__pycache__")  # other tests may be writing there
    for package in PACKAGES:  # as a wheel lies, each package in the same folder
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=compiled)
    works("-c", USE, path=(tmp_path / "copy",), cwd=tmp_path)
    works("-c", USE, path=(tmp_path / "copy", ROOT), cwd=tmp_path)


def test_packages_in_folders_of_their_own_are_no_alarm(tmp_path):
    for package in PACKAGES:
        (tmp_path / f"of {package}").mkdir()
        (tmp_path / f"of {package}" / package).symlink_to(ROOT / package)
    works("-c", USE, path=tuple(tmp_path / f"of {each}" for each in PACKAGES), cwd=tmp_path)


def test_an_archive_is_no_alarm(tmp_path):
    archive = tmp_path / "puma.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*.py")):
                target.write(path, path.relative_to(ROOT))
    light = "import puma_actors, models, protocols.errors; print(puma_actors.__file__)"
    run = start("-c", light, path=(archive,), cwd=tmp_path)
    assert run.stdout.startswith(str(archive)), run.stderr
    hidden = hiding(tmp_path, "models", "file")
    found = last(start("-c", light, path=(archive,), cwd=tmp_path))
    assert f"{hidden} hides" in found


def test_a_module_made_at_run_time_is_no_alarm(tmp_path):
    code = "import sys, types; sys.modules['models'] = types.ModuleType('models')"
    works("-c", f"{code}; import puma_actors", path=(ROOT,), cwd=tmp_path)
