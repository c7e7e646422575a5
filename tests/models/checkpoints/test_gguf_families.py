"""Gemma and Phi-3 in GGUF files, against the same model in safetensors and against transformers."""

import math

import numpy as np
import pytest
import torch
import transformers
from family_variants import outputs
from gguf_files import metadata, tiny, write

from models.checkpoints.weights import open_checkpoint
from models.configs.reading import load_config
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from protocols.errors import ModelError

IDS = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}
SHORT, LONG = [1.1, 1.3], [2.0, 3.0]
LONGROPE = {
    "max_position_embeddings": 40,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 16,
        "short_factor": SHORT,
        "long_factor": LONG,
    },
}
ORIGINAL = "rope.scaling.original_context_length"
SCALED = math.sqrt(1 + math.log(40 / 16) / math.log(16))
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
FACTORS = {"factors_short": SHORT, "factors_long": LONG}
WINDOW = {"attention.sliding_window": 4}
GEMMA3 = {**WINDOW, "rope.freq_base": 1e6}
HALF = {"rope.dimension_count": 4, "rope.freq_base": 1e4}
FULL = [{"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e4, "rope_type": "default"}]
STRETCHED = {**FULL[0], "rope_type": "linear", "factor": 4.0}


def layered(full: dict) -> dict:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": FULL[1]}}


CASES = [
    # name, changes of the model, what the converter writes beside sizes, divisors
    ("gemma", {}, {}, None),
    ("gemma2", CAPS, {**CAPS, **WINDOW}, None),
    ("gemma2", {"num_hidden_layers": 3, **CAPS}, {**CAPS, **WINDOW}, None),
    (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0, **WINDOW},
        None,
    ),
    (
        "gemma2",
        {"num_hidden_layers": 46, "query_pre_attn_scalar": 4, **CAPS},
        {**CAPS, **WINDOW},
        None,
    ),
    ("gemma3", {"num_hidden_layers": 7}, GEMMA3, None),
    ("gemma3", {"num_hidden_layers": 7, **layered(STRETCHED)}, {**GEMMA3, **LINEAR}, None),
    ("gemma3", {"layer_types": ["full_attention"] * 2}, {"rope.freq_base": 1e6}, None),
    (
        "gemma3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        {**GEMMA3, "attention.sliding_window_pattern": [False, True]},
        None,
    ),
    ("phi3", {"sliding_window": None}, {**HALF, "attention.sliding_window": 0}, None),
    ("phi3", {"sliding_window": 3}, {**HALF, "attention.sliding_window": 3}, None),
    ("phi3", {"tie_word_embeddings": True}, HALF, None),
    (
        "phi3",
        LONGROPE,
        {**HALF, ORIGINAL: 16, "rope.scaling.attn_factor": SCALED},
        FACTORS,
    ),
]


def model_of(architecture: str, changes: dict):
    model = tiny("gemma3_text" if architecture == "gemma3" else architecture, **changes)
    for name, values in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(values, 0.2, 0.3)
    return model.eval()


@pytest.mark.parametrize(("architecture", "changes", "settings", "factors"), CASES)
def test_a_file_is_the_same_model_as_safetensors(
    tmp_path, architecture, changes, settings, factors
):
    model = model_of(architecture, changes)
    model.save_pretrained(tmp_path / "folder")
    if changes.get("tie_word_embeddings"):
        del model.lm_head
    write(tmp_path / "m.gguf", model, architecture, settings=settings, factors=factors)
    with (
        open_checkpoint(tmp_path / "m.gguf") as found,
        open_checkpoint(tmp_path / "folder") as expected,
    ):
        # Tokens are the tokenizer's, in a GGUF; numbers are stored as float32.
        tokens = dict.fromkeys(("bos_token_id", "eos_token_ids", "pad_token_id", "generation"))
        one, other = (each.config.to_public() for each in (found, expected))
        assert one.keys() == other.keys()
        for name in one.keys() - tokens.keys():
            assert nearly(one[name]) == nearly(other[name]), name
        assert found.names() == expected.names()
        for name in found.names():
            np.testing.assert_allclose(
                found.tensor(name), expected.tensor(name), rtol=0, atol=1e-6, err_msg=name
            )


def nearly(value):
    if isinstance(value, dict):
        return {name: nearly(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [nearly(each) for each in value]
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_outputs_equal_those_of_transformers_reading_the_same_file(tmp_path, architecture):
    """It assumes 256 for the scale of scores and the usual caps, so the model has these."""
    changes = {"head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 7}
    if architecture == "gemma2":
        changes.update({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    found = metadata(add_bos_token=True)
    size = len(found["tokenizer.ggml.tokens"])
    model = model_of(architecture, {**changes, "vocab_size": size})
    write(tmp_path / "m.gguf", model, architecture, settings={**GEMMA3, **found})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        values = plain_run(checkpoint.config, dict(load_parameters(checkpoint)), [IDS])
    np.testing.assert_allclose(values, outputs(theirs.eval(), "causal-lm", IDS), atol=0.02)


@pytest.mark.parametrize(
    ("architecture", "settings", "factors", "says"),
    [
        ("gemma", {"attn_logit_softcapping": 50.0}, None, "attn_logit_softcapping: 50.0"),
        ("gemma2", {"rope.freq_base_swa": 500.0}, None, "freq_base_swa: 500.0"),
        ("gemma2", {"attention.sliding_window_pattern": [True]}, None, "sliding_window_pattern"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, None, "attn_logit_softcapping: 50.0"),
        ("gemma3", {"attention.value_length": 4}, None, "value_length: 4"),
        ("gemma3", {**GEMMA3, "attention.sliding_window_pattern": 0}, None, "window_pattern: 0"),
        ("phi3", HALF, {"factors_long": LONG}, "rope_factors_short.weight is missing"),
        ("phi3", HALF, FACTORS, "lacks 'phi3.rope.scaling.original_context_length'"),
        ("phi3", {**HALF, ORIGINAL: 16, "rope.scaling.attn_factor": 3.0}, FACTORS, "attn_factor"),
        ("phi3", {"rope.dimension_count": 6, ORIGINAL: 16}, FACTORS, "factors: 2 numbers where 6"),
        ("phi3", {"expert_count": 16}, None, "phi3.expert_count: 16: mixtures of experts"),
        ("llama", {"expert_count": 8}, None, "llama.expert_count: 8: mixtures of experts"),
    ],
)
def test_what_would_be_another_function_is_refused(tmp_path, architecture, settings, factors, says):
    changes = {"max_position_embeddings": 16} if factors else {}
    model = model_of(architecture, changes)
    write(tmp_path / "m.gguf", model, architecture, settings=settings, factors=factors)
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path / "m.gguf")
    assert says in str(caught.value)
