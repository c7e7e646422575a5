"""Models in memory: as the same model saved and opened, and left alone, or refused by name."""

import subprocess
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
import transformers
from family_variants import ACTIVATION_KEYS
from models_in_memory import IDS, fingerprint, logits, torch_logits
from tiny_models import CASES, DECODERS, ENCODERS, KIN, SETTINGS, save, tiny_model

from models.checkpoints.in_memory import config_of_model, open_model
from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ACTIVATIONS
from protocols.errors import ConfigError, ModelError, PumaError

ROOT = Path(__file__).parents[3]


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


EPS = {
    "gpt2": "layer_norm_epsilon",
    "falcon": "layer_norm_epsilon",
    "modernbert": "norm_eps",
    "distilbert": None,  # it is fixed
    "opt": None,
}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swish"])
@pytest.mark.parametrize("model_type", [name for name in SETTINGS if name not in KIN])
def test_activations_and_norms(model_type, activation):
    """Known when the model was made with them, refused when it was not."""
    head = "sequence-classification"
    usual = "layer_norm_eps" if model_type in ENCODERS else "rms_norm_eps"
    eps = EPS.get(model_type, usual)
    act = ACTIVATION_KEYS.get(model_type, "hidden_act")
    model = tiny_model(model_type, head, **{act: activation})
    with open_model(model) as found:
        assert found.config.hidden_act == ("silu" if activation == "swish" else activation)
    setattr(model.config, act, "gelu" if activation != "gelu" else "gelu_new")
    with pytest.raises(
        ModelError, match=r"is \w+, and its configuration has 'gelu.*build the model"
    ):
        open_model(model)
    if eps is not None:
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


def test_a_model_that_was_dequantised():
    """transformers keeps the name of the format that it read, such as GGUF."""
    model = tiny_model("llama", "causal-lm")
    with open_model(model) as expected:
        model.config.quantization_config = {"quant_method": "gguf"}
        with open_model(model) as found:
            assert_same(found, expected)


def test_hooks_that_move_tensors_are_no_foreign_hooks():
    model = tiny_model("llama", "causal-lm")
    expected = torch_logits(model)
    accelerate.hooks.add_hook_to_module(model.model.norm, accelerate.hooks.AlignDevicesHook())
    with open_model(model) as found:
        np.testing.assert_allclose(logits(found), expected, atol=0.02)


def test_a_model_that_changes_between_opening_and_reading():
    model = tiny_model("llama", "causal-lm")
    with open_model(model) as found:
        model.to(torch.bfloat16)
        expected = model.model.norm.weight.detach().float().numpy()
        np.testing.assert_array_equal(found.tensor("model.norm.weight"), expected)
        model.model.norm.weight.data = torch.ones(3)
        with pytest.raises(ModelError, match=r"model\.norm\.weight now has shape \(3,\)"):
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


# -- refused by name -------------------------------------------------------------------------------


class MyLlama(transformers.LlamaForCausalLM):
    """Might compute anything."""


class MyLinear(torch.nn.Linear):
    """So might this."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, r"the model is NoneType: give a transformers model"),
        (1, "the model is int: give a transformers model"),
        ({"model.norm.weight": 1}, "the model is dict: give a transformers model"),
        ("folder", "the model is str: .*the path of a saved one to from_pretrained"),
        (torch.nn.Linear(2, 2), r"the model is torch\.nn.*Linear: give a transformers model"),
        (transformers.LlamaConfig(), r"LlamaConfig: give a transformers model"),
        (
            torch.nn.DataParallel(tiny_model("gpt2", "causal-lm")),
            r"DataParallel: give the model inside it, its \.module",
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
    config = transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match="model_type: 'bloom' is not supported"):
        open_model(transformers.BloomForCausalLM(config))


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


def spoil_offload(model) -> None:
    accelerate.cpu_offload(model)


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
    """Plain weights that are rounded to three values when the model runs."""
    # Importing the real one takes seconds.
    place = {"__module__": "transformers.integrations.bitnet"}
    kind = type("AutoBitLinear", (torch.nn.Linear,), place)
    model.model.layers[0].mlp.up_proj = kind(16, 24, bias=False)


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
        (spoil_offload, r"values of .* are not in memory.*device_map"),
        (spoil_dtype, r"model\.norm\.weight is stored as torch\.float8_e4m3fn"),
        (spoil_kind, r"model\.norm\.weight is a .*Params4bit, which is quantised"),
        (spoil_layout, r"up_proj\.weight is a .*, which is quantised, sharded or sparse"),
        (spoil_shape, r"model\.norm\.weight has shape \(15,\), expected \(16,\)"),
        (spoil_value, r"model\.norm\.weight contains NaN or infinity; the model is damaged"),
        (spoil_bias, r"up_proj\.bias is not part of family 'llama'"),
        (spoil_parameterization, r"ParametrizedLinear, which may compute"),
        (spoil_quantisation, r"up_proj is a .*AutoBitLinear, which .*dequantize\(\)"),
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
