"""Weights from GGUF, against torch and the library that wrote the files."""

import struct

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf_files import writer_of
from tiny_models import assert_same_weights, quantisable_llama, state
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models.checkpoints.weights import demo_model_path, open_checkpoint
from models.files.gguf_reader import GgufFile
from protocols.errors import ModelError


def gguf_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute` of query and key rows in its conversion script."""
    shape = (heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_names(layers: int) -> dict[str, str]:
    names = {f"{a}.weight": f"{b}.weight" for a, b in TOP.items()}
    for i in range(layers):
        for a, b in LAYER.items():
            names[f"blk.{i}.{a}.weight"] = f"model.layers.{i}.{b}.weight"
    return names


def random_blocks(shape: tuple[int, int], kind: Kind, rng) -> np.ndarray:
    """Raw blocks of a format the library can read but not write: random codes, small scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    # The float16 factors: d and dmin lead a Q4_K block, d ends a Q6_K block.
    places = [slice(0, 2), slice(2, 4)] if kind == Kind.Q4_K else [slice(-2, None)]
    for place in places:
        scales = rng.uniform(1e-4, 1e-2, raw.shape[:2]).astype(np.float16)
        raw[:, :, place] = scales[..., None].view(np.uint8)
    return raw.reshape(shape[0], -1)


def write_gguf(path, model, kind: Kind = Kind.F32, arch="llama", extra=(), **settings):
    """Write `model` with its matrices stored as `kind`; return the weights to expect back."""
    config, rng = model.config, np.random.default_rng(1)
    writer = writer_of(path, config, arch)
    writer.add_custom_alignment(64)
    for key, value in settings.items():
        getattr(writer, f"add_{key}")(value)
    expected = {}
    for theirs, hf in gguf_names(config.num_hidden_layers).items():
        values = state(model)[hf]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(theirs.split(".")[-2])
        if values.ndim == 1:
            writer.add_tensor(theirs, values)
            expected[hf] = values
            continue
        ordered = values if count is None else gguf_order(values, count)
        if kind in (Kind.Q4_K, Kind.Q6_K):
            raw = random_blocks(values.shape, kind, rng)
        else:
            raw = gguf.quantize(np.ascontiguousarray(ordered), kind)
        writer.add_tensor(theirs, raw, raw_dtype=kind)
        stored = gguf.dequantize(raw, kind).astype(np.float32)
        # Undone row by row, independently of the code under test: row 2p+h was row h*half+p.
        rows = np.arange(len(stored))
        if count is not None:
            dim = len(stored) // count
            head, half, pair = rows // dim, rows % dim // (dim // 2), rows % (dim // 2)
            rows = head * dim + 2 * pair + half
        expected[hf] = stored[rows]
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_gguf_formats(tmp_path, kind):
    model = quantisable_llama()
    expected = write_gguf(tmp_path / "m.gguf", model, Kind[kind])
    for path in (tmp_path, tmp_path / "m.gguf"):
        with open_checkpoint(path) as checkpoint:
            assert_same_weights(checkpoint, expected)
            assert not checkpoint.config.tie_embeddings
    if kind == "F32":
        for name, values in state(model).items():
            np.testing.assert_array_equal(expected[name], values)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, quantisable_llama())
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0, 3, 10, 40, 200, 1500, 0.5, -1])
def test_truncated_gguf(tmp_path, gguf_bytes, keep):
    count = int(keep * len(gguf_bytes)) if isinstance(keep, float) else keep
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:count])
    with pytest.raises(ModelError, match=r"truncated|cannot be read as GGUF"):
        open_checkpoint(tmp_path)


def test_every_damaged_header_is_a_model_error(tmp_path, gguf_bytes):
    rng = np.random.default_rng(2)
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(300):
        data = bytearray(gguf_bytes)
        for at in rng.integers(0, 2500, 3):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            open_checkpoint(path).close()
        except ModelError as error:
            refused += "\n" not in str(error)
    assert refused > 200


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 0x1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(60), "truncated|cannot be"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "truncated"),
    ],
)
def test_malformed_gguf(tmp_path, data, says):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=says):
        open_checkpoint(tmp_path)


def test_gguf_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    model = quantisable_llama(num_hidden_layers=1)
    write_gguf(path, model, arch="bloom")
    with pytest.raises(ModelError, match=r"general\.architecture: 'bloom'.*llama"):
        open_checkpoint(path)
    write_gguf(path, model, extra=[("rope_freqs.weight", 2 * np.ones(30, np.float32))])
    with pytest.raises(ModelError, match=r"factors: 30 numbers where"):
        open_checkpoint(path)
    write_gguf(path, model, rope_scaling_type=gguf.RopeScalingType.LINEAR)
    with pytest.raises(ModelError, match="'linear'"):
        open_checkpoint(path)


def test_closed_files_are_released(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, quantisable_llama(num_hidden_layers=1))
    file = GgufFile(path)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.tensor("output_norm.weight")
    path.unlink()


# --- the demo model ----------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_model_equals_torch():
    """The reference is transformers' GGUF loader, called directly because
    `from_pretrained(gguf_file=...)`, which runs the same code, insists on the package accelerate.
    """
    path = demo_model_path()
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):  # names only
        names = transformers.LlamaForCausalLM(config)
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=names)
    expected = {name: value.float().numpy() for name, value in loaded["tensors"].items()}
    with open_checkpoint(path) as checkpoint:
        assert_same_weights(checkpoint, expected)
        assert checkpoint.nbytes < path.stat().st_size
