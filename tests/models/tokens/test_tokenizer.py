"""Tokenizers from GGUF and tokenizer.json, against transformers."""

import gguf
import pytest
import regex
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.files.locate import demo_model_path
from models.tokens.chat_template import render_chat
from models.tokens.gguf_tokenizer import tokenizer_from_gguf
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError

QUESTION = "What is the capital of France? Answer in one sentence."
TEXTS = [
    "",
    " ",
    QUESTION,
    "Hello, world! It's a test; they'll see we've DON'T.",
    "  leading and trailing  ",
    "tabs\tand\n\nnew lines\r\n  indented\n\t\tcode",
    "def f(x: int) -> str:\n    return f'{x!r}' * 3  # comment\n",
    "1234567890 3.14159 1,000,000 -42 0x7f 1e-9 2024-01-31",
    "a1b22c333",
    "Zażółć gęślą jaźń. Größe, façade, naïve, ñandú",
    "日本語のテキスト 中文字符 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🇫🇷 ok 👍🏽",
    "\u0000\u0001\x7f\ufeff\u200b\u00a0\u3000x",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "<|im_start|",
    "a" * 300,
    "x = [[i for i in range(10)] for _ in range(3)]; print(x[::-1])",
]
# Characters on which the splitting rules turn.
ALPHABET = "aZé中🙂1٣½² \n\t\u00a0'sdt.,-_<|>"
texts = st.text(st.sampled_from(ALPHABET), max_size=40)


@pytest.fixture(scope="module")
def demo():
    return Tokenizer.load(demo_model_path())


@pytest.fixture(scope="module")
def reference():
    path = demo_model_path()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    reference.save_pretrained(path)
    return path


# --- the demo model ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_demo_ids_equal_transformers(demo, reference, text):
    ids = reference(text)["input_ids"]
    assert demo.encode(text) == ids
    assert demo.decode(ids) == reference.decode(ids, skip_special_tokens=True)


SPLIT = regex.compile(
    r"\p{N}|(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"
)


def split_like_llama_cpp(text: str) -> list[str]:
    """Digits first, one by one; then GPT-2's rule within each of the parts between them."""
    parts = regex.split(r"(\p{N})", text)
    return [piece for part in parts for piece in SPLIT.findall(part)]


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_digits_are_split_off_first(demo, reference, text):
    pieces = split_like_llama_cpp(text)
    assert "".join(pieces) == text
    backend = reference.backend_tokenizer
    expected = [i for piece in pieces for i in backend.encode(piece).ids]
    assert demo.encode(text) == expected
    assert demo.decode(expected) == text


def test_spaces_before_a_digit(demo, reference):
    """What the model was trained with; transformers' GGUF reader leaves the digits step out."""
    assert [demo.decode([i]) for i in demo.encode("a  12")] == ["a", "  ", "1", "2"]
    assert [reference.decode(i) for i in reference.encode("a  12")] == ["a", " ", " ", "1", "2"]


def test_chat_equals_transformers(demo, reference):
    for chat in (
        [{"role": "user", "content": QUESTION}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi\n\n"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "🙂"},
        ],
    ):
        expected = reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert demo.chat(chat) == expected
    text = reference.decode(demo.chat(QUESTION))
    assert demo.chat(QUESTION) == demo.chat([{"role": "user", "content": QUESTION}])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert demo.note is None


def test_demo_special_tokens(demo, reference):
    assert demo.eos_token_ids == (reference.eos_token_id,) == (2,)
    assert demo.vocab_size == len(reference)


# --- streaming ---------------------------------------------------------------------------------


def stream_all(tokenizer, ids) -> str:
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)
    return "".join([*pieces, stream.finish()])


@pytest.mark.parametrize("text", TEXTS)
def test_stream_yields_the_text(demo, text):
    ids = demo.encode(text)
    assert stream_all(demo, ids) == demo.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=25))
