"""Folders of tokenizers in every form in which people have them, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["the quick brown fox says hello world in Paris, été naïve 日本 123"] * 3
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "hello world",
    "Hello WORLD, the Quick  brown\tfox\n\n",
    "  leading and trailing  ",
    "été ÉTÉ naïve ﬁ Ⅷ 日本語 🙂👍🏽 \u00a0\u3000x",
    "the [MASK] fox [SEP] says <s> hello</s> <mask> <|endoftext|> x",
    "the <new>fox <NEW> [ADDED] end",
    "1234 12 3.14",
    "",
]
Files = dict[str, Any]


def write(folder: Path, files: Files) -> Path:
    """Files of a folder: bytes and texts as they are, anything else as JSON."""
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


@lru_cache
def wordpiece() -> tokenizers.Tokenizer:
    """BERT's kind, trained on a few words; lower case."""
    found = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=140, special_tokens=BERT_SPECIAL, show_progress=False
    )
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return found


@lru_cache
def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's kind, with RoBERTa's special tokens first."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(CORPUS, trainer)
    return found


@lru_cache
def sentencepiece_model(kind: str) -> bytes:
    """A model of the kind `bpe` or `unigram`."""
    out = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=out,
        model_type=kind,
        vocab_size=330 if kind == "bpe" else 310,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return out.getvalue()


def _json(found: tokenizers.Tokenizer) -> bytes:
    return found.to_str().encode()


def _vocab_txt(**settings: Any) -> Files:
    vocab = wordpiece().get_vocab()
    files: Files = {"vocab.txt": "\n".join(sorted(vocab, key=vocab.__getitem__))}
    return {**files, "tokenizer_config.json": settings} if settings else files


def _vocab_merges(**settings: Any) -> Files:
    model = json.loads(byte_level().to_str())["model"]
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    files: Files = {"vocab.json": model["vocab"], "merges.txt": f"#version: 0.2\n{merges}\n"}
    return {**files, "tokenizer_config.json": settings} if settings else files


def _model(kind: str, name: str = "tokenizer.model", **settings: Any) -> Files:
    files: Files = {name: sentencepiece_model(kind)}
    return {**files, "tokenizer_config.json": settings} if settings else files


def _whole(found: Callable[[], tokenizers.Tokenizer], **settings: Any) -> Files:
    files: Files = {"tokenizer.json": _json(found())}
    return {**files, "tokenizer_config.json": settings} if settings else files


def _of(model_type: str) -> Files:
    return {"config.json": {"model_type": model_type}}


def _added(content: str, *, special: bool = False, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special}
    return {"content": content, **usual, "special": special, **flags}


_NEW = {"140": _added("<new>"), "141": _added("[ADDED]", special=True, lstrip=True)}
_NEW_BYTES = {"320": _added("<new>"), "321": _added("[ADDED]", special=True, rstrip=True)}
_CAT = "PreTrainedTokenizerFast"


