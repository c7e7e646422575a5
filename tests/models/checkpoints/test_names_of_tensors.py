"""Tied weights under either name, and the names that training leaves behind."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from models_in_memory import logits, torch_logits
from tiny_models import ENCODERS, SETTINGS, class_of, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from protocols.errors import ModelError

WORDS = "embeddings.word_embeddings.weight"
TIED = [
    ("llama", "causal-lm", "model.embed_tokens.weight", "lm_head.weight"),
    ("qwen3", "causal-lm", "model.embed_tokens.weight", "lm_head.weight"),
    ("gpt2", "causal-lm", "transformer.wte.weight", "lm_head.weight"),
    ("falcon", "causal-lm", "transformer.word_embeddings.weight", "lm_head.weight"),
    ("bert", "masked-lm", f"bert.{WORDS}", "cls.predictions.decoder.weight"),
    ("bert", "masked-lm", "cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("roberta", "masked-lm", f"roberta.{WORDS}", "lm_head.decoder.weight"),
    ("roberta", "masked-lm", "lm_head.bias", "lm_head.decoder.bias"),
    ("distilbert", "masked-lm", f"distilbert.{WORDS}", "vocab_projector.weight"),
]


def written(folder, model, change, **config):
    """A folder of the model whose tensors were changed."""
    save(model, folder)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = change(tensors) or tensors
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **config}))
    return folder


def without(name):
    return lambda tensors: {each: value for each, value in tensors.items() if each != name}


@pytest.mark.parametrize("dropped", [2, 3], ids=["the table", "the head"])
@pytest.mark.parametrize("case", TIED, ids=lambda case: "-".join(case[::2]))
def test_a_tied_weight_may_have_either_name(tmp_path, case, dropped):
    model_type, head, *_ = case
    model = tiny_model(model_type, head, tie_word_embeddings=True)
    folder = written(tmp_path, model, without(case[dropped]))
    theirs = class_of(model_type, head).from_pretrained(folder).eval()
    with open_checkpoint(folder) as found:
        assert case[2] in found.names()
        np.testing.assert_allclose(logits(found), torch_logits(theirs), atol=0.02)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_save_model_of_safetensors_keeps_one_of_the_names(tmp_path, model_type):
    head = "masked-lm" if model_type == "bert" else "causal-lm"
    model = tiny_model(model_type, head, tie_word_embeddings=True)
    save(model, tmp_path)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    with open_checkpoint(tmp_path) as found:
        np.testing.assert_allclose(logits(found), torch_logits(model), atol=0.02)


@pytest.mark.parametrize(
    ("model_type", "head", "name"),
    [
        ("llama", "causal-lm", "lm_head.weight"),
        ("gpt2", "causal-lm", "lm_head.weight"),
        ("bert", "masked-lm", "cls.predictions.decoder.weight"),
        ("bert", "masked-lm", "cls.predictions.decoder.bias"),
        ("distilbert", "masked-lm", "vocab_projector.weight"),
    ],
)
def test_an_untied_head_that_is_missing_is_refused(tmp_path, model_type, head, name):
    """transformers fills it with random numbers, or with zeros."""
    model = tiny_model(model_type, head, tie_word_embeddings=False)
    folder = written(tmp_path, model, without(name))
    with pytest.raises(ModelError, match=rf"tensor {name} is missing.*tie_word_embeddings"):
        open_checkpoint(folder)


def test_an_untied_bias_is_the_decoders(tmp_path):
    model = tiny_model("bert", "masked-lm", tie_word_embeddings=False)
    folder = written(tmp_path, model, without("cls.predictions.bias"))
    theirs = class_of("bert", "masked-lm").from_pretrained(folder).eval()
    with open_checkpoint(folder) as found:
        np.testing.assert_allclose(logits(found), torch_logits(theirs), atol=0.02)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "distilbert"])
def test_of_two_untied_biases_the_decoders_is_added(tmp_path, model_type):
    """Training an untied model leaves the other one as it was."""
    model = tiny_model(model_type, "masked-lm", tie_word_embeddings=False)
    save(model, tmp_path)
    theirs = class_of(model_type, "masked-lm").from_pretrained(tmp_path).eval()
    with open_checkpoint(tmp_path) as found:
        np.testing.assert_allclose(logits(found), torch_logits(theirs), atol=0.02)


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "a part compiled": lambda name: name.replace(".0.", ".0._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("model_type", SETTINGS)
def test_what_training_puts_around_a_model(tmp_path, model_type, wrapper):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    rename = WRAPPED[wrapper]
    model = tiny_model(model_type, head)
    save(model, tmp_path)
    with open_checkpoint(tmp_path) as plain:
        expected = {name: plain.tensor(name) for name in plain.names()}
    written(tmp_path, model, lambda t: {rename(name): value for name, value in t.items()})
    with open_checkpoint(tmp_path) as found:
        assert set(found.names()) == set(expected)
        for name in (found.names()[0], found.names()[-1]):
            np.testing.assert_array_equal(found.tensor(name), expected[name])


def test_two_wrapped_copies_are_refused(tmp_path):
    model = tiny_model("llama", "causal-lm")
    both = written(tmp_path, model, lambda t: {**t, **{f"module.{n}": v + 1 for n, v in t.items()}})
    with pytest.raises(ModelError, match="are two copies"):
        open_checkpoint(both)


def test_an_unmerged_model_of_peft_is_named(tmp_path):
    model = tiny_model("llama", "causal-lm")

    def wrap(tensors):
        name = "model.layers.0.self_attn.q_proj"
        inner = {f"base_model.model.{n}": v for n, v in tensors.items() if n != f"{name}.weight"}
        inner[f"base_model.model.{name}.base_layer.weight"] = tensors[f"{name}.weight"]
        inner[f"base_model.model.{name}.lora_A.default.weight"] = torch.ones(2, 16)
        return inner

    with pytest.raises(ModelError, match=r"unmerged.*merge_and_unload\(\)"):
        open_checkpoint(written(tmp_path, model, wrap))


def test_weights_that_the_configuration_names_elsewhere_are_refused(tmp_path):
    """transformers would read that file, and not the one of the usual name."""
    model = tiny_model("llama", "causal-lm")
    written(tmp_path, model, lambda tensors: None, transformers_weights="others.safetensors")
    with pytest.raises(ModelError, match="transformers_weights"):
        open_checkpoint(tmp_path)
