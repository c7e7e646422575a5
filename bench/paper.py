"""The paper's models at the paper's lengths, whole, all five roles in this process.

Random weights as transformers initialises them: sizes, rounds, bytes and seconds do not depend on
the weights. Quality is compared with the same model in floating point. A checkpoint of bfloat16
takes 2 bytes a weight in PUMA_SPOOL_DIR, and the masked words of a model that does not fit into
memory 8; a model that the disk cannot hold is run with fewer layers or predicted.
"""

import gc
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from bench.tools.checkpoints import read_config, write_checkpoint
from bench.tools.harness import Benchmark, Errors, Options, Result, Spread
from bench.tools.peaks import Peak
from bench.tools.reference import PAPER_MODELS, SPU_MODELS
from models.configs.architecture import ModelConfig
from models.owner.calibrate import plain_run
from models.programs.families import LazyParameters, parameters_of
from models.programs.head_layers import default_rows
from models.programs.plan import Weights
from models.programs.predict import predict
from models.programs.program import Batch, Rows
from protocols.base.ring import Floats
from puma_actors.api.keeping import fits
from puma_actors.api.local import LocalCluster
from puma_actors.api.speed import pass_time
from puma_actors.roles.spool import spool_bytes, spool_folder

_NAME = "paper.models"
_ENCODER: dict[str, Any] = {"max_position_embeddings": 512}
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 30522,
}
_ROBERTA = {
    "model_type": "roberta",
    "architectures": ["RobertaForSequenceClassification"],
    "vocab_size": 50265,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
_GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257}
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}


