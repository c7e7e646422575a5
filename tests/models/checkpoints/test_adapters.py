"""LoRA of PEFT is added to the weights of a model in memory; other adapters are refused by name."""

import copy

import adapters
import numpy as np
import peft
import pytest
import torch
from models_in_memory import IDS, fingerprint, logits, torch_logits
from tiny_models import ENCODERS, SETTINGS, tiny_model

from models.checkpoints.in_memory import open_model
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from protocols.errors import ModelError

# What PEFT does to transformers, and says about models without tasks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "mistral": ["q_proj"],
    "qwen2": ["q_proj", "up_proj"],
    "qwen3": ["o_proj"],
    "gpt2": ["c_attn", "c_fc"],  # stored as (inputs, outputs)
    "falcon": ["query_key_value", "dense_h_to_4h"],
    "bert": ["query", "value"],
    "roberta": ["value", "dense"],
    "xlm-roberta": ["query", "value", "dense"],
    "camembert": ["value", "dense"],
    "data2vec-text": ["value", "dense"],
    "mpnet": ["q", "dense"],
    "electra": ["value", "dense", "embeddings_project"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj"],
    "modernbert": ["Wqkv", "Wi"],
    "gemma": ["q_proj"],
    "gemma2": ["k_proj", "down_proj"],
    "gemma3_text": ["o_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "granite": ["v_proj"],
    "smollm3": ["v_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "opt": ["q_proj", "fc1", "project_in"],
    "distilbert": ["v_lin", "out_lin", "lin1", "lin2", "vocab_transform"],
}


def assert_merged(found, adapted, atol: float = 2e-6) -> None:
    """As PEFT's own merging of a copy."""
    with open_model(copy.deepcopy(adapted).merge_and_unload()) as expected:
        assert found.names() == expected.names()
        for name in expected.names():
            np.testing.assert_allclose(
                found.tensor(name), expected.tensor(name), atol=atol, rtol=1e-6, err_msg=name
            )


def differs(adapted) -> bool:
    """Whether the adapters have any effect, so that a test can see them."""
    with adapted.disable_adapter():
        plain = torch_logits(adapted)
    return np.abs(torch_logits(adapted) - plain).max() > 0.1


@pytest.mark.parametrize("model_type", SETTINGS)
def test_lora_is_merged_and_the_model_left_alone(model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head)
    if model_type == "bert":
        model.cls.predictions.decoder.bias.data.copy_(model.cls.predictions.bias.data)
    adapted = adapters.with_lora(model, TARGETS[model_type])
    assert differs(adapted)
    before = fingerprint(adapted)
    for given in (adapted, adapted.base_model, adapted.get_base_model()):  # the last: a plain model
        with open_model(given) as found:
            assert_merged(found, adapted)
            np.testing.assert_allclose(logits(found), torch_logits(adapted), atol=0.02)
    assert fingerprint(adapted) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lora_of_a_half_model_is_not_rounded_again(dtype):
    adapted = adapters.with_lora(tiny_model("llama", "causal-lm").to(dtype), ["q_proj"])
    layer = adapted.get_base_model().model.layers[1].self_attn.q_proj
    product = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    expected = layer.base_layer.weight.float() + product * layer.scaling["default"]
    with open_model(adapted) as found:
        values = found.tensor("model.layers.1.self_attn.q_proj.weight")
        np.testing.assert_allclose(values, expected.detach().numpy(), atol=1e-6)
        assert_merged(found, adapted, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"lora_dropout": 0.5}],
)
def test_settings_of_lora(settings):
    adapted = adapters.with_lora(
        tiny_model("llama", "causal-lm"), ["q_proj", "embed_tokens"], **settings
    )
    assert differs(adapted)
    with open_model(adapted) as found:
        assert_merged(found, adapted)


