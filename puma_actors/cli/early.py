"""Refuse unsupported models before anything heavy is imported."""

from pathlib import Path


def refuse_unsupported(model: str | None) -> None:
    """Read the configuration of a model in a folder, which takes a fraction of a second.

    Raises:
        ModelError: it is not supported; the message says why, and what is supported.
    """
    if model is None or not (Path(model).expanduser() / "config.json").is_file():
        return
    from models.configs.reading import load_config

    load_config(Path(model).expanduser())
