"""Memory: predicted from shapes, counted, and requests refused because of it."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import hosts, quiet
from reference import save_model
from secure_models import family_values
from waiting import until

from bench.memory import WITHIN, counted, small_model
from models.checkpoints.weights import open_checkpoint
from models.programs import memory
from models.programs.families import parameters_of
from models.programs.memory import footprint
from models.programs.plan import draft_plan
from models.programs.predict import predict
from models.programs.program import Batch
from models.tokens.sampling import SamplingConfig
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError
from puma_actors.api import local
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.base.available import available_memory
from puma_actors.cli.notice import LONG, announce
from puma_actors.cli.output import amount
from puma_actors.hosts.residents import session_bytes

ROLES = [Role.DEALER, Role.EVALUATOR_A]
SMALL_BLOCKS = Settings(tree="balanced", block=1 << 16)


def off_by(config, batch, role, settings=None):
    """Predicted over counted, less one."""
    need = footprint(config, batch, settings=settings, dealer=role.is_dealer)
    return need.work / counted(config, batch, role, settings) - 1


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_the_counted_peak_is_the_predicted_one(tokens, role):
    settings = Settings(tree="balanced")
    assert abs(off_by(small_model(), Batch((tokens,), "last"), role, settings)) < WITHIN


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_with_the_fewest_rounds_the_prediction_is_an_upper_bound(tokens, role):
    """How large scores may be is not known before: twice as large takes twice the histogram."""
    settings = Settings(tree="rounds")
    off = off_by(small_model(), Batch((tokens,), "last"), role, settings)
    assert -0.1 < off < 1.5


@pytest.mark.parametrize("role", ROLES)
def test_blocks_hold_at_every_length(role):
    """Four times the text, less than twice the memory: only parts linear in the length grow."""
    found = []
    for tokens in (512, 2048):
        batch = Batch((tokens,), "last")
        need = footprint(small_model(), batch, settings=SMALL_BLOCKS, dealer=role.is_dealer)
        found.append(counted(small_model(), batch, role, SMALL_BLOCKS))
        assert abs(need.work / found[-1] - 1) < WITHIN
    assert found[1] < 2.5 * found[0]
    assert found[1] < 100_000_000


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "settings",
    [
        Settings(tree="balanced", approximation="fast"),
        Settings(tree="balanced", approximation="puma"),
        Settings(tree="traffic"),
        Settings(tree="balanced", lanes=2),
        Settings(tree="balanced", reveal="argmax"),
    ],
)
@pytest.mark.parametrize("batch", [Batch((256,), "last"), Batch((60, 70, 100))])
def test_every_setting(settings, batch, role):
    config = replace(small_model(), vocab_size=512)
    assert abs(off_by(config, batch, role, settings)) < WITHIN + 0.1


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("family", "head"), [("bert", "masked-lm"), ("gpt2", "causal-lm"), ("falcon", "causal-lm")]
)
def test_every_family(family, head, role, tmp_path):
    config, _ = family_values(family, head, tmp_path)
    config = replace(config, max_positions=512)
    settings = Settings(tree="balanced")
    assert abs(off_by(config, Batch((192,)), role, settings)) < WITHIN + 0.1


def test_a_prediction_looks_at_two_layers_and_counts_all_caches():
    deep = small_model(layers=40)
    shallow = replace(deep, num_layers=2)
    batch = Batch((300,), "last")
    cache = 2 * 16 * 300 * deep.num_heads * deep.head_dim
    few, many = (footprint(config, batch, dealer=True) for config in (shallow, deep))
    assert many.work - few.work == 38 * cache
    longer = footprint(deep, batch, steps=101, dealer=True)
    assert longer.work <= many.work + 40 * cache // 3
    assert parameters_of(deep).keys() > parameters_of(shallow).keys()


# -- limits ----------------------------------------------------------------------------------------


def test_a_shape_is_walked_through_once(monkeypatch):
    """Every party's event loop stands still meanwhile."""
    config, walks = small_model(), []
    usual = memory._evaluate
    monkeypatch.setattr(memory, "_evaluate", lambda *args: walks.append(usual(*args)))
    footprint.cache_clear()
    ask = [((9,), 1), ((9,), 1), ((8,), 1), ((9,), 2)]
    needs = [footprint(config, Batch(lengths, "last"), n, dealer=True) for lengths, n in ask]
    assert needs[0] is needs[1]
    assert len(walks) == 1 + 1 + 2  # with steps, that of the last one is looked at too


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return save_model(folder, max_position_embeddings=1024, tie_word_embeddings=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.fixture
def plan(model):
    with open_checkpoint(model) as checkpoint:
        return draft_plan(checkpoint.config)


def limits(memory):
    return f"[limits]\ninference_tokens = 1024\nmemory = {memory}\n"


async def test_a_request_above_the_limit_is_refused_with_both_numbers(
    folder: Path, certificates: Path, model: Path, plan
) -> None:
    """And the session goes on."""
    memory = session_bytes(plan, 1024) + 30_000_000
    async with hosts(folder, certificates, "unix", limits(memory)) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert (await remote.forward([1, 2, 3])).shape[0] == 3
            allowed = f"may use {memory // 1_000_000:,} MB"
            with pytest.raises(ConfigError, match=allowed) as refused:
                await remote.forward([1] * 1000)
            assert "request (with its model) needs about" in str(refused.value)
            assert "raise limits.memory there" in str(refused.value)
            assert (await remote.forward([1, 2, 3])).shape[0] == 3
            tokens = [token async for token in remote.generate([1, 2], max_new_tokens=3)]
            assert len(tokens) == 3
        await quiet(cluster)


async def test_a_request_that_fits_later_finds_the_party_busy(
    folder: Path, certificates: Path, model: Path, plan
) -> None:
    ids = [1] * 1000
    batch = Batch((len(ids),))
    need = max(footprint(plan.config, batch, dealer=role.is_dealer).total for role in COMPUTING)
    memory = need + session_bytes(plan, 1024)
    async with hosts(folder, certificates, "unix", limits(memory)) as cluster:
        await cluster.upload(model)
        others = cluster.servers[Role.EVALUATOR_B].residents
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            before = others.used
            others._reserve(memory - before - 1000)  # other sessions' requests
            with pytest.raises(Busy, match="evaluator-b has no memory for another request"):
                await remote.forward(ids)
            assert (await remote.forward([1, 2, 3])).shape[0] == 3
            others._reserve(before + 1000 - memory)
            await until(lambda: others.used == before)  # a moment after the client has its answer
        await quiet(cluster)
        for server in cluster.servers.values():
            assert server.residents.used < 10_000_000  # the model alone


# -- in one process --------------------------------------------------------------------------------


async def test_one_process_refuses_what_its_machine_cannot_hold(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work starts, with both numbers; and goes on."""
    async with LocalCluster.from_pretrained(model) as cluster:
        monkeypatch.setattr(local, "available_memory", lambda: 100_000_000)
        with pytest.raises(ConfigError, match=r" 100 MB are available: shorten") as refused:
            await cluster.forward([1] * 1000)
        assert "1000 tokens need about" in str(refused.value)
        assert (await cluster.forward([1, 2, 3])).shape[0] == 3


def test_memory_of_a_machine_and_of_containers(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert available_memory(tmp_path) > 0  # nothing known but the pages
    write("proc/meminfo", "MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert available_memory(tmp_path) == 500 * 1024
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "100000\n")
    assert available_memory(tmp_path) == 500 * 1024
    write("sys/fs/cgroup/memory.max", "300000\n")
    assert available_memory(tmp_path) == 200_000
    write("sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 50000\n")
    assert available_memory(tmp_path) == 250_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "50000")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "10000")
    assert available_memory(tmp_path) == 40_000
    write("proc/meminfo", "MemAvailable: what\n")
    assert available_memory(tmp_path) == 40_000


# -- more than fits, and what it takes -------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("short"), max_position_embeddings=12)


async def test_more_new_tokens_than_fit_are_treated_alike(
    folder: Path, certificates: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here and at a cluster an answer ends when the context is full, which is announced before."""
    many = SamplingConfig(max_new_tokens=100_000)
    async with LocalCluster.from_pretrained(short) as here:
        announce(here, [1, 2, 3], many)
        assert "note: 10 new tokens fit after this prompt of 3" in (said := capsys.readouterr().err)
        assert "the model has 12 positions" in said
        assert len([token async for token in here.generate([1, 2, 3], many)]) == 10
        assert here.usage.stop_reason == "context"
    extra = "[limits]\ninference_tokens = 8\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(short)
        async with await RemoteCluster.open(cluster.client, "tiny") as there:
            announce(there, [1, 2, 3], many)
            said = capsys.readouterr().err
            assert "note: 6 new tokens fit after this prompt of 3" in said
            assert "the parties take 8 tokens at a time (limits.inference_tokens)" in said
            assert len([token async for token in there.generate([1, 2, 3], many)]) == 6
            assert there.usage.stop_reason == "context"
            with pytest.raises(ConfigError, match="the parties allow 8"):
                await anext(there.generate([1] * 9, many))
            announce(there, [1, 2, 3], SamplingConfig(max_new_tokens=6))
            assert capsys.readouterr().err == ""


async def test_what_a_long_prompt_takes_is_said_before(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with LocalCluster.from_pretrained(model) as cluster:
        announce(cluster, [1] * LONG, SamplingConfig(max_new_tokens=2))
        (cost,) = cluster.predict(LONG)
        wanted = f"{amount(cost.online)} online and {amount(cost.offline)} dealt ahead"
        assert wanted in capsys.readouterr().err
        announce(cluster, [1] * (LONG - 1), SamplingConfig(max_new_tokens=2))
        assert capsys.readouterr().err == ""


def test_layers_that_are_alike_are_traced_once(model: Path) -> None:
    """The prediction is what tracing every layer gives."""
    with open_checkpoint(model) as checkpoint:
        config = checkpoint.config

    class Every(Lane):
        """Not a plain lane: nothing is taken from memory."""

    settings = Settings(block=200)
    for batch in (Batch((30,), "last"), Batch((7, 9, 7))):
        once, every = (predict(config, batch, 1, settings, lane_of=of) for of in (Lane, Every))
        assert once == every
