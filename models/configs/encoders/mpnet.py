"""MPNet: RoBERTa's encoder with scores that depend on the distance between two tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import layer_norm, linear
from models.configs.encoders.encoder import RobertaConfig
from models.configs.names import Naming, Shape
from models.configs.validate import check_size

_PADDING = 1
BUCKETS = 32
"""Number of distance classes, each with a bias: a constant of transformers' class."""


@dataclass(frozen=True, kw_only=True)
class MpnetConfig(RobertaConfig):
    """An encoder of the MPNet family. All layers share one table of biases, (buckets, heads)."""

    typed: ClassVar[bool] = False
    family: ClassVar[str] = "mpnet"
    model_types: ClassVar[Mapping[str, str]] = {"mpnet": "MPNet"}
    naming: ClassVar[Naming] = Naming(
        prefix="mpnet.",
        children=frozenset({"embeddings", "encoder", "pooler"}),
        heads=frozenset({"lm_head", "classifier", "qa_outputs"}),
        ignored=re.compile(r"mpnet\.embeddings\.position_ids"),
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "is_causal": (True, False),
        "relative_attention_num_buckets": (BUCKETS,),
    }

    type_vocab_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # transformers' class uses padding id 1 for positions, whatever pad_token_id says.
        check_size("pad_token_id", self.pad_token_id, _PADDING, least=_PADDING)

    def _layer_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            **linear("attention.attn.q", hidden, hidden),
            **linear("attention.attn.k", hidden, hidden),
            **linear("attention.attn.v", hidden, hidden),
            **linear("attention.attn.o", hidden, hidden),
            **layer_norm("attention.LayerNorm", hidden),
            **linear("intermediate.dense", inner, hidden),
            **linear("output.dense", hidden, inner),
            **layer_norm("output.LayerNorm", hidden),
        }

    def _base_tensors(self) -> dict[str, Shape]:
        name = "mpnet.encoder.relative_attention_bias.weight"
        return {**super()._base_tensors(), name: (BUCKETS, self.num_heads)}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._read_hf(data), "type_vocab_size": 0}
