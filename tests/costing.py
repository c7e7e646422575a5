"""Declared beside counted cost."""

from helpers import declared, generator, run, share


def same(function, *inputs, settings=None):
    """Run and trace; the cost on which both agree, field by field."""
    counted = run(function, *inputs, settings=settings).cost
    assert declared(function, *inputs, settings=settings) == counted
    return counted


def tensor(shape, width=64, frac=18):
    return share(generator().uniform(0.5, 1, shape), frac, width)
