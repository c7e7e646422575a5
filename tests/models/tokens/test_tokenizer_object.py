"""Tokenizers of transformers in memory: as the same tokenizer saved and opened, or refused."""

import copy

import pytest
import tiny_texts
import transformers
from tokenizers import AddedToken

from models.files.locate import demo_model_path
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError

TEXTS = [
    *tiny_texts.TEXTS,
    "",
    "  two  spaces\n and a [MASK] or <mask>",
    "Zażółć 日本語 🙂👍🏽 \u0000\u200b",
]
CHAT = [{"role": "user", "content": "The cat?"}, {"role": "assistant", "content": "Sat."}]
TEMPLATE = (
    "{{ eos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KINDS = {"wordpiece": tiny_texts.save_wordpiece, "bytes": tiny_texts.save_byte_level}


@pytest.fixture(scope="module", params=["wordpiece", "bytes", "demo"])
def opened(request, tmp_path_factory):
    if request.param == "demo":
        path = demo_model_path()
        return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    folder = KINDS[request.param](tmp_path_factory.mktemp(request.param))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def theirs(opened):
    """For the test alone: it may change it."""
    return copy.deepcopy(opened)


def assert_same(found: Tokenizer, expected: Tokenizer) -> None:
    assert found.to_files() == expected.to_files()
    assert found.note == expected.note
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
        assert found.encode_text(text, "ran").ids == expected.encode_text(text, "ran").ids
        assert found.encode_text(text, "ran").types == expected.encode_text(text, "ran").types
    if found.chat_templates:
        assert found.chat(CHAT) == expected.chat(CHAT)


@pytest.mark.parametrize("template", [None, TEMPLATE, {"default": TEMPLATE, "tools": "none"}])
def test_as_saved_and_opened(theirs, tmp_path, template):
    theirs.eos_token = "[SEP]" if theirs.mask_token == "[MASK]" else theirs.eos_token
    theirs.chat_template = template
    found = Tokenizer.from_object(theirs)
    theirs.save_pretrained(tmp_path / "saved")
    assert_same(found, Tokenizer.load(tmp_path / "saved"))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert found.encode(text) == ids
        assert found.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    if template is not None:
        expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
        assert found.chat(CHAT) == expected


def test_what_was_done_to_it_in_memory_counts(tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_texts.save_wordpiece(tmp_path))
    theirs.add_tokens(["purr"])
    theirs.add_special_tokens({"eos_token": AddedToken("[END]", normalized=False)})
    theirs.model_max_length = 11
    found = Tokenizer.from_object(theirs)
    assert found.encode("the purr [END]") == theirs("the purr [END]")["input_ids"]
    assert found.id_of("purr") == len(tiny_texts.WORDPIECES)
    assert found.eos_token_ids == (theirs.eos_token_id,)
    assert found.special_token("eos_token") == "[END]"
    assert found.max_length == 11
    theirs.add_tokens(["meow"])
    assert found.id_of("meow") is None


def test_the_object_stays_as_it_is(theirs):
    theirs("cut this text", max_length=3, truncation=True, padding="max_length")
    before = theirs.backend_tokenizer.to_str()
    found = Tokenizer.from_object(theirs)
    assert len(found.encode("the cat sat on the dogs")) > 3
    assert theirs.backend_tokenizer.to_str() == before


def test_a_tokenizer_of_this_package_comes_back():
    tokenizer = Tokenizer.load(demo_model_path())
    assert Tokenizer.from_object(tokenizer) is tokenizer


def slow(folder):
    """A slow tokenizer, which transformers runs in Python, and a folder with its files."""
    (folder / "vocab.txt").write_text("\n".join(tiny_texts.WORDPIECES))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return transformers.BertTokenizerLegacy(str(folder / "vocab.txt"))


def test_other_objects(theirs, tmp_path):
    python = slow(tmp_path)
    splitting = transformers.PreTrainedTokenizerFast(
        tokenizer_object=theirs.backend_tokenizer, split_special_tokens=True
    )
    for wrong, message in (
        (1, "the tokenizer is int: give a transformers tokenizer"),
        ("folder", "the tokenizer is str: give"),
        (theirs.backend_tokenizer, r"of the library tokenizers.*PreTrainedTokenizerFast"),
        (python, "BertTokenizerLegacy, which transformers runs in Python: load it with"),
        (splitting, "split_special_tokens=True"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tokenizer.from_object(wrong)


def test_the_remedy_for_a_tokenizer_in_python_works(tmp_path):
    python = slow(tmp_path)
    found = Tokenizer.from_object(transformers.AutoTokenizer.from_pretrained(tmp_path))
    for text in tiny_texts.TEXTS:
        assert found.encode(text) == python(text)["input_ids"]
