"""Declared and counted costs of one protocol, which must be the same."""

from helpers import (
    declared,
    generator,
    run,
    share,
    share_bits,
)

from protocols.base.lane import APPROXIMATIONS, Settings

ALL_SETTINGS = [
    Settings(approximation=approximation, tree=tree)
    for approximation in APPROXIMATIONS
    for tree in ("rounds", "traffic")
]


def same(function, *inputs, settings=None):
    """Run and trace; the cost on which both agree, field by field."""
    counted = run(function, *inputs, settings=settings).cost
    assert declared(function, *inputs, settings=settings) == counted
    return counted


def tensor(shape, width=64, frac=18):
    return share(generator().uniform(0.5, 1, shape), frac, width)


def flags(shape):
    return share_bits(generator().integers(0, 2, shape))
