"""LoRA of PEFT on disk is added to the weights, beside the model or alone; else it is refused."""

import json
import shutil

import adapters
import fake_hub
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_in_memory import IDS, torch_logits
from test_adapters import TARGETS
from tiny_models import ENCODERS, SETTINGS, class_of, quantisable_llama, save, tiny_model
from tiny_texts import save_byte_level

from models.checkpoints.weights import open_checkpoint
from models.configs.reading import load_config
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.programs.head_layers import default_rows
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ModelError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def ours(checkpoint) -> np.ndarray:
    config = checkpoint.config
    found = plain_run(config, dict(load_parameters(checkpoint)), [IDS], default_rows(config))
    return found if len(found) > 1 else found[0]


def saved(folder, model_type, head, *, model=None, **changes):
    """A model with its adapter beside it, and another folder with the adapter alone."""
    model = tiny_model(model_type, head) if model is None else model
    both, alone = folder / "both", folder / "alone"
    save(model, both)
    targets = changes.pop("target_modules", TARGETS[model_type])
    adapted = adapters.with_lora(model, targets, **changes)
    adapted.save_pretrained(alone)
    edit(alone, base_model_name_or_path=str(both))
    for file in alone.glob("adapter_*"):
        shutil.copy(file, both)
    return both, alone, adapted


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))


def theirs(model_type, head, folder):
    """transformers' own logits of a folder."""
    kind = class_of(model_type, head)
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return torch_logits(model)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_an_adapter_is_added_as_transformers_does(tmp_path, model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    both, alone, _ = saved(tmp_path, model_type, head)
    expected = theirs(model_type, head, both)
    for path in (both, alone, both / "model.safetensors", alone / "adapter_model.safetensors"):
        with open_checkpoint(path) as found:
            np.testing.assert_allclose(ours(found), expected, atol=0.02)
    (both / "adapter_config.json").unlink()
    with open_checkpoint(both) as found:
        assert np.abs(ours(found) - expected).max() > 0.05  # the adapter is seen


MANY = {"r": 6, "lora_alpha": 9}
VARIANTS = {
    "rslora": {"use_rslora": True, **MANY},
    "patterns": {"rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 5}, **MANY},
    "alphas": {"alpha_pattern": {"layers.0.mlp.down_proj": 40, "v_proj": 1}, **MANY},
    "some layers": {"layers_to_transform": [1], **MANY},
    "all linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "norms replaced": {"modules_to_save": ["input_layernorm", "norm"]},
    "head replaced": {"modules_to_save": ["lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path, variant, tied):
    model = tiny_model("llama", "causal-lm", tie_word_embeddings=tied)
    both, alone, _ = saved(tmp_path, "llama", "causal-lm", model=model, **VARIANTS[variant])
    expected = theirs("llama", "causal-lm", both)
    for path in (both, alone):
        with open_checkpoint(path) as found:
            np.testing.assert_allclose(ours(found), expected, atol=0.02)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "bert"])
def test_trained_biases(tmp_path, model_type, bias):
    head = "sequence-classification"
    model = tiny_model(model_type, head)
    both, alone, adapted = saved(tmp_path, model_type, head, model=model, bias=bias)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
    adapted.save_pretrained(alone)
    edit(alone, base_model_name_or_path=str(both))
    shutil.copy(alone / "adapter_model.safetensors", both)
    expected = torch_logits(adapted)
    for path in (both, alone):
        with open_checkpoint(path) as found:
            np.testing.assert_allclose(ours(found), expected, atol=0.02)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama", "distilbert"])
def test_a_classifier_trained_on_top(tmp_path, model_type):
    """The base predicts tokens; the adapter brings the head."""
    base = save(tiny_model(model_type, "none"), tmp_path / "base")
    head = "sequence-classification"
    model = class_of(model_type, head).from_pretrained(base, num_labels=2)
    adapted = adapters.with_lora(model.eval(), TARGETS[model_type][:1], task_type="SEQ_CLS")
    adapted.save_pretrained(tmp_path / "alone")
    edit(tmp_path / "alone", base_model_name_or_path=str(base))
    assert load_config(tmp_path / "alone").head == head
    with open_checkpoint(tmp_path / "alone") as found:
        np.testing.assert_allclose(ours(found), torch_logits(adapted), atol=0.02)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    rank=st.integers(1, 7),
    alpha=st.floats(0.5, 30),
    rslora=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    targets=st.sets(st.sampled_from(["q_proj", "k_proj", "o_proj", "gate_proj"]), min_size=1),
)
def test_weights_are_those_that_peft_merges(
    tmp_path_factory, seed, rank, alpha, rslora, dtype, targets
):
    folder = tmp_path_factory.mktemp("lora")
    chosen = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora}
    model = tiny_model("qwen3", "causal-lm", seed=seed).to(dtype)
    both, _, adapted = saved(
        folder, "qwen3", "causal-lm", model=model, target_modules=sorted(targets), **chosen
    )
    merged = adapted.float().merge_and_unload().state_dict()
    with open_checkpoint(both) as found:
        for name in found.names():
            np.testing.assert_allclose(
                found.tensor(name), merged[name].float(), atol=1e-5, err_msg=name
            )


def test_shards_below_an_adapter(tmp_path):
    model = quantisable_llama()
    both, _, _ = saved(tmp_path, "llama", "causal-lm", model=model)
    expected = theirs("llama", "causal-lm", both)
    fresh = quantisable_llama()
    (both / "model.safetensors").unlink()
    fresh.save_pretrained(both, max_shard_size="1MB")
    with open_checkpoint(both) as found:
        np.testing.assert_allclose(ours(found), expected, atol=0.02)


def test_the_tokenizer_is_the_adapters_or_the_bases(tmp_path):
    both, alone, _ = saved(tmp_path, "llama", "causal-lm")
    save_byte_level(both)
    with open_checkpoint(alone) as found:
        assert Tokenizer.load(found.path).encode("ab")
        assert Tokenizer.load(alone).encode("ab")
    shutil.copy(both / "tokenizer.json", alone)
    (alone / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    assert Tokenizer.load(alone).max_length == 7


# -- what is refused -------------------------------------------------------------------------------


def refuse(folder, says):
    with pytest.raises(ModelError, match=says):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"lora_bias": True, "bias": "none"}, "lora_bias"),
    ],
)
def test_more_than_a_sum_is_refused_by_name(tmp_path, changes, says):
    both, alone, _ = saved(tmp_path, "qwen2", "causal-lm", **changes)
    for folder in (both, alone):
        refuse(folder, rf"{says}.*merge_and_unload\(\)")


