"""Checkpoint folders in the forms in which people have them, drawn by number.

What a folder means is what transformers makes of it. A case only says what is written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from family_variants import ACTIVATION_KEYS, ENCODED, READ, VARIANTS
from tiny_models import ENCODERS, EVERY_CASE, SETTINGS, tiny_model
from tokenizer_folders import Files, folders, write

VOCABULARY = 352
POSITIONS = 48
Tensors = dict[str, torch.Tensor]
Json = dict[str, Any]
FORMS = folders()
_NO_ACTIVATION = ("xlm-roberta", "camembert", "data2vec-text")
_POSITION_KEYS = {"gpt2": "n_positions"}
_LAYERS = {"gpt2": "n_layer", "distilbert": "n_layers"}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class FolderCase:
    """One folder.

    Attributes:
        settings: arguments of the configuration's class.
        config: keys set in `config.json` after transformers wrote it; None removes one.
        dtype: of the stored tensors.
        shard: largest file of weights, as transformers takes it.
        names: what was done to the names of the tensors, a key of `NAMES`.
        form: of the tokenizer, a key of `FORMS`.
        generation: `generation_config.json`, or None for none.
    """

    number: int
    family: str
    head: str
    settings: Json
    config: Json
    dtype: str
    shard: str
    names: str
    form: str
    generation: Json | None = field(default=None)

    def __str__(self) -> str:
        return f"{self.number}-{self.family}-{self.head}"

    def has_usual_form(self) -> bool:
        """Whether the tokenizer has a form in which this family has it."""
        return _fits(FORMS[self.form], self.family)

    def has_whole_tokenizer(self) -> bool:
        """Whether there is a `tokenizer.json`: other files only suit the class they are from."""
        return any(name.startswith("tokenizer.") for name in FORMS[self.form])

    def write(self, folder: Path, names: str | None = None) -> Path:
        """The folder, written by transformers and then changed.

        names: other than the case's own.
        """
        model = tiny_model(self.family, self.head, seed=self.number, **self.settings)
        model.to(DTYPES[self.dtype]).save_pretrained(folder, max_shard_size=self.shard)
        write(folder, {k: v for k, v in FORMS[self.form].items() if k != "config.json"})
        _rename(folder, NAMES[names or self.names])
        file = folder / "config.json"
        values = {**json.loads(file.read_bytes()), **self.config}
        write(folder, {"config.json": {k: v for k, v in values.items() if v is not None}})
        (folder / "generation_config.json").unlink(missing_ok=True)
        if self.generation is not None:
            write(folder, {"generation_config.json": self.generation})
        return folder


# -- names of tensors ------------------------------------------------------------------------------


def _rename(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of every file of weights, and the index of the files."""
    places: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = change(safetensors.torch.load_file(file))
        safetensors.torch.save_file(found, file, {"format": "pt"})
        places.update(dict.fromkeys(found, file.name))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        write(folder, {index.name: {"metadata": {}, "weight_map": places}})


def _each(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): value for name, value in tensors.items()}


def _without_prefix(tensors: Tensors) -> Tensors:
    """As the bare model saves itself, which has no head."""
    heads = ("lm_head.", "cls.", "classifier.", "score.", "qa_outputs.", "vocab_", "embed_out.")
    first = {name.split(".", 1)[0] for name in tensors if not name.startswith(heads)}
    prefix = first.pop() + "." if len(first) == 1 else ""
    return _each(lambda name: name.removeprefix(prefix))(tensors)


def _with_buffers(tensors: Tensors) -> Tensors:
    """What older versions of transformers stored beside the weights."""
    extra: Tensors = {}
    for name in tensors:
        stem = name.rsplit(".", 2)[0]
        if name.endswith("attn.c_attn.weight"):
            extra[f"{stem}.bias"] = torch.ones(1, 1, 8, 8)
            extra[f"{stem}.masked_bias"] = torch.tensor(-1e4)
        if name.endswith("self_attn.q_proj.weight") and ".decoder." not in name:
            extra[f"{stem}.rotary_emb.inv_freq"] = torch.ones(2)
        if name.endswith("embeddings.word_embeddings.weight"):
            extra[f"{stem}.position_ids"] = torch.arange(8)[None]
    return {**tensors, **extra}


def _gamma(name: str) -> str:
    if "LayerNorm." not in name:
        return name
    return name.replace(".weight", ".gamma").replace(".bias", ".beta")


NAMES: dict[str, Callable[[Tensors], Tensors]] = {
    "new": dict,
    "gamma and beta": _each(_gamma),
    "without prefix": _without_prefix,
    "buffers": _with_buffers,
    "compiled": _each(lambda name: f"_orig_mod.{name}"),
    "parallel": _each(lambda name: f"module.{name}"),
}

TRAINED = ("compiled", "parallel")
"""Names that transformers does not recognise, and we do."""

# -- configurations --------------------------------------------------------------------------------


