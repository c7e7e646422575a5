"""What `python -m bench.fit` says to whoever adds an activation."""

from dataclasses import replace

import numpy as np
import pytest

from bench import fit
from protocols.functions.activation_tables import ACTIVATIONS, GELU, SILU, TANH, Activation, Centre
from protocols.functions.softcap import SOFT


def centre_of(activation: Activation, **changes: object) -> Centre:
    assert activation.tight is not None
    waves = replace(activation.tight.waves, **changes)
    return replace(activation.tight, waves=waves)


def test_zeros_become_the_constants() -> None:
    for activation in (GELU, TANH):
        held = centre_of(activation)
        blank = centre_of(activation, amplitudes=(0.0,) * held.waves.count, offset=0.0)
        assert fit.fit_waves(activation, blank) == held.waves


def test_what_the_amplitudes_cannot_meet_is_refused_by_name() -> None:
    def mish(x: fit.Reals) -> fit.Reals:
        return x * np.tanh(np.logaddexp(0.0, x))

    lopsided = Activation("mish", mish, tight=SILU.tight)
    with pytest.raises(ValueError, match=r"^mish: its bent part is not even \(off by 0\.2\)"):
        fit.fit_waves(lopsided, centre_of(SILU))
    with pytest.raises(ValueError, match=r"^tanh: its bent part is not even"):
        fit.fit_waves(TANH, centre_of(TANH, odd=False))
    with pytest.raises(ValueError, match=r"^gelu: its bent part is not odd"):
        fit.fit_waves(GELU, centre_of(GELU, odd=True, offset=0.0))


def test_errors_up_to_the_cut_and_beyond() -> None:
    """A cut that is too near shows beyond it, too few waves before it."""
    inside, beyond = fit.largest_errors(SILU, centre_of(SILU))
    assert inside < 2e-5
    assert 3e-5 < beyond < 4e-5
    near = replace(centre_of(SILU), cut=6.0)
    assert fit.largest_errors(SILU, near)[1] > 0.01
    few = centre_of(SILU, amplitudes=(0.0,) * 5)
    few = replace(few, waves=fit.fit_waves(SILU, few))
    assert fit.largest_errors(SILU, few)[0] > 0.01


def test_every_function_is_printed_once_with_its_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit.main()
    printed = capsys.readouterr().out.splitlines()
    titles, constants = printed[::2], printed[1::2]
    functions = {each.name: each for each in (*ACTIVATIONS.values(), SOFT)}
    sets = [(name, each.tight, each.fast, each.folded) for name, each in functions.items()]
    names = [name for name, *held in sets for centre in held if centre is not None]
    assert sorted(title.split(",")[0] for title in titles) == sorted(names)
    assert titles[0] == "gelu, tight: off by 9.2e-06 up to its cut, 9.4e-05 beyond"
    assert all(line.startswith("    amplitudes=(") for line in constants)
