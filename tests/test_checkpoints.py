"""Checkpoints of every family and head: each tensor against torch, under its canonical name."""

import numpy as np
import pytest
from tiny_models import CASES, save, state, tiny_model

from models.config import load_config
from models.weights import open_checkpoint

TIED = {
    "lm_head.weight": "embed_tokens.weight",
    "cls.predictions.decoder.weight": "word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
    "vocab_projector.weight": "word_embeddings.weight",
}


def canonical(name: str, model, head: str) -> str:
    """Name in a class with a head: transformers' own, independently of the code under test."""
    prefix = f"{type(model).base_model_prefix}."
    if head == "none":
        return prefix + name
    if head == "question-answering" and name.startswith("transformer.") and prefix == "model.":
        return prefix + name.removeprefix("transformer.")
    # The classes for questions of the LLaMA family call their base model `transformer`.
    if head == "question-answering" and hasattr(model.base_model, "embed_tokens"):
        return name.replace("transformer.", "model.")
    return name


def assert_equals_torch(checkpoint, model, head: str) -> None:
    expected = {canonical(name, model, head): value for name, value in state(model).items()}
    tied = checkpoint.config.tied()
    assert set(checkpoint.names()) | set(tied) == set(expected)
    for copy, source in tied.items():
        np.testing.assert_array_equal(expected[copy], expected[source])
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        assert values.shape == checkpoint.shape(name)
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_every_tensor_equals_torch(tmp_path, model_type, head):
    model = tiny_model(model_type, head)
    with open_checkpoint(save(model, tmp_path)) as checkpoint:
        assert checkpoint.config.head == head
        assert model_type in checkpoint.config.model_types
        assert_equals_torch(checkpoint, model, head)
        assert checkpoint.config == load_config(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "head", "changes"),
    [
        ("bert", "masked-lm", {"tie_word_embeddings": False}),
        ("distilbert", "masked-lm", {"tie_word_embeddings": False}),
        ("gpt2", "causal-lm", {"tie_word_embeddings": False, "n_inner": None}),
        ("llama", "causal-lm", {"attention_bias": True, "mlp_bias": True}),
        ("llama", "causal-lm", {"tie_word_embeddings": True}),
        ("qwen3", "causal-lm", {"attention_bias": True, "tie_word_embeddings": True}),
        ("falcon", "causal-lm", {"bias": True, "alibi": True, "multi_query": False}),
        ("falcon", "causal-lm", {"parallel_attn": False, "bias": True, "alibi": True}),
        ("falcon", "causal-lm", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        (
            "falcon",
            "causal-lm",
            {
                "new_decoder_architecture": True,
                "num_ln_in_parallel_attn": 1,
                "tie_word_embeddings": False,
            },
        ),
    ],
)
def test_settings_that_change_the_tensors(tmp_path, model_type, head, changes):
    model = tiny_model(model_type, head, **changes)
    if model_type == "bert":  # two parameters in transformers, one and the same in older versions
        model.cls.predictions.decoder.bias.data.copy_(model.cls.predictions.bias.data)
    with open_checkpoint(save(model, tmp_path)) as checkpoint:
        assert_equals_torch(checkpoint, model, head)
