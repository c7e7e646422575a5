"""Fixtures for several test files."""

import io
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from chaos import Chaos
from conversation import IDS
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from networks import make_certificates
from reference import (
    CHOICE,
    save_model,
    save_tokenizer,
    torch_greedy,
    torch_model,
    usual_logs,
)

from models.checkpoints.weights import open_checkpoint
from puma_actors.base.logs import NAME
from puma_actors.cli import main
from puma_actors.session import handshake

# Tests press Ctrl-C. A shell makes its background processes ignore it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is up to the machine.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,
)
hypothesis.settings.register_profile(
    "fresh", hypothesis.settings.get_profile("any machine"), derandomize=False
)


def pytest_configure(config: pytest.Config) -> None:
    """The same code is tested with the same examples, and passes or fails every time."""
    hypothesis.settings.load_profile("fresh" if config.getoption("--fresh") else "any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh", action="store_true", help="keys and examples of its own each run")
    parser.addoption(
        "--folders", type=int, default=12, help="how many checkpoint folders to generate"
    )
    parser.addoption("--shuffle-loop", type=int, metavar="SEED", help="see tests/support/chaos.py")
    parser.addoption(
        "--every-setting", action="store_true", help="all cases of test_config_settings.py"
    )


@pytest.fixture(scope="session")
def _chaos(request: pytest.FixtureRequest) -> Iterator[Chaos | None]:
    seed = request.config.getoption("--shuffle-loop")
    with pytest.MonkeyPatch.context() as patch:
        chaos = None if seed is None else Chaos(seed)
        if chaos:
            chaos.install(patch)
        yield chaos


@pytest.fixture(autouse=True)
def _begin_chaos(request: pytest.FixtureRequest, _chaos: Chaos | None) -> None:
    if _chaos:
        still = request.node.get_closest_marker("in_order") is not None
        _chaos.begin(request.node.nodeid, still=still)


@pytest.fixture(scope="session", autouse=True)
def _coins(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Where what is drawn in this process comes from, unless `--fresh` is given."""
    coins = random.Random()
    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--fresh"):
            key = SimpleNamespace(
                generate=lambda: X25519PrivateKey.from_private_bytes(coins.randbytes(32))
            )
            patch.setattr(handshake, "X25519PrivateKey", key)
            patch.setattr(os, "urandom", coins.randbytes)
        yield coins


@pytest.fixture(scope="module", autouse=True)
def _coins_of_a_file(request: pytest.FixtureRequest, _coins: random.Random) -> None:
    """For its fixtures."""
    _coins.seed(request.node.nodeid)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _coins_of_a_test(request: pytest.FixtureRequest, _coins: random.Random) -> None:
    """A test that a rare key breaks breaks every time or never, whatever runs before it."""
    _coins.seed(request.node.nodeid)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker starts one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and a certificate for each role."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy answer to `conversation.PROMPT` has no close choices."""
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """Torch's model of that folder."""
    with open_checkpoint(folder) as checkpoint:
        return torch_model(checkpoint)


@pytest.fixture(scope="session")
def answer(reference: Any) -> list[int]:
    """Torch's greedy answer to `conversation.PROMPT`."""
    tokens, leads = torch_greedy(reference, IDS, 8)
    assert min(leads) > CHOICE
    return tokens


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up logs; the next test finds the usual ones,
    or it would see none, and what looks for secrets in them would pass.
    """
    with usual_logs():
        yield


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that is logged, by this package or others, at every level."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger(NAME).setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def puma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puma", *map(str, arguments)])
        capsys.readouterr()  # what came before, of transformers or a fixture
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


# -- models for pipelines; torch is imported for those alone ---------------------------------------


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    labels = {0: "bad", 1: "fair", 2: "good"}
    return folder_of(tmp_path_factory, "bert", "sequence-classification", id2label=labels)


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of natural language inference."""
    from pipeline_cases import folder_of

    names = ["contradiction", "neutral", "entailment"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    return folder_of(tmp_path_factory, "bert", "sequence-classification", num_labels=3, **labels)


@pytest.fixture(scope="session")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    return folder_of(tmp_path_factory, "bert", "sequence-classification", num_labels=1)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import ENTITIES, folder_of

    return folder_of(tmp_path_factory, "bert", "token-classification", **ENTITIES, seed=1)


@pytest.fixture(scope="session")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    return folder_of(tmp_path_factory, "bert", "masked-lm")


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of
    from tiny_texts import save_byte_level

    folder = folder_of(tmp_path_factory, "gpt2", "causal-lm", save_byte_level, n_positions=64)
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    return folder_of(tmp_path_factory, "bert", "question-answering", seed=2)
