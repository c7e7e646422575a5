"""The paper's models at the paper's lengths, whole, all five roles in this process.

Random weights as transformers initialises them: sizes, rounds, bytes and seconds do not depend on
the weights. Quality is compared with the same model in floating point.
"""

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from safetensors.numpy import save_file

from bench.model import peak_bytes, reset_peak
from bench.tools.harness import Benchmark, Errors, Options, Result, Spread
from bench.tools.reference import PAPER_MODELS, SPU_MODELS
from models.configs.architecture import ModelConfig
from models.configs.reading import load_config
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.programs.head_layers import default_rows
from models.programs.predict import predict
from models.programs.program import Batch
from puma_actors.api.local import LocalCluster

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


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {**_GPT2, "n_embd": width, "n_layer": layers, "n_head": heads}


CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "BERT-base": ({**_BERT, **_ENCODER, **_BASE}, 128),
    "RoBERTa-base": ({**_ROBERTA, **_BASE, "max_position_embeddings": 514}, 128),
    "BERT-large": ({**_BERT, **_ENCODER, **_LARGE}, 128),
    "GPT-2 base": (_gpt2(768, 12, 12), 32),
    "GPT-2 medium": (_gpt2(1024, 24, 16), 32),
    "GPT-2 large": (_gpt2(1280, 36, 20), 32),
    "LLaMA-7B": (_LLAMA, 8),
}
"""Name -> its `config.json` and the number of input tokens in the paper."""
RUN = ("BERT-base", "RoBERTa-base", "GPT-2 base", "BERT-large", "GPT-2 medium")
"""Models that fit the memory of a small machine; the others are predicted."""
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


def _write(folder: Path, given: dict[str, Any]) -> ModelConfig:
    """Write a checkpoint with normal weights of deviation 0.02 and norms that do nothing."""
    (folder / "config.json").write_text(json.dumps(given))
    config = _config(folder)
    generator = np.random.default_rng(7)
    tensors = {}
    for name, shape in config.tensors().items():
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        if len(shape) == 1:
            values = np.full(shape, name.endswith("weight"), dtype=np.float32)
        tensors[name] = values.astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    return config


def _config(folder: Path) -> ModelConfig:
    """The configuration, before there are weights beside it."""
    (folder / "model.safetensors").touch()
    return load_config(folder)


async def _run(name: str, given: dict[str, Any], tokens: int, options: Options) -> Result:
    reset_peak()
    with tempfile.TemporaryDirectory(prefix="puma-bench-") as place:
        folder = Path(place)
        config = _write(folder, given)
        ids = (np.arange(tokens) * 7919 % config.vocab_size).tolist()
        async with LocalCluster.from_pretrained(folder) as cluster:
            seconds = []
            for _ in range(options.runs(2)):
                started = time.perf_counter()
                found = await cluster.forward(ids, rows=_rows(config))
                seconds.append(time.perf_counter() - started)
            cost, layers = cluster.usage.total, config.num_layers
            peak = peak_bytes()
            values = dict(load_parameters(cluster.checkpoint))
            expected = plain_run(config, values, [ids], _rows(config))
        del values, cluster
        gc.collect()
    distance = np.abs(found - expected)
    return Result(
        _NAME,
        f"{name}, {tokens} tokens",
        Spread.of(seconds),
        tokens,
        "tokens",
        approximation="tight",
        cost=cost,
        errors=Errors(float(distance.max()), float(distance.mean())),
        reference=SPU_MODELS.get(name) if not options.quick else None,
        note=PAPER_MODELS[name],
        details={"layers": layers, "peak_bytes": peak},
    )


def _rows(config: ModelConfig) -> Any:
    """The results of the paper's runs: a classification, or the next token's logits."""
    return "last" if config.head == "causal-lm" else default_rows(config)


def _predicted(name: str, given: dict[str, Any], tokens: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="puma-bench-") as place:
        folder = Path(place)
        (folder / "config.json").write_text(json.dumps(given))
        config = _config(folder)
    cost = predict(config, Batch((tokens,), _rows(config)))[0].cost
    return Result(
        _NAME,
        f"{name}, {tokens} tokens (predicted)",
        approximation="tight",
        cost=cost,
        note=PAPER_MODELS[name],
    )


def models(options: Options) -> Iterator[Result]:
    for name, (given, tokens) in CONFIGS.items():
        if options.quick:
            small = {key: value for key, value in _TINY.items() if key in given}
            yield anyio.run(_run, name, {**given, **small}, 8, replace(options, repeat=1))
        elif name in RUN:
            yield anyio.run(_run, name, given, tokens, options)
        else:
            yield _predicted(name, given, tokens)


BENCHMARKS = [
    Benchmark(_NAME, "the paper's models, whole: time and traffic (long)", models, default=False)
]
