"""Architectures: one file a family, read from a `config.json` or from what a peer published."""