def folders() -> dict[str, Files]:
    """Name -> files. What they are to mean, transformers says."""
    return {
        # WordPiece without tokenizer.json
        "vocab.txt": {**_vocab_txt(), **_of("bert")},
        "vocab.txt cased": {**_vocab_txt(do_lower_case=False), **_of("bert")},
        "vocab.txt accents": {
            **_vocab_txt(strip_accents=False, tokenize_chinese_chars=False),
            **_of("bert"),
        },
        "vocab.txt distilbert": {**_vocab_txt(), **_of("distilbert")},
        "vocab.txt mpnet": {**_vocab_txt(), **_of("mpnet")},
        "vocab.txt electra": {**_vocab_txt(), **_of("electra")},
        "vocab.txt by class": _vocab_txt(tokenizer_class="BertTokenizer", do_lower_case=False),
        "vocab.txt limits": {**_vocab_txt(model_max_length=12), **_of("bert")},
        "vocab.txt added_tokens.json": {
            **_vocab_txt(do_lower_case=True),
            **_of("bert"),
            "added_tokens.json": {"<new>": 140, "[ADDED]": 141},
        },
        "vocab.txt added_tokens_decoder": {
            **_vocab_txt(added_tokens_decoder=_NEW),
            **_of("bert"),
        },
        # byte-level BPE without tokenizer.json
        "merges gpt2": {**_vocab_merges(), **_of("gpt2")},
        "merges gpt2 prefix": {**_vocab_merges(add_prefix_space=True), **_of("gpt2")},
        "merges gpt2 begin": {
            **_vocab_merges(add_bos_token=True, bos_token="<s>", eos_token="</s>"),
            **_of("gpt2"),
        },
        "merges gpt2 map": {
            **_vocab_merges(),
            **_of("gpt2"),
            "special_tokens_map.json": {"eos_token": "</s>", "bos_token": _added("<s>")},
            "added_tokens.json": {"<new>": 320},
        },
        "merges roberta": {**_vocab_merges(), **_of("roberta")},
        "merges roberta prefix": {**_vocab_merges(add_prefix_space=True), **_of("roberta")},
        "merges opt": {**_vocab_merges(), **_of("opt")},
        "merges gpt_neox": {**_vocab_merges(), **_of("gpt_neox")},
        "merges qwen2": {**_vocab_merges(), **_of("qwen2")},
        "merges llama by class": {**_vocab_merges(tokenizer_class="GPT2Tokenizer"), **_of("llama")},
        "merges added": {
            **_vocab_merges(added_tokens_decoder=_NEW_BYTES, tokenizer_class="GPT2Tokenizer"),
            **_of("falcon"),
        },
        # SentencePiece
        "model llama": {**_model("bpe"), **_of("llama")},
        "model llama settings": {
            **_model("bpe", add_bos_token=False, add_eos_token=True, legacy=False),
            **_of("llama"),
        },
        "model llama by class": {
            **_model("bpe", tokenizer_class="LlamaTokenizer", legacy=True, add_prefix_space=False),
            **_of("mistral"),
        },
        "model mistral": {**_model("bpe"), **_of("mistral")},
        "model xlm-roberta": {
            **_model("unigram", "sentencepiece.bpe.model"),
            **_of("xlm-roberta"),
        },
        "model camembert": {
            **_model("unigram", "sentencepiece.bpe.model"),
            **_of("camembert"),
        },
        "model gemma": {**_model("bpe"), **_of("gemma")},
        "model deberta-v2": {**_model("unigram", "spm.model"), **_of("deberta-v2")},
        "model phi3": {**_model("bpe"), **_of("phi3")},
        # tokenizer.json is not the whole
        "json bert": {**_whole(wordpiece), **_of("bert")},
        "json bert cased": {**_whole(wordpiece, do_lower_case=False), **_of("bert")},
        "json bert by class": {
            **_whole(wordpiece, tokenizer_class="BertTokenizer", do_lower_case=False),
            **_of("bert"),
        },
        "json bare": {**_whole(wordpiece, tokenizer_class=_CAT), **_of("bert")},
        "json without types": {
            **_whole(wordpiece, model_input_names=["input_ids", "attention_mask"]),
            **_of("bert"),
        },
        "json distilbert": {**_whole(wordpiece), **_of("distilbert")},
        "json added": {
            **_whole(wordpiece, tokenizer_class=_CAT, added_tokens_decoder=_NEW),
            **_of("bert"),
        },
        "json added.json": {
            **_whole(wordpiece, tokenizer_class=_CAT),
            **_of("bert"),
            "added_tokens.json": {"<new>": 140, "[ADDED]": 141},
        },
        "json extra": {
            **_whole(wordpiece, tokenizer_class=_CAT, additional_special_tokens=["<new>"]),
            **_of("bert"),
        },
        "json map": {
            **_whole(byte_level),
            **_of("llama"),
            "tokenizer_config.json": {"tokenizer_class": _CAT},
            "special_tokens_map.json": {
                "eos_token": _added("</s>", special=True),
                "unk_token": "<unk>",
                "additional_special_tokens": ["<new>"],
            },
        },
        "json gpt2": {**_whole(byte_level), **_of("gpt2")},
        "json gpt2 prefix": {
            **_whole(byte_level, add_prefix_space=True, tokenizer_class="GPT2Tokenizer"),
            **_of("gpt2"),
        },
        "json bytes prefix": {
            **_whole(byte_level, add_prefix_space=True, tokenizer_class=_CAT),
            **_of("llama"),
        },
        "json bytes begin": {
            **_whole(byte_level, tokenizer_class=_CAT, bos_token="<s>", add_bos_token=True),
            **_of("llama"),
        },
        "json declared llama": {
            **_whole(byte_level, tokenizer_class="LlamaTokenizer", eos_token="</s>"),
            **_of("llama"),
        },
        "json roberta": {**_whole(byte_level), **_of("roberta")},
        "json of a version": {
            "tokenizer.4.0.0.json": _json(byte_level()),
            "tokenizer_config.json": {
                "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
                "tokenizer_class": _CAT,
            },
            **_of("llama"),
        },
        "json alone": _whole(wordpiece, tokenizer_class=_CAT, unk_token="[UNK]"),
        "json custom token": {
            **_whole(byte_level, tokenizer_class=_CAT, image_token="<new>", eos_token="</s>"),
            **_of("qwen2"),
        },
    }
