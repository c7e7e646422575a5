"""Write a pickled checkpoint as safetensors. `puma convert` runs this in a Python with torch.

    python conversion.py FOLDER OUT

FOLDER may be a name on the hub. This file is run as a script and imports nothing from this project,
so any environment with transformers and torch will do. Only tensors are unpickled. The last line on
standard output is a JSON object: a report of what was written, or an `error`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

_WEIGHTS = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_SAFETENSORS = "model.safetensors"
_ADAPTER = "adapter_model.bin"
_SETTINGS = (".json", ".txt", ".model", ".jinja", ".codes")
_FETCHED = [f"*{suffix}" for suffix in _SETTINGS] + [
    "pytorch_model*.bin",
    f"*/{_WEIGHTS}",
    _ADAPTER,
]
_SAFE = ["model*.safetensors", f"*/{_SAFETENSORS}"]
_SKIPPED = ["onnx/*", "openvino/*", "original/*", "checkpoint-*"]
_SHOWN = 6


class RefusedError(Exception):
    """The checkpoint cannot be converted; the text gives the reason."""


def main(folder: str, out: str) -> dict[str, Any]:
    """Convert a checkpoint; return a report. Raises RefusedError."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        raise RefusedError(f"{' and '.join(missing)} missing")
    source = Path(folder) if Path(folder).is_dir() else _fetched(folder)
    place = _place_of_model(source)
    adapter = source / _ADAPTER
    alone = adapter.is_file() and not (source / place / "config.json").is_file()
    modules = [] if alone else _pickled_modules(source, place)
    converts = alone or _check_weights(source / place, modules)
    if adapter.is_file() and not alone:  # transformers would put it into the model
        raise RefusedError(
            f"{source} has a model and a pickled adapter: move {_ADAPTER} and "
            "adapter_config.json into a folder of their own, and convert both"
        )
    target = Path(out)
    parts = target.with_name(f".{target.name}.part")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        _copy_settings(source, parts)
        if alone:
            facts = {"class": "LoRA adapter", "left_out": [], "tokenizer": ""}
            _convert_tensors(adapter, (parts / _ADAPTER).with_suffix(".safetensors"))
        else:
            convert = _convert_model if converts else _copy_model
            facts = convert(source / place, parts / place)
            facts["tokenizer"] = _convert_tokenizer(source / place, parts / place)
            for module in modules:
                _convert_tensors(module, parts / module.parent.name / _SAFETENSORS)
            _copy_modules(source, parts, place)
        parts.rename(target)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return {**facts, "written": str(target)}


def _fetched(name: str) -> Path:
    hub = importlib.import_module("huggingface_hub")

    def fetch(patterns: list[str]) -> Path:
        found = hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=_SKIPPED)
        return Path(found)

    try:
        folder = fetch(_FETCHED)
        place = _place_of_model(folder)
        pickled = any((folder / place / each).is_file() for each in (_WEIGHTS, _INDEX))
        if not pickled and _pickled_modules(folder, place):
            fetch(_SAFE)
        return folder
    except Exception as error:  # from the HTTP client; its class differs between versions
        raise RefusedError(f"{name} is no folder, and not on the hub ({_line(error)})") from error


def _place_of_model(source: Path) -> str:
    """The folder of the model itself; sentence-transformers may put it in a subfolder."""
    if not (source / "config.json").is_file() and (source / "modules.json").is_file():
        place = str(json.loads((source / "modules.json").read_bytes())[0]["path"])
        if (source / place).resolve().is_relative_to(source.resolve()):
            return place
    return ""


def _pickled_modules(source: Path, place: str) -> list[Path]:
    """The weights of sentence-transformers modules after the model, if they are pickled only."""
    return [
        file
        for file in sorted(source.glob(f"*/{_WEIGHTS}"))
        if file.parent != source / place and not (file.parent / _SAFETENSORS).is_file()
    ]


