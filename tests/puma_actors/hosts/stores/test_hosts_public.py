"""Public weights at parties of their own: the evaluators keep the checkpoint's own bytes."""

from pathlib import Path

import numpy as np
import torch
from family_variants import outputs
from hosts import hosts, quiet
from tiny_models import class_of, save, tiny_model

from protocols.base.shares import EVALUATORS, Role
from puma_actors.api.remote import RemoteCluster

IDS = [5, 9, 30, 2, 17]


def stored(folder: Path, model_type: str, dtype: torch.dtype) -> np.ndarray:
    """Save a small checkpoint; what transformers answers to `IDS` with the stored values."""
    folder.mkdir()
    save(tiny_model(model_type, "causal-lm").to(dtype), folder)
    model = class_of(model_type, "causal-lm").from_pretrained(folder, dtype=torch.float32).eval()
    return outputs(model, "causal-lm", IDS)


async def test_it_is_served_over_tls_and_after_a_restart(folder: Path, certificates: Path) -> None:
    model = folder / "model"
    expected = stored(model, "llama", torch.bfloat16)
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model, public_weights=True)
        for role in (*EVALUATORS, Role.DEALER):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                assert remote.weights == "public"
                np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)
            await quiet(cluster)
            await cluster.kill(role)
            await cluster.start(role)
            await cluster.linked()
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)
