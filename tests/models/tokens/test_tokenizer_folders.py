"""Tokenizers of folders in every form, against transformers' AutoTokenizer on the same folder."""

import json
import subprocess
import sys

import pytest
import transformers
from tokenizer_folders import TEXTS, folders, write

from models.tokens import folder_tokenizer
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ModelError

FOLDERS = folders()
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def assert_same(found: Tokenizer, expected: transformers.PreTrainedTokenizerBase) -> None:
    for text in TEXTS:
        theirs = expected(text)
        assert found.encode(text) == theirs["input_ids"], text
        assert found.decode(theirs["input_ids"]) == expected.decode(
            theirs["input_ids"], skip_special_tokens=True
        )
        if not text:
            continue
        pair = expected("the fox?", text)
        ours = found.encode_text("the fox?", text)
        assert list(ours.ids) == pair["input_ids"]
        assert list(ours.types) == pair.get("token_type_ids", [0] * len(ours))
    for name, token in expected.special_tokens_map.items():
        assert found.special_token(name) == str(token)
        assert found.special_id(name) == expected.convert_tokens_to_ids(str(token))
    eos = expected.eos_token_id
    assert found.eos_token_ids == (() if eos is None else (eos,))
    limit = expected.model_max_length
    assert found.max_length == (limit if limit < 1 << 40 else None)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_types_and_special_tokens_equal_transformers(tmp_path, name):
    write(tmp_path, FOLDERS[name])
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = Tokenizer.load(tmp_path)
    assert_same(found, expected)
    assert_same(Tokenizer.from_files(found.to_files()), expected)


def test_the_settings_matter(tmp_path):
    """Otherwise the test above would hold for a reader that looks at tokenizer.json alone."""

    def ids(name: str, text: str = "Hello <new> [ADDED] x") -> list[int]:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        return Tokenizer.load(write(folder, FOLDERS[name])).encode(text)

    assert ids("json bert") != ids("json bert cased")
    assert ids("json bert by class") != ids("json bare")
    assert len({tuple(ids(f"json {name}")) for name in ("added", "extra", "without types")}) == 3
    assert ids("json gpt2") != ids("json gpt2 prefix")
    assert ids("merges gpt2") != ids("merges gpt2 prefix")
    assert ids("model llama") != ids("model llama settings")


def test_a_chat_has_all_special_tokens(tmp_path):
    files = {**FOLDERS["merges gpt2 map"], "chat_template.jinja": TEMPLATE + "{{ x }}"}
    write(tmp_path, files)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "hello <new>"}]
    theirs = expected.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert Tokenizer.load(tmp_path).chat(chat) == theirs


def test_without_torch_in_this_process(tmp_path):
    """A program that has not imported transformers gets the same, and still has neither."""
    write(tmp_path, FOLDERS["merges gpt2 map"])
    code = (
        "import sys, json; from models.tokens.tokenizer import Tokenizer; "
        "found = Tokenizer.load(sys.argv[1]).encode('hello <new> </s>'); "
        "print(json.dumps([found, sorted({'torch', 'transformers'} & sys.modules.keys())]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True
    )
    found, imported = json.loads(out.stdout)
    assert found == Tokenizer.load(tmp_path).encode("hello <new> </s>")
    assert imported == []
    assert out.stderr == b""


def test_errors_of_the_other_process(tmp_path, monkeypatch):
    write(tmp_path, {"tokenizer.json": "{}"})
    here = pytest.raises(ModelError, match="cannot be read as a tokenizer")
    with here as expected:
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelError) as error:
        folder_tokenizer._elsewhere(tmp_path)
    assert str(error.value) == str(expected.value)
    monkeypatch.setattr(folder_tokenizer, "_CHILD", "raise SystemExit('no transformers here')")
    with pytest.raises(ModelError, match=r"does not run here \(no transformers here\)"):
        folder_tokenizer._elsewhere(tmp_path)


REFUSED = {
    "nothing": ({}, r"tokenizer\.json: missing; save"),
    "settings alone": ({"tokenizer_config.json": {}}, r"tokenizer\.json: missing; save"),
    "no merges": (
        {"vocab.json": {"a": 0}, "config.json": {"model_type": "gpt2"}},
        r"merges.txt is missing beside vocab.json",
    ),
    "the file of another class": (
        {"vocab.txt": "[UNK]\na", "config.json": {"model_type": "gpt2"}},
        r"vocab.json and merges.txt is missing",
    ),
    "damaged": ({"tokenizer.json": '{"version": "1.0"'}, "cannot be read as a tokenizer"),
    "damaged model": ({"tokenizer.model": b"x" * 40}, "cannot be read as a tokenizer"),
    "in Python": (
        {
            "vocab.txt": "[UNK]\na",
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizerLegacy"},
        },
        "BertTokenizerLegacy",
    ),
    "in Python, of more files": (
        {
            **FOLDERS["vocab.txt"],
            "tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer"},
        },
        "BertJapaneseTokenizer, which transformers runs in Python",
    ),
    "own code": (
        {
            "vocab.txt": "[UNK]\na",
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.X", None]}},
        },
        "the folder contains custom code",
    ),
    "no token for what is unknown": (
        {
            "tokenizer.json": FOLDERS["json gpt2"]["tokenizer.json"],
            "config.json": {"model_type": "mpnet"},
        },
        r"cannot be read as a tokenizer \(transformers says Exception: WordPiece error: Missing",
    ),
    "splitting special tokens": (
        {
            "tokenizer.json": FOLDERS["json bare"]["tokenizer.json"],
            "tokenizer_config.json": {"split_special_tokens": True},
            "config.json": {"model_type": "bert"},
        },
        "split_special_tokens=True",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path, name):
    files, message = REFUSED[name]
    write(tmp_path, files)
    with pytest.raises(ModelError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_what_reads_sentencepiece_is_an_extra(tmp_path, monkeypatch):
    write(tmp_path, FOLDERS["model llama"])
    monkeypatch.setattr(folder_tokenizer, "_READERS", ("sentencepiece", "no.such.reader"))
    with pytest.raises(ModelError, match=r"\(no.such.reader\): pip install 'puma-actors\[sent"):
        Tokenizer.load(tmp_path)


def test_a_class_that_does_more_in_python(tmp_path, monkeypatch):
    write(tmp_path, FOLDERS["json bare"])
    usual = transformers.PreTrainedTokenizerFast._encode_plus

    def changed(self, text, *arguments, **options):
        return usual(self, text.replace("two", ""), *arguments, **options)

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "_encode_plus", changed)
    with pytest.raises(ModelError, match=r"does more in Python than its tokenizer\.json says"):
        Tokenizer.load(tmp_path)
