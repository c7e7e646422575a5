"""Digests of the public numbers that the parties multiply by.

Evaluators whose tables differ in one entry reconstruct noise. So each computes digests of the words
that it holds: `table_digests` covers what every model uses, `models.programs.public` the rest. They
are compared before any input is shared.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256

import numpy as np

from protocols.base.precise import cosine_table
from protocols.base.ring import FRACTION_BITS, Words
from protocols.drivers.secure import inverse_lengths
from protocols.functions.activations import ACTIVATIONS, Activation, piece_words
from protocols.functions.elementary import power_spline
from protocols.functions.exponential import factor_tables
from protocols.functions.histogram import bucket_tables
from protocols.functions.softcap import Cap
from protocols.kernels.spline import signed_binomials
from protocols.kernels.waves import Ints, roots
from protocols.spline import Spline
from protocols.waves import Waves

Digests = Mapping[str, str]
"""Name of a table -> 16 hexadecimal digits."""
Number = Words | Ints | np.uint64 | int
_LENGTHS = range(1, 2049)


def table_digests() -> dict[str, str]:
    """Digests of the tables that do not depend on the model. They are computed anew each time, so
    that a table that has changed in memory is found too.
    """
    activations = sorted({each.name: each for each in ACTIVATIONS.values()}.items())
    return {
        "waves": digest(_waves([each for _, each in activations])),
        "pieces": digest(word for _, each in activations for word in _pieces(each)),
        "buckets": digest(bucket_tables()),
        "exp": digest(factor_tables()),
        "splines": digest(_base_splines()),
        "cosines": digest([cosine_table()]),
        "inverses": digest([inverse_lengths(_LENGTHS)]),
    }


def digest(numbers: Iterable[Number]) -> str:
    """16 hexadecimal digits that change with any word and any shape."""
    state = sha256()
    for number in numbers:
        words = np.asarray(number)
        state.update(f"{words.shape} ".encode())
        state.update(words.astype("<i8" if words.dtype == np.int64 else "<u8").tobytes())
    return state.hexdigest()[:16]


def differing(mine: Digests, theirs: object) -> list[str]:
    """Names of this side's digests that the peer's claim does not match."""
    if not isinstance(theirs, Mapping):
        return sorted(mine)
    return sorted(name for name, value in mine.items() if theirs.get(name) != value)


def refusal(peer: str, names: Iterable[str]) -> str:
    """The message for public tables that differ."""
    return (
        f"{peer}'s public tables differ from this side's: {', '.join(names)}: install the same "
        "versions of puma-actors, Python and NumPy on both; if they are, one of the two machines "
        "computes wrongly"
    )


def spline_words(spline: Spline) -> Iterator[Number]:
    """All words of a spline that the parties compute with."""
    yield spline.tables
    yield from (spline.segment_bits, spline.local_bits, spline.frac, spline.scale)


def cap_words(cap: Cap) -> Iterator[Number]:
    """All that the parties compute a soft cap with."""
    yield from _wave_words(cap.waves, FRACTION_BITS + cap.power)
    yield roots(cap.waves.bits)
    yield round(cap.value * 2**FRACTION_BITS)


def _base_splines() -> Iterator[Number]:
    for halves in (1, 2):
        spline = power_spline(halves, 1.0)
        yield from spline_words(spline)
        yield signed_binomials(spline.degree + 1)


def _waves(activations: Iterable[Activation]) -> Iterator[Number]:
    seen = set()
    for activation in activations:
        for centre in (activation.tight, activation.fast, activation.folded):
            if centre is not None:
                yield from _wave_words(centre.waves, centre.frac)
                seen.add(centre.waves.bits)
    for bits in sorted(seen):
        yield roots(bits)


def _wave_words(waves: Waves, frac: int) -> Iterator[Number]:
    yield waves.weights
    yield waves.offset_word(frac)
    yield from (waves.gain, waves.bits, waves.width, waves.down, waves.dealt, int(waves.odd))


def _pieces(activation: Activation) -> Iterator[Number]:
    if activation.paper is not None:
        for words in piece_words(activation.paper):
            yield np.array(words, dtype=np.uint64)
