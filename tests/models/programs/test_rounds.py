"""Rounds of a layer with the tree of fewest rounds, from shapes alone: at the sizes of published
models, and in every family. `test_predict` and others compare predictions with counts.
"""

import json
from dataclasses import replace

import pytest
import transformers
from tiny_models import DECODERS, ENCODERS, SETTINGS, class_name, class_of

from models.configs.reading import config_from_hf
from models.programs.families import shallow
from models.programs.predict import predict
from models.programs.program import Batch
from protocols.base.lane import Settings

FEWEST = Settings(tree="rounds")
LAYERS = 4
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}


def of_published(kind, head, **sizes):
    """A configuration with transformers' usual sizes, which are BERT-base's and GPT-2's."""
    written = getattr(transformers, f"{kind}Config")(**sizes)
    data = json.loads(written.to_json_string(use_diff=False))
    return config_from_hf({**data, "architectures": [f"{kind}{head}"]}, None)


def of_family(model_type, head):
    """A small configuration with four layers, and room for long texts."""
    layers = "num_hidden_layers" if "num_hidden_layers" in SETTINGS[model_type] else None
    layers = layers or ("n_layers" if model_type == "distilbert" else "n_layer")
    written = class_of(model_type, head).config_class(**{**SETTINGS[model_type], layers: LAYERS})
    data = json.loads(written.to_json_string(use_diff=False))
    data["architectures"] = [class_name(model_type, head)]
    return replace(config_from_hf(data, None), max_positions=600)


def of_layer(config, batch, decode=0):
    """Rounds of a layer in each step: what two more layers add, which may be of two kinds."""
    few, many = (predict(shallow(config, layers), batch, decode, FEWEST) for layers in (2, LAYERS))
    return [
        (more.cost.rounds - less.cost.rounds) / (LAYERS - 2)
        for less, more in zip(few, many, strict=True)
    ]


@pytest.mark.parametrize(("context", "most"), [(64, 26), (512, 26)])
def test_a_llama_layer_that_decodes(context, most):
    config = of_published("Llama", "ForCausalLM", **SMOLLM2)
    assert of_layer(config, context - 1, 1)[1] <= most


@pytest.mark.parametrize(("context", "most"), [(32, 26), (64, 26), (512, 26)])
def test_a_layer_of_gpt2_that_decodes(context, most):
    config = of_published("GPT2", "LMHeadModel", eos_token_id=4, bos_token_id=3)
    assert of_layer(config, context - 1, 1)[1] <= most


def test_prompts_and_texts():
    """As long as a layer's histograms are worth what they deal."""
    assert of_layer(of_published("Llama", "ForCausalLM", **SMOLLM2), 64)[0] <= 26
    gpt2 = of_published("GPT2", "LMHeadModel", eos_token_id=4, bos_token_id=3)
    assert of_layer(gpt2, 64)[0] <= 26
    assert of_layer(of_published("Bert", "Model"), Batch((128,)))[0] <= 28


MORE = {"qwen3": 5, "gemma2": 12, "gemma3_text": 13}
"""What norms of queries and keys, norms after attention and MLP, and soft caps take."""


@pytest.mark.parametrize("model_type", DECODERS)
def test_every_decoders_layer(model_type):
    config = of_family(model_type, "causal-lm")
    most = 26 + MORE.get(model_type, 0)
    for context in (64, 512):
        assert of_layer(config, context - 1, 1)[1] <= most, context


@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_encoders_layer(model_type):
    config = of_family(model_type, "none")
    assert of_layer(config, Batch((128,)))[0] <= 28
