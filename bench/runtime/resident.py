"""Memory of real parties: three processes, a long request, and the peak resident memory of each."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np

from bench.memory import small_model
from bench.runtime.hosts import parties, write_cluster
from bench.tools.harness import Benchmark, Options, Result
from models.checkpoints.weights import open_checkpoint
from models.configs.reading import LlamaConfig
from models.programs.memory import footprint
from models.programs.predict import share_bytes
from models.programs.program import Batch
from puma_actors.api.remote import RemoteCluster, upload_model
from puma_actors.hosts.config import load_config

_NAME = "memory.processes"
_DEMO = replace(
    small_model(9),
    hidden_size=576,
    intermediate_size=1536,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=4096,
)
"""Heads and sizes of SmolLM2-135M."""


def save_random(config: LlamaConfig, folder: Path) -> Path:
    """A checkpoint with random weights."""
    rng, header, parts, end = np.random.default_rng(0), {}, [], 0
    for name, shape in config.tensors().items():
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        values = rng.normal(size=shape, scale=scale) + (len(shape) == 1)
        parts.append(values.astype("<f4").tobytes())
        offsets = [end, end := end + len(parts[-1])]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
    head = json.dumps(header).encode()
    data = len(head).to_bytes(8, "little") + head + b"".join(parts)
    (folder / "model.safetensors").write_bytes(data)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def resident(pid: int) -> int:
    """Peak resident bytes of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def measure(config: LlamaConfig, tokens: int) -> Iterator[Result]:
    """One prompt, with the logits of its last token."""
    batch = Batch((tokens,), "last")

    async def ask(cluster: Path, model: Path) -> None:
        known = load_config(cluster)
        with open_checkpoint(model) as checkpoint:
            await upload_model(known, checkpoint, "model")
        async with await RemoteCluster.open(known, "model") as remote:
            await remote.forward(
                [token % config.vocab_size for token in range(tokens)], rows="last"
            )

    with tempfile.TemporaryDirectory(prefix="puma-") as name:
        folder = Path(name)
        model = folder / "model"
        model.mkdir()
        save_random(config, model)
        cluster = write_cluster(folder)
        with parties(cluster, PUMA_CLUSTER__LIMITS__INFERENCE_TOKENS=8192) as running:
            before = {role: resident(pid) for role, pid in running.items()}
            anyio.run(ask, cluster, model)
            after = {role: resident(pid) for role, pid in running.items()}
    for role, most in after.items():
        need = footprint(config, batch, dealer=role.is_dealer)
        whole = need.total + share_bytes(config)
        grown = most - before[role]
        yield Result(
            _NAME,
            f"{role}, {tokens} tokens, {config.num_heads} heads",
            note=f"{most / 1e6:,.0f} MB resident, {grown / 1e6:,.0f} MB more than idle; "
            f"predicted {whole / 1e6:,.0f} MB",
            details={"resident": most, "idle": before[role], "predicted": whole},
        )


def processes(options: Options) -> Iterator[Result]:
    """The request that once ran a dealer out of memory, and four thousand tokens with 32 heads."""
    if options.quick:
        yield from measure(small_model(), 256)
        return
    yield from measure(_DEMO, 1850)
    yield from measure(small_model(32), 4096)


BENCHMARKS = [Benchmark(_NAME, "most memory of party processes", processes, False)]
