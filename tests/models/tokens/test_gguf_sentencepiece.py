"""SentencePiece tokenizers of GGUF files equal those that transformers makes of the same file."""

import gguf
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import TEXTS

from models.tokens.gguf_sentencepiece import merges_from_scores
from models.tokens.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "gemma", "gemma2", "gemma3", "phi3")
CONTROL, UNKNOWN, USER, BYTE = 3, 2, 4, 6
WORDS = "the cat sat on the  mat\n\nwhile   the rat ate that hat"


def metadata(architecture: str) -> dict:
    """Special tokens, spaces as the converter writes them, bytes, characters and words."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False)
    backend.train_from_iterator([WORDS] * 9, trainer)
    pieces = sorted(backend.get_vocab(), key=lambda piece: backend.get_vocab()[piece])
    pieces = [piece for piece in pieces if set(piece) != {"\u2581"} or len(piece) == 1]
    begin, end = ("<bos>", "<eos>") if architecture.startswith("gemma") else ("<s>", "</s>")
    head = [("<pad>", CONTROL), (end, CONTROL), (begin, CONTROL), ("<unk>", UNKNOWN)]
    users = [(t, USER) for t in ("<|user|>", "\n\n", "  ", "   ")] + [("<mask>", CONTROL)]
    raw = [(f"<0x{i:02X}>", BYTE) for i in range(256)]
    typed = [*head, *users, *raw, *((piece, 1) for piece in pieces)]
    # Gemma's scores do not follow the order in which tokens are joined.
    scores = [-1000.0] * (len(typed) - len(pieces)) + [-float(i) for i in range(len(pieces))]
    if architecture.startswith("gemma"):
        scores[-len(pieces) :] = reversed(scores[-len(pieces) :])
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token for token, _ in typed],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [kind for _, kind in typed],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": architecture in ("llama", "phi3"),
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict:
    found = {}
    for architecture in ARCHITECTURES:
        data = metadata(architecture)
        path = tmp_path_factory.mktemp(architecture) / "m.gguf"
        # transformers has the tokenizer of the first Gemma, but does not open its files.
        writer = gguf.GGUFWriter(path, "gemma2" if architecture == "gemma" else architecture)
        for key, value in data.items():
            if key.startswith("tokenizer."):
                adders = {bool: "bool", int: "uint32", str: "string", list: "array"}
                getattr(writer, f"add_{adders[type(value)]}")(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        found[architecture] = Tokenizer.from_gguf(data), theirs
    return found


def check(pairs: dict, architecture: str, text: str) -> None:
    ours, theirs = pairs[architecture]
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids, text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts(pairs, architecture):
    for text in (*TEXTS, WORDS, "the <|user|> the", "<|user|>\nthe", "  the", "a   b\n\n\nc", "é "):
        check(pairs, architecture, text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=40)
@given(text=st.text(st.sampled_from("the catom\n é<|user|>日"), max_size=30))
def test_any_text(pairs, architecture, text):
    check(pairs, architecture, text)


def test_merges_follow_the_order_of_scores():
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3, "bb": 4}
    assert merges_from_scores(vocab, [0, 0, -2, -3, -1]) == [
        ("b", "b"),
        ("a", "b"),
        ("ab", "b"),
        ("a", "bb"),
    ]
