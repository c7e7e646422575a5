"""The constants of `puma_actors.planning.machine`: what this machine needs to compute a step.

A small model of made-up weights answers a request in this process, without a network, under each
tree. Two of its steps, one with few bytes and one with many, give the seconds of a round and of a
byte.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.configs.names import Shape
from models.configs.reading import config_from_hf
from models.programs.program import Batch
from protocols.base.lane import Settings, Tree
from puma_actors.api.local import LocalCluster
from puma_actors.planning.machine import Speed
from puma_actors.profiling.profile import traced
from puma_actors.profiling.whatif.predicted import sizes

_LONG, _STEPS = 128, 7  # tokens of the prompt; steps, of which all but the first are alike
_CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class _MadeUp(Checkpoint):
    """Small weights without a meaning, equal each time."""

    def __init__(self, config: ModelConfig) -> None:
        self.where, self.config = "a small model of made-up weights", config
        self.nbytes = sum(4 * int(np.prod(shape)) for shape in config.tensors().values())

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, name: str) -> NDArray[np.float32]:
        shape: Shape = self.shape(name)
        steps = np.arange(int(np.prod(shape))) * (1 + len(name) / 7)
        gain = 1.0 if len(shape) == 1 else 0.0
        values: NDArray[np.float32] = (gain + 0.07 * np.sin(steps)).astype(np.float32)
        return values.reshape(shape)


def small_model() -> Checkpoint:
    """A LLaMA of two layers that fits everywhere, takes 256 tokens and knows nothing."""
    return _MadeUp(config_from_hf(dict(_CONFIG), None))


async def measure(tree: Tree = "rounds") -> Speed:
    """Run a small model for a moment. Seconds are the processor's, of all threads, which other
    programs on this machine change less than the time.
    """
    settings = Settings(tree=tree)
    async with LocalCluster(small_model(), None, settings=settings) as cluster:
        batch = Batch((_LONG,), "last")
        await _seconds(cluster, batch, 2)  # warm up
        long, *short = await _seconds(cluster, batch, _STEPS)
        meters = traced(cluster.plan, batch, 1, settings)
    many, few = map(sizes, meters)
    return solve((*many, long), (*few, statistics.median(short)))


async def _seconds(cluster: LocalCluster, batch: Batch, steps: int) -> list[float]:
    """What each step of a request takes. The dealer deals the next one meanwhile, so that the first
    is charged with a little too much.
    """
    client, found = cluster.client, []
    inference = await client.begin(batch, steps, cluster.choose(batch, steps).settings)
    for step in range(steps):
        began = time.process_time()
        await client.step(inference, [1] * (batch.tokens if step == 0 else 1))
        await client.wait_reports(inference)
        found.append(time.process_time() - began)
    await client.end(inference)
    return found


def solve(long: tuple[int, int, float], short: tuple[int, int, float]) -> Speed:
    """The speed that explains two steps, each given by its rounds, bytes and seconds.

    If times scatter so much that one speed would be negative, the other one explains everything.
    The steps have different bytes a round.
    """
    (e1, b1, t1), (e2, b2, t2) = long, short
    determinant = e1 * b2 - e2 * b1
    exchange = (t1 * b2 - t2 * b1) / determinant
    byte = (e1 * t2 - e2 * t1) / determinant
    if byte < 0:
        return Speed((t1 + t2) / (e1 + e2), 0.0)
    if exchange < 0:
        return Speed(0.0, (t1 + t2) / (b1 + b2))
    return Speed(exchange, byte)
