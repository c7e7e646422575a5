"""Every family and head in floating point: the programs over `Ops` are transformers' functions."""

import numpy as np
import pytest
import torch
from tiny_models import CASES, ENCODERS, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ACTIVATIONS
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters, parameters_of
from models.programs.head_layers import columns_of, default_rows

TEXTS = [[5, 9, 30, 2, 17, 22, 8], [6, 31, 7], [12]]
"""Token sequences of unequal length, without the padding token."""


def outputs(model, head, ids, types=None):
    """What transformers computes for one sequence, as rows of numbers."""
    tokens = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.no_grad():
        result = model(input_ids=torch.tensor([ids]), **tokens)
    if head == "none":
        return result.last_hidden_state[0].numpy()
    if head == "question-answering":
        return torch.stack([result.start_logits[0], result.end_logits[0]], dim=-1).numpy()
    return result.logits[0].numpy().reshape(-1, result.logits.shape[-1])


def opened(model, folder):
    checkpoint = open_checkpoint(save(model, folder))
    wanted = parameters_of(checkpoint.config)
    values = dict(load_parameters(checkpoint))
    assert list(values) == list(wanted)
    for name, parameter in wanted.items():
        assert values[name].shape == parameter.shape, name
        assert values[name].dtype == np.float32
    return checkpoint, values


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_a_batch_is_what_transformers_computes_one_by_one(model_type, head, tmp_path):
    model = tiny_model(model_type, head)
    checkpoint, values = opened(model, tmp_path)
    with checkpoint:
        config = checkpoint.config
        found = plain_run(config, values, TEXTS, default_rows(config))
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    assert found.shape == expected.shape == (len(found), columns_of(config))
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


ACTIVATION_KEYS = {
    "distilbert": "activation",
    "gpt2": "activation_function",
    "falcon": "activation",
}
"""Where it is not `hidden_act`."""
ACTIVATED = [
    (model_type, {ACTIVATION_KEYS.get(model_type, "hidden_act"): name})
    for model_type in ("bert", "roberta", "distilbert", "gpt2", "llama", "falcon")
    for name in (*ACTIVATIONS, "swish")
]
"""Every family with every activation."""
STRETCHED = {
    "max_position_embeddings": 8,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
}
"""A sequence soon outgrows the training's context, from where on the frequencies change."""
VARIANTS = [
    ("llama", STRETCHED),
    ("falcon", STRETCHED),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0}}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e2,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    ("gpt2", {"activation_function": "gelu"}),
    ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    ("falcon", {"alibi": True, "num_attention_heads": 4}),
    ("falcon", {"alibi": True, "num_attention_heads": 6, "hidden_size": 24, "multi_query": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False, "bias": True}),
]


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_every_setting_that_changes_the_function(model_type, changes, tmp_path):
    model = tiny_model(model_type, "causal-lm", **changes)
    checkpoint, values = opened(model, tmp_path)
    ids = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
    with checkpoint:
        found = plain_run(checkpoint.config, values, [ids])
    expected = outputs(model, "causal-lm", ids)
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(("model_type", "changes"), ACTIVATED)
def test_every_activation(model_type, changes, tmp_path):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head, **changes)
    checkpoint, values = opened(model, tmp_path)
    with checkpoint:
        found = plain_run(checkpoint.config, values, TEXTS)
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("model_type", [name for name in ENCODERS if name == "bert"])
def test_token_types_of_a_pair(model_type, tmp_path):
    model = tiny_model(model_type, "sequence-classification")
    checkpoint, values = opened(model, tmp_path)
    ids, types = [5, 9, 4, 30, 22], [0, 0, 0, 1, 1]
    with checkpoint:
        found = plain_run(checkpoint.config, values, [ids], "first", types=tuple(types))
        plain = plain_run(checkpoint.config, values, [ids], "first")
    expected = outputs(model, "sequence-classification", ids, types)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-3
