"""Decoded texts with and without `clean_up_tokenization_spaces`, as the installed transformers."""

import json

import pytest
import tokenizers
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_folders import byte_level, wordpiece, write
from tokenizers import decoders, models, pre_tokenizers

from models.tokens.cleaning import clean, settled
from models.tokens.tokenizer import Tokenizer

TEXT = "the fox , it's here . no ! is n't \" ' he 've , we 're a ' b"
WORDS = sorted({*TEXT.split(), "fox", "quick", "?", "'", "x"})
FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
pieces = st.lists(st.sampled_from([*" '.?!,ntmsverx", "n't", "'s", " ' "]), max_size=14)


def by_word() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "x"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


def unigram() -> tokenizers.Tokenizer:
    vocab = [("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS), ("\u2581", -2.0)]
    found = tokenizers.Tokenizer(models.Unigram(vocab, 0, byte_fallback=False))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return found


def plain_wordpiece() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer.from_str(wordpiece().to_str())
    found.decoder = decoders.WordPiece(cleanup=False)
    return found


KINDS = {
    "words": by_word,
    "wordpiece": wordpiece,
    "plain wordpiece": plain_wordpiece,
    "unigram": unigram,
    "bpe": byte_level,
}


@pytest.mark.parametrize("forced", [None, True])
@pytest.mark.parametrize("setting", [True, False, None])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_equal_those_of_transformers(tmp_path, kind, setting, forced):
    settings = {"clean_up_tokenization_spaces": setting, FORCED: forced}
    settings = {name: value for name, value in settings.items() if value is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    write(tmp_path, {"tokenizer.json": KINDS[kind]().to_str(), "tokenizer_config.json": config})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    changes = 0
    for found in (loaded, Tokenizer.from_object(theirs), Tokenizer.from_files(loaded.to_files())):
        ids = theirs(TEXT)["input_ids"]
        for end in range(1, len(ids) + 1):
            expected = theirs.decode(ids[:end], skip_special_tokens=True)
            assert found.decode(ids[:end]) == expected
            kept = theirs.decode(ids[:end], True, clean_up_tokenization_spaces=False)
            changes += expected != kept
            stream = found.stream()
            parts = [*map(stream.push, ids[:end]), stream.finish()]
            assert "".join(parts) == expected
    works = setting is True and (kind != "bpe" or forced is True) and kind != "wordpiece"
    assert (changes > 0) == works


def test_models_have_their_own_settings(tmp_path):
    """Classes of transformers may clean by default; the folder's file has the last word."""
    vocab = wordpiece().get_vocab()
    files = {"vocab.txt": "\n".join(sorted(vocab, key=vocab.__getitem__))}
    for number, config in enumerate(({}, {"clean_up_tokenization_spaces": True})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        write(folder, {**files, "config.json": {"model_type": "bert"}})
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        found = Tokenizer.load(folder)
        ids = theirs("the fox , it ' s . 12 ! ?")["input_ids"]
        assert found.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert found.decode(ids, special_tokens=True) == theirs.decode(ids)


@given(pieces, pieces)
@example(list("e ' "), list("."))
@example(list("r v n '"), list(" t"))
@example(list("  "), list("."))
def test_what_is_settled_stays(text, rest):
    begun = "".join(text)
    assert clean(begun + "".join(rest)).startswith(settled(begun))


def test_words_come_at_once():
    assert settled("the quick fox") == "the quick fox"
    assert settled("the quick n") == "the quick"
    assert settled("the") == "the"
    assert settled("a" * 30 + " .") == "a" * 30 + "."