_LLAMA_13B = {
    **_LLAMA,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {**_GPT2, "n_embd": width, "n_layer": layers, "n_head": heads}


@dataclass(frozen=True)
class Size:
    """A model of the paper.

    Attributes:
        given: its `config.json`.
        lengths: numbers of input and output tokens; no output: a whole encoder.
        kinds: of weights.
        cut: run fewer layers if the disk cannot hold all.
    """

    given: dict[str, Any]
    lengths: tuple[tuple[int, int], ...]
    kinds: tuple[Weights, ...] = ("private",)
    cut: bool = False


SIZES = {
    "BERT-base": Size({**_BERT, **_ENCODER, **_BASE}, ((128, 0),)),
    "RoBERTa-base": Size({**_ROBERTA, **_BASE, "max_position_embeddings": 514}, ((128, 0),)),
    "BERT-large": Size({**_BERT, **_ENCODER, **_LARGE}, ((128, 0),)),
    "GPT-2 base": Size(_gpt2(768, 12, 12), ((32, 1),)),
    "GPT-2 medium": Size(_gpt2(1024, 24, 16), ((32, 1),)),
    "GPT-2 large": Size(_gpt2(1280, 36, 20), ((32, 1),)),
    "LLaMA-7B": Size(_LLAMA, ((4, 1), (8, 1), (8, 2)), ("private", "public")),
    "LLaMA-13B": Size(_LLAMA_13B, ((8, 1),), cut=True),
}
_SPARE = 2 << 30
"""Bytes of the disk that are left free."""
_STORED, _MASKED = 2, 8
"""Bytes of a weight in the checkpoint and in the file of masked words."""
_TINY = {
    "vocab_size": 500,
    "hidden_size": 32,
    "n_embd": 32,
    "num_hidden_layers": 1,
    "n_layer": 1,
    "num_attention_heads": 2,
    "n_head": 2,
    "intermediate_size": 64,
}


def models(options: Options) -> Iterator[Result]:
    for name, size in SIZES.items():
        yield from _model(name, shrunk(size) if options.quick else size, options)


def shrunk(size: Size) -> Size:
    """A tiny model of the same family and a short text, to see that everything works."""
    small = {key: value for key, value in _TINY.items() if key in size.given}
    few = tuple((min(given, 8), new) for given, new in size.lengths)
    return replace(size, given={**size.given, **small}, lengths=few)


def _model(name: str, size: Size, options: Options) -> Iterator[Result]:
    place = spool_folder()
    layers, given = _layers(size, place)
    if not layers:
        yield from _predicted(name, size)
        return
    shown = name if layers == _count(size.given) else f"{name}, {layers} of its layers"
    with tempfile.TemporaryDirectory(prefix="puma-bench-", dir=place) as made:
        folder = Path(made)
        write_checkpoint(folder, given)
        exact: dict[int, Floats] = {}
        for kind in size.kinds:
            label = shown if kind == "private" else f"{shown}, {kind} weights"
            on_disk = kind == "private" and not fits(read_config(given), None)
            case = _Case(name, label, kind, size.lengths, folder, on_disk, exact)
            yield from anyio.run(_run, case, options)
            gc.collect()


def _count(given: dict[str, Any]) -> int:
    return int(given.get("num_hidden_layers") or given["n_layer"])


def _layers(size: Size, place: Path) -> tuple[int, dict[str, Any]]:
    """How many layers the disk can hold, and their configuration; 0 if the model is not run."""
    free, layers = shutil.disk_usage(place).free - _SPARE, _count(size.given)
    while layers:
        given = {**size.given, "num_hidden_layers": layers} if size.cut else size.given
        config = read_config(given)
        each = _STORED + (0 if fits(config, None) else _MASKED)
        if spool_bytes(parameters_of(config)) // _MASKED * each <= free:
            return layers, given
        layers = layers - 1 if size.cut else 0
    return 0, size.given


@dataclass(frozen=True)
class _Case:
    """A model with one kind of weights.

    Attributes:
        on_disk: whether its masked words will be on disk.
        exact: results in floating point by length, as found.
    """

    name: str
    label: str
    kind: Weights
    lengths: tuple[tuple[int, int], ...]
    folder: Path
    on_disk: bool
    exact: dict[int, Floats]


async def _run(case: _Case, options: Options) -> list[Result]:
    public, results = case.kind == "public", []
    with Peak() as peak:
        async with LocalCluster.from_pretrained(case.folder, public_weights=public) as cluster:
            started = dict(cluster.seconds)
            for tokens, new in case.lengths:
                results.append(await _measure(case, cluster, tokens, new, options))
    for result in results:
        result.details.update(peak_bytes=peak.bytes, start_seconds=started)
    return results


async def _measure(
    case: _Case, cluster: LocalCluster, tokens: int, new: int, options: Options
) -> Result:
    config = cluster.config
    ids = (np.arange(tokens) * 7919 % config.vocab_size).tolist()
    seconds, errors = [], None
    details: dict[str, Any] = {"layers": config.num_layers, "weights": case.kind}
    for _ in range(options.runs(2 if new < 2 else 1)):
        started = time.perf_counter()
        if new > 1:
            found = await _generate(cluster, ids, new)
            details["tokens"] = found
        else:
            logits = await cluster.forward(ids, rows=rows_of(config))
        seconds.append(time.perf_counter() - started)
    cost = cluster.usage.total
    if new < 2:
        if tokens not in case.exact:
            weights = LazyParameters(cluster.checkpoint)
            case.exact[tokens] = plain_run(config, weights, [ids], rows_of(config))
        distance = np.abs(logits - case.exact[tokens])
        errors = Errors(float(distance.max()), float(distance.mean()))
    if case.on_disk:
        bound = await anyio.to_thread.run_sync(pass_time, config, tokens, spool_folder())
        details["bound_seconds"] = {"disk": bound.disk * max(1, new), "work": bound.work}
    length = _length(tokens, new)
    comparable = case.kind == "private" and not options.quick
    return Result(
        _NAME,
        f"{case.label}, {length}",
        Spread.of(seconds),
        tokens,
        "tokens",
        approximation="tight",
        cost=cost,
        errors=errors,
        reference=SPU_MODELS.get(case.name) if comparable else None,
        note=PAPER_MODELS.get(f"{case.name}, {length}", "") if comparable else "",
        details=details,
    )


async def _generate(cluster: LocalCluster, ids: Sequence[int], new: int) -> list[int | None]:
    tokens = cluster.generate(ids, max_new_tokens=new, temperature=0.0, eos_token_id=None)
    async with aclosing(tokens):
        return [token.id async for token in tokens]


def _length(tokens: int, new: int) -> str:
    return f"{tokens} in, {new} out" if new else f"{tokens} tokens"


def rows_of(config: ModelConfig) -> Rows:
    """The results of the paper's runs: a classification, or the next token's logits."""
    return "last" if config.head == "causal-lm" else default_rows(config)


def _predicted(name: str, size: Size) -> Iterator[Result]:
    config = read_config(size.given)
    for tokens, new in size.lengths:
        steps = predict(config, Batch((tokens,), rows_of(config)), max(0, new - 1))
        length = _length(tokens, new)
        yield Result(
            _NAME,
            f"{name}, {length} (predicted: the disk has no room)",
            approximation="tight",
            cost=sum((step.cost for step in steps[1:]), steps[0].cost),
            note=PAPER_MODELS.get(f"{name}, {length}", ""),
        )


BENCHMARKS = [
    Benchmark(_NAME, "the paper's models, whole: time and traffic (long)", models, default=False)
]
