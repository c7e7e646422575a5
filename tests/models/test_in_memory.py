"""Models in memory: as the same model saved and opened, and left alone, or refused by name."""

import copy
import hashlib
import subprocess
import sys
from pathlib import Path

import adapters
import numpy as np
import peft
import pytest
import torch
import transformers
from tiny_models import CASES, DECODERS, ENCODERS, SETTINGS, save, tiny_model

from models.checkpoints.in_memory import config_of_model, open_model
from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ACTIVATIONS
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from protocols.errors import ConfigError, ModelError, PumaError

ROOT = Path(__file__).parents[2]
# What PEFT does to transformers, and says about models without tasks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
IDS = [5, 9, 30, 2, 17, 6]


def fingerprint(model) -> str:
    """Of every tensor, its type and place, and of the modules' modes and classes."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        found.update(f"{name} {value.dtype} {value.requires_grad} {value.data_ptr()}".encode())
        found.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        found.update(f"{name} {type(module)} {module.training}".encode())
    return found.hexdigest()


def assert_same(found, expected) -> None:
    """Two open checkpoints, bit for bit."""
    assert found.config == expected.config
    assert found.names() == expected.names()
    assert found.nbytes == expected.nbytes
    for name in expected.names():
        values = found.tensor(name)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        np.testing.assert_array_equal(values, expected.tensor(name), err_msg=name, strict=True)


def logits(checkpoint) -> np.ndarray:
    return plain_run(checkpoint.config, dict(load_parameters(checkpoint)), [IDS], "all")


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].double().numpy()


# -- every family ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_a_model_is_what_its_folder_is(tmp_path, model_type, head, dtype):
    model = tiny_model(model_type, head).to(dtype)
    before = fingerprint(model)
    with open_model(model) as found, open_checkpoint(save(model, tmp_path)) as expected:
        assert found.config.head == head
        assert config_of_model(model) == expected.config
        assert_same(found, expected)
    assert fingerprint(model) == before


@pytest.mark.parametrize("model_type", SETTINGS)
def test_logits_are_those_of_torch(model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head)
    if model_type == "bert":  # transformers adds the one, older versions the other
        model.cls.predictions.decoder.bias.data.copy_(model.cls.predictions.bias.data)
    with open_model(model) as found:
        np.testing.assert_allclose(logits(found), torch_logits(model), atol=0.02)


ACT_NAMES = {"distilbert": "activation", "gpt2": "activation_function", "falcon": "activation"}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swish"])
@pytest.mark.parametrize("model_type", SETTINGS)
def test_activations_and_norms(model_type, activation):
    """Known when the model was made with them, refused when it was not."""
    head = "sequence-classification"
    eps = (
        "rms_norm_eps"
        if hasattr(tiny_model(model_type, head).config, "rms_norm_eps")
        else "layer_norm_eps"
    )
    eps = "layer_norm_epsilon" if model_type in ("gpt2", "falcon") else eps
    act = ACT_NAMES.get(model_type, "hidden_act")
    model = tiny_model(model_type, head, **{act: activation})
    with open_model(model) as found:
        assert found.config.hidden_act == ("silu" if activation == "swish" else activation)
    setattr(model.config, act, "gelu" if activation != "gelu" else "gelu_new")
    with pytest.raises(
        ModelError, match=r"is \w+, and its configuration has 'gelu.*make the model"
    ):
        open_model(model)
    if model_type != "distilbert":  # whose eps is fixed
        model = tiny_model(model_type, head, **{eps: 1e-3})
        with open_model(model) as found:
            assert 1e-3 in vars(found.config).values()
        setattr(model.config, eps, 1e-4)
        with pytest.raises(ModelError, match=r"has eps 0\.001, and its configuration says 0\.0001"):
            open_model(model)


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_the_base_model_of_a_model_with_a_head(tmp_path, model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head)
    save(model, tmp_path)
    with (
        open_model(model, head="none") as found,
        open_checkpoint(tmp_path, head="none") as expected,
    ):
        assert_same(found, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DECODERS)
def test_tied_and_untied(tmp_path, model_type, tied):
    model = tiny_model(model_type, "causal-lm", tie_word_embeddings=tied)
    with open_model(model) as found, open_checkpoint(save(model, tmp_path)) as expected:
        assert found.config.tie_embeddings == tied
        assert_same(found, expected)


@pytest.mark.parametrize("model_type", DECODERS)
def test_memory_tells_whether_a_head_is_tied(model_type):
    """transformers reads the configuration when it makes a model, not when it runs."""
    model = tiny_model(model_type, "causal-lm", tie_word_embeddings=True)
    head = torch.randn_like(model.lm_head.weight)
    model.lm_head.weight = torch.nn.Parameter(head)
    with open_model(model) as found:
        assert not found.config.tie_embeddings
        np.testing.assert_array_equal(found.tensor("lm_head.weight"), head.numpy())
        np.testing.assert_allclose(logits(found), torch_logits(model), atol=0.02)


def test_end_tokens_of_the_generation_config(tmp_path):
    model = tiny_model("llama", "causal-lm")
    model.generation_config.eos_token_id = [7, 9]
    with open_model(model) as found, open_checkpoint(save(model, tmp_path)) as expected:
        assert found.config.eos_token_ids == expected.config.eos_token_ids == (4, 7, 9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_training_mode_and_compilation_change_nothing():
    model = tiny_model("gpt2", "causal-lm").train()
    expected = fingerprint(model)
    with open_model(torch.compile(model)) as compiled, open_model(model) as found:
        assert_same(compiled, found)
    assert fingerprint(model) == expected
    assert model.training


def test_outputs_that_transformers_captures_are_no_foreign_hooks():
    model = tiny_model("llama", "causal-lm")
    model(input_ids=torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    with open_model(model) as found:
        assert found.tensor("model.norm.weight").shape == (16,)


def test_a_model_that_changes_between_opening_and_reading():
    model = tiny_model("llama", "causal-lm")
    with open_model(model) as found:
        model.to(torch.bfloat16)
        expected = model.model.norm.weight.detach().float().numpy()
        np.testing.assert_array_equal(found.tensor("model.norm.weight"), expected)
        model.model.norm.weight.data = torch.ones(3)
        with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \(3,\) now"):
            found.tensor("model.norm.weight")
    with pytest.raises(ModelError, match="closed"):
        found.tensor("lm_head.weight")


def test_arrays_are_no_views_of_the_model():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = tiny_model("gpt2", "causal-lm").to(dtype)
        before = fingerprint(model)
        with open_model(model) as found:
            for name in found.names():
                found.tensor(name)[...] = 7.0
        assert fingerprint(model) == before


# -- adapters --------------------------------------------------------------------------------------

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


# -- refused by name -------------------------------------------------------------------------------


class MyLlama(transformers.LlamaForCausalLM):
    """Might compute anything."""


class MyLinear(torch.nn.Linear):
    """So might this."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, r"the model is NoneType: give a model of transformers"),
        (1, "the model is int: give a model"),
        ({"model.norm.weight": 1}, "the model is dict: give a model"),
        ("folder", "the model is str: .*the path of a saved one to from_pretrained"),
        (torch.nn.Linear(2, 2), r"the model is torch\.nn.*Linear: give a model of transformers"),
        (transformers.LlamaConfig(), r"LlamaConfig: give a model of transformers"),
        (
            torch.nn.DataParallel(tiny_model("gpt2", "causal-lm")),
            r"DataParallel: give the model inside of it, its \.module",
        ),
    ],
)
def test_other_objects(wrong, message):
    with pytest.raises(ConfigError, match=message):
        open_model(wrong)


