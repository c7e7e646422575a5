"""Perplexity of the demo model, private and plain: the paper's table 2 on our own essay."""

import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np

from bench.tools.harness import Benchmark, Errors, Options, Result, Spread
from models.files.locate import demo_model_path
from models.owner.perplexity import windows_of
from puma_actors.api.local import LocalCluster
from puma_actors.api.scoring import Perplexities, score_plain, score_private

ESSAY = Path(__file__).parent / "texts" / "essay.txt"
"""Written for this benchmark: no model has been trained on it."""
TOKENS, WINDOW = 2000, 256
_QUICK_TOKENS, _QUICK_WINDOW = 128, 64
_NAME = "fidelity.perplexity"


def _tell(done: int, windows: int, rest: float) -> None:
    print(f"{done} of {windows} windows, about {rest:.0f} s left", file=sys.stderr)


async def measure(path: Path, tokens: int, window: int) -> Result:
    """Perplexities of the essay's first tokens under a language model."""
    async with LocalCluster.from_pretrained(path) as cluster:
        ids = cluster.text_ids(ESSAY.read_text(encoding="utf-8"))[:tokens]
        windows = windows_of(len(ids), window, window)
        plain = score_plain(cluster.checkpoint, ids, windows, lambda *_: None)
        private = await score_private(cluster, ids, windows, _tell)
        approximation = cluster.settings.approximation
    found = Perplexities(tuple(windows), plain, private)
    off = np.abs(private.likelihoods - plain.likelihoods)
    return Result(
        _NAME,
        f"{len(ids):,} tokens in windows of {window}",
        Spread.of(list(private.seconds)),
        approximation=approximation,
        cost=found.mean_cost,
        errors=Errors(float(off.max()), float(off.mean()), "that of a token's log-likelihood"),
        note=f"perplexity {plain.perplexity:.4f} in plaintext (float64), {private.perplexity:.4f} "
        f"in private: {found.relative:+.4%}",
        details=found.to_json(),
    )


def perplexity(options: Options) -> Iterator[Result]:
    sizes = (_QUICK_TOKENS, _QUICK_WINDOW) if options.quick else (TOKENS, WINDOW)
    yield anyio.run(measure, demo_model_path(), *sizes)


BENCHMARKS = [
    Benchmark(
        _NAME,
        "demo model's perplexity of an essay, private against plaintext (long)",
        perplexity,
        default=False,
    )
]
