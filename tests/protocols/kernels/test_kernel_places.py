"""Where compiled kernels are kept: asked for, beside the sources, the user's, or nowhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from protocols.kernels import cached, places
from protocols.kernels.places import place

SCRIPT = """
import sys, numpy as np
from protocols.kernels import cached, place, jit, bits
words = np.arange(4, dtype=np.uint64)
first = jit.kernels()[0]
first.compiled()
print(place().kind, place().folder, cached())
"""


@pytest.fixture
def fresh(monkeypatch):
    """Nothing named in the environment, nothing remembered."""
    for name in ("PUMA_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    place.cache_clear()
    places._temporary.cache_clear()
    yield monkeypatch
    place.cache_clear()
    places._temporary.cache_clear()


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """The sources, where not even root can make a `__pycache__` for kernels."""
    root = tmp_path_factory.mktemp("read-only")
    shutil.copytree(
        Path(places.__file__).parents[1],
        root / "protocols",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (root / "protocols" / "kernels" / "__pycache__").touch()
    return root


def run(installation, **environment):
    """Compile a kernel there: standard output and error."""
    names = ("PUMA_", "NUMBA_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**kept, "PYTHONPATH": str(installation), **environment},
        cwd=installation,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


NOWHERE = "/dev/null/home"


def test_a_read_only_installation_without_a_home(installation, tmp_path):
    """Numba alone ends with "no locator available"."""
    (kind, folder, count), err = run(installation, HOME=NOWHERE, TMPDIR=str(tmp_path))
    assert (kind, folder, count) == ("temporary", "None", "0")
    assert "set PUMA_CACHE_DIR" in err
    assert not list(tmp_path.iterdir())  # it was removed


def test_it_keeps_them_where_it_is_told(installation, tmp_path):
    (kind, folder, count), err = run(installation, HOME=NOWHERE, PUMA_CACHE_DIR=str(tmp_path))
    assert (kind, count, err) == ("asked", "1", "")
    assert list(tmp_path.rglob("*.nbi"))
    assert Path(folder).stat().st_mode & 0o777 == 0o700


def test_the_users_folder(fresh, tmp_path):
    fresh.setattr(places, "_SOURCES", Path(NOWHERE))
    fresh.setenv("HOME", str(tmp_path))
    assert place() == places.Place("user", tmp_path / ".cache" / "puma-actors")
    place.cache_clear()
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert place().folder == tmp_path / "x" / "puma-actors"
    place.cache_clear()
    (tmp_path / "x" / "puma-actors").chmod(0o777)  # others could put code there
    assert place().kind == "temporary"


def test_usually_beside_the_sources(fresh):
    assert place() == places.Place("beside", Path(places.__file__).parent)


def test_what_was_asked_for_cannot_be_used(fresh, tmp_path):
    fresh.setenv("PUMA_CACHE_DIR", NOWHERE)
    with pytest.raises(ConfigError, match=rf"PUMA_CACHE_DIR={NOWHERE}: .*cannot be written"):
        place()
    fresh.setenv("PUMA_CACHE_DIR", str(tmp_path))
    (tmp_path / f"kernels-{os.geteuid()}").mkdir(mode=0o777)
    (tmp_path / f"kernels-{os.geteuid()}").chmod(0o777)
    with pytest.raises(ConfigError, match="is not this user's alone"):
        place()


def test_a_shared_folder_gets_a_private_part(fresh, tmp_path):
    tmp_path.chmod(0o777)  # as volumes of containers are
    fresh.setenv("PUMA_CACHE_DIR", str(tmp_path))
    folder = place().folder
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_user_without_a_home(fresh):
    fresh.setattr(places, "_SOURCES", Path(NOWHERE))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    fresh.setattr(Path, "home", no_home)
    assert place() == places.Place("temporary", None)
    assert cached() == 0


def test_not_even_a_temporary_folder(fresh):
    fresh.setattr(places, "_SOURCES", Path(NOWHERE))
    fresh.setenv("HOME", NOWHERE)

    def full(**_):
        raise OSError(28, "No space left on device")

    fresh.setattr(places.tempfile, "mkdtemp", full)
    with pytest.warns(places.CacheWarning, match="keeps none"), places.caching() as possible:
        assert not possible


def test_numba_gets_its_own_setting_back(fresh, tmp_path):
    import numba

    fresh.setenv("PUMA_CACHE_DIR", str(tmp_path))
    before = numba.config.CACHE_DIR
    with places.caching() as possible:
        assert possible
        assert numba.config.CACHE_DIR.startswith(str(tmp_path))
    assert before == numba.config.CACHE_DIR


def test_doctor_says_it(fresh, tmp_path):
    from puma_actors.hosts.doctor import examine

    def found():
        place.cache_clear()
        (check,) = (check for check in examine() if check.name == "compiled kernels")
        return check.state, check.text

    fresh.setattr(places, "_SOURCES", Path(NOWHERE))
    fresh.setenv("HOME", NOWHERE)
    state, text = found()
    assert (state, "set PUMA_CACHE_DIR" in text) == ("warning", True)
    fresh.setenv("PUMA_CACHE_DIR", NOWHERE)
    assert found()[0] == "problem"
    fresh.setenv("PUMA_CACHE_DIR", str(tmp_path))
    state, text = found()
    assert (state, str(tmp_path) in text) == ("warning", True)
