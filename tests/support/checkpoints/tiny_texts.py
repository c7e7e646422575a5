"""Tokenizers of few tokens, saved as transformers saves them, for models of 40 tokens."""

from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

PIECES = ["the", "cat", "dog", "sat", "ran", "##s", "##ing", "paris", "lon", "##don", "in", "on"]
WORDPIECES = ["[BOS]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *".,?!", *"abdimnors"]
"""Ids of `tiny_models.TOKENS`: 1 is the padding; 3 begins and 4 ends a text."""
TEXTS = ["The cat sat on the dogs.", "Cats!", "London, the dog ran in Paris."]


def save_wordpiece(folder: Path, *, max_length: int = 20) -> Path:
    """BERT's kind: lower case, "##" for what continues a word, types 0 and 1 for a pair."""
    ids = {piece: number for number, piece in enumerate(WORDPIECES)}
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return _save(folder, backend, names, max_length, "[{}]")


def save_byte_level(folder: Path, *, max_length: int = 20) -> Path:
    """RoBERTa's kind: bytes that were merged, no types, `<s>` and `</s>` around the text."""
    special = ["<bos>", "<pad>", "<unk>", "<cls>", "<sep>", "<mask>"]
    letters = sorted({*"Ġcatdogsthenri.,", "Ġ"})
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("c", "a"),
        ("ca", "t"),
        ("Ġ", "cat"),
        ("d", "o"),
        ("i", "n"),
    ]
    merged = [a + b for a, b in merges]
    ids = {piece: number for number, piece in enumerate([*special, *letters, *merged])}
    backend = tokenizers.Tokenizer(models.BPE(ids, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("<sep>", ids["<sep>"]), ("<cls>", ids["<cls>"]), add_prefix_space=False
    )
    return _save(folder, backend, ["input_ids", "attention_mask"], max_length, "<{}>")


def _save(
    folder: Path, backend: tokenizers.Tokenizer, names: list[str], max_length: int, brackets: str
) -> Path:
    def token(name: str) -> str:
        name = name if brackets.startswith("<") else name.upper()
        return brackets.format(name)

    backend.add_special_tokens([token(name) for name in ("pad", "unk", "cls", "sep", "mask")])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        model_input_names=names,
        **{f"{name}_token": token(name) for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    wrapped.save_pretrained(folder)
    return folder
