"""Several tokens a step: what a draft brings on texts that copy, summarise and answer freely.

The small model is the demo model's own first layers with its head, untrained: no smaller model of
the same tokenizer can be had without a network. A trained one of the same size accepts more.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from bench.tools.harness import Benchmark, Options, Result, Spread
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.weights import open_checkpoint
from models.drafts.drafter import Drafting
from models.drafts.small_model import ModelDrafting
from models.files.locate import demo_model_path
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster

_NAME = "waiting.drafts"
LAYERS = 24
"""Of the demo model's 30, in the small model."""
_TOKENS = 32
_ESSAY = (Path(__file__).parents[1] / "texts" / "essay.txt").read_text(encoding="utf-8")
_PASSAGE = ". ".join(_ESSAY.split("\n\n")[2].split(". ")[:4]) + "."
TEXTS = {
    "copies": f"Copy the first two sentences of this text:\n\n{_PASSAGE}",
    "summarises": f"Summarise this text in one sentence: {_PASSAGE}",
    "answers freely": "Tell me a story about a robot that learns to paint.",
}


class FirstLayers(Checkpoint):
    """A decoder's first layers and its head; the rest of the model is left out."""

    def __init__(self, whole: Checkpoint, layers: int) -> None:
        self._whole = whole
        self.where, self.nbytes = f"the first {layers} layers of {whole.where}", whole.nbytes
        self.config = replace(whole.config, num_layers=layers)

    def _read(self, name: str) -> NDArray[np.float32]:
        return self._whole.tensor(name)

    def close(self) -> None:
        self._whole.close()


def small_model(path: Path, layers: int = LAYERS) -> ModelDrafting:
    """A draft by the first layers of the model at `path`."""
    with closing(FirstLayers(open_checkpoint(path), layers)) as first:
        return ModelDrafting(first, first.config.vocab_size, f"first {layers} layers")


async def _answer(
    cluster: LocalCluster, prompt: str, draft: str | Drafting, count: int
) -> tuple[list[int], float]:
    """The answer, and its seconds after the first token."""
    started = time.perf_counter()
    async with aclosing(cluster.generate(prompt, max_new_tokens=count, draft=draft)) as tokens:
        async for _token in tokens:
            if len(cluster.usage.token_ids) <= 1:
                started = time.perf_counter()
    return list(cluster.usage.token_ids), time.perf_counter() - started


async def _text(
    cluster: LocalCluster, name: str, drafts: dict[str, str | Drafting], options: Options
) -> list[Result]:
    """One text with every draft in turn; each answer must be the one without a draft."""
    count = 4 if options.quick else _TOKENS
    seconds: dict[str, list[float]] = {draft: [] for draft in drafts}
    found: dict[str, dict[str, Any]] = {}
    right: list[int] = []
    for _ in range(options.runs(2)):
        for draft, wanted in drafts.items():
            ids, took = await _answer(cluster, TEXTS[name], wanted, count)
            right = right or ids
            if ids != right:
                raise PumaError(f"{name}: with draft {draft} the answer is {ids}, not {right}")
            seconds[draft].append(took / max(1, len(ids) - 1))
            usage = cluster.usage
            found[draft] = {
                "tokens": len(ids),
                "tokens_a_step": usage.tokens_a_step,
                "proposed_and_accepted": usage.drafts,
            }
    plain = statistics.median(seconds["none"])
    return [
        Result(
            _NAME,
            f"{name}, draft: {draft}",
            Spread.of(seconds[draft]),
            1,
            "tokens",
            details={**found[draft], "times_no_draft": statistics.median(seconds[draft]) / plain},
            note=f"{found[draft]['tokens_a_step']:.2f} tokens a step, "
            f"{statistics.median(seconds[draft]) / plain:.2f} of the time without a draft",
        )
        for draft in drafts
    ]


async def _measure(options: Options) -> list[Result]:
    path = demo_model_path()
    drafts: dict[str, str | Drafting] = {"none": "none", "ngram": "ngram"}
    small = small_model(path)
    drafts[small.name] = small
    async with LocalCluster.from_pretrained(path) as cluster:
        names = list(TEXTS)[: 1 if options.quick else None]
        return [result for name in names for result in await _text(cluster, name, drafts, options)]


def demo(options: Options) -> Iterator[Result]:
    """Every text with every draft."""
    yield from anyio.run(_measure, options)


BENCHMARKS = [Benchmark(_NAME, "drafts on three kinds of texts (long)", demo, default=False)]
