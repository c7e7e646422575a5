"""Architecture of a model as plain numbers: read from a checkpoint, published to the parties.

Everything in here is public by design (see the README): sizes and constants, never a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from models.gguf_reader import GgufFile
from models.locate import find_source, read_json
from protocols.errors import ModelError

# Upper bounds on what a peer may announce: far above any published model of these families,
# low enough that no product of two of them overflows or asks for absurd amounts of memory.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "num_kv_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_positions": 1 << 24,
}
_MAX_EOS_TOKENS = 64


@dataclass(frozen=True)
class ModelConfig:
    """What every family has. Subclasses add their sizes and set `family`."""

    family: ClassVar[str] = ""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name in _LIMITS):
            _check_size(name, getattr(self, name))
        bos = self.bos_token_id
        if bos is not None:
            self._check_token("bos_token_id", bos)
        if not isinstance(self.eos_token_ids, tuple) or len(self.eos_token_ids) > _MAX_EOS_TOKENS:
            raise ModelError(
                f"eos_token_ids must be a list of at most {_MAX_EOS_TOKENS} ids, "
                f"found {_short(self.eos_token_ids)}"
            )
        for token in self.eos_token_ids:
            self._check_token("eos_token_ids", token)

    def _check_token(self, name: str, value: object) -> None:
        if type(value) is not int or not 0 <= value < self.vocab_size:
            raise ModelError(
                f"{name}: {_short(value)} is not a token id below vocab_size {self.vocab_size}"
            )

    def to_public(self) -> dict[str, Any]:
        """The configuration in JSON types (tuples become lists), with its `family`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"family": self.family, **plain}

    @classmethod
    def from_public(cls, data: object) -> Self:
        """Inverse of `to_public`; the data may come from an untrusted peer.

        Raises ModelError for a missing or unknown key, a wrong type or a value out of bounds.
        """
        if not isinstance(data, Mapping):
            raise ModelError(f"an architecture must be a mapping, found {_short(data)}")
        given = dict(data)
        family = given.pop("family", None)
        if family != cls.family:
            raise ModelError(f"family {_short(family)} is not {cls.family!r}")
        expected = {f.name for f in fields(cls)}
        if given.keys() != expected:
            odd = sorted(map(str, given.keys() ^ expected))
            raise ModelError(f"an architecture of family {cls.family!r} lacks or adds: {odd[:5]}")
        eos = given["eos_token_ids"]
        if not isinstance(eos, list | tuple):
            raise ModelError(f"eos_token_ids must be a list, found {_short(eos)}")
        return cls(**{**given, "eos_token_ids": tuple(eos)})


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A decoder of the LLaMA family: RMSNorm, rotary positions, grouped queries, SiLU gate.

    Raises ModelError on construction when a value has the wrong type or is out of bounds.
    """

    family: ClassVar[str] = "llama"

    intermediate_size: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_embeddings: bool
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rms_norm_eps", _number("rms_norm_eps", self.rms_norm_eps, 0, 1))
        object.__setattr__(self, "rope_theta", _number("rope_theta", self.rope_theta, 1, 1e12))
        if type(self.tie_embeddings) is not bool:
            raise ModelError(f"tie_embeddings: {_short(self.tie_embeddings)} is not true or false")
        if self.hidden_act != "silu":
            raise _unsupported("hidden_act", self.hidden_act, "'silu'")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim {self.head_dim} is odd; rotary positions need it even")

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> Self:
        """From the contents of a Hugging Face `config.json`.

        Raises ModelError for a missing key and for every setting that would change the function
        computed and is not supported.
        """
        _refuse_unsupported_hf(data)
        heads = _required(data, "num_attention_heads")
        hidden = _required(data, "hidden_size")
        head_dim = data.get("head_dim")
        if head_dim is None:
            _check_size("num_attention_heads", heads)
            _check_size("hidden_size", hidden)
            head_dim = hidden // heads
        kv_heads = data.get("num_key_value_heads")
        return cls(
            vocab_size=_required(data, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_required(data, "intermediate_size"),
            num_layers=_required(data, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            # Where a key is absent, the value that transformers' LlamaConfig would take.
            rms_norm_eps=data.get("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(data),
            max_positions=data.get("max_position_embeddings", 2048),
            tie_embeddings=data.get("tie_word_embeddings", False),
            bos_token_id=data.get("bos_token_id"),
            eos_token_ids=_token_ids(data.get("eos_token_id")),
            hidden_act=data.get("hidden_act", "silu"),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, tie_embeddings: bool) -> Self:
        """From GGUF metadata. `tie_embeddings`: the file has no tensor `output.weight`.

        Raises ModelError as `from_hf` does.
        """
        _refuse_unsupported_gguf(metadata)
        heads = _required(metadata, "llama.attention.head_count")
        hidden = _required(metadata, "llama.embedding_length")
        _check_size("llama.attention.head_count", heads)
        _check_size("llama.embedding_length", hidden)
        head_dim = metadata.get("llama.attention.key_length", hidden // heads)
        for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
            if metadata.get(key, head_dim) != head_dim:
                raise _unsupported(key, metadata[key], f"the head size {head_dim}")
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        return cls(
            vocab_size=metadata.get("llama.vocab_size", len(tokens)),
            hidden_size=hidden,
            intermediate_size=_required(metadata, "llama.feed_forward_length"),
            num_layers=_required(metadata, "llama.block_count"),
            num_heads=heads,
            num_kv_heads=metadata.get("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=_required(metadata, "llama.attention.layer_norm_rms_epsilon"),
            rope_theta=metadata.get("llama.rope.freq_base", 10000.0),
            max_positions=_required(metadata, "llama.context_length"),
            tie_embeddings=tie_embeddings,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=gguf_eos_token_ids(metadata),
        )


_FAMILIES: dict[str, type[ModelConfig]] = {LlamaConfig.family: LlamaConfig}


def supported_families() -> tuple[str, ...]:
    """Names of the model families that can be evaluated, sorted."""
    return tuple(sorted(_FAMILIES))


def config_from_public(data: object) -> ModelConfig:
    """The configuration a peer published, of whatever family. Raises ModelError."""
    family = data.get("family") if isinstance(data, Mapping) else None
    if not isinstance(family, str) or family not in _FAMILIES:
        raise _unsupported("family", family, ", ".join(supported_families()))
    return _FAMILIES[family].from_public(data)


def load_config(path: str | Path) -> LlamaConfig:
    """The configuration of the checkpoint at `path`: a folder, a .safetensors or a .gguf file.

    Raises ModelError when it is missing, unreadable or not supported.
    """
    source = find_source(path)
    if source.kind == "gguf":
        file = GgufFile(source.file)
        try:
            return config_of_gguf(file)
        finally:
            file.close()
    data = read_json(source.folder / "config.json")
    config = LlamaConfig.from_hf(data)
    # Chat models name the token that ends a turn only here.
    generation = source.folder / "generation_config.json"
    if not generation.is_file():
        return config
    extra = _token_ids(read_json(generation).get("eos_token_id"))
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *extra))))


def config_of_gguf(file: GgufFile) -> LlamaConfig:
    """The configuration of an open GGUF file. Raises ModelError."""
    return LlamaConfig.from_gguf(file.metadata, tie_embeddings="output.weight" not in file.tensors)


def gguf_eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text or a turn, as the metadata of a GGUF file names them."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _refuse_unsupported_hf(data: Mapping[str, Any]) -> None:
    model_type = data.get("model_type")
    if model_type not in _FAMILIES:
        raise _unsupported("model_type", model_type, ", ".join(supported_families()))
    architectures = data.get("architectures")
    if architectures and "LlamaForCausalLM" not in architectures:
        raise _unsupported("architectures", architectures, "LlamaForCausalLM")
    for name in ("attention_bias", "mlp_bias"):
        if data.get(name):
            raise _unsupported(name, data[name], "false")
    if data.get("quantization_config"):
        method = data["quantization_config"]
        method = method.get("quant_method") if isinstance(method, Mapping) else method
        raise _unsupported("quantization_config", method, "weights in float32, float16, bfloat16")
    window = data.get("sliding_window")
    positions = data.get("max_position_embeddings", 2048)
    if window is not None and not _at_least(window, positions):
        raise _unsupported("sliding_window", window, "null (full attention)")
    for name in ("rope_scaling", "rope_parameters"):
        rope = data.get(name) or {}
        if not isinstance(rope, Mapping):
            raise _unsupported(name, rope, "a mapping with rope_type 'default'")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise _unsupported(f"{name}.rope_type", kind, "'default'")
        partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1):
            raise _unsupported("partial_rotary_factor", partial, "1.0")


def _refuse_unsupported_gguf(metadata: Mapping[str, Any]) -> None:
    architecture = metadata.get("general.architecture")
    if architecture not in _FAMILIES:
        raise _unsupported("general.architecture", architecture, ", ".join(supported_families()))
    if metadata.get("llama.expert_count"):
        raise _unsupported("llama.expert_count", metadata["llama.expert_count"], "0 (dense)")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise _unsupported("llama.rope.scaling.type", scaling, "'none'")
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        if metadata.get(key, 1.0) not in (0, 1):
            raise _unsupported(key, metadata[key], "1.0")
    window = metadata.get("llama.attention.sliding_window")
    if window and not _at_least(window, metadata.get("llama.context_length")):
        raise _unsupported("llama.attention.sliding_window", window, "none (full attention)")


def _rope_theta(data: Mapping[str, Any]) -> Any:
    """The base of the rotary frequencies; transformers 5 moved it into a mapping."""
    for source in (data.get("rope_parameters"), data.get("rope_scaling"), data):
        if source and source.get("rope_theta") is not None:
            return source["rope_theta"]
    return 10000.0


def _token_ids(value: object) -> tuple[int, ...]:
    """`eos_token_id` of Hugging Face: nothing, one id or a list of ids."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)  # type: ignore[return-value]


def _at_least(value: object, least: object) -> bool:
    return type(value) is int and type(least) is int and value >= least


def _required(data: Mapping[str, Any], key: str) -> Any:
    if data.get(key) is None:
        raise ModelError(f"the model's configuration lacks {key!r}; the file is incomplete")
    return data[key]


def _check_size(name: str, value: object) -> None:
    limit = _LIMITS.get(name, max(_LIMITS.values()))
    if type(value) is not int or not 1 <= value <= limit:
        raise ModelError(f"{name}: {_short(value)} is not a whole number from 1 to {limit}")


def _number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float in [low, high], zero excluded."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else high * 2
        if number > 0 and low <= number <= high:  # false for NaN
            return number
    raise ModelError(f"{name}: {_short(value)} is not a number from {low} to {high}")


def _unsupported(name: str, value: object, supported: str) -> ModelError:
    return ModelError(f"{name}: {_short(value)} is not supported; supported: {supported}")


def _short(value: object) -> str:
    """`repr` cut to a length that is safe to print, whatever a peer sent."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