def test_another_kind_of_adapter(tmp_path):
    model = tiny_model("llama", "causal-lm")
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    save(model, tmp_path)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    refuse(tmp_path, r"of kind 'IA3'.*merge_and_unload\(\)")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_lora_weights": "pissa"}, "'pissa' changes the model below"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"brand_new_setting": {"on": 1}}, "brand_new_setting"),
        ({"r": 4}, "rank 4"),
        ({"r": "many"}, "whole number"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": {"(": 3}}, "is no pattern"),
        ({"rank_pattern": [3]}, "not a mapping"),
        ({"peft_type": None}, "of kind None"),
    ],
)
def test_settings_that_change_it_are_refused_by_name(tmp_path, changes, says):
    both, _, _ = saved(tmp_path, "llama", "causal-lm")
    edit(both, **changes)
    refuse(both, says)


def rewrite(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


LAYER = "base_model.model.model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{LAYER}.q_proj.lora_A.weight"), "half of the adapter"),
        (lambda t: t.update({f"{LAYER}.x_proj.weight": torch.ones(2)}), "x_proj.*not part"),
        (lambda t: t.update({f"{LAYER}.q_proj.lora_C.weight": torch.ones(2)}), "no part of a sum"),
        (lambda t: t.update({f"{LAYER}.q_proj.lora_magnitude_vector": torch.ones(2)}), "no part"),
        (
            lambda t: t.update({f"{LAYER}.q_proj.lora_A.weight": torch.ones(3, 9)}),
            r"q_proj.weight has shape \(16, 9\)",
        ),
        (
            lambda t: t.update({f"{LAYER}.z.lora_{x}.weight": torch.ones(3, 3) for x in "AB"}),
            "no such weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, says):
    both, _, _ = saved(tmp_path, "llama", "causal-lm")
    rewrite(both, change)
    refuse(both, says)


def test_an_adapter_without_weights_or_base(tmp_path):
    both, alone, _ = saved(tmp_path, "llama", "causal-lm")
    shutil.move(both / "adapter_model.safetensors", tmp_path / "adapter_model.bin")
    refuse(both, r"no adapter_model\.safetensors")
    shutil.move(tmp_path / "adapter_model.bin", both)
    refuse(both, r"adapter_model\.bin: pickled adapters .* `puma convert .* NEW_FOLDER`")
    for base in ("no/such", str(alone), "", None, "..", str(tmp_path)):
        edit(alone, base_model_name_or_path=base)
        refuse(alone, "base")


def test_beside_a_gguf_it_is_refused(tmp_path):
    both, _, _ = saved(tmp_path, "llama", "causal-lm")
    (both / "model.safetensors").rename(tmp_path / "x")
    (both / "m.gguf").write_bytes(b"")
    for path in (both, both / "m.gguf"):
        refuse(path, r"its adapter cannot be added to a GGUF file \(m\.gguf\): use the base model")


def test_alone_with_a_gguf_as_its_base_it_is_refused(tmp_path):
    _, alone, _ = saved(tmp_path, "llama", "causal-lm")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "m.gguf").write_bytes(b"")
    edit(alone, base_model_name_or_path=str(base))
    refuse(alone, "its adapter cannot be added to a GGUF file")


# -- on the hub ------------------------------------------------------------------------------------


def test_an_adapter_and_its_base_on_the_hub(tmp_path, monkeypatch):
    both, alone, _ = saved(tmp_path, "llama", "causal-lm")
    expected = theirs("llama", "causal-lm", both)
    edit(alone, base_model_name_or_path="lab/base")
    (both / "adapter_config.json").unlink()
    with fake_hub.FakeHub(tmp_path / "hub") as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        refuse(alone, "lab/base")
        shutil.copytree(both, tmp_path / "hub" / "lab" / "base")
        shutil.copytree(alone, tmp_path / "hub" / "lab" / "adapter")
        for path in (alone, "lab/adapter"):
            with open_checkpoint(path) as found:
                np.testing.assert_allclose(ours(found), expected, atol=0.02)
        assert load_config(alone).head == "causal-lm"
        assert hub.names().count("model.safetensors") == 1