def test_a_class_of_the_users_own():
    model = MyLlama(tiny_model("llama", "causal-lm").config)
    with pytest.raises(ConfigError, match=r"MyLlama, which may compute.*save_pretrained\(FOLDER\)"):
        open_model(model)


def test_a_class_with_a_head_that_is_not_evaluated():
    config = tiny_model("bert", "none").config
    with pytest.raises(ModelError, match="BertForNextSentencePrediction"):
        open_model(transformers.BertForNextSentencePrediction(config))


def test_a_family_that_is_not_evaluated():
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="model_type: 'opt' is not supported"):
        open_model(transformers.OPTForCausalLM(config))


def spoil_part(model) -> None:
    model.model.layers[1].mlp.up_proj = MyLinear(16, 24, bias=False)


def spoil_hook(model) -> None:
    model.model.layers[0].register_forward_hook(lambda module, given, found: found)


def spoil_pre_hook(model) -> None:
    model.model.norm.register_forward_pre_hook(lambda module, given: given)


def spoil_forward(model) -> None:
    model.model.norm.forward = lambda x: x


def spoil_activation(model) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def spoil_eps(model) -> None:
    model.model.norm.variance_epsilon = 0.1


def spoil_meta(model) -> None:
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.to("meta"))


def spoil_dtype(model) -> None:
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.to(torch.float8_e4m3fn), requires_grad=False)


