"""DeBERTa-v2 and v3: BERT's encoder with disentangled attention instead of learned positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.architecture import ACTIVATIONS, activation, layer_norm, linear
from models.configs.encoders.encoder import BertConfig
from models.configs.names import Naming, Shape
from models.configs.validate import check_choice, check_flag, check_size, required, unsupported
from protocols.errors import ModelError

_MAX_SPAN = 1 << 13


@dataclass(frozen=True, kw_only=True)
class DebertaV2Config(BertConfig):
    """An encoder of the DeBERTa-v2 family. Scores are divided by sqrt(3 head_dim).

    Attributes:
        buckets: rows of the position table per direction. Half of them have one distance each;
            the others cover longer distances up to `reach`, spaced by their logarithm. 0: each
            distance up to `reach` has a row.
        reach: the distance of the last row.
        shared: queries and keys of positions use the projections of the contents.
        normed: the position table goes through a LayerNorm first.
        pooler_act: activation of the dense layer before the sequence classifier.
    """

    typed: ClassVar[bool] = False
    positional_scores: ClassVar[bool] = True
    family: ClassVar[str] = "deberta-v2"
    model_types: ClassVar[Mapping[str, str]] = {"deberta-v2": "DebertaV2"}
    naming: ClassVar[Naming] = Naming(
        prefix="deberta.",
        children=frozenset({"embeddings", "encoder"}),
        heads=frozenset(
            {"cls", "classifier", "qa_outputs", "pooler", "lm_predictions", "mask_predictions"}
        ),
        # Some files hold the last one although their model does not use it
        # (`position_biased_input` is false).
        ignored=re.compile(r"deberta\.embeddings\.(position_ids|position_embeddings\.weight)"),
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "is_causal": (True, False),
        "type_vocab_size": (0,),
        "conv_kernel_size": (0,),
    }

    type_vocab_size: int = 0
    buckets: int
    reach: int
    shared: bool
    normed: bool
    pooler_act: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("buckets", self.buckets, _MAX_SPAN, least=0)
        check_size("reach", self.reach, _MAX_SPAN, least=2)
        if self.buckets and (self.buckets % 2 or not 4 <= self.buckets < 2 * self.reach):
            raise ModelError(
                f"buckets: {self.buckets} is odd, below 4, or too many for {self.reach}"
            )
        for name in ("shared", "normed"):
            check_flag(name, getattr(self, name))
        check_choice("pooler_act", self.pooler_act, ACTIVATIONS)

    @property
    def rows(self) -> int:
        """Number of rows of the position table."""
        return 2 * (self.buckets or self.reach)

    @property
    def score_scale(self) -> float:
        """The factor on the queries of contents and of positions."""
        return float((3 * self.head_dim) ** -0.5)

    @classmethod
    def _pooled_heads(cls) -> tuple[str, ...]:
        return ()

    @classmethod
    def _settings_of_head(cls, head: str) -> dict[str, Any]:
        return {}

    def adapted(self, found: Mapping[str, Shape]) -> Self:
        return self

    def is_ignored(self, name: str) -> bool:
        return self.naming.ignored.fullmatch(name) is not None

    def _embedding_tensors(self) -> dict[str, Shape]:
        name, hidden = "deberta.embeddings", self.hidden_size
        words: dict[str, Shape] = {f"{name}.word_embeddings.weight": (self.vocab_size, hidden)}
        return {**words, **layer_norm(f"{name}.LayerNorm", hidden)}

    def _layer_tensors(self) -> dict[str, Shape]:
        hidden, attention = self.hidden_size, "attention.self"
        tensors: dict[str, Shape] = {}
        for part in ("query", "key", "value", *(() if self.shared else ("pos_key", "pos_query"))):
            tensors.update(linear(f"{attention}.{part}_proj", hidden, hidden))
        others = {n: s for n, s in super()._layer_tensors().items() if ".self." not in n}
        return {**tensors, **others}

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, encoder = self.hidden_size, "deberta.encoder"
        return {
            **super()._base_tensors(),
            f"{encoder}.rel_embeddings.weight": (self.rows, hidden),
            **(layer_norm(f"{encoder}.LayerNorm", hidden) if self.normed else {}),
        }

    def _head_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        pooler = linear("pooler.dense", hidden, hidden)
        return {
            **(pooler if self.head == "sequence-classification" else {}),
            **super()._head_tensors(),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        hidden, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        _refuse(data, hidden, heads)
        positions = data.get("max_position_embeddings", 512)
        check_size("max_position_embeddings", positions)
        reach, buckets = data.get("max_relative_positions", -1), data.get("position_buckets", -1)
        check_size("max_relative_positions", reach, least=-1)
        check_size("position_buckets", buckets, least=-1)
        norms = [part.strip() for part in str(data.get("norm_rel_ebd", "none")).lower().split("|")]
        return {
            **super()._read_hf(data),
            "type_vocab_size": 0,
            "layer_norm_eps": data.get("layer_norm_eps", 1e-7),
            "reach": positions if reach < 1 else reach,
            "buckets": max(buckets, 0),
            "shared": _flag(data.get("share_att_key")),
            "normed": "layer_norm" in norms,
            "pooler_act": activation(data.get("pooler_hidden_act", "gelu")),
        }


def _flag(value: object) -> object:
    return False if value is None else value


def _refuse(data: Mapping[str, Any], hidden: object, heads: object) -> None:
    """Raise ModelError for settings, given or default, that would change the function."""
    _check_kinds(data.get("pos_att_type"))
    size = hidden // heads if type(hidden) is int and type(heads) is int and heads else None
    for name, default, wanted in (
        ("relative_attention", False, True),
        ("position_biased_input", True, False),
        ("embedding_size", hidden, hidden),
        ("attention_head_size", size, size),
    ):
        value = data.get(name, default)
        if value is not None and value != wanted:
            raise unsupported(name, value, str(wanted).lower())
    masked = any("ForMaskedLM" in str(name) for name in data.get("architectures") or ())
    if masked and not data.get("legacy", True):
        raise unsupported("legacy", False, "true for masked words")


def _check_kinds(kinds: object) -> None:
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.lower().split("|")]
    if not isinstance(kinds, list) or sorted(map(str, kinds)) != ["c2p", "p2c"]:
        raise unsupported("pos_att_type", kinds, "c2p|p2c")
