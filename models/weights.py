"""Weights of a checkpoint under their Hugging Face names, one float32 tensor at a time.

Files are memory-mapped: opening one reads its header, and `tensor` reads what is asked for.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.config import LlamaConfig, config_of_gguf, load_config
from models.gguf_reader import GgufFile
from models.locate import (
    SAFETENSORS_INDEX,
    Source,
    demo_model_path,
    find_source,
    read_json,
    resolve_model,
)
from models.safetensors_reader import SafetensorsFile
from protocols.errors import ModelError

__all__ = ["Checkpoint", "demo_model_path", "llama_tensors", "open_checkpoint"]

Shape = tuple[int, ...]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
# GGUF name -> Hugging Face name, outside and inside of `blk.{i}.`
_GGUF_TOP = {
    "token_embd.weight": _EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": _HEAD,
}
_GGUF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Buffers that old checkpoints carry along and that follow from the configuration.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def llama_tensors(config: LlamaConfig) -> dict[str, Shape]:
    """Name and shape (out features, in features) of every weight, in the order of evaluation."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes: dict[str, Shape] = {_EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes[_HEAD] = (config.vocab_size, hidden)
    return shapes


class Checkpoint(ABC):
    """Weights and configuration of one model; a context manager that closes its files.

    `path` is the file or folder that was opened (the tokenizer is read from the same place),
    `nbytes` the size of the weights as they are stored.
    """

    path: Path
    config: LlamaConfig
    nbytes: int

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return llama_tensors(self.config)

    def names(self) -> tuple[str, ...]:
        """Hugging Face names of all weights; `lm_head.weight` is absent when it is tied."""
        return tuple(self._shapes)

    def shape(self, name: str) -> Shape:
        """Shape of a weight, as (out features, in features). Raises ModelError."""
        if name not in self._shapes:
            raise ModelError(f"{self.path}: the model has no tensor {name!r}")
        return self._shapes[name]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight as a fresh C-contiguous float32 array of `shape(name)`; safe in threads.

        Raises ModelError when the name is unknown or a value is NaN or infinite.
        """
        shape = self.shape(name)
        values = self._read(name)
        assert values.shape == shape, (name, values.shape, shape)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.path}: {name} contains NaN or infinity; the file is damaged")
        return values

    @abstractmethod
    def close(self) -> None:
        """Release the files; no tensor can be read afterwards."""

    @abstractmethod
    def _read(self, name: str) -> NDArray[np.float32]:
        """The weight called `name`, whose existence and shape were checked on opening."""

    def _check_tensors(self, found: dict[str, Shape]) -> None:
        """Raise ModelError unless exactly the weights of the configuration are there."""
        expected = self._shapes
        for name, shape in expected.items():
            if name not in found:
                raise ModelError(f"{self.path}: tensor {name} is missing, expected shape {shape}")
            if found[name] != shape:
                raise ModelError(
                    f"{self.path}: tensor {name} has shape {found[name]}, expected {shape}"
                )
        for name in found:
            # A bias or an adapter left out in silence would change the answers.
            if name not in expected and name != _HEAD and not _IGNORED.fullmatch(name):
                raise ModelError(
                    f"{self.path}: tensor {name} is not part of family {self.config.family!r} as "
                    "implemented (no biases, adapters, experts, rotary scaling, query or key norms)"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _SafetensorsCheckpoint(Checkpoint):
    """One file, or the shards that an index names."""

    def __init__(self, source: Source) -> None:
        self.path = source.file
        self.config = load_config(source.file)
        self._files: list[SafetensorsFile] = []
        self._owner: dict[str, SafetensorsFile] = {}
        try:
            for file in _shards(source):
                opened = SafetensorsFile(file)
                self._files.append(opened)
                self._owner.update(dict.fromkeys(opened.tensors, opened))
            self._check_tensors({n: f.tensors[n].shape for n, f in self._owner.items()})
            for name in self.names():
                self._owner[name].check(name)
            self._check_tied_head()
        except BaseException:
            self.close()
            raise
        stored = [f.tensors[n] for n, f in self._owner.items() if n in self._shapes]
        self.nbytes = sum(entry.stop - entry.start for entry in stored)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _read(self, name: str) -> NDArray[np.float32]:
        return self._owner[name].tensor(name)

    def _check_tied_head(self) -> None:
        """A tied head may be stored all the same, but only as a copy of the embedding."""
        if not self.config.tie_embeddings or _HEAD not in self._owner:
            return
        if self._owner[_HEAD].raw(_HEAD) != self._owner[_EMBEDDING].raw(_EMBEDDING):
            raise ModelError(
                f"{self.path}: {_HEAD} differs from {_EMBEDDING} though config.json says "
                "tie_word_embeddings; set it to false there, or remove the tensor"
            )


def _shards(source: Source) -> list[Path]:
    if source.file.name != SAFETENSORS_INDEX:
        return [source.file]
    weight_map = read_json(source.file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{source.file}: has no 'weight_map'; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # An index from the hub must not lead out of its folder.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{source.file}: {name!r} is not the name of a shard")
        if not (source.folder / name).is_file():
            raise ModelError(f"{source.file}: shard {name} is missing; download it")
    return [source.folder / name for name in names]


class _GgufCheckpoint(Checkpoint):
    """One GGUF file of architecture `llama`."""

    def __init__(self, source: Source) -> None:
        self.path = source.file
        self._file = GgufFile(source.file)
        try:
            self.config = config_of_gguf(self._file)
            self._stored = {_hf_name(name): name for name in self._file.tensors}
            shapes = {hf: self._file.tensors[name].shape for hf, name in self._stored.items()}
            self._check_tensors(shapes)
            for name in self.names():
                self._file.check(self._stored[name])
        except BaseException:
            self.close()
            raise
        self.nbytes = sum(entry.nbytes for entry in self._file.tensors.values())

    def close(self) -> None:
        self._file.close()

    def _read(self, name: str) -> NDArray[np.float32]:
        values = self._file.tensor(self._stored[name])
        if name.endswith("q_proj.weight"):
            return _half_rotation(values, self.config.num_heads)
        if name.endswith("k_proj.weight"):
            return _half_rotation(values, self.config.num_kv_heads)
        return values


def _hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one stays and is refused later."""
    if (block := _GGUF_BLOCK.fullmatch(name)) and block[2] in _GGUF_LAYER:
        return f"model.layers.{int(block[1])}.{_GGUF_LAYER[block[2]]}"
    return _GGUF_TOP.get(name, name)


def _half_rotation(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's order of query and key rows, (pair, half), to Hugging Face's (half, pair).

    rows: (heads * head_dim, in features); the same rows come back, reordered within each head.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Open a folder, a .safetensors or .gguf file, or a name on the Hugging Face hub.

    Everything but the values is checked here: the architecture is supported, every weight is
    there with the right shape and in a storage type that can be read, no file is cut short. Raises
    ModelError.
    """
    source = find_source(resolve_model(path_or_name))
    return _GgufCheckpoint(source) if source.kind == "gguf" else _SafetensorsCheckpoint(source)
