"""How many bytes each operation of a model takes at a party, measured once.

`bench/memory.py` measures again: `models.programs.memory` predicts with these.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per entry at the peak of an operation, including its result but not its inputs."""

    embed: int
    norm: int
    centred: int
    linear: int
    project: int
    late: int
    normed: int
    output: int
    attend: int
    argmax: int
    sign: int
    pieces: int
    centre: int
    wave: float
    wide: int
    gated: int
    gained: int


DEALER = Rates(
    embed=234, norm=130, centred=146, linear=84, project=90, late=106, normed=116, output=56,
    attend=185, argmax=205, sign=165, pieces=225, centre=10, wave=30, wide=12, gated=16,
    gained=270,
)  # fmt: skip
EVALUATOR = Rates(
    embed=210, norm=106, centred=146, linear=64, project=66, late=94, normed=133, output=48,
    attend=222, argmax=250, sign=136, pieces=402, centre=168, wave=16.5, wide=78, gated=51,
    gained=174,
)  # fmt: skip
TRAFFIC_ATTEND = 150
"""Bytes per score at the dealer under the tree of least traffic."""
MANY_ATTEND, MANY_ARGMAX = (120, 132), (160, 160)
"""Bytes per score and per logit at dealer and evaluator where `MANY` are compared in pairs."""
MASK = 9
"""Bytes per entry of a mask: where it is set, and the columns to look at."""
DEALT = {"attend": 150, "argmax": 153, "norm": 80, "linear": 17, "embed": 26, "centre": 60}
NEAR_BUCKET = 50, 52
"""Bytes per bucket that a histogram asks, at the dealer and at an evaluator."""
DEALT_WAVE, LARGEST_WAVE, LARGEST = 10.25, 10.25, 42
DEALT_WIDE, DEALT_LATE = 29, 36
"""Bytes dealt per entry; and those of the largest message among them."""
