"""Quantised safetensors: packed here as each format's own tools do, and turned back on opening."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_in_memory import logits, torch_logits
from tiny_models import class_of, save, tiny_model

from models.checkpoints.quantised.fp8 import e4m3
from models.checkpoints.quantised.wrapping import WeightsAloneWarning
from models.checkpoints.weights import open_checkpoint
from models.configs.quantisation import quantisation_of
from protocols.errors import ModelError

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 4}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def written(folder, quantise, config, model=None):
    """A folder whose linear layers are quantised, and the weights that are meant.

    quantise: takes a weight (outputs, inputs), gives its parts and the weight meant.
    """
    model = tiny_model("llama", "causal-lm", **SIZES) if model is None else model
    save(model, folder)
    tensors, meant = {}, {}
    for name, value in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.endswith(LAYERS):
            parts, meant[name] = quantise(value.float())
            tensors.update({f"{module}.{end}": part for end, part in parts.items()})
        else:
            tensors[name], meant[name] = value, value
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    settings_of(folder, config)
    return meant


def settings_of(folder, config):
    file = folder / "config.json"
    data = json.loads(file.read_bytes())
    file.write_text(json.dumps({**data, "quantization_config": config}))


def assert_opened(folder, meant, atol=1e-6):
    with open_checkpoint(folder) as found:
        for name in found.names():
            values = found.tensor(name)
            assert values.flags.c_contiguous
            np.testing.assert_allclose(values, meant[name].float(), atol=atol, err_msg=name)


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


# -- GPTQ and AWQ ----------------------------------------------------------------------------------


def packed(numbers, bits, axis, order=None):
    """Whole numbers (rows, columns) into words of 32 bits along an axis, the first lowest."""
    across = 32 // bits
    if axis == 0:
        return packed(numbers.T, bits, 1, order).T.contiguous()
    fields = numbers.reshape(len(numbers), -1, across).to(torch.int64)
    fields = fields[:, :, order] if order else fields
    words = (fields << (bits * torch.arange(across))).sum(-1)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def grouped(weight, bits, size, generator, act_order=False):
    """Numbers and zero points (inputs along the rows), scales, groups, and the weight meant."""
    inputs = weight.shape[1]
    groups = inputs // size
    high = 1 << bits
    numbers = torch.randint(0, high, (inputs, len(weight)), generator=generator)
    zeros = torch.randint(1, high, (groups, len(weight)), generator=generator)
    scales = (torch.rand(groups, len(weight), generator=generator) / high).half()
    group = torch.arange(inputs) // size
    if act_order:
        group = group[torch.randperm(inputs, generator=generator)]
    meant = (numbers - zeros[group]).float() * scales.float()[group]
    return numbers, zeros, scales, group.to(torch.int32), meant.T


@settings(max_examples=10)
@given(
    bits=st.sampled_from([2, 4, 8]),
    size=st.sampled_from([4, 8, 16]),
    act_order=st.booleans(),
    form=st.sampled_from(["gptq", "gptq_v2", None]),
    seed=st.integers(0, 99),
)
def test_gptq(tmp_path_factory, bits, size, act_order, form, seed):
    generator = torch.Generator().manual_seed(seed)

    def quantise(weight):
        found = grouped(weight, bits, size, generator, act_order)
        numbers, zeros, scales, group, meant = found
        stored = zeros if form == "gptq_v2" else zeros - 1
        parts = {
            "qweight": packed(numbers, bits, 0),
            "qzeros": packed(stored, bits, 1),
            "scales": scales,
        }
        return parts | ({"g_idx": group} if act_order else {}), meant

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": form}
    folder = tmp_path_factory.mktemp("gptq")
    assert_opened(folder, written(folder, quantise, config))


def awq(generator):
    def quantise(weight):
        numbers, zeros, scales, _, meant = grouped(weight, 4, 8, generator)
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's `order_map`
        parts = {
            "qweight": packed(numbers, 4, 1, order),
            "qzeros": packed(zeros, 4, 1, order),
            "scales": scales,
        }
        return parts, meant

    return quantise


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "GEMM", "zero_point": True}


@pytest.mark.parametrize("seed", range(3))
def test_awq(tmp_path, seed):
    meant = written(tmp_path, awq(torch.Generator().manual_seed(seed)), AWQ)
    assert_opened(tmp_path, meant)


def test_what_does_not_fit_is_refused(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    for part, change, says in (
        ("scales", lambda t: t[:1], "qzeros has shape"),
        ("qweight", lambda t: t[:, :1], "does not fit|has shape"),
        ("qzeros", lambda t: t.float(), "stored as F32"),
        ("scales", lambda t: t.to(torch.int32), "I32, which is not supported"),
        ("qzeros", lambda t: None, "qzeros is missing"),
    ):
        written(tmp_path, awq(torch.Generator().manual_seed(1)), AWQ)

        def spoil(tensors, part=part, change=change):
            changed = change(tensors.pop(f"{name}.{part}"))
            if changed is not None:
                tensors[f"{name}.{part}"] = changed.contiguous()

        rewrite(tmp_path, spoil)
        with pytest.raises(ModelError, match=says), open_checkpoint(tmp_path) as found:
            found.tensor(f"{name}.weight")


# -- bitsandbytes ----------------------------------------------------------------------------------

_BELOW = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911]
_ABOVE = [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
NF4 = torch.tensor([*_BELOW, 0.0, *_ABOVE])


def four_bits(weight, *, nested, block=32, kind="nf4"):
    """As bitsandbytes stores it: two numbers a byte, the first one in the upper half."""
    flat = weight.reshape(-1, block)
    largest = flat.abs().max(1).values
    parts = {}
    state = {
        "quant_type": kind,
        "blocksize": block,
        "shape": list(weight.shape),
        "dtype": "float32",
    }
    if nested:
        offset = float(largest.mean())
        table = torch.linspace(-1, 1, 256)
        shifted = (largest - offset).reshape(-1, 4)  # blocks of 4
        outer = shifted.abs().max(1).values
        codes = ((shifted / outer[:, None])[..., None] - table).abs().argmin(-1)
        largest = (table[codes] * outer[:, None]).reshape(-1) + offset
        parts["weight.absmax"] = codes.reshape(-1).to(torch.uint8)
        parts["weight.nested_absmax"], parts["weight.nested_quant_map"] = outer, table
        state |= {"nested_blocksize": 4, "nested_offset": offset, "nested_dtype": "float32"}
    else:
        parts["weight.absmax"] = largest
    numbers = ((flat / largest[:, None])[..., None] - NF4).abs().argmin(-1)
    meant = (NF4[numbers] * largest[:, None]).reshape(weight.shape)
    pairs = numbers.reshape(-1, 2)
    parts["weight"] = (pairs[:, :1] * 16 + pairs[:, 1:]).to(torch.uint8)
    parts["weight.quant_map"] = NF4.clone()
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = text
    return parts, meant


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_of_bitsandbytes(tmp_path, kind, nested):
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    meant = written(tmp_path, lambda w: four_bits(w, nested=nested, kind=kind), config)
    assert_opened(tmp_path, meant)


def eight_bits(weight):
    largest = weight.abs().max(1).values
    numbers = (weight * (127 / largest[:, None])).round().to(torch.int8)
    parts = {
        "weight": numbers,
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return parts, numbers.float() * largest[:, None] / 127


def test_eight_bits_of_bitsandbytes(tmp_path):
    meant = written(tmp_path, eight_bits, {"load_in_8bit": True})
    with pytest.warns(WeightsAloneWarning, match="may differ from the quantised model's"):
        assert_opened(tmp_path, meant)
    name = "model.layers.1.mlp.up_proj.weight_format"
    rewrite(tmp_path, lambda t: t.update({name: torch.tensor(1, dtype=torch.uint8)}))
    with (
        pytest.warns(WeightsAloneWarning),
        pytest.raises(ModelError, match="weight_format"),
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("state", [b"{", b'{"shape": [9, 9], "blocksize": 8, "quant_type": "nf4"}'])
def test_a_damaged_state_is_refused(tmp_path, state):
    written(tmp_path, lambda w: four_bits(w, nested=True), {"load_in_4bit": True})
    name = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"
    text = torch.tensor(list(state), dtype=torch.uint8)
    rewrite(tmp_path, lambda t: t.update({name: text}))
    with pytest.raises(ModelError, match="quant_state"):
        open_checkpoint(tmp_path)


# -- FP8 -------------------------------------------------------------------------------------------


def test_the_numbers_of_fp8_are_torchs():
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3(), theirs)


@pytest.mark.parametrize("block", [(8, 8), (4, 16), (16, 4)])
def test_fp8_is_as_transformers_loads_it(tmp_path, block):
    def quantise(weight):
        rows, columns = (size // part for size, part in zip(weight.shape, block, strict=True))
        grid = weight.reshape(rows, block[0], columns, block[1])
        scale = grid.abs().amax(dim=(1, 3)) / 448
        stored = (grid / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        meant = (stored.float().reshape(grid.shape) * scale[:, None, :, None]).reshape(weight.shape)
        return {"weight": stored, "weight_scale_inv": scale}, meant

    config = {
        "quant_method": "fp8",
        "weight_block_size": list(block),
        "activation_scheme": "dynamic",
    }
    model = tiny_model("llama", "causal-lm", **SIZES)
    assert_opened(tmp_path, written(tmp_path, quantise, config, model))
    if not torch.cuda.is_available():  # there, transformers rounds activations, too
        theirs = class_of("llama", "causal-lm").from_pretrained(tmp_path, dtype=torch.float32)
        with open_checkpoint(tmp_path) as found:
            np.testing.assert_allclose(logits(found), torch_logits(theirs.eval()), atol=0.02)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "hqq"}, "'hqq'"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ({"quant_method": "mxfp4"}, "'mxfp4'"),
        ({"quant_method": "gptq", "bits": 3}, "bits: 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'e5m2'"),
        ("gptq", "not a mapping"),
        ({"bits": 4}, "quantization_config: None"),
    ],
)
def test_other_formats_are_refused_by_name(config, says):
    with pytest.raises(ModelError, match=says):
        quantisation_of({"quantization_config": config})


@pytest.mark.parametrize(
    "config", [{"load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}]
)
def test_settings_without_packed_weights_are_warned_about(tmp_path, config):
    meant = written(tmp_path, lambda weight: ({"weight": weight}, weight), config)
    with pytest.warns(WeightsAloneWarning, match="says .*, but no weight is quantised"):
        assert_opened(tmp_path, meant)


def test_settings_that_switch_quantisation_off_are_ignored(tmp_path):
    config = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}
    assert_opened(tmp_path, written(tmp_path, lambda w: ({"weight": w}, w), config))


def test_packed_weights_without_the_settings_are_refused(tmp_path):
    written(tmp_path, awq(torch.Generator().manual_seed(0)), AWQ)
    settings_of(tmp_path, None)
    with pytest.raises(ModelError, match="is missing"):
        open_checkpoint(tmp_path)