_LABELS: list[Json] = [
    {"num_labels": 1},
    {"num_labels": 2, "problem_type": "regression"},
    {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
]


def _options(family: str) -> list[Json]:
    """Settings that change the function, each with what it needs; {} among them."""
    found = [dict(change) for name, change in (*VARIANTS, *READ, *ENCODED) if name == family]
    if family not in _NO_ACTIVATION:
        key = ACTIVATION_KEYS.get(family, "hidden_act")
        found += [{key: name} for name in ("gelu", "relu", "silu", "gelu_new", "quick_gelu")]
    found += [{_LAYERS.get(family, "num_hidden_layers"): 1}, {}, {}]
    if family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite"):
        found += [{"num_key_value_heads": count} for count in (1, 4)]
        found += [{"head_dim": 4}, {"rms_norm_eps": 1e-3}]
        found += [{"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}]
    return found


def _afterwards(family: str, rng: random.Random) -> Json:
    """Keys that some version or trainer writes, or leaves out."""
    choices: list[Json] = [
        {},
        {"torch_dtype": "float32", "dtype": None},
        {"_name_or_path": "someone/model", "transformers_version": "4.11.0"},
        {"transformers_version": None, "architectures": None},
        {"unsloth_version": "2024.8", "use_cache": False},
        {"output_hidden_states": True, "output_attentions": True},
        {"initializer_range": 0.7, "attention_dropout": 0.3, "hidden_dropout_prob": 0.3},
        {"eos_token_id": [4, 9]},
        {"eos_token_id": None, "bos_token_id": None},
        {"pretraining_tp": 1, "rope_scaling": None},
    ]
    if family in ("llama", "mistral", "qwen2", "qwen3"):
        choices += [
            {"rope_parameters": None, "rope_theta": 500.0},
            {
                "rope_parameters": None,
                "rope_theta": 500.0,
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
        ]
    return rng.choice(choices)


MANY_ENDS = [*range(40, 200)]
_KNOBS: dict[str, list[Any]] = {
    "repetition_penalty": [0.8, 1.1, 1.5],
    "no_repeat_ngram_size": [1, 2, 3],
    "suppress_tokens": [[5, 21, 99], list(range(200))],
    "begin_suppress_tokens": [list(range(0, VOCABULARY, 2))],
    "bad_words_ids": [[[21], [4]], [[7, 30], [12]]],
    "forced_eos_token_id": [4, [9, 4]],
    "forced_bos_token_id": [9],
    "min_new_tokens": [2, 6],
    "min_length": [9],
    "eos_token_id": [4, [4, 9], MANY_ENDS],
    "pad_token_id": [1],
    "temperature": [0.3],
    "top_k": [5],
    "top_p": [0.5],
    "num_beams": [1, 4],
    "renormalize_logits": [True],
    "max_new_tokens": [3],
    "max_length": [20],
    "use_cache": [False],
    "num_beam_groups": [1],
    "length_penalty": [1.0],
    "transformers_version": ["4.30.0"],
}


def _generation(rng: random.Random) -> Json | None:
    if rng.random() < 0.2:
        return None
    names = rng.sample(sorted(_KNOBS), rng.randint(0, 4))
    return {name: rng.choice(_KNOBS[name]) for name in names}


def _fits(files: Files, family: str) -> bool:
    declared = files.get("tokenizer_config.json", {}).get("tokenizer_class")
    return files.get("config.json", {}).get("model_type") == family or declared is not None


def _form(family: str, rng: random.Random) -> str:
    """Mostly a form in which the family has its tokenizer, sometimes any other."""

    usual = [name for name, files in FORMS.items() if _fits(files, family)]
    return rng.choice(usual if rng.random() < 0.8 else sorted(FORMS))


def folder_case(number: int) -> FolderCase:
    """The case with this number: the same everywhere. Families take turns."""
    rng = random.Random(f"folder {number}")
    families = sorted(SETTINGS)
    family = families[number % len(families)]
    heads = [head for name, head in EVERY_CASE if name == family]
    usual = "masked-lm" if family in ENCODERS else "causal-lm"
    head = rng.choice([*heads, usual]) if family in ENCODERS else rng.choice([*heads, usual, usual])
    positions = {_POSITION_KEYS.get(family, "max_position_embeddings"): POSITIONS}
    changed = rng.choice(_options(family))
    if head.endswith("classification") and rng.random() < 0.4:
        changed = {**changed, **rng.choice(_LABELS)}
    if rng.random() < 0.3:
        changed = {**changed, "tie_word_embeddings": rng.random() < 0.5}
    return FolderCase(
        number,
        family,
        head,
        {"vocab_size": VOCABULARY, **positions, **changed},
        _afterwards(family, rng),
        rng.choice(sorted(DTYPES)),
        rng.choice(["5GB", "5GB", "8KB", "20KB"]),
        rng.choice(["new", "new", *NAMES]),
        _form(family, rng),
        _generation(rng) if head == "causal-lm" else None,
    )
