"""Fit the constants of the approximations: `python -m bench.fit`.

Prints every sum of waves in the form used in `protocols.functions.activation_tables`, with its
largest errors. Number of waves, period and cut are read from there: start a new function with
amplitudes of 0. Least squares on Chebyshev nodes of [0, cut], which is within a factor of two of
minimax.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from protocols.functions.activation_tables import ACTIVATIONS, SOFT, Activation, Centre
from protocols.functions.exact import Reals
from protocols.waves import Waves

_NODES = 400
_DECIMALS = 10
_GRID = 4001
"""Points at which errors are taken."""
_BEYOND = 4
"""Errors beyond the cut are taken out to this many cuts."""
_STEP = 1 / 8
"""The cut may be found this much too near 0 (`Centre.cut`)."""
_LOPSIDED = 1e-9
"""More than rounding in float64 can make an even or odd function differ from its mirror image."""
_CUTOFF = 1e-6
"""Directions in which the waves on [0, cut] are smaller than this are left out."""


def fit_waves(activation: Activation, centre: Centre) -> Waves:
    """`centre.waves` with amplitudes and offset fitted to the function's bent part.

    Raises:
        ValueError: the bent part is not even (odd, if `waves.odd`).
    """
    waves = centre.waves
    if waves.sines:
        return _fit_folded(activation, centre)
    _check_symmetry(activation, centre)
    x = centre.cut * np.cos((np.arange(_NODES) + 0.5) * np.pi / (2 * _NODES))
    turns = _turns(waves, x)
    columns = np.sin(turns) if waves.odd else np.hstack([np.ones((_NODES, 1)), np.cos(turns)])
    rounded = _solved(columns, bent_part(activation, x))
    offset = 0.0 if waves.odd else rounded[0]
    return replace(waves, offset=offset, amplitudes=tuple(rounded[0 if waves.odd else 1 :]))


def _fit_folded(activation: Activation, centre: Centre) -> Waves:
    """Over [-1/8, cut]: where the comparison with 0 may be wrong, too."""
    waves, middle = centre.waves, (centre.cut - _STEP) / 2
    x = middle + (centre.cut - middle) * np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES)
    turns = _turns(waves, x)
    columns = np.hstack([np.ones((_NODES, 1)), np.cos(turns), np.sin(turns)])
    offset, *rest = _solved(columns, x - activation.exact(x))
    cosines, sines = tuple(rest[: waves.count]), tuple(rest[waves.count :])
    return replace(waves, offset=offset, amplitudes=cosines, sines=sines)


def _turns(waves: Waves, x: Reals) -> Reals:
    return np.outer(x, np.arange(1, waves.count + 1)) * (2 * np.pi / waves.period)


def _solved(columns: Reals, values: Reals) -> list[float]:
    found = np.linalg.lstsq(columns, values, rcond=_CUTOFF)[0]
    return [round(float(value), _DECIMALS) for value in found]


def _check_symmetry(activation: Activation, centre: Centre) -> None:
    x, odd = np.linspace(0, centre.cut, _GRID), centre.waves.odd
    mirrored = bent_part(activation, -x)
    gap = np.abs(bent_part(activation, x) - (-mirrored if odd else mirrored)).max()
    if gap > _LOPSIDED:
        raise ValueError(
            f"{activation.name}: its bent part is not {'odd' if odd else 'even'} (off by "
            f"{gap:.2g}), so {'sines' if odd else 'cosines'} alone cannot meet it, however many; "
            "`Waves` has either cosines or sines"
        )


def largest_errors(activation: Activation, centre: Centre) -> tuple[float, float]:
    """Of the waves up to the cut, and of what the function tends to from there on."""
    folded = bool(centre.waves.sines)
    x = np.linspace(-_STEP if folded else -centre.cut, centre.cut, _GRID)
    bent = x - activation.exact(x) if folded else bent_part(activation, x)
    inside = np.abs(centre.waves.exact(x) - bent).max()
    right = np.linspace(centre.cut - _STEP, _BEYOND * centre.cut, _GRID)
    limit = right if activation.right is None else activation.right
    beyond = max(
        np.abs(activation.exact(right) - limit).max(),
        np.abs(activation.exact(-right) - activation.left).max(),
    )
    return float(inside), float(beyond)


def bent_part(activation: Activation, x: Reals) -> Reals:
    """The part that the waves approximate: the function, less x / 2 if it tends to x."""
    return activation.exact(x) - x / 2 if activation.right is None else activation.exact(x)


def source(waves: Waves) -> str:
    """The constants as source code, before formatting."""
    sines = f", sines={waves.sines!r}" if waves.sines else ""
    return f"amplitudes={waves.amplitudes!r}, offset={waves.offset!r}{sines}"


def fitted() -> dict[tuple[str, str], tuple[Waves, Waves]]:
    """(activation, set) -> the waves in the source, and those fitted anew."""
    return {
        (activation.name, kind): (centre.waves, fit_waves(activation, centre))
        for activation, kind, centre in centres()
    }


def centres() -> Iterator[tuple[Activation, str, Centre]]:
    """Every function that has waves, once, and all that it has."""
    for activation in {each.name: each for each in (*ACTIVATIONS.values(), SOFT)}.values():
        held = {"tight": activation.tight, "fast": activation.fast, "folded": activation.folded}
        for kind, centre in held.items():
            if centre is not None:
                yield activation, kind, centre


def main() -> None:
    """Print all constants."""
    for activation, kind, centre in centres():
        waves = fit_waves(activation, centre)
        inside, beyond = largest_errors(activation, replace(centre, waves=waves))
        print(
            f"{activation.name}, {kind}: off by {inside:.1e} up to its cut, {beyond:.1e} beyond\n"
            f"    {source(waves)}"
        )


if __name__ == "__main__":
    main()
