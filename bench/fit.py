"""Fit the constants that the approximations are made of: `python -m bench.fit`.

Prints every sum of waves as it stands in `protocols.functions.activation_tables`. Least squares on
Chebyshev nodes of [0, cut], which is within a factor of two of minimax.
"""

from dataclasses import replace

import numpy as np

from protocols.functions.activation_tables import ACTIVATIONS, SOFT, Activation, Centre
from protocols.functions.exact import Reals
from protocols.waves import Waves

_NODES = 400
_DECIMALS = 10
_CUTOFF = 1e-6
"""Directions in which the waves on [0, cut] are smaller are left out."""


def fit_waves(activation: Activation, centre: Centre) -> Waves:
    """`centre.waves` with amplitudes and offset fitted to the function's bent part."""
    waves = centre.waves
    x = centre.cut * np.cos((np.arange(_NODES) + 0.5) * np.pi / (2 * _NODES))
    turns = np.outer(x, np.arange(1, waves.count + 1)) * (2 * np.pi / waves.period)
    columns = np.sin(turns) if waves.odd else np.hstack([np.ones((_NODES, 1)), np.cos(turns)])
    found = np.linalg.lstsq(columns, bent_part(activation, x), rcond=_CUTOFF)[0]
    rounded = [round(float(value), _DECIMALS) for value in found]
    offset = 0.0 if waves.odd else rounded[0]
    return replace(waves, offset=offset, amplitudes=tuple(rounded[0 if waves.odd else 1 :]))


def bent_part(activation: Activation, x: Reals) -> Reals:
    """What the waves stand for: the function less x / 2 where it tends to x."""
    return activation.exact(x) - x / 2 if activation.right is None else activation.exact(x)


def source(waves: Waves) -> str:
    """The constants as they stand in the source, before the formatter has been over them."""
    return f"amplitudes={waves.amplitudes!r}, offset={waves.offset!r}"


def fitted() -> dict[tuple[str, str], tuple[Waves, Waves]]:
    """(activation, set) -> the waves in the source, and those fitted anew."""
    found = {}
    for name, activation in (*ACTIVATIONS.items(), (SOFT.name, SOFT)):
        for kind, centre in (("tight", activation.tight), ("fast", activation.fast)):
            if centre is not None:
                found[name, kind] = (centre.waves, fit_waves(activation, centre))
    return found


def main() -> None:
    """Print all constants."""
    for (name, kind), (_, waves) in fitted().items():
        print(f"{name}, {kind}: {source(waves)}")


if __name__ == "__main__":
    main()
