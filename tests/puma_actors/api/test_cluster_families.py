"""Every family through five actors: heads, batches, pooled rows and token types."""

import numpy as np
import pytest
from tiny_models import save, tiny_model

from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.programs.head_layers import columns_of, default_rows
from models.programs.program import Batch
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster

TEXTS = [[5, 9, 30, 2, 17], [6, 31, 7], [12]]
TOLERANCE = 5e-3
"""Per unit of the largest result."""


def reference(cluster, sequences, rows, types=None):
    values = dict(load_parameters(cluster.checkpoint))
    return plain_run(cluster.config, values, sequences, rows, types=types)


def close(found, expected):
    limit = TOLERANCE * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=limit)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("bert", "masked-lm"),
        ("bert", "question-answering"),
        ("roberta", "token-classification"),
        ("distilbert", "question-answering"),
        ("gpt2", "causal-lm"),
        ("gpt2", "sequence-classification"),
        ("falcon", "causal-lm"),
        ("qwen3", "causal-lm"),
    ],
)
async def test_batches_of_every_family(model_type, head, tmp_path):
    path = save(tiny_model(model_type, head), tmp_path)
    async with LocalCluster.from_pretrained(path) as cluster:
        rows = default_rows(cluster.config)
        found = await cluster.forward(TEXTS)
        expected = reference(cluster, TEXTS, rows)
        assert found.shape == (len(expected), columns_of(cluster.config))
        close(found, expected)
        assert cluster.usage.steps == cluster.predict(Batch((5, 3, 1), rows))
        if head in ("causal-lm", "masked-lm"):
            for rows in ("first", "last"):
                close(await cluster.forward(TEXTS, rows=rows), reference(cluster, TEXTS, rows))


async def test_pooled_rows_and_token_types(tmp_path):
    path = save(tiny_model("bert", "none"), tmp_path)
    types = (0, 0, 1, 1, 1, 0, 1, 1, 0)
    async with LocalCluster.from_pretrained(path) as cluster:
        for rows in ("mean", "unit", "first", "all"):
            found = await cluster.forward(TEXTS, rows=rows, types=types)
            close(found, reference(cluster, TEXTS, rows, types))
            assert cluster.usage.steps == cluster.predict(Batch((5, 3, 1), rows, types))
            if rows == "unit":
                np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
        with pytest.raises(ConfigError, match="8 token types for 9 tokens"):
            await cluster.forward(TEXTS, types=types[1:])
        with pytest.raises(ConfigError, match="token types of this model are 0 to 1"):
            await cluster.forward(TEXTS, types=(*types[1:], 2))
        with pytest.raises(ConfigError, match="generates no text"):
            async for _ in cluster.generate([5, 6]):
                pass


async def test_rows_that_a_head_lacks_are_refused_before_any_work(tmp_path):
    path = save(tiny_model("gpt2", "causal-lm"), tmp_path)
    async with LocalCluster.from_pretrained(path) as cluster:
        for rows in ("mean", "unit", "some"):
            with pytest.raises(ConfigError, match=f"rows '{rows}' do not fit head"):
                await cluster.forward([5], rows=rows)
        assert len(await cluster.forward([5])) == 1


@pytest.mark.parametrize("model_type", ["gpt2", "falcon", "qwen3"])
async def test_decoding_continues_what_was_prefilled(model_type, tmp_path):
    """Token by token with the cache, the greedy tokens of one plaintext run over all of them."""
    changes = {"alibi": True} if model_type == "falcon" else {}
    path = save(tiny_model(model_type, "causal-lm", seed=1, **changes), tmp_path)
    async with LocalCluster.from_pretrained(path) as cluster:
        given = [5, 9, 30, 2]
        tokens = [t.id async for t in cluster.generate(given, max_new_tokens=5)]
        chosen = cluster.usage.token_ids
        logits = reference(cluster, [given + chosen], "all")[len(given) - 1 : -1]
        top = np.sort(logits, axis=1)
        for row, token in zip(logits, chosen, strict=True):
            assert row.max() - row[token] <= 2 * TOLERANCE * np.abs(row).max()
        assert (top[:, -1] - top[:, -2]).max() > 0.05  # the comparison means something
        assert cluster.usage.steps == cluster.predict(len(given), len(chosen) - 1)
        assert tokens == chosen[: len(tokens)]