def test_stream_of_any_ids_equals_decode(demo, ids):
    """Arbitrary ids are mostly broken UTF-8: the pieces still add up, U+FFFD included."""
    assert stream_all(demo, ids) == demo.decode(ids)


def test_stream_holds_back_unfinished_characters(demo):
    ids = demo.encode("👩‍👧")
    assert len(ids) > 3
    stream = demo.stream()
    pieces = [stream.push(i) for i in ids]
    assert "" in pieces
    assert "".join(pieces) == "👩‍👧"
    assert stream.finish() == ""


# --- tokenizer.json ----------------------------------------------------------------------------


def test_folder_equals_transformers(folder, reference):
    tokenizer = Tokenizer.from_folder(folder)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference(text)["input_ids"]
    expected = reference.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )["input_ids"]
    assert tokenizer.chat(QUESTION) == expected
    assert tokenizer.eos_token_ids == (2,)


def small_folder(path, config: str | None = None, template: str | None = None):
    model = tokenizers.models.WordLevel({"BEGIN": 0, "END": 1, "hi": 2, "you": 3}, unk_token="END")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(1)
    backend.enable_padding(length=9)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="BEGIN $A", special_tokens=[("BEGIN", 0)]
    )
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(config)
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return Tokenizer.from_folder(path)


def test_no_template_means_plain_text_and_a_note(tmp_path):
    tokenizer = small_folder(tmp_path)
    assert tokenizer.chat("hi you") == tokenizer.encode("hi you") == [0, 2, 3]
    with pytest.raises(ConfigError, match="it takes no chats"):
        tokenizer.chat([{"role": "user", "content": "hi"}])
    assert "no chat template" in tokenizer.note
    assert tokenizer.eos_token_ids == ()


