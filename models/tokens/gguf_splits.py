"""Rules for splitting texts before byte-level BPE, by `tokenizer.ggml.pre` of a GGUF file.

The names and their meanings are those of llama.cpp's `llama-vocab.cpp`. The patterns come from the
`tokenizer.json` files of the original vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from protocols.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_ENDS}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_ENDS}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_ENDS}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_OR_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS_OR_SLASHES}|{_ENDS}"
)
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASHES}|{_ENDS}"
)


@dataclass(frozen=True, slots=True)
class Split:
    """A rule for splitting texts.

    Attributes:
        pattern: matches the pieces that stay together; None: GPT-2's, built into the library.
        digits: every digit is split off first.
        whole_first: a word that is in the vocabulary is one token, whatever the merges say.
        begins: texts get a begin token if the file does not say whether they do.
    """

    pattern: str | None = None
    digits: bool = False
    whole_first: bool = False
    begins: bool = False

    def pre_tokenizer(self, *, prefix: bool) -> pre_tokenizers.PreTokenizer:
        """The rule for the tokenizers library; `prefix`: put a space before a text."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            # transformers' GGUF reader drops this step, which changes e.g. "a  1"; the models were
            # trained with it.
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        bytes_step = pre_tokenizers.ByteLevel(
            add_prefix_space=prefix, use_regex=self.pattern is None
        )
        return pre_tokenizers.Sequence([*steps, bytes_step]) if steps else bytes_step


DEFAULT = Split()
_NAMES: Sequence[tuple[Split, str]] = (
    (
        DEFAULT,
        "gpt-2 gpt2 phi-2 olmo jais mpt trillion granite-docling exaone4 gigachat mellum a.x-4.0",
    ),
    (Split(digits=True), "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    (
        Split(_LLAMA3, whole_first=True, begins=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (Split(_LLAMA3), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (
        Split(_QWEN2),
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    ),
    (Split(_QWEN35), "qwen35"),
    (Split(_TEKKEN, whole_first=True, begins=True), "tekken"),
    (Split(_GPT4O), "gpt-4o llama4 kanana2 talkie minimax-m2"),
)
SPLITS = {name: split for split, names in _NAMES for name in names.split()}
UNNAMED = (None, "default")
"""Values in files whose converter did not know the rule."""
WARNING = (
    "the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre): texts are split as GPT-2 "
    "splits them, and if the model was trained with another rule its answers are worse: convert it "
    "again with a current llama.cpp, or use its safetensors folder"
)


def split_named(name: object) -> Split:
    """The rule with this name; GPT-2's for one of `UNNAMED`.

    Raises:
        ModelError: the name is not known.
    """
    if name in UNNAMED:
        return DEFAULT
    if not isinstance(name, str) or name not in SPLITS:
        raise ModelError(
            f"tokenizer.ggml.pre: {str(name)[:40]!r} is not supported; supported: "
            f"{', '.join(sorted(SPLITS))}; use the model's safetensors folder with its "
            "tokenizer.json"
        )
    return SPLITS[name]
