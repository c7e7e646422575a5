"""Which clusters a party accepts, before it connects to anything."""

import builtins
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import settings, worker_certificates
from hosts import addresses_for, write_config
from secure_models import tiny_config

from models.programs.plan import draft_plan
from protocols.base.shares import Role
from protocols.errors import ConfigError, WorkersError
from puma_actors.base.certs import issue
from puma_actors.base.compute import Compute
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.workers.cluster import Workers, check_kind, workers_of
from puma_actors.hosts.workers.placement import Placement
from puma_actors.hosts.workers.settings import Reach, reach_of

OWN = Role.DEALER
ADDRESS = "tls://127.0.0.1:1"


@pytest.fixture
def workers(tmp_path: Path) -> Path:
    return worker_certificates(tmp_path / "workers", OWN)


def config(folder: Path, certificates: Path, first: str, table: str = "") -> ClusterConfig:
    path = folder / "cluster.toml"
    write_config(path, addresses_for("unix", folder), certificates, table, first=first)
    return load_config(path, environ={})


def test_nothing_is_asked_for_by_default(tmp_path: Path, certificates: Path) -> None:
    assert reach_of(config(tmp_path, certificates, ""), OWN) is None


def test_all_is_good(tmp_path: Path, certificates: Path, workers: Path) -> None:
    found = reach_of(config(tmp_path, certificates, *settings(workers, OWN, ADDRESS)), OWN)
    assert found is not None
    assert (found.address, found.party) == (ADDRESS, "dealer 'dealer'")
    assert found.tls == tuple(workers / f"{name}" for name in (
        "ca.pem", "dealer.party.pem", "dealer.party.key"))  # fmt: skip


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("scheduler:8786", "use tls://HOST:PORT, the party's Dask scheduler"),
        ("tls://scheduler", "use tls://HOST:PORT"),
        ("tls://scheduler:none", "use tls://HOST:PORT"),
        ("tls://scheduler:1/path", "use tls://HOST:PORT"),
        ("ucx://scheduler:1", "use tls://HOST:PORT"),
        ("tcp://scheduler:1", "in the clear.*set insecure_compute_no_tls = true"),
        ("tls://scheduler:1", r"needs a table \[compute_tls\] with authority, certificate and key"),
    ],
)
def test_addresses(tmp_path: Path, certificates: Path, address: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        reach_of(config(tmp_path, certificates, f'compute = "{address}"\n'), OWN)


def test_a_plain_scheduler_has_a_setting_of_its_own(tmp_path: Path, certificates: Path) -> None:
    first = 'compute = "tcp://scheduler:1"\n'
    with pytest.raises(ConfigError, match="insecure_compute_no_tls"):
        reach_of(config(tmp_path, certificates, f"{first}insecure_no_tls = true\n"), OWN)
    allowed = config(tmp_path, certificates, f"{first}insecure_compute_no_tls = true\n")
    found = reach_of(allowed, OWN)
    assert found is not None
    assert found.tls is None


@pytest.mark.parametrize("name", ["authority", "certificate", "key"])
def test_a_missing_file(tmp_path: Path, certificates: Path, workers: Path, name: str) -> None:
    first, table = settings(workers, OWN, ADDRESS)
    lines = [
        f'{name} = "none"' if each.startswith(f"{name} =") else each for each in table.splitlines()
    ]
    with pytest.raises(ConfigError, match=rf"compute_tls\.{name} = '.*none' does not exist: give"):
        reach_of(config(tmp_path, certificates, first, "\n".join(lines)), OWN)


def test_the_parties_common_authority_is_refused(tmp_path: Path, certificates: Path) -> None:
    """Its other holders could use the workers, and be some."""
    first, table = settings(certificates, OWN, ADDRESS)
    table = table.replace("dealer.party", "dealer")
    with pytest.raises(ConfigError, match=r"is the authority of all parties.*puma certs init"):
        reach_of(config(tmp_path, certificates, first, table), OWN)


def test_an_open_key_is_refused(tmp_path: Path, certificates: Path, workers: Path) -> None:
    (workers / "dealer.party.key").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        reach_of(config(tmp_path, certificates, *settings(workers, OWN, ADDRESS)), OWN)


def test_a_key_of_another_certificate_is_refused(
    tmp_path: Path, certificates: Path, workers: Path
) -> None:
    (workers / "dealer.worker.key").replace(workers / "dealer.party.key")
    with pytest.raises(ConfigError, match="do not belong together"):
        reach_of(config(tmp_path, certificates, *settings(workers, OWN, ADDRESS)), OWN)


def test_an_expired_certificate_is_refused(
    tmp_path: Path, certificates: Path, workers: Path
) -> None:
    for suffix in ("pem", "key"):
        (workers / f"dealer.party.{suffix}").unlink()
    issue(workers, PeerIdentity(OWN, "party"), ["127.0.0.1"], days=1e-9)
    with pytest.raises(ConfigError, match=r"dealer\.party\.pem has expired"):
        reach_of(config(tmp_path, certificates, *settings(workers, OWN, ADDRESS)), OWN)


@pytest.fixture
def no_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    load = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.partition(".")[0] in ("dask", "distributed"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_dask_it_says_what_to_install(
    tmp_path: Path, certificates: Path, workers: Path, no_dask: None
) -> None:
    asked = config(tmp_path, certificates, *settings(workers, OWN, ADDRESS))
    with pytest.raises(ConfigError, match=r"needs Dask.*pip install 'puma-actors\[dask\]'"):
        workers_of(asked, OWN, Compute(1))
    assert workers_of(config(tmp_path, certificates, ""), OWN, Compute(1)) is None


def test_the_command_says_so_too(
    tmp_path: Path, certificates: Path, no_dask: None, puma: Callable[..., tuple[int, str, str]]
) -> None:
    config(tmp_path, certificates, "insecure_compute_no_tls = true\n")
    path = tmp_path / "cluster.toml"
    asked = ("--cluster", path, "--compute", "tcp://127.0.0.1:1")
    code, _, err = puma("party", "--role", "dealer", *asked)
    assert code == ConfigError.exit_code
    assert "puma-actors[dask]" in " ".join(err.split())


def test_dask_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys, puma_actors.hosts.server, puma_actors.cli.commands.hosts\n"
        "sys.exit(any(name in sys.modules for name in ('dask', 'distributed', 'tornado')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_that_never_fits_the_workers_is_refused_with_the_numbers() -> None:
    workers = Workers(Reach(ADDRESS, OWN, "dealer", None, 1.0), Compute(1))
    plan = draft_plan(replace(tiny_config(), hidden_size=2048, intermediate_size=4096))
    found = {"tls://a:1": 300_000_000, "tls://b:1": 100_000_000, "tls://c:1": 0}
    text = r"needs \d+ MB at each of dealer's 3 workers, of which one may use 100 MB: start more"
    with pytest.raises(ConfigError, match=text):
        workers.check_room(plan, found)
    found["tls://b:1"] = 300_000_000
    workers.check_room(plan, found)
    other = Placement(OWN, None, {}, Compute(1))
    other.nbytes = 250_000_000
    workers.placed.add(other)
    with pytest.raises(WorkersError, match="and holds 250 MB of other models: try again later"):
        workers.check_room(plan, found)
    other.lost = "gone"
    workers.check_room(plan, found)


def test_public_weights_are_not_for_workers_yet() -> None:
    plan = replace(draft_plan(tiny_config()), weights="public")
    with pytest.raises(ConfigError, match="weights are public: start the party without `compute`"):
        check_kind(plan)