def _check_weights(folder: Path, modules: list[Path]) -> bool:
    """Return whether the model itself is pickled. Raises RefusedError if nothing is."""
    for name in (_SAFETENSORS, f"{_SAFETENSORS}.index.json"):
        if (folder / name).is_file():
            if (folder / _ADAPTER).is_file():
                raise RefusedError(
                    f"{folder} has {name} and a pickled adapter: move {_ADAPTER} and "
                    "adapter_config.json into a folder of their own, and convert that"
                )
            if modules:
                return False
            raise RefusedError(f"{folder} has {name}: there is nothing to convert")
    if not any((folder / name).is_file() for name in (_WEIGHTS, _INDEX)):
        raise RefusedError(
            f"{folder} has no {_WEIGHTS} and no {_INDEX}: what else torch has saved, transformers "
            "does not read either; if it is a state dict, give it that name"
        )
    return True


def _copy_settings(source: Path, target: Path) -> None:
    """Copy all small files unchanged, including subfolders; some are rewritten afterwards."""
    target.mkdir(parents=True)
    for file in source.rglob("*"):
        inside = file.relative_to(source)
        hidden = any(part.startswith((".", "checkpoint-")) for part in inside.parts)
        wanted = file.name.endswith(_SETTINGS) and not file.name.endswith(".index.json")
        if file.is_file() and wanted and not hidden:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / inside)


def _convert_model(folder: Path, target: Path) -> dict[str, Any]:
    """Convert the weights with the class that the configuration names. Another class would leave
    weights out, or make some up.
    """
    transformers = importlib.import_module("transformers")
    data = json.loads((folder / "config.json").read_bytes())
    named = data.get("architectures") or []
    if not named:
        raise RefusedError(
            f"{folder / 'config.json'} names no class: add the one that the model was made with, "
            'such as "architectures": ["BertForMaskedLM"]'
        )
    kind = getattr(transformers, named[0], None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise RefusedError(f"{named[0]}, the model's class, is not one of transformers")
    model, info = kind.from_pretrained(
        folder,
        weights_only=True,
        use_safetensors=False,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        dtype="auto",
    )
    made_up = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if made_up:
        raise RefusedError(
            f"{folder} lacks weights of {named[0]}, which would be random: {_some(made_up)}"
        )
    model.save_pretrained(target)
    left = sorted(map(str, info["unexpected_keys"]))
    return {"class": named[0], "left_out": left}


def _copy_model(folder: Path, target: Path) -> dict[str, Any]:
    """Copy the weights of a model that is in safetensors already."""
    for file in (*folder.glob("model*.safetensors"), *folder.glob(f"{_SAFETENSORS}.index.json")):
        shutil.copyfile(file, target / file.name)
    named = json.loads((folder / "config.json").read_bytes()).get("architectures") or ["model"]
    return {"class": named[0], "left_out": []}


def _copy_modules(source: Path, target: Path, place: str) -> None:
    """Copy the weights of modules that are in safetensors already."""
    for file in source.glob(f"*/{_SAFETENSORS}"):
        if file.parent != source / place:
            (target / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.parent.name / _SAFETENSORS)


def _convert_tokenizer(folder: Path, target: Path) -> str:
    """Write the tokenizer as transformers loads it. Returns the reason if it cannot, or ""."""
    transformers = importlib.import_module("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        files = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
        if not any((folder / name).is_file() for name in files):
            return f"{folder} has none of {', '.join(files)}"  # transformers makes an empty one
        tokenizer.save_pretrained(target)
    except Exception as error:  # of many classes: there may be no tokenizer at all
        return _line(error)
    return ""


def _convert_tensors(file: Path, target: Path) -> None:
    """Convert the weights of a small module, without renaming them."""
    torch = importlib.import_module("torch")
    save_file = importlib.import_module("safetensors.torch").save_file
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _line(error: BaseException) -> str:
    return next(iter(str(error).split("\n")), "")[:300] or type(error).__name__


if __name__ == "__main__":
    # Python puts the script's folder first in the path: its files must not hide other modules.
    sys.path[:] = [
        each for each in sys.path if Path(each or ".").resolve() != Path(__file__).parent
    ]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        said = main(*sys.argv[1:])
    except RefusedError as refused:
        said = {"error": str(refused)}
    except Exception as failed:
        said = {"error": f"{type(failed).__name__}: {_line(failed)}"}
    print(json.dumps(said))