def test_the_active_adapters_count():
    adapted = adapters.with_lora(tiny_model("llama", "causal-lm"), ["q_proj"], name="one")
    adapted.add_adapter("two", adapters.lora(["k_proj", "q_proj"], r=2))
    adapters.randomise(adapted)
    found = {}
    for names in (["one"], ["two"], ["one", "two"]):
        adapted.base_model.set_adapter(names)
        with open_model(adapted) as checkpoint:
            assert_merged(checkpoint, adapted)
            found[str(names)] = logits(checkpoint)
            np.testing.assert_allclose(found[str(names)], torch_logits(adapted), atol=0.02)
    assert len({values.tobytes() for values in found.values()}) == 3
    with adapted.disable_adapter(), open_model(adapted) as checkpoint:
        np.testing.assert_allclose(logits(checkpoint), torch_logits(adapted), atol=0.02)
    with open_model(adapted) as checkpoint:
        unmerged = logits(checkpoint)
    adapted.merge_adapter()
    with open_model(adapted) as checkpoint:
        np.testing.assert_allclose(logits(checkpoint), unmerged, atol=1e-4)


@pytest.mark.parametrize("active", [True, False])
def test_a_head_that_was_trained_with_the_adapter(active):
    model = tiny_model("bert", "sequence-classification")
    adapted = adapters.with_lora(model, ["query"], task_type="SEQ_CLS")
    if not active:
        adapted.base_model.disable_adapter_layers()
    expected = torch_logits(adapted)
    with open_model(adapted) as found:
        result = plain_run(found.config, dict(load_parameters(found)), [IDS], "first")
        np.testing.assert_allclose(result[0], expected, atol=0.02)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_weights(target):
    model = tiny_model("llama", "causal-lm", tie_word_embeddings=True)
    adapted = adapters.with_lora(model, [target])
    assert differs(adapted)
    with open_model(adapted) as found:
        assert not found.config.tie_embeddings
        np.testing.assert_allclose(logits(found), torch_logits(adapted), atol=0.02)


def test_lora_inside_of_a_plain_model():
    """As `add_adapter` of transformers leaves it."""
    model = tiny_model("llama", "causal-lm")
    peft.inject_adapter_in_model(adapters.lora(["q_proj"]), model)
    adapters.randomise(model)
    with open_model(model.eval()) as found:
        np.testing.assert_allclose(logits(found), torch_logits(model), atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (adapters.lora(["q_proj"], use_dora=True), r"q_proj is more than .*merge_and_unload\(\)"),
        (adapters.lora(["q_proj"], target_parameters=[]), None),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "of kind IA3"),
        (peft.LoHaConfig(target_modules=["k_proj"]), r"of kind LOHA.*merge_and_unload\(\)"),
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING"),
        (
            peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
            r"embed_tokens has an adapter of kind .*TrainableTokensWrapper.*merge_and_unload\(\)",
        ),
    ],
)
def test_other_adapters_are_refused_or_right(settings, message):
    adapted = peft.get_peft_model(tiny_model("llama", "causal-lm"), settings).eval()
    adapters.randomise(adapted)
    if message is None:
        with open_model(adapted) as found:
            assert_merged(found, adapted)
        return
    with pytest.raises(ModelError, match=message):
        open_model(adapted)


@pytest.mark.filterwarnings("ignore:.*bias")
def test_a_bias_of_an_adapter_is_refused():
    model = tiny_model("qwen2", "causal-lm")
    adapted = adapters.with_lora(model, ["q_proj"], lora_bias=True)
    with pytest.raises(ModelError, match="a bias or another variant"):
        open_model(adapted)
    with open_model(adapted.merge_and_unload()) as found:
        assert np.isfinite(logits(found)).all()


def test_adapters_merged_and_then_disabled_are_refused():
    adapted = adapters.with_lora(tiny_model("llama", "causal-lm"), ["q_proj"])
    adapted.merge_adapter()
    adapted.base_model.disable_adapter_layers()
    with pytest.raises(ModelError, match=r"merged and then disabled.*unmerge_adapter\(\)"):
        open_model(adapted)
