"""What the owner publishes about a model besides its architecture: exponents, never a weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.config import LlamaConfig
from protocols.errors import ModelError
from protocols.normalize import NormRange

Kind = Literal["table", "weight", "vector"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor to be shared: an embedding table, a matrix (inputs, outputs), or a vector."""

    kind: Kind
    shape: tuple[int, ...]


_NORM_BOUNDS = {
    "size": (1, 1 << 20),
    "drop": (0, 20),
    "low": (0, 29),
    "high": (1, 29),
    "frac": (4, 26),
}
MIN_ROPE_FRAC, MAX_ROPE_FRAC = 8, 18


@dataclass(frozen=True)
class Plan:
    """All that the parties need to run a model, and all they learn about it.

    Attributes:
        norms: ranges of every norm in program order (attention and MLP of each layer, then the
            last).
        rope_frac: per layer, the fraction bits spent on RoPE's angles.
    """

    config: LlamaConfig
    norms: tuple[NormRange, ...]
    rope_frac: tuple[int, ...]

    def to_public(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "config": self.config.to_public(),
            "norms": [asdict(norm) for norm in self.norms],
            "rope_frac": list(self.rope_frac),
        }

    @classmethod
    def from_public(cls, data: object) -> "Plan":
        """Inverse of `to_public`, for data from a peer.

        Raises:
            ModelError: anything missing, of a wrong type or out of bounds.
        """
        if not isinstance(data, Mapping) or data.keys() != {"config", "norms", "rope_frac"}:
            raise ModelError("a model plan must have config, norms and rope_frac")
        config = LlamaConfig.from_public(data["config"])
        norms, fracs = data["norms"], data["rope_frac"]
        if not isinstance(norms, list) or len(norms) != 2 * config.num_layers + 1:
            raise ModelError(f"a plan of {config.num_layers} layers needs two norms each and one")
        if not isinstance(fracs, list) or len(fracs) != config.num_layers:
            raise ModelError(f"rope_frac must have {config.num_layers} entries")
        for frac in fracs:
            _check("rope_frac", frac, MIN_ROPE_FRAC, MAX_ROPE_FRAC)
        return cls(config, tuple(_norm(norm, config) for norm in norms), tuple(fracs))

    def digest(self) -> str:
        """What parties compare before they serve: SHA-256 of the canonical JSON, in hex."""
        text = json.dumps(self.to_public(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ModelError(f"plan: {name} = {str(value)[:40]} is not an integer in {low}..{high}")


def _norm(data: object, config: LlamaConfig) -> NormRange:
    if not isinstance(data, Mapping) or data.keys() != {*_NORM_BOUNDS, "eps"}:
        raise ModelError(f"plan: a norm must have eps, {', '.join(_NORM_BOUNDS)}")
    for name, (low, high) in _NORM_BOUNDS.items():
        _check(f"norm {name}", data[name], low, high)
    if data["eps"] != config.rms_norm_eps or data["size"] != config.hidden_size:
        raise ModelError("plan: a norm's eps and size must be those of the architecture")
    if data["low"] >= data["high"]:
        raise ModelError(f"plan: norm range 4^{data['low']} .. 4^{data['high']} is empty")
    return NormRange(**data)
