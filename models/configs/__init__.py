"""Architectures: one file per family, read from a `config.json` or from a peer's publication."""
