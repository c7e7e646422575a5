"""Compare the private evaluation of a model with the plaintext one, place by place.

Both run on the owner's machine with all values visible (`models.owner.observe`); a place is an
operation that the model's program names: a norm, the queries, an attention, a layer of the MLP, the
head.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.calibrate import calibrate
from models.owner.observe import Held, Place, Rebuilt, Sizes, hold_all, run_plain, run_secure
from models.programs.head_layers import default_rows
from models.programs.plan import Plan
from models.programs.program import Batch, Rows
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.ring import Floats
from protocols.base.shares import COMPUTING
from protocols.errors import LocalProtocolError

THRESHOLD = 0.01
"""Relative difference from which a place is reported to stray."""
NEAR = 0.5
"""Part of a declared range from which a place is reported to be near the range's end."""
CRITERION = (
    "A place strays if the relative difference there exceeds the threshold: the largest difference "
    "in a row of features, divided by the largest plaintext value in that row or in the middle "
    "row, whichever is larger. Places are listed in the order of evaluation and errors propagate, "
    "so look at the first one that strays."
)


@dataclass(frozen=True)
class Compared:
    """The plaintext and the private values of one place.

    Attributes:
        largest: size of the largest plaintext value.
        most, mean: absolute difference. relative: see `CRITERION`.
        sizes, limits: the largest plaintext sizes of values with a declared range, and the ranges.
        agreed: whether the parties' shares are consistent.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    most: float
    mean: float
    relative: float
    sizes: Sizes = field(default_factory=dict)
    limits: Sizes = field(default_factory=dict)
    agreed: bool = True

    @property
    def fill(self) -> float:
        """The largest part of a declared range that the place uses."""
        parts = (size / self.limits[what] for what, size in self.sizes.items())
        return max(parts, default=0.0)

    @property
    def notes(self) -> list[str]:
        """Remarks on inconsistent shares, and on values at the end of their declared range."""
        found = [] if self.agreed else ["the parties' shares are inconsistent"]
        for what, size in self.sizes.items():
            limit = self.limits[what]
            if size >= limit:
                found.append(f"saturated: {what} reach {size:.3g}, the range ends at {limit:.3g}")
            elif size >= NEAR * limit:
                found.append(f"{what} reach {size:.3g}, near the end of their range, {limit:.3g}")
        return found

    def warnings(self, threshold: float) -> list[str]:
        """Warnings for the owner about this place."""
        differs = f"differs by {self.relative:.2g} of its size"
        return [*self.notes, differs] if self.relative > threshold else self.notes

    def strays(self, threshold: float) -> bool:
        """Whether it strays by the criterion, or because the shares are inconsistent."""
        return not self.agreed or not self.relative <= threshold

    def to_json(self, threshold: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "largest": self.largest,
            "max_difference": self.most,
            "mean_difference": self.mean,
            "relative": self.relative,
            "range_used": self.fill,
            "ranges": {w: {"size": s, "limit": self.limits[w]} for w, s in self.sizes.items()},
            "warnings": self.warnings(threshold),
        }


@dataclass(frozen=True)
class Comparison:
    """All places, and the result for the client.

    Attributes:
        agreement: rows whose largest entry is at the same index, and the number of rows; None where
            the head makes no choice.
        cosine: the smallest cosine between rows of the two results.
        cost: of the private evaluation.
    """

    places: tuple[Compared, ...]
    result: Compared
    agreement: tuple[int, int] | None
    cosine: float
    cost: Cost
    threshold: float = THRESHOLD

    @property
    def first_stray(self) -> Compared | None:
        """The first place that strays, in the order of evaluation."""
        found = (place for place in self.places if place.strays(self.threshold))
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        stray = self.first_stray
        return {
            "threshold": self.threshold,
            "criterion": CRITERION,
            "first_stray": stray.name if stray else None,
            "places": [place.to_json(self.threshold) for place in self.places],
            "result": {
                **self.result.to_json(self.threshold),
                "arg_max_equal": self.agreement[0] if self.agreement else None,
                "rows": self.result.shape[0],
                "least_cosine": self.cosine,
            },
            "rounds": self.cost.rounds,
            "online_bytes": self.cost.online,
            "offline_bytes": self.cost.offline,
        }


def relative_difference(plain: Floats, difference: Floats) -> float:
    """See `CRITERION`; the last axis holds the features of a row."""
    if plain.size == 0:
        return 0.0
    sizes = np.abs(plain).max(axis=-1)
    least = max(float(np.median(sizes)), np.finfo(np.float64).tiny)
    return float((np.abs(difference).max(axis=-1) / np.maximum(sizes, least)).max())


def compare_place(place: Place, rebuilt: Rebuilt) -> Compared:
    """Raises LocalProtocolError: the two programs are not at the same place."""
    if (place.name, place.value.shape) != (rebuilt.name, rebuilt.value.shape):
        raise LocalProtocolError(
            f"{rebuilt.name} {rebuilt.value.shape} met {place.name} {place.value.shape}"
        )
    difference = rebuilt.value - place.value
    return Compared(
        place.name,
        place.value.shape,
        float(np.abs(place.value).max(initial=0.0)),
        float(np.abs(difference).max(initial=0.0)),
        float(np.abs(difference).mean()),
        relative_difference(place.value, difference),
        place.sizes,
        rebuilt.limits,
        rebuilt.agreed,
    )


def compare_model(
    config: ModelConfig,
    parameters: dict[str, Floats],
    sequences: Sequence[Sequence[int]],
    *,
    rows: Rows | None = None,
    settings: Settings | None = None,
    threshold: float = THRESHOLD,
    progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Comparison:
    """Evaluate a model for some token sequences in plaintext and on shares, and compare.

    Args:
        parameters: the float matrices of `load_parameters`, which are consumed.
        rows: the default is what the model's head is meant for.
        progress: called with the current activity and the fraction done.

    Raises:
        RangeError: the model does not fit the ring.
    """
    batch = Batch(tuple(len(ids) for ids in sequences), rows or default_rows(config))
    ids = [token for sequence in sequences for token in sequence]
    progress("proving ranges", 0.0)
    plan = calibrate(config, parameters)
    progress("running the model in plaintext", 0.0)
    places = run_plain(config, parameters, batch, ids)
    held: Held = {role: {} for role in COMPUTING}
    wanted = len(parameters)
    for number, (_, parts) in enumerate(hold_all(config, parameters), start=1):
        for role, part in parts.items():
            held[role].update(part)
        progress("sharing the weights", number / wanted)
    return compare_held(
        plan, held, batch, ids, places, settings=settings, threshold=threshold, progress=progress
    )


def compare_held(
    plan: Plan,
    held: Mapping[Any, Mapping[str, Any]],
    batch: Batch,
    ids: Sequence[int],
    places: Sequence[Place],
    *,
    settings: Settings | None = None,
    threshold: float = THRESHOLD,
    progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Comparison:
    """Compare the evaluation of a shared model with what `run_plain` found, place by place."""
    waiting = deque(places)
    compared: list[Compared] = []
    results: list[Floats] = []

    def judge(rebuilt: Rebuilt) -> None:
        place = waiting.popleft()  # freed once it is compared
        compared.append(compare_place(place, rebuilt))
        progress("running the model on shares", len(compared) / len(places))
        if not waiting:
            results.extend((place.value, rebuilt.value))

    parts = {role: dict(part) for role, part in held.items()}
    cost = run_secure(plan, parts, batch, ids, judge, settings)
    plain, secure = results
    return Comparison(
        tuple(compared[:-1]),
        compared[-1],
        _agreement(plan.config, plain, secure),
        least_cosine(plain, secure),
        cost,
        threshold,
    )


def _agreement(config: ModelConfig, plain: Floats, secure: Floats) -> tuple[int, int] | None:
    if config.head in ("none", "question-answering") or plain.shape[1] < 2:
        return None
    return int((plain.argmax(axis=1) == secure.argmax(axis=1)).sum()), len(plain)


def least_cosine(left: Floats, right: Floats) -> float:
    """The cosine of the widest angle between rows of the two. A row of zeros has no angle and
    equals only another row of zeros.
    """
    one, two = (np.linalg.norm(x, axis=-1) for x in (left, right))
    product = np.einsum("...i,...i->...", left, right)
    lengths = one * two
    cosines = np.divide(product, lengths, out=(one == two).astype(np.float64), where=lengths > 0)
    return float(cosines.min())
