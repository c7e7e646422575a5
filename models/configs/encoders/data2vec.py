"""data2vec's text model: RoBERTa under another name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from models.configs.encoders.encoder import RobertaConfig
from models.configs.names import Naming


@dataclass(frozen=True, kw_only=True)
class Data2VecTextConfig(RobertaConfig):
    """An encoder of the data2vec family. The text model computes the same function as RoBERTa."""

    family: ClassVar[str] = "data2vec-text"
    model_types: ClassVar[Mapping[str, str]] = {"data2vec-text": "Data2VecText"}
    naming: ClassVar[Naming] = Naming(
        prefix="data2vec_text.",
        children=frozenset({"embeddings", "encoder", "pooler"}),
        heads=frozenset({"lm_head", "classifier", "qa_outputs"}),
        ignored=re.compile(r"data2vec_text\.embeddings\.(position_ids|token_type_ids)"),
    )
