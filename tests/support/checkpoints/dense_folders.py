"""Folders of sentence-transformers with Dense modules, and what its modules compute from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from numpy.typing import NDArray

PREFIX = "sentence_transformers.models."
TANH = "torch.nn.modules.activation.Tanh"
IDENTITY = "torch.nn.modules.linear.Identity"
GELU = "torch.nn.modules.activation.GELU"
RELU = "torch.nn.modules.activation.ReLU"
SILU = "torch.nn.modules.activation.SiLU"
MODES = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}

Layers = list[tuple[int, bool, str]]
"""Outputs, whether there is a bias, and the activation of each layer."""


def add_dense(
    model: Path, folder: Path, layers: Layers, *, pooling: str = "mean", normalize: bool = True
) -> Path:
    """A copy of a model's folder with Dense modules of random weights, as they are saved."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_bytes())
    inputs = next(
        config[name]
        for name in ("word_embed_proj_dim", "hidden_size", "dim", "n_embd")
        if name in config
    )
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    write_json(folder / "1_Pooling/config.json", {f"pooling_mode_{MODES[pooling]}": True})
    generator = torch.Generator().manual_seed(len(layers) + len(pooling))
    for number, (outputs, bias, activation) in enumerate(layers):
        place = f"{number + 2}_Dense"
        settings = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": bias,
            "activation_function": activation,
        }
        write_json(folder / place / "config.json", settings)
        weight = torch.randn((outputs, inputs), generator=generator) * inputs**-0.5
        tensors = {"linear.weight": weight}
        if bias:
            tensors["linear.bias"] = torch.randn(outputs, generator=generator) * 0.3
        safetensors.torch.save_file(tensors, folder / place / "model.safetensors")
        modules.append(("Dense", place))
        inputs = outputs
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    write_json(folder / "modules.json", [{"type": PREFIX + k, "path": p} for k, p in modules])
    return folder


def write_json(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def expected_vectors(folder: Path, sequences: list[list[int]]) -> NDArray[np.float32]:
    """The vectors of token sequences, by torch's layers in the order of `modules.json`."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = [_vector(model, folder, ids) for ids in sequences]
    return torch.stack(found).numpy()


def _vector(model: Any, folder: Path, ids: list[int]) -> torch.Tensor:
    x = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    for module in json.loads((folder / "modules.json").read_bytes())[1:]:
        kind, place = module["type"].removeprefix(PREFIX), folder / module["path"]
        if kind == "Pooling":
            modes = json.loads((place / "config.json").read_bytes())
            x = {"mean_tokens": x.mean(0), "cls_token": x[0], "lasttoken": x[-1]}[
                next(iter(modes)).removeprefix("pooling_mode_")
            ]
        elif kind == "Normalize":
            x = torch.nn.functional.normalize(x, dim=0)
        else:
            config = json.loads((place / "config.json").read_bytes())
            layer = torch.nn.Linear(config["in_features"], config["out_features"], config["bias"])
            tensors = safetensors.torch.load_file(place / "model.safetensors")
            layer.load_state_dict({n.removeprefix("linear."): t for n, t in tensors.items()})
            x = getattr(torch.nn, config["activation_function"].rpartition(".")[2])()(layer(x))
    return x
