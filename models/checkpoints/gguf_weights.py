"""Weights of a GGUF file of architecture `llama`, under their canonical names."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import StoredCheckpoint
from models.configs.decoders.llama import LlamaConfig
from models.configs.gguf import config_of_gguf
from models.files.gguf_reader import GgufFile
from models.files.locate import Source

# GGUF name -> Hugging Face name, outside and inside `blk.{i}.`
_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
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


class GgufCheckpoint(StoredCheckpoint):
    """One GGUF file of architecture `llama`. Raises ModelError as `open_checkpoint` does."""

    config: LlamaConfig

    def __init__(self, source: Source, *, head: str | None = None) -> None:
        super().__init__(source.file)
        self._file = GgufFile(source.file)
        try:
            self.config = config_of_gguf(self._file, head=head)
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
    """Hugging Face's name of a GGUF tensor; an unknown name is kept and refused later."""
    if (block := _GGUF_BLOCK.fullmatch(name)) and block[2] in _GGUF_LAYER:
        return f"model.layers.{int(block[1])}.{_GGUF_LAYER[block[2]]}"
    return _GGUF_TOP.get(name, name)


def _half_rotation(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder query and key rows from llama.cpp's (pair, half) to Hugging Face's (half, pair).

    rows: (heads * head_dim, in features); the same rows are returned, reordered within each head.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
