"""Weights of a checkpoint under their canonical names, one float32 tensor at a time.

Files are memory-mapped: opening one reads its header, and `tensor` reads a single tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.adapters import LowRank, open_adapter
from models.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from models.checkpoints.gguf_weights import GgufCheckpoint
from models.checkpoints.hub import Progress, resolve_model
from models.checkpoints.packed import Packed, map_rows
from models.checkpoints.quantised.wrapping import TensorFile, wrap
from models.configs.architecture import ModelConfig
from models.configs.names import Shape
from models.configs.quantisation import quantisation_of
from models.configs.reading import config_of_source
from models.configs.tasks.dense import DenseHead, dense_name
from models.configs.tasks.ranking import ranking_settings
from models.configs.tasks.sentences import (
    described_sentences,
    is_sentence_model,
    transformer_folder,
)
from models.files.locate import (
    SAFETENSORS,
    SAFETENSORS_INDEX,
    Source,
    demo_model_path,
    find_source,
    read_json,
    shards_of_index,
)
from models.files.safetensors_reader import SafetensorsFile
from protocols.errors import ModelError
from protocols.kernels.stored.formats import FormatName

_PACKED: Mapping[str, FormatName] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
"""Storage types that are multiplied by as they are."""
__all__ = ["Checkpoint", "StoredCheckpoint", "demo_model_path", "open_checkpoint"]


class _SafetensorsCheckpoint(StoredCheckpoint):
    """A safetensors checkpoint: one file, or the shards that an index names."""

    def __init__(self, source: Source, path: Path, *, head: str | None = None) -> None:
        """path: what was opened, the folder of `source` or one around it."""
        super().__init__(source.file)
        config = config_of_source(source, head=head)
        modules = None
        if config.head == "none" and is_sentence_model(path):
            modules = described_sentences(path)
            self.sentences = modules.settings
        self._files: list[SafetensorsFile] = []
        self._added: dict[str, LowRank] = {}
        owner: dict[str, SafetensorsFile] = {}
        try:
            for file in _shards(source):
                opened = SafetensorsFile(file)
                self._files.append(opened)
                owner.update(dict.fromkeys(opened.tensors, opened))
            files: Mapping[str, TensorFile] = owner
            quantisation = quantisation_of(read_json(source.folder / "config.json"))
            if quantisation is not None:
                files = wrap(owner, quantisation, config.naming)
            # Canonical name -> file and the name in it.
            names = config.naming.stored_names(files)
            self._places = {name: (files[stored], stored) for name, stored in names.items()}
            self._share_tied(config)
            if source.adapter is not None:
                config = self._adapt(config, source.adapter)
            found = {n: file.tensors[stored].shape for n, (file, stored) in self._places.items()}
            self.config = config.adapted(found)
            if modules is not None and modules.dense is not None:
                found.update(self._add_dense(modules.dense, modules.folders))
            self._check_tensors(found)
            self._check_added(found)
            self._check_stored()
        except BaseException:
            self.close()
            raise
        places = [self._places[name] for name in self.names()]
        self.nbytes = sum(file.tensors[stored].nbytes for file, stored in places)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _read(self, name: str) -> NDArray[np.float32]:
        file, stored = self._places[name]
        values = file.tensor(stored)
        if name in self._added:
            values += self._added[name].values()
        return values

    def packed(self, name: str) -> Packed | None:
        shape = self.shape(name)
        file, stored = self._places[name]
        if name in self._added or not isinstance(file, SafetensorsFile) or len(shape) != 2:
            return None
        entry = file.tensors[stored]
        kind = _PACKED.get(entry.dtype)
        if kind is None:
            return None
        return Packed(kind, map_rows(file.path, entry.start, shape[0], entry.nbytes))

    def _share_tied(self, config: ModelConfig) -> None:
        """Find tied weights, which may be stored under either of their names."""
        for name, source in config.tied().items():
            if source not in self._places and name in self._places:
                self._places[source] = self._places[name]
            elif not config.tie_embeddings and name in self._places:
                # Only the bias of a head for masked tokens: transformers adds the decoder's own.
                self._places[source] = self._places[name]
            elif not config.tie_embeddings and source in self._places:
                raise ModelError(
                    f"{self.path}: tensor {name} is missing, and tie_word_embeddings is false, so "
                    f"that {source} does not stand for it: set it to true if that is meant"
                )

    def _adapt(self, config: ModelConfig, folder: Path) -> ModelConfig:
        """Apply an adapter's tensors.

        An adapter of the head or of the embedding unties them, whatever `tie_word_embeddings` says.
        """
        adapter = open_adapter(folder, config.naming)
        self._files.append(adapter.file)
        weights = {n: source for n, source in config.tied().items() if n.endswith(".weight")}
        if not adapter.touched().isdisjoint({*weights, *weights.values()}):
            for name, source in weights.items():
                self._places[name] = self._places[source]
            config = replace(config, tie_embeddings=False)
        self._places.update({n: (adapter.file, own) for n, own in adapter.replaced.items()})
        self._added = adapter.added
        return config

    def _add_dense(self, dense: DenseHead, folders: Sequence[Path]) -> dict[str, Shape]:
        """Add the Dense layers to the configuration, and their weights from the layers' folders.

        Returns the shapes that were found.
        """
        try:
            self.config = replace(self.config, dense=dense)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None
        found = {}
        for number, (folder, layer) in enumerate(zip(folders, dense.layers, strict=True)):
            file = SafetensorsFile(folder / SAFETENSORS)
            self._files.append(file)
            parts = ("weight", "bias") if layer.bias else ("weight",)
            if file.tensors.keys() != {f"linear.{part}" for part in parts}:
                held = ", ".join(sorted(file.tensors))[:80]
                wanted = " and ".join(f"linear.{part}" for part in parts)
                raise ModelError(f"{file.path}: holds {held or 'nothing'}, not {wanted}")
            for part in parts:
                name = f"{dense_name(number)}.{part}"
                self._places[name] = file, f"linear.{part}"
                found[name] = file.tensors[f"linear.{part}"].shape
        return found

    def _check_added(self, found: Mapping[str, Shape]) -> None:
        for name, low in self._added.items():
            if self.config.naming.is_of_other_head(name, self.names()):
                continue
            if found.get(name) != low.shape:
                raise ModelError(
                    f"{low.file.path}: the adapter of {name} has shape {low.shape}, and the model "
                    f"{found.get(name) or 'no such weight'}"
                )

    def _check_stored(self) -> None:
        """Check that storage types can be read and that stored tied weights are equal."""
        for name in self.names():
            file, stored = self._places[name]
            file.check(stored)
        for name, source in self.config.tied().items():
            if name in self._places and self._raw(name) != self._raw(source):
                raise ModelError(
                    f"{self.path}: {name} differs from {source}, and this model uses one for both"
                    f"{self._remedy(name)}"
                )

    def _remedy(self, name: str) -> str:
        if not self.config.tie_embeddings or not name.endswith(".weight"):
            return ": remove the wrong one"
        return ": set tie_word_embeddings to false in config.json, or remove the tensor"

    def _raw(self, name: str) -> bytes:
        file, stored = self._places[name]
        return file.raw(stored)


def _shards(source: Source) -> list[Path]:
    if source.file.name != SAFETENSORS_INDEX:
        return [source.file]
    names = shards_of_index(source.file)
    for name in names:
        if not (source.folder / name).is_file():
            raise ModelError(f"{source.file}: shard {name} is missing; download it")
    return [source.folder / name for name in names]


def open_checkpoint(
    path_or_name: str | Path, *, head: str | None = None, progress: Progress | None = None
) -> StoredCheckpoint:
    """Open a folder, a .safetensors or .gguf file, or a name on the Hugging Face hub.

    `FOLDER:Q4_K_M` is the GGUF file in the folder with that part in its name.

    `head`, one of `models.configs.heads.HEADS`, overrides the head that the checkpoint names.
    `progress` is called while a model is downloaded from the hub. Everything except the values is
    checked here: the architecture is supported, every weight is present with the right shape and in
    a readable storage type, and no file is cut short. Raises ModelError.
    """
    path = resolve_model(path_or_name, head=head, progress=progress)
    source = find_source(transformer_folder(path))
    if source.kind == "gguf":
        return GgufCheckpoint(source, head=head)
    opened = _SafetensorsCheckpoint(source, path, head=head)
    if opened.config.head == "sequence-classification":
        config = read_json(source.folder / "config.json")
        opened.ranking = ranking_settings(config, path if path.is_dir() else path.parent)
    return opened
