"""Places of tokens, cutting and windows, against transformers."""

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_texts import TEXTS, save_byte_level, save_wordpiece

from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError

words = st.lists(
    st.sampled_from(["the", "cats", "London", "zebra", ",", "in"]), min_size=1, max_size=14
)
texts = words.map(" ".join)


@pytest.fixture(scope="module", params=[save_wordpiece, save_byte_level])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("pair", [None, TEXTS[2]])
def test_all_fields(ours, theirs, pair):
    for text in TEXTS:
        found = ours.encode_text(text, pair)
        wanted = theirs(text, pair, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert list(found.ids) == wanted["input_ids"]
        if "token_type_ids" in wanted:
            assert list(found.types) == wanted["token_type_ids"]
            assert (1 in found.types) == (pair is not None)
        assert list(found.offsets) == wanted["offset_mapping"]
        assert [int(flag) for flag in found.special] == wanted["special_tokens_mask"]
        assert list(found.words) == wanted.word_ids()
        assert list(found.texts) == wanted.sequence_ids()
        assert theirs.pad_token_id not in found.ids
        assert text not in repr(found)


sides = st.sampled_from(["left", "right"])


@settings(max_examples=60, deadline=None)
@given(text=texts, pair=st.none() | texts, limit=st.integers(6, 24), side=sides)
def test_cut_as_transformers_cuts(ours, theirs, text, pair, limit, side):
    theirs.truncation_side = side
    wanted = theirs(text, pair, truncation=True, max_length=limit)["input_ids"]
    whole = ours.encode_text(text, pair)
    cut = whole.shortened(limit, side=side)
    assert list(cut.ids) == wanted
    assert cut.dropped == len(whole) - len(cut) == max(0, len(whole) - limit)


@settings(max_examples=60, deadline=None)
@given(text=texts, pair=texts, limit=st.integers(6, 24), side=sides)
def test_the_first_text_alone_is_cut(ours, theirs, text, pair, limit, side):
    theirs.truncation_side = side
    whole = ours.encode_text(text, pair)
    if len(whole) - len(whole.places(0)) >= limit:
        with pytest.raises(ConfigError, match="no room for text beside the second text"):
            whole.shortened(limit, first_only=True)
        return
    wanted = theirs(text, pair, truncation="only_first", max_length=limit)["input_ids"]
    assert list(whole.shortened(limit, side=side, first_only=True).ids) == wanted


@settings(max_examples=60, deadline=None)
@given(text=texts, pair=texts, limit=st.integers(8, 24), overlap=st.integers(0, 12), side=sides)
def test_windows_are_those_of_transformers(ours, theirs, text, pair, limit, overlap, side):
    encoding = ours.encode_text(text, pair)
    room = limit - (len(encoding) - len(encoding.places(1)))
    if room <= overlap and len(encoding.places(1)) > room:
        with pytest.raises(ConfigError, match="larger windows or a smaller doc_stride"):
            encoding.windows(limit, overlap, side=side)
        return
    if room <= overlap:
        assert encoding.windows(limit, overlap, side=side) == [encoding]
        return
    theirs.truncation_side = side
    wanted = theirs(
        text,
        pair,
        truncation="only_second",
        max_length=limit,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = encoding.windows(limit, overlap, side=side)
    assert [list(window.ids) for window in found] == wanted["input_ids"]
    assert [list(window.offsets) for window in found] == wanted["offset_mapping"]


def test_the_side_travels_with_the_tokenizer(folder, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder, truncation_side="left")
    theirs.save_pretrained(tmp_path)
    for made in (Tokenizer.from_object(theirs), Tokenizer.from_folder(tmp_path)):
        assert made.truncation_side == "left"
        assert Tokenizer.from_files(made.to_files()).truncation_side == "left"
    assert Tokenizer.from_folder(folder).truncation_side == "right"


def test_special_tokens_and_lengths(ours, theirs):
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert ours.special_token(f"{name}_token") == getattr(theirs, f"{name}_token")
        assert ours.special_id(f"{name}_token") == getattr(theirs, f"{name}_token_id")
    assert ours.special_id("bos_token") is None
    assert ours.max_length == 20
    ids = ours.encode_text(TEXTS[0]).ids
    assert [ours.token_of(i) for i in ids] == theirs.convert_ids_to_tokens(list(ids))
    assert ours.token_of(10**6) == ""
    with pytest.raises(ConfigError, match="a length of 2 tokens leaves no room"):
        ours.encode_text(TEXTS[0]).shortened(2)


def test_names_in_the_special_tokens_map(folder, tmp_path):
    for file in folder.glob("tokenizer.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": {"content": "[MASK]"}}')
    assert Tokenizer.from_folder(tmp_path).special_token("mask_token") == "[MASK]"
