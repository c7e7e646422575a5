"""The parts of a GGUF file that its configuration is read from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.configs.validate import required

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class GgufHeader:
    """Metadata, names of tensors, and the few tensors that belong to the configuration.

    Attributes:
        architecture: its name in llama.cpp, with which the keys begin.
        tensors: names of all tensors.
        factors: the values of those tensors of `ROPE_TENSORS` that the file has.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Collection[str]
    factors: Mapping[str, Numbers] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The full key of a setting of the architecture."""
        return f"{self.architecture}.{name}"

    def get(self, name: str, default: Any = None) -> Any:
        """A setting of the architecture, or the default if it is absent."""
        return self.metadata.get(self.key(name), default)

    def required(self, name: str) -> Any:
        """A setting of the architecture. Raises ModelError if it is missing."""
        return required(self.metadata, self.key(name))

    def has_layer_tensor(self, name: str) -> bool:
        """Whether the first layer has a tensor with this name."""
        return f"blk.0.{name}" in self.tensors


ROPE_FREQS = "rope_freqs.weight"
"""The divisor of each rotary frequency."""
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same for sequences up to the training context (longrope), and for longer ones."""
ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)
