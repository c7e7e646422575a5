"""Architectures by name: read from a checkpoint of whatever family, or from what a peer published.

Everything in a configuration is public by design (see the README): sizes and constants, never a
weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.configs.architecture import ACTIVATIONS, ModelConfig
from models.configs.decoders.falcon import FalconConfig
from models.configs.decoders.gpt2 import Gpt2Config
from models.configs.decoders.llama import LlamaConfig
from models.configs.encoders.distilbert import DistilBertConfig
from models.configs.encoders.encoder import BertConfig, EncoderConfig, RobertaConfig
from models.configs.generation import read_generation
from models.configs.gguf import config_of_gguf, gguf_eos_token_ids
from models.configs.heads import HEADS
from models.configs.rope import RopeScaling
from models.configs.validate import token_ids, unsupported
from models.files.gguf_reader import GgufFile
from models.files.locate import Source, find_source, read_json

__all__ = [
    "ACTIVATIONS",
    "HEADS",
    "BertConfig",
    "DistilBertConfig",
    "EncoderConfig",
    "FalconConfig",
    "Gpt2Config",
    "LlamaConfig",
    "ModelConfig",
    "RobertaConfig",
    "RopeScaling",
    "config_from_hf",
    "config_from_public",
    "config_of_gguf",
    "config_of_source",
    "gguf_eos_token_ids",
    "load_config",
    "supported_families",
    "supported_model_types",
]

_FAMILIES: dict[str, type[ModelConfig]] = {
    config.family: config
    for config in (
        BertConfig,
        DistilBertConfig,
        FalconConfig,
        Gpt2Config,
        LlamaConfig,
        RobertaConfig,
    )
}
_MODEL_TYPES = {name: config for config in _FAMILIES.values() for name in config.model_types}


def supported_families() -> tuple[str, ...]:
    """Names of the model families that can be evaluated, sorted."""
    return tuple(sorted(_FAMILIES))


def supported_model_types() -> tuple[str, ...]:
    """`model_type` of every kind of `config.json` that is read, sorted."""
    return tuple(sorted(_MODEL_TYPES))


def config_from_public(data: object) -> ModelConfig:
    """The configuration a peer published, of whatever family. Raises ModelError."""
    family = data.get("family") if isinstance(data, Mapping) else None
    if not isinstance(family, str) or family not in _FAMILIES:
        raise unsupported("family", family, ", ".join(supported_families()))
    return _FAMILIES[family].from_public(data)


def load_config(path: str | Path, *, head: str | None = None) -> ModelConfig:
    """The configuration of the checkpoint at `path`: a folder, a .safetensors or a .gguf file.

    `head` overrides the one that the checkpoint names. Raises ModelError when the checkpoint is
    missing, unreadable or not supported.
    """
    source = find_source(path)
    if source.kind != "gguf":
        return config_of_source(source, head=head)
    file = GgufFile(source.file)
    try:
        return config_of_gguf(file, head=head)
    finally:
        file.close()


def config_of_source(source: Source, *, head: str | None = None) -> ModelConfig:
    """The configuration in the `config.json` beside safetensors. Raises ModelError."""
    generation = source.folder / "generation_config.json"
    return config_from_hf(
        read_json(source.folder / "config.json"),
        read_json(generation) if generation.is_file() else None,
        head=head,
    )


def config_from_hf(
    data: Mapping[str, Any], generation: Mapping[str, Any] | None, *, head: str | None = None
) -> ModelConfig:
    """The configuration in what transformers writes into `config.json` and
    `generation_config.json` (None if there is none). Raises ModelError.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
        raise unsupported("model_type", model_type, ", ".join(supported_model_types()))
    config = _MODEL_TYPES[model_type].from_hf(data, head=head)
    # Chat models name the token that ends a turn only here.
    extra = token_ids((generation or {}).get("eos_token_id"))
    ends = tuple(dict.fromkeys((*config.eos_token_ids, *extra)))
    settings = None
    if config.head == "causal-lm":  # older checkpoints have only the one file
        endless = not ends and "eos_token_id" in data
        settings = read_generation(data if generation is None else generation, endless=endless)
    return replace(config, eos_token_ids=ends, generation=settings)
