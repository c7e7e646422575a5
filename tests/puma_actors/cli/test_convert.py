"""`puma convert`: pickled checkpoints keep their head, tokenizer and settings, and run no code."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from dense_folders import IDENTITY, TANH, add_dense
from fake_hub import FakeHub
from tiny_models import assert_same_weights, save, state, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ModelError
from puma_actors.cli.commands.converting import conversion

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz")


def pickled(model, folder, *, shards: int = 1):
    """As save_pretrained wrote it before safetensors: one file, or shards and an index."""
    save(model, folder)
    (folder / "model.safetensors").unlink()
    tensors = model.state_dict()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for number in range(shards):
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


CASES = [
    (kind, head)
    for kind, heads in {
        "bert": ("sequence-classification", "masked-lm", "none", "question-answering"),
        "roberta": ("token-classification",),
        "distilbert": ("sequence-classification",),
        "gpt2": ("causal-lm", "sequence-classification"),
        "llama": ("causal-lm", "none"),
    }.items()
    for head in heads
]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_model_stays_what_it_is(tmp_path, model_type, head, shards):
    model = tiny_model(model_type, head)
    folder = pickled(model, tmp_path / "old", shards=shards)
    said = conversion.main(str(folder), str(tmp_path / "new"))
    assert said["class"] == type(model).__name__
    with open_checkpoint(tmp_path / "new") as checkpoint:
        assert checkpoint.config.head == head
        expected, prefix = state(model), "" if head != "none" else checkpoint.config.naming.prefix
        expected = {prefix + name: values for name, values in expected.items()}
        assert_same_weights(checkpoint, {name: expected[name] for name in checkpoint.names()})
    config = json.loads((tmp_path / "new" / "config.json").read_bytes())
    assert config["architectures"] == [type(model).__name__]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_numbers_stays(tmp_path, dtype):
    folder = pickled(tiny_model("llama", "causal-lm").to(dtype), tmp_path / "old")
    conversion.main(str(folder), str(tmp_path / "new"))
    tensors = safetensors.torch.load_file(tmp_path / "new" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_tokenizer_and_settings_come_along(tmp_path):
    folder = pickled(tiny_model("bert", "none"), tmp_path / "old")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    (folder / "2_Dense").mkdir()
    dense = {"linear.weight": torch.ones(2, 16)}
    torch.save(dense, folder / "2_Dense" / "pytorch_model.bin")
    assert conversion.main(str(folder), str(tmp_path / "new"))["tokenizer"] == ""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert Tokenizer.load(tmp_path / "new").encode("a b z") == theirs("a b z")["input_ids"]
    for name in ("1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()
    found = safetensors.torch.load_file(tmp_path / "new" / "2_Dense" / "model.safetensors")
    np.testing.assert_array_equal(found["linear.weight"], dense["linear.weight"])
    assert not list((tmp_path / "new").rglob("*.bin"))


def test_without_a_tokenizer_it_says_so(tmp_path):
    folder = pickled(tiny_model("bert", "none"), tmp_path / "old")
    assert conversion.main(str(folder), str(tmp_path / "new"))["tokenizer"]
    assert not (tmp_path / "new" / "tokenizer.json").exists()


def refused(folder, tmp_path, says):
    with pytest.raises(conversion.RefusedError, match=says):
        conversion.main(str(folder), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_weights_that_would_be_random_are_refused(tmp_path):
    folder = pickled(tiny_model("bert", "masked-lm"), tmp_path / "old")
    edit(folder, architectures=["BertForSequenceClassification"])
    refused(folder, tmp_path, r"lacks weights of BertForSeq.*random: .*classifier")


def edit(folder, **changes):
    data = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


def test_the_class_must_be_known(tmp_path):
    folder = pickled(tiny_model("bert", "none"), tmp_path / "old")
    edit(folder, architectures=["OwnModel"], auto_map={"AutoModel": "own.OwnModel"})
    (folder / "own.py").write_text("raise SystemExit('run')")
    refused(folder, tmp_path, "OwnModel, the model's class")
    edit(folder, architectures=None)
    refused(folder, tmp_path, "names no class")


def test_there_must_be_something_to_convert(tmp_path):
    folder = save(tiny_model("bert", "none"), tmp_path / "old")
    refused(folder, tmp_path, "nothing to convert")
    (folder / "model.safetensors").rename(folder / "weights.pt")
    refused(folder, tmp_path, r"no pytorch_model\.bin")


def test_modules_that_alone_are_pickled(tmp_path, monkeypatch):
    """The model itself is copied; on the hub, it is fetched for that."""
    plain = save(tiny_model("bert", "none"), tmp_path / "plain")
    made = add_dense(plain, tmp_path / "made", [(24, True, TANH), (6, False, IDENTITY)])
    with FakeHub(tmp_path / "hub") as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        folder = shutil.copytree(made, hub.root / "lab/m")
        for place in ("2_Dense", "3_Dense"):
            weights = folder / place / "model.safetensors"
            tensors = safetensors.torch.load_file(weights)
            torch.save(tensors, weights.with_name("pytorch_model.bin"))
            weights.unlink()
        said = conversion.main("lab/m", str(tmp_path / "new"))
    assert said["class"] == "BertModel"
    with open_checkpoint(made) as one, open_checkpoint(tmp_path / "new") as two:
        assert one.config == two.config
        assert two.config.dense.columns == 6
        for name in one.names():
            np.testing.assert_array_equal(one.tensor(name), two.tensor(name))


class Harm:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    folder = pickled(tiny_model("bert", "none"), tmp_path / "old")
    harm = Harm()
    harm.place = str(tmp_path / "harm")
    torch.save({"x": harm}, folder / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        conversion.main(str(folder), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


# -- the command -----------------------------------------------------------------------------------


def python(path, script):
    """A program that stands for a Python: importing torch anew takes many seconds."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_command(tmp_path, puma):
    folder = pickled(tiny_model("bert", "sequence-classification"), tmp_path / "old")
    said = conversion.main(str(folder), str(tmp_path / "made"))
    (tmp_path / "said").write_text(f"a line before\n{json.dumps(said)}\n")
    moves = python(tmp_path / "python", f'mv {tmp_path}/made "$3" && cat {tmp_path}/said')
    new = tmp_path / "new"
    code, out, err = puma("convert", folder, new, "--python", moves)
    assert (code, out) == (0, f"{new}: BertForSequenceClassification, in safetensors\n")
    assert "no tokenizer was written" in err
    assert "cannot be run" not in err
    code, _, err = puma("convert", folder, new, "--python", moves)
    assert (code, "exists" in err) == (2, True)


