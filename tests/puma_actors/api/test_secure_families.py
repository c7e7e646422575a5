"""Every family and head under MPC, by five actors, against transformers in float32."""

import numpy as np
import pytest
import torch
import transformers
from family_variants import ACTIVATED, STRETCHED, TEXTS, VARIANTS, outputs
from tiny_models import CASES, ENCODERS, save, tiny_model

from protocols.base.lane import Settings
from puma_actors.api.local import LocalCluster

BOUND = 0.02
"""Largest error of a logit or a hidden state with the "tight" set."""


def check(found, expected, bound=BOUND):
    """Within the bound, and the same best entry wherever the reference's margin allows no other."""
    assert found.shape == expected.shape
    error = float(np.abs(found - expected).max())
    assert error <= bound
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > 2 * error
    same = found.argmax(axis=-1) == expected.argmax(axis=-1)
    assert same[clear].all()


@pytest.mark.parametrize(("model_type", "head"), CASES)
async def test_a_batch_of_unequal_lengths(model_type, head, tmp_path):
    model = tiny_model(model_type, head)
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        found = await cluster.forward(TEXTS)
        assert cluster.usage.total.online > 0
    check(found, expected)


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
async def test_settings_that_change_the_function(model_type, changes, tmp_path):
    model = tiny_model(model_type, "causal-lm", **changes)
    ids = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        found = await cluster.forward(ids)
    check(found, outputs(model, "causal-lm", ids))


@pytest.mark.parametrize(("model_type", "changes"), ACTIVATED)
async def test_every_activation(model_type, changes, tmp_path):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head, **changes)
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        found = await cluster.forward(TEXTS)
    check(found, np.concatenate([outputs(model, head, ids) for ids in TEXTS]))


DECODED = [
    *((name, {}) for name in ("gpt2", "qwen2", "qwen3", "falcon")),
    ("mistral", {"sliding_window": 4}),
    ("llama", STRETCHED),
]


@pytest.mark.parametrize(("model_type", "changes"), DECODED)
async def test_decoding_with_the_cache(model_type, changes, tmp_path):
    model = tiny_model(model_type, "causal-lm", eos_token_id=None, **changes)
    ids = [5, 9, 30, 2, 17]
    with torch.no_grad():
        reference = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        found = [t.id async for t in cluster.generate(ids, max_new_tokens=6) if t.id is not None]
    assert found == reference[0, len(ids) :].tolist()


@pytest.mark.parametrize("approximation", ["fast", "puma"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
async def test_every_set_of_approximations(model_type, approximation, tmp_path):
    head = "masked-lm" if model_type == "bert" else "causal-lm"
    model = tiny_model(model_type, head)
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    settings = Settings(approximation=approximation)
    async with LocalCluster.from_pretrained(save(model, tmp_path), settings=settings) as cluster:
        found = await cluster.forward(TEXTS)
    check(found, expected, bound=0.15)


async def test_pooled_sentences(tmp_path):
    model = tiny_model("bert", "none")
    states = [outputs(model, "none", ids) for ids in TEXTS]
    means = np.stack([state.mean(axis=0) for state in states])
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        found = await cluster.forward(TEXTS, rows="mean")
        unit = await cluster.forward(TEXTS, rows="unit")
        alone = [await cluster.forward(ids, rows="unit") for ids in TEXTS]
    check(found, means)
    check(unit, means / np.linalg.norm(means, axis=1, keepdims=True), 2e-3)
    check(unit, np.concatenate(alone), 2e-3)


BASE = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
}
BASE_LAYERS = 4
"""Of 12, which are alike; all of them: `python -m bench paper`."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", BASE)
async def test_base_size_with_transformers_own_initialisation(model_type, tmp_path):
    config, kind = BASE[model_type]
    torch.manual_seed(1)
    model = kind(config(num_hidden_layers=BASE_LAYERS)).eval()
    ids = [int(token) for token in torch.randint(5, 30000, (12,))]
    expected = outputs(model, "masked-lm", ids)
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        del model
        found = await cluster.forward(ids)
    check(found, expected)
