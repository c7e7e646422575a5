"""The plan that the owner publishes for a model: architecture and exponents, never a weight."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from models.configs.architecture import ModelConfig
from models.configs.reading import config_from_public
from models.configs.tasks.ranking import RankingSettings
from models.configs.tasks.sentences import SentenceSettings
from protocols.base.ring import RESIDUAL_BITS
from protocols.drivers.ops import Ranges
from protocols.errors import ModelError
from protocols.functions.attention import MAX_SCORE_BITS, AttentionRange
from protocols.functions.elementary import MAX_POWER_FRAC
from protocols.functions.late import LEAST_FRAC, LateRange
from protocols.functions.normalize import MAX_ROOT_FRAC, MIN_ROOT_FRAC, NormRange

T = TypeVar("T")
Kind = Literal["table", "weight", "gain", "rows", "relative"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor to be shared.

    Its kind is `table` (an embedding table), `weight` (a matrix (inputs, outputs)), `gain` (of a
    norm), `rows` (added to the residual stream) or `relative` (weights of relative positions).
    """

    kind: Kind
    shape: tuple[int, ...]


_KEYS = {"config", "norms", "attention"}
Weights = Literal["private", "public"]
_OPTIONAL = {"sentences", "ranking", "weights", "late"}
MAX_VALUE_BITS = 24
MAX_ROPE_FRAC = 18
MAX_VALUE_DROP = 6
_NORM_BOUNDS = {
    "drop": (0, 20),
    "low": (0, 29),
    "high": (1, 30),
    "frac": (MIN_ROOT_FRAC, MAX_ROOT_FRAC),
}
_ATTENTION_BOUNDS = {
    "score_bits": (1, MAX_SCORE_BITS),
    "value_bits": (0, MAX_VALUE_BITS),
    "rope_frac": (0, MAX_ROPE_FRAC),
    "value_drop": (0, MAX_VALUE_DROP),
}
_LATE_BOUNDS = {
    "drop": (0, RESIDUAL_BITS - LEAST_FRAC - 1),
    "frac": (LEAST_FRAC, RESIDUAL_BITS),
    "root": (LEAST_FRAC, MAX_POWER_FRAC),
    "rope": (0, MAX_ROPE_FRAC),
}


@dataclass(frozen=True)
class Plan:
    """Everything that the parties need to run a model, and everything they learn about it.

    Attributes:
        config: the architecture.
        ranges: the exponents of each place in the program.
        sentences: how texts become vectors, if the model has such settings.
        ranking: how pairs of texts become scores, if the model has such settings.
        weights: whether the parties know the weights. Prompts and answers are private either way.
    """

    config: ModelConfig
    ranges: Ranges
    sentences: SentenceSettings | None = None
    ranking: RankingSettings | None = None
    weights: Weights = "private"

    def to_public(self) -> dict[str, Any]:
        """The plan as JSON types."""
        told = {"sentences": self.sentences, "ranking": self.ranking}
        return {
            **({} if self.weights == "private" else {"weights": self.weights}),
            **{name: item.to_public() for name, item in told.items() if item is not None},
            "config": self.config.to_public(),
            "norms": {name: asdict(item) for name, item in self.ranges.norms.items()},
            "attention": {name: asdict(item) for name, item in self.ranges.attention.items()},
            **self._late(),
        }

    def _late(self) -> dict[str, Any]:
        late = {name: asdict(item) for name, item in self.ranges.late.items()}
        return {"late": late} if late else {}

    @classmethod
    def from_public(cls, data: object) -> "Plan":
        """Inverse of `to_public`, for data from a peer.

        Raises:
            ModelError: something is missing, of a wrong type or out of bounds.
        """
        if not isinstance(data, Mapping) or data.keys() - _OPTIONAL != _KEYS:
            raise ModelError(f"a model plan must have {', '.join(sorted(_KEYS))}")
        config = config_from_public(data["config"])
        most = 6 * config.num_layers + 8
        norms = _entries("norm", data["norms"], most, NormRange, _NORM_BOUNDS)
        for name, item in norms.items():
            if item.low >= item.high:
                raise ModelError(f"plan: norm {name}: 4^{item.low} .. 4^{item.high} is empty")
        attention = _entries(
            "attention", data["attention"], most, AttentionRange, _ATTENTION_BOUNDS
        )
        late = _entries("late product", data.get("late", {}), most, LateRange, _LATE_BOUNDS)
        sentences, ranking = None, None
        if "sentences" in data:
            sentences = SentenceSettings.from_public(data["sentences"])
        if "ranking" in data:
            ranking = RankingSettings.from_public(data["ranking"])
        weights = data.get("weights", "private")
        if weights not in get_args(Weights):
            raise ModelError(f"plan: weights = {str(weights)[:40]} is neither private nor public")
        return cls(config, Ranges(norms, attention, late), sentences, ranking, weights)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex; the parties compare it before they serve."""
        text = json.dumps(self.to_public(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class _Typical(Mapping[str, T]):
    """The same exponents for every place."""

    def __init__(self, item: T) -> None:
        self._item = item

    def __getitem__(self, name: str) -> T:
        return self._item

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def draft_plan(config: ModelConfig) -> Plan:
    """A plan with typical exponents: good for shapes and costs, not for secure runs."""
    norms: Mapping[str, NormRange] = _Typical(NormRange(drop=10, low=1, high=29, frac=18))
    attention: Mapping[str, AttentionRange] = _Typical(AttentionRange(11, 6, 12))
    return Plan(config, Ranges(norms, attention))


def _entries(
    kind: str, data: object, most: int, made: type[T], bounds: Mapping[str, tuple[int, int]]
) -> dict[str, T]:
    if not isinstance(data, Mapping) or len(data) > most:
        raise ModelError(f"plan: {kind} ranges must be a mapping with at most {most} entries")
    names = {f.name for f in fields(made)}  # type: ignore[arg-type]
    entries = {}
    for name, item in data.items():
        if not isinstance(name, str) or len(name) > 64:
            raise ModelError(f"plan: {str(name)[:40]!r} is not the name of a place")
        if not isinstance(item, Mapping) or item.keys() != names:
            raise ModelError(f"plan: {kind} {name} must have {', '.join(sorted(names))}")
        for key, (low, high) in bounds.items():
            _check(f"{kind} {name}: {key}", item[key], low, high)
        if type(item.get("early", True)) is not bool:
            raise ModelError(f"plan: {kind} {name}: early must be true or false")
        entries[name] = made(**item)
    return entries


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ModelError(f"plan: {name} = {str(value)[:40]} is not an integer in {low}..{high}")
