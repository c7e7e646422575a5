"""Weights of a GGUF file under their canonical names, for every supported architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import StoredCheckpoint
from models.checkpoints.packed import Packed, map_rows
from models.configs.decoders.gemma import GemmaConfig
from models.configs.decoders.llama import LlamaConfig
from models.configs.gguf import config_of_gguf
from models.configs.gguf_header import ROPE_TENSORS
from models.files.gguf_reader import GgufFile
from models.files.locate import Source
from protocols.kernels.stored.formats import FormatName

Values = NDArray[np.float32]
_PACKED: Mapping[str, FormatName] = {
    "BF16": "bf16",
    "F16": "f16",
    "F32": "f32",
    "Q8_0": "q8_0",
    "Q4_0": "q4_0",
    "Q4_1": "q4_1",
    "Q4_K": "q4_k",
    "Q6_K": "q6_k",
}
"""Storage types that are multiplied by as they are."""
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def _as_stored(config: Any, name: str, values: Values) -> Values:
    return values


def _llama_rows(config: LlamaConfig, name: str, values: Values) -> Values:
    """Undo llama.cpp's order of LLaMA's queries and keys, in which pairs are next to each other."""
    if ".q_proj." in name:
        return _half_rotation(values, config.num_heads)
    if ".k_proj." in name:
        return _half_rotation(values, config.num_kv_heads)
    return values


def _gemma_gains(config: GemmaConfig, name: str, values: Values) -> Values:
    """Undo llama.cpp's shift of gains: it stores 1 + w where transformers stores w."""
    return values - np.float32(config.gain_offset) if name.endswith("norm.weight") else values


@dataclass(frozen=True)
class Layout:
    """How an architecture stores its weights.

    Attributes:
        top: GGUF name -> Hugging Face name of tensors outside the layers, without `.weight`.
        layer: the same for tensors inside `blk.{i}.`.
        restore: takes the configuration, a Hugging Face name and the stored values, and returns
            the values in Hugging Face's order.
    """

    top: Mapping[str, str]
    layer: Mapping[str, str]
    restore: Callable[[Any, str, Values], Values] = _as_stored

    def moves(self, name: str) -> bool:
        """Whether a matrix is stored in another order than Hugging Face's."""
        return self.restore is _llama_rows and (".q_proj." in name or ".k_proj." in name)

    def hf_name(self, name: str) -> str:
        """The Hugging Face name of a tensor; an unknown name is kept and refused later."""
        if (block := _BLOCK.fullmatch(name)) and block[2] in self.layer:
            return f"model.layers.{int(block[1])}.{self.layer[block[2]]}.{block[3]}"
        base, dot, kind = name.rpartition(".")
        return f"{self.top[base]}{dot}{kind}" if base in self.top else name


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA2 = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
LAYOUTS = {
    "llama": Layout(_TOP, _LAYER, _llama_rows),
    "mistral": Layout(_TOP, _LAYER, _llama_rows),
    "qwen2": Layout(_TOP, _LAYER),
    "qwen3": Layout(_TOP, _LAYER),
    "gemma": Layout(_TOP, _LAYER, _gemma_gains),
    "gemma2": Layout(_TOP, _GEMMA2, _gemma_gains),
    "gemma3": Layout(_TOP, _GEMMA2, _gemma_gains),
    "phi3": Layout(_TOP, _PHI3),
}
"""Architecture -> its layout, for the architectures that `models.configs.gguf` reads."""


class GgufCheckpoint(StoredCheckpoint):
    """One GGUF file. Raises ModelError as `open_checkpoint` does."""

    def __init__(self, source: Source, *, head: str | None = None) -> None:
        super().__init__(source.file)
        self._file = GgufFile(source.file)
        try:
            self.config = config_of_gguf(self._file, head=head)
            self._layout = LAYOUTS[self._file.metadata["general.architecture"]]
            names = [name for name in self._file.tensors if name not in ROPE_TENSORS]
            self._stored = {self._layout.hf_name(name): name for name in names}
            shapes = {hf: self._file.tensors[name].shape for hf, name in self._stored.items()}
            self._check_tensors(shapes)
            for name in self.names():
                self._file.check(self._stored[name])
        except BaseException:
            self.close()
            raise
        self.nbytes = sum(entry.nbytes for entry in self._file.tensors.values())

    def packed(self, name: str) -> Packed | None:
        shape = self.shape(name)
        if len(shape) != 2 or self._layout.moves(name):
            return None
        entry = self._file.tensors[self._stored[name]]
        kind = _PACKED.get(entry.kind.name)
        if kind is None:
            return None
        return Packed(kind, map_rows(self.path, entry.offset, shape[0], entry.nbytes))

    def close(self) -> None:
        self._file.close()

    def _read(self, name: str) -> Values:
        values = self._file.tensor(self._stored[name])
        return self._layout.restore(self.config, name, values)


def _half_rotation(rows: Values, heads: int) -> Values:
    """Change llama.cpp's order of query and key rows, (pair, half), to Hugging Face's (half, pair).

    rows: (heads * head_dim, in features), or a bias. The result has the same rows, reordered within
    each head.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
