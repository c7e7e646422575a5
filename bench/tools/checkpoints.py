"""Random checkpoints of any size, written shard by shard."""

import json
import struct
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from models.configs.architecture import ModelConfig
from models.configs.names import Shape
from models.configs.reading import load_config

SHARD_BYTES = 1 << 30
_DEVIATION = np.float32(0.02)


def write_checkpoint(folder: Path, given: dict[str, Any], *, seed: int = 7) -> ModelConfig:
    """Write a folder whose weights are normal with deviation 0.02, as transformers initialises
    them, and whose norms do nothing; in bfloat16.

    Args:
        given: its `config.json`.
    """
    index, config = _begin(folder, given)
    generator = np.random.Generator(np.random.SFC64(seed))
    places: dict[str, str] = {}
    shard: dict[str, tuple[Shape, bytes]] = {}
    number = size = 0
    for name, shape in config.tensors().items():
        data = _values(generator, name, shape)
        if shard and size + len(data) > SHARD_BYTES:
            _write(folder / _file(number), shard)
            shard, size, number = {}, 0, number + 1
        shard[name] = shape, data
        places[name] = _file(number)
        size += len(data)
    _write(folder / _file(number), shard)
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return config


def read_config(given: dict[str, Any]) -> ModelConfig:
    """The configuration in a `config.json`, without weights."""
    with tempfile.TemporaryDirectory(prefix="puma-bench-") as folder:
        return _begin(Path(folder), given)[1]


def _begin(folder: Path, given: dict[str, Any]) -> tuple[Path, ModelConfig]:
    """Write a folder without weights: the file for the index of its shards, its configuration."""
    (folder / "config.json").write_text(json.dumps(given))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    return index, load_config(folder)


def _values(generator: np.random.Generator, name: str, shape: Shape) -> bytes:
    if len(shape) == 1:
        values = np.full(shape, name.endswith("weight"), dtype=np.float32)
    else:
        values = generator.standard_normal(prod(shape), dtype=np.float32) * _DEVIATION
    return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def _write(file: Path, shard: Mapping[str, tuple[Shape, bytes]]) -> None:
    """A safetensors file: `save_file` of the library takes no bfloat16 from NumPy."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (shape, data) in shard.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(data for _, data in shard.values())


def _file(number: int) -> str:
    return f"model-{number:05}.safetensors"