def test_template_sources_and_special_tokens(tmp_path):
    named = """{"eos_token": {"__type": "AddedToken", "content": "END"}, "bos_token": "BEGIN",
        "chat_template": [{"name": "tool", "template": "x"},
         {"name": "default", "template": "{{ eos_token }} hi"}]}"""
    assert small_folder(tmp_path, named).chat("you") == [1, 2]
    assert small_folder(tmp_path, named).eos_token_ids == (1,)
    file = (
        "{% for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt and not tools and strftime_now('%Y') %} hi{% endif %}"
    )
    tokenizer = small_folder(tmp_path, named, file)
    assert tokenizer.chat([{"role": "x", "content": "hi"}, {"role": "user", "content": "you"}]) == [
        3,
        2,
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content | attr('x') | string * (2 ** 60) }}{{ 'x' * (2 ** 60) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for",
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_faulty_or_hostile_template_is_a_model_error(tmp_path, template):
    tokenizer = small_folder(tmp_path, template=template)
    with pytest.raises(ModelError, match="chat template failed"):
        tokenizer.chat("hi")


def test_tojson_does_not_escape_html():
    template = "{{ messages | tojson }}{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true) }}"
    expected = """[{"content": "<'&'>"}]{"a": 1, "b": "é"}"""
    assert render_chat(template, [{"content": "<'&'>"}], {}) == expected


def test_missing_and_damaged_tokenizer_files(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json: missing; save"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        Tokenizer.from_folder(tmp_path)


# --- GGUF metadata -----------------------------------------------------------------------------


def test_sentencepiece_equals_transformers(tmp_path):
    metadata = sentencepiece_metadata()
    reference = gguf_reference(tmp_path / "m.gguf", metadata)
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in [*TEXTS, "the cat sat on the mat", "the  the\nthe", "é the"]:
        ids = reference(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        assert stream_all(tokenizer, ids) == tokenizer.decode(ids)
    assert tokenizer.eos_token_ids == (2,)


def sentencepiece_metadata() -> dict:
    """A SentencePiece-like vocabulary: specials, bytes, characters, and words by rank."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=150, show_progress=False)
    backend.train_from_iterator(["the cat sat on the mat while the rat ate that hat"] * 9, trainer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    head = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens = head + [piece for piece, _ in pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(head) + [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def gguf_reference(path, metadata):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 290), max_size=20))
def test_stream_with_byte_fallback_equals_decode(ids):
    tokenizer = Tokenizer.from_gguf(SENTENCEPIECE)
    assert stream_all(tokenizer, ids) == tokenizer.decode(ids)


SENTENCEPIECE = sentencepiece_metadata()
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab", "Ġ", "1", "2", "12"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "1 2"],
    "tokenizer.ggml.bos_token_id": 0,
}


def test_splitting_rules_and_begin_token():
    def ids(text: str, **changes) -> list[int]:
        metadata = {**BYTE_LEVEL, **{f"tokenizer.ggml.{k}": v for k, v in changes.items()}}
        return Tokenizer.from_gguf(metadata).encode(text)

    assert ids("ab 12") == [3, 4, 5, 6]
    assert ids("ab 12", pre="gpt-2") == [3, 4, 7]
    assert ids("ab 12", pre="llama-bpe") == [0, 3, 4, 7]
    assert ids("12" * 2, pre="llama-bpe", add_bos_token=False) == [7, 5, 6]
    assert ids("ab", add_bos_token=True) == [0, 3]


@pytest.mark.parametrize("token", [8, 99, 2**32 - 1])
def test_special_tokens_that_the_vocabulary_lacks(token):
    metadata = {**BYTE_LEVEL, "tokenizer.ggml.padding_token_id": token}
    assert tokenizer_from_gguf(metadata)[1] == {"bos_token": "<s>"}
    metadata = {**BYTE_LEVEL, "tokenizer.ggml.bos_token_id": token}
    assert tokenizer_from_gguf(metadata)[1] == {}
    with pytest.raises(ModelError, match="bos_token_id is missing though it is wanted"):
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": True})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", "bert", "'bert' is not supported; supported: 'gpt2'"),
        ("model", None, "None is not supported"),
        ("pre", "superbpe", r"'superbpe' is not supported; supported: .*smollm.*tokenizer\.json"),
        ("tokens", None, "has no tokenizer"),
        ("merges", None, "has no merges"),
        ("merges", ["ab"], "not a pair"),
        ("merges", ["a x"], "do not fit"),
        ("bos_token_id", "<s>", "bos_token_id: '<s>' is not the id of a token"),
    ],
)
def test_unsupported_metadata(key, value, says):
    with pytest.raises(ModelError, match=says):
        tokenizer_from_gguf({**BYTE_LEVEL, f"tokenizer.ggml.{key}": value})


# --- as published files ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["sentencepiece", "byte level", "demo"])
def test_files_hold_all_of_a_tokenizer(source):
    if source == "demo":
        tokenizer = Tokenizer.load(demo_model_path())
    else:
        metadata = SENTENCEPIECE if source == "sentencepiece" else BYTE_LEVEL
        tokenizer = Tokenizer.from_gguf(metadata)
    again = Tokenizer.from_files(tokenizer.to_files())
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert stream_all(again, ids) == stream_all(tokenizer, ids)
    assert again.chat(QUESTION) == tokenizer.chat(QUESTION)
    assert again.eos_token_ids == tokenizer.eos_token_ids
    assert again.note == tokenizer.note
    assert again.to_files() == tokenizer.to_files()


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.json": b"{}"},
        {"tokenizer_config.json": b"[]"},
        {"tokenizer_config.json": b"{"},
        {"tokenizer_config.json": b'{"eos_token_ids": ["x"]}'},
    ],
)
def test_damaged_published_files(changes):
    files = Tokenizer.from_gguf(BYTE_LEVEL).to_files()
    with pytest.raises(ModelError, match="the published tokenizer"):
        Tokenizer.from_files({**files, **changes})
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer.from_files({})