def spoil_kind(model) -> None:
    norm = model.model.norm
    norm.weight = type("Params4bit", (torch.nn.Parameter,), {})(norm.weight.data)


def spoil_layout(model) -> None:
    layer = model.model.layers[0].mlp
    sparse = layer.up_proj.weight.detach().to_sparse()
    layer.up_proj.weight = torch.nn.Parameter(sparse)


def spoil_shape(model) -> None:
    model.model.norm.weight = torch.nn.Parameter(torch.ones(15))


def spoil_value(model) -> None:
    model.model.norm.weight.data[3] = float("nan")


def spoil_bias(model) -> None:
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(16, 24)


def spoil_parameterization(model) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def spoil_quantisation(model) -> None:
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_part, r"model\.layers\.1\.mlp\.up_proj is a .*MyLinear, which may compute"),
        (spoil_hook, r"model\.layers\.0 has a forward hook.*remove"),
        (spoil_pre_hook, r"model\.norm has a forward hook.*remove"),
        (spoil_forward, r"forward of model\.norm was replaced"),
        (spoil_activation, r"layers\.1\.mlp\.act_fn is ReLU, and its configuration has 'silu'"),
        (spoil_eps, r"model\.norm has eps 0\.1, and its configuration says 1e-06"),
        (spoil_meta, r"values of model\.norm\.weight are not in memory.*device_map"),
        (spoil_dtype, r"model\.norm\.weight is stored as torch\.float8_e4m3fn"),
        (spoil_kind, r"model\.norm\.weight is a .*Params4bit, which is quantised"),
        (spoil_layout, r"up_proj\.weight is a .*, which is quantised, sharded or sparse"),
        (spoil_shape, r"model\.norm\.weight has shape \(15,\), expected \(16,\)"),
        (spoil_value, r"model\.norm\.weight contains NaN or infinity; the model is damaged"),
        (spoil_bias, r"up_proj\.bias is not part of family 'llama'"),
        (spoil_parameterization, r"ParametrizedLinear, which may compute"),
        (spoil_quantisation, r"quantization_config: 'bitsandbytes' is not supported"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(spoil, message):
    model = tiny_model("llama", "causal-lm")
    spoil(model)
    with pytest.raises(PumaError, match=message), open_model(model) as found:
        assert found.tensor("model.norm.weight").shape == (16,)


def test_a_head_that_the_model_lacks():
    model = tiny_model("bert", "masked-lm")
    with pytest.raises(ModelError, match=r"BertForMaskedLM in memory: tensor .*the model has the"):
        open_model(model, head="sequence-classification")


def test_a_bias_that_the_family_has_once():
    model = tiny_model("bert", "masked-lm")
    model.cls.predictions.decoder.bias = torch.nn.Parameter(torch.ones(40))
    with pytest.raises(ModelError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        open_model(model)


# -- memory and imports ----------------------------------------------------------------------------

WATCHED = """
import sys
import psutil
import torch
import transformers

sizes = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8)
config = transformers.LlamaConfig(vocab_size=1000, num_attention_heads=8, **sizes)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
model = model.to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.fill_(0.5)
from models.checkpoints.in_memory import open_model

known = set(sys.modules)
own = psutil.Process()
before = most = own.memory_info().rss
with open_model(model) as checkpoint:
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        most = max(most, own.memory_info().rss)
    print(most - before, checkpoint.nbytes)
print(*sorted(set(sys.modules) - known))
"""


def test_no_second_copy_is_made_and_nothing_imported():
    run = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, cwd=ROOT, check=True
    )
    sizes, new = run.stdout.splitlines()
    grown, whole = map(int, sizes.split())
    assert whole > 200e6
    assert grown < whole / 3  # a whole copy in float32 is twice as much; a tensor, 12 MB
    assert not [name for name in new.split() if name.split(".")[0] in ("torch", "transformers")]
