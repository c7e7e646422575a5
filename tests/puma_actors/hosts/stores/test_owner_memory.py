"""An owner needs memory for its largest tensor and its share, not for its model."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

from large_llama import save_llama
from party_processes import ROOT, environment
from waiting import HANG

from models.checkpoints.weights import open_checkpoint
from models.programs.families import parameters_of

FLIGHT = 64_000_000
"""Bytes that are on their way to the parties at most, which is always the same."""
CONSTANT = 64_000_000
"""Code that is loaded, the state of the connections and so on."""


def test_an_owner_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", layers=16)
    with open_checkpoint(model) as checkpoint:
        sizes = [prod(each.shape) for each in parameters_of(checkpoint.config).values()]
    whole, largest = 4 * sum(sizes), (4 + 8) * max(sizes)
    assert whole > 200_000_000
    assert largest < 20_000_000
    script = ROOT / "tests" / "support" / "sharing" / "owner_alone.py"
    done = subprocess.run(
        [sys.executable, script, model, tmp_path],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["traced"] < largest + FLIGHT
    assert found["anonymous"] < largest + FLIGHT + CONSTANT < whole
