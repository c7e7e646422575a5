"""The workloads of both systems: the same shapes, the same distributions, the same models."""

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bench.paper import SIZES, rows_of, shrunk
from bench.tools import workloads
from bench.tools.checkpoints import write_checkpoint
from bench.tools.parties import Parties
from bench.tools.workloads import Workload
from models.owner.calibrate import plain_run
from models.programs.families import LazyParameters
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from puma_actors.api.local import LocalCluster
from puma_actors.roles.spool import spool_folder

Fits = Callable[[Workload], bool]
_EXACT = 8
"""Exact results that both systems compare, to see that they compute the same function."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run; see `bench.spu.table.Side`."""

    seconds: float
    megabytes: float
    steps: int
    error: float

    @classmethod
    def of(cls, seconds: float, cost: Cost, error: float) -> "Figures":
        return cls(seconds, (cost.online + cost.offline) / 1e6, cost.rounds, error)


@dataclass(frozen=True)
class Opened:
    """A workload that is ready to run.

    Attributes:
        request: tells SPU's side to prepare the same.
        ours: variant -> one run.
        exact: the first exact results, where SPU must find the same; or none.
    """

    request: dict[str, Any]
    ours: Mapping[str, Callable[[], Awaitable[Figures]]]
    exact: Sequence[float] = ()


@dataclass(frozen=True)
class Item:
    """Attributes:
    name: for the command line. title: for the table.
    whole: a whole model, which takes minutes.
    open: sets the workload up, small if asked, and takes it down.
    """

    name: str
    title: str
    whole: bool
    open: Callable[[bool], AbstractAsyncContextManager[Opened]]


# -- operations ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """Attributes:
    kind: of `peer.CASES`. shape, small: what it is called with, usually and in a quick run.
    build: our workloads of this kind.
    variants: those of them that are compared, by the text that tells them apart.
    """

    kind: str
    shape: tuple[int, ...]
    small: tuple[int, ...]
    build: Callable[[bool], Iterator[Workload]]
    variants: Mapping[str, Fits]

    def chosen(self, quick: bool) -> dict[str, Workload]:
        """Our workloads of this shape by variant."""
        shape = self.small if quick else self.shape
        found = {}
        for workload in self.build(quick):
            if workload.work in (prod(shape), shape[0]):
                found.update({v: workload for v, fits in self.variants.items() if fits(workload)})
        return {variant: found[variant] for variant in self.variants}


def _ends(text: str) -> Fits:
    return lambda workload: workload.case.endswith(text)


def _set(name: str) -> Fits:
    return lambda workload: workload.approximation == name and "@" not in workload.case


def _comparison(bits: str) -> Fits:
    return lambda workload: workload.case.endswith(bits) and workload.tree != "traffic"


_MATMUL = {"secrets": _ends(", secrets"), "by a weight": _ends(", weight")}
_SMALL_MATMUL = (8, 64, 32)
OPERATIONS = {
    "product": (
        "product, 10^6 elements",
        Operation(
            "product", (1_000_000,), (20_000,), workloads.product, {"lifted": _ends(", lifted")}
        ),
    ),
    "matmul": (
        "matmul 128x768 @ 768x3072",
        Operation("matmul", (128, 768, 3072), _SMALL_MATMUL, workloads.matrix_product, _MATMUL),
    ),
    "matmul-1024": (
        "matmul 1024^3",
        Operation("matmul", (1024, 1024, 1024), _SMALL_MATMUL, workloads.matrix_product, _MATMUL),
    ),
    "comparison": (
        "x < 0, 10^6 elements",
        Operation(
            "comparison",
            (1_000_000,),
            (20_000,),
            workloads.comparison,
            {"64 bits": _comparison("64 bits"), "20 bits, as in GeLU": _comparison("20 bits")},
        ),
    ),
    "gelu": (
        "GeLU 128x3072",
        Operation(
            "gelu",
            (128, 3072),
            (8, 64),
            workloads.gelu,
            {"`tight`": _set("tight"), "`fast`": _set("fast")},
        ),
    ),
    "softmax": (
        "softmax 1536x128",
        Operation("softmax", (1536, 128), (16, 8), workloads.softmax, {"`tight`": _set("tight")}),
    ),
    "norm": (
        "LayerNorm 128x768",
        Operation(
            "norm", (128, 768), (4, 64), workloads.norm, {"": _ends("LayerNorm, deviation 1")}
        ),
    ),
    "embedding": (
        "embedding, 128 tokens, 30,522x768",
        Operation(
            "embedding", (128, 30522, 768), (4, 200, 16), workloads.embedding, {"": _ends("")}
        ),
    ),
}
"""Name -> title and operation."""


@asynccontextmanager
async def _open_operation(operation: Operation, quick: bool) -> AsyncIterator[Opened]:
    chosen = operation.chosen(quick)
    clients = any(workload.client for workload in chosen.values())
    async with Parties((*COMPUTING, Role.CLIENT) if clients else COMPUTING) as parties:

        async def run(workload: Workload) -> Figures:
            approximation = workload.approximation or "tight"
            settings = Settings(approximation=approximation, tree=workload.tree)
            done = await parties.run(workload.programs(), settings)
            return Figures.of(done.seconds, done.cost, workload.check(done.results).largest)

        shape = operation.small if quick else operation.shape
        yield Opened(
            {"prepare": operation.kind, "shape": shape},
            {variant: partial(run, workload) for variant, workload in chosen.items()},
        )


# -- whole models ----------------------------------------------------------------------------------

MODELS = {
    "gpt2": ("GPT-2 base, 32 tokens", "GPT-2 base"),
    "bert": ("BERT-base, 128 tokens", "BERT-base"),
}
"""Name -> title and the name in `bench.paper`."""


@asynccontextmanager
async def _open_model(name: str, quick: bool) -> AsyncIterator[Opened]:
    """Random weights in a folder that both systems read. `exact` are the first logits."""
    size = shrunk(SIZES[name]) if quick else SIZES[name]
    with tempfile.TemporaryDirectory(prefix="puma-bench-", dir=spool_folder()) as made:
        folder = Path(made)
        config = write_checkpoint(folder, size.given)
        ids = (np.arange(size.lengths[0][0]) * 7919 % config.vocab_size).tolist()
        rows = rows_of(config)
        async with LocalCluster.from_pretrained(folder) as cluster:
            exact = plain_run(config, LazyParameters(cluster.checkpoint), [ids], rows)

            async def run() -> Figures:
                started = time.perf_counter()
                logits = await cluster.forward(ids, rows=rows)
                seconds = time.perf_counter() - started
                distance = float(np.abs(logits - exact).max())
                return Figures.of(seconds, cluster.usage.total, distance)

            request = {"prepare": "model", "folder": str(folder), "ids": ids}
            yield Opened(request, {"": run}, np.ravel(exact)[:_EXACT].tolist())


ITEMS = [
    *(
        Item(name, title, False, partial(_open_operation, operation))
        for name, (title, operation) in OPERATIONS.items()
    ),
    *(
        Item(name, title, True, partial(_open_model, model))
        for name, (title, model) in MODELS.items()
    ),
]
