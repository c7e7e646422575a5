"""Architectures by name: read from a checkpoint of any family, or from a peer's publication.

Everything in a configuration is public by design (see the README): sizes and constants, never a
weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.configs.architecture import ACTIVATIONS, ModelConfig, vocabulary_tokens
from models.configs.decoders.falcon import FalconConfig
from models.configs.decoders.gemma import GemmaConfig
from models.configs.decoders.gpt2 import Gpt2Config
from models.configs.decoders.gpt_neox import GptNeoxConfig
from models.configs.decoders.granite import GraniteConfig
from models.configs.decoders.llama import LlamaConfig
from models.configs.decoders.opt import OptConfig
from models.configs.decoders.phi3 import Phi3Config
from models.configs.decoders.smollm3 import SmolLm3Config
from models.configs.encoders.data2vec import Data2VecTextConfig
from models.configs.encoders.deberta import DebertaV2Config
from models.configs.encoders.distilbert import DistilBertConfig
from models.configs.encoders.electra import ElectraConfig
from models.configs.encoders.encoder import BertConfig, EncoderConfig, RobertaConfig
from models.configs.encoders.modernbert import ModernBertConfig
from models.configs.encoders.mpnet import MpnetConfig
from models.configs.generation import read_generation
from models.configs.gguf import config_of_gguf, gguf_eos_token_ids
from models.configs.heads import HEADS
from models.configs.other_kinds import other_kind
from models.configs.rope import RopeScaling
from models.configs.tasks.sentences import transformer_folder
from models.configs.validate import short, token_ids, unsupported
from models.files.gguf_reader import GgufFile
from models.files.locate import ADAPTER_CONFIG, Source, find_source, read_json
from protocols.errors import ModelError

__all__ = [
    "ACTIVATIONS",
    "HEADS",
    "BertConfig",
    "Data2VecTextConfig",
    "DebertaV2Config",
    "DistilBertConfig",
    "ElectraConfig",
    "EncoderConfig",
    "FalconConfig",
    "GemmaConfig",
    "Gpt2Config",
    "GptNeoxConfig",
    "GraniteConfig",
    "LlamaConfig",
    "ModelConfig",
    "ModernBertConfig",
    "MpnetConfig",
    "OptConfig",
    "Phi3Config",
    "RobertaConfig",
    "RopeScaling",
    "SmolLm3Config",
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
        Data2VecTextConfig,
        DebertaV2Config,
        DistilBertConfig,
        ElectraConfig,
        FalconConfig,
        GemmaConfig,
        Gpt2Config,
        GptNeoxConfig,
        GraniteConfig,
        LlamaConfig,
        ModernBertConfig,
        MpnetConfig,
        OptConfig,
        Phi3Config,
        RobertaConfig,
        SmolLm3Config,
    )
}
_MODEL_TYPES = {name: config for config in _FAMILIES.values() for name in config.model_types}
# `task_type` of PEFT -> head
_HEADS_OF_ADAPTERS = {
    "CAUSAL_LM": "causal-lm",
    "FEATURE_EXTRACTION": "none",
    "QUESTION_ANS": "question-answering",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
# Settings that tell what kind a model of an unknown type is.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PARTS = ("vision_config", "audio_config")


def supported_families() -> tuple[str, ...]:
    """Names of the model families that can be evaluated, sorted."""
    return tuple(sorted(_FAMILIES))


def supported_model_types() -> tuple[str, ...]:
    """`model_type` of every kind of `config.json` that is read, sorted."""
    return tuple(sorted(_MODEL_TYPES))


def config_from_public(data: object) -> ModelConfig:
    """The configuration that a peer published, of any family. Raises ModelError."""
    family = data.get("family") if isinstance(data, Mapping) else None
    if not isinstance(family, str) or family not in _FAMILIES:
        raise unsupported("family", family, ", ".join(supported_families()))
    return _FAMILIES[family].from_public(data)


def load_config(path: str | Path, *, head: str | None = None) -> ModelConfig:
    """The configuration of the checkpoint at `path`: a folder, a .safetensors or a .gguf file.

    `head` overrides the one that the checkpoint names. Raises ModelError when the checkpoint is
    missing, unreadable or not supported.
    """
    source = find_source(transformer_folder(Path(path).expanduser()))
    if source.kind != "gguf":
        return config_of_source(source, head=head)
    file = GgufFile(source.file)
    try:
        return config_of_gguf(file, head=head)
    finally:
        file.close()


def config_of_source(source: Source, *, head: str | None = None) -> ModelConfig:
    """The configuration in the `config.json` beside safetensors; the head is the one that an
    adapter was trained with, if there is one. Raises ModelError.
    """
    if head is None and source.adapter is not None:
        task = read_json(source.adapter / ADAPTER_CONFIG).get("task_type")
        head = _HEADS_OF_ADAPTERS.get(task) if isinstance(task, str) else None
    generation = source.folder / "generation_config.json"
    return config_from_hf(
        read_json(source.folder / "config.json"),
        read_json(generation) if generation.is_file() else None,
        head=head,
    )


def _other_type(data: Mapping[str, Any]) -> ModelError:
    """The error for a configuration of another type than the supported ones."""
    model_type, supported = data.get("model_type"), ", ".join(supported_model_types())
    if (kind := other_kind(model_type)) is not None:
        return ModelError(f"model_type: {short(model_type)} is {kind}; supported: {supported}")
    for name in _EXPERTS:
        if type(data.get(name)) is int and data[name] > 1:
            kind = f"{name} is {data[name]}, and mixtures of experts are not supported"
            return ModelError(f"model_type: {short(model_type)}: {kind}; supported: {supported}")
    if data.get("is_encoder_decoder") is True:
        kind = "is an encoder-decoder; only encoders or decoders alone are supported"
        return ModelError(f"model_type: {short(model_type)} {kind}: {supported}")
    for name in _PARTS:
        if isinstance(data.get(name), Mapping):
            kind = f"has {name}, and only text models are supported"
            return ModelError(f"model_type: {short(model_type)} {kind}: {supported}")
    return unsupported("model_type", model_type, supported)


def config_from_hf(
    data: Mapping[str, Any], generation: Mapping[str, Any] | None, *, head: str | None = None
) -> ModelConfig:
    """The configuration in what transformers writes into `config.json` and
    `generation_config.json` (None if there is none). Raises ModelError.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
        raise _other_type(data)
    config = _MODEL_TYPES[model_type].from_hf(data, head=head)
    # Only here do chat models name the token that ends a turn.
    extra = token_ids((generation or {}).get("eos_token_id"))
    extra = vocabulary_tokens(extra, config.vocab_size)
    ends = tuple(dict.fromkeys((*config.eos_token_ids, *extra)))
    settings = None
    if config.head == "causal-lm":  # older checkpoints have only the one file
        endless = not ends and "eos_token_id" in data
        settings = read_generation(data if generation is None else generation, endless=endless)
    return replace(config, eos_token_ids=ends, generation=settings)