def test_without_torch_it_says_how_to_get_one(tmp_path, puma):
    bare = python(tmp_path / "python", f'exec {sys.executable} -S -E "$@"')  # no site-packages
    folder = pickled(tiny_model("bert", "none"), tmp_path / "old")
    code, _, err = puma("convert", folder, tmp_path / "new", "--python", bare)
    assert code == 2
    assert "torch and transformers missing" in err
    assert f"puma convert {folder} {tmp_path / 'new'} --python ENV/bin/python" in err
    assert not (tmp_path / "new").exists()
    code, _, err = puma("convert", folder, tmp_path / "new", "--python", tmp_path / "none")
    assert (code, "is no program" in err) == (2, True)


@pytest.mark.parametrize("ending", ["exit 9", "echo nonsense"])
def test_a_python_that_fails(tmp_path, puma, ending):
    broken = python(tmp_path / "python", ending)
    code, _, err = puma("convert", "old", tmp_path / "new", "--python", broken)
    assert (code, "while it converted" in err) == (2, True)


def test_a_pickled_adapter(tmp_path):
    """Only its tensors are read, and it stays an adapter."""
    base = save(tiny_model("llama", "causal-lm"), tmp_path / "base")
    folder = tmp_path / "old"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(16, 2)}
    torch.save(tensors, folder / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"pickled adapters .*`puma convert .* NEW_FOLDER`"):
        open_checkpoint(folder)
    said = conversion.main(str(folder), str(tmp_path / "new"))
    assert said["class"] == "LoRA adapter"
    with open_checkpoint(tmp_path / "new") as found, open_checkpoint(base) as plain:
        query = "model.layers.0.self_attn.q_proj.weight"
        np.testing.assert_allclose(found.tensor(query), plain.tensor(query) + 4, rtol=1e-6)
    for weights in ("model.safetensors", "pytorch_model.bin"):
        (folder / "config.json").write_text("{}")
        (folder / weights).write_bytes(b"")
        with pytest.raises(conversion.RefusedError, match="into a folder of their own"):
            conversion.main(str(folder), str(tmp_path / "other"))
        (folder / weights).unlink()
