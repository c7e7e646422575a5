"""`puma inspect` and `puma generate` of models whose tokenizer is missing, unusable or doubtful."""

import json
import shutil

import pytest
from gguf_files import write_chat


def without(folder, tmp_path, **files):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    for name, text in files.items():
        (copy / name).write_text(text)
    return copy


def test_no_tokenizer_is_said(puma, folder, tmp_path):
    copy = without(folder, tmp_path)
    code, out, _ = puma("inspect", copy)
    assert code == 0
    assert out.splitlines()[0].endswith(
        "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
    )
    assert "supported" not in out.splitlines()[0]
    assert "token ids alone" in out.splitlines()[0]
    code, out, _ = puma("inspect", copy, "--json")
    data = json.loads(out)
    assert (code, data["supported"]) == (0, False)
    assert "it has no tokenizer" in data["reason"]
    assert data["predicted"]


def test_half_a_tokenizer_is_refused(puma, folder, tmp_path):
    code, out, err = puma("inspect", without(folder, tmp_path, **{"vocab.json": "{}"}), "--json")
    assert code == 2
    assert json.loads(out)["supported"] is False
    assert "merges.txt is missing beside vocab.json" in json.loads(out)["reason"]
    assert err.count("\n") == 1


@pytest.mark.parametrize("pre", ["superbpe", None])
def test_pre_tokenizers_of_gguf(puma, tmp_path, pre):
    write_chat(tmp_path / "m.gguf", pre)
    code, out, err = puma("inspect", tmp_path / "m.gguf", "--prompt-tokens", 2)
    if pre is None:
        assert code == 0
        assert out.startswith(f"{tmp_path / 'm.gguf'}: supported")
        assert err.startswith("warning: the GGUF file does not name its pre-tokenizer")
    else:
        assert code == 2
        assert "tokenizer.ggml.pre: 'superbpe' is not supported; supported: a.x-4.0" in err
