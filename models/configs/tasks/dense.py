"""Dense layers of sentence-transformers, which the vector of a text passes through."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from models.configs.names import Shape
from models.configs.validate import check_choice, check_flag, check_size, required, short
from models.files.locate import PICKLES, SAFETENSORS, read_json
from protocols.errors import ModelError

Pooling = Literal["mean", "first", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first", "last")
IDENTITY = "identity"
# Names of torch's modules -> of `models.configs.architecture.ACTIVATIONS`. They are called without
# arguments, so GELU is the exact one.
_ACTIVATIONS = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": IDENTITY,
}
_SHORT_NAMES = {f"torch.nn.{name.rpartition('.')[2]}": name for name in _ACTIVATIONS}
_VECTOR = "sentence_embedding"
_SETTINGS = {
    *("in_features", "out_features", "bias", "activation_function"),
    *("module_input_name", "module_output_name"),
}
_MOST_COLUMNS, _MOST_LAYERS = 1 << 16, 16


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """activation(x W + b), or without the bias b.

    Attributes:
        inputs, outputs: numbers of columns.
        bias: whether there is one.
        activation: a name of `models.configs.architecture.ACTIVATIONS`, or "identity".
    """

    inputs: int
    outputs: int
    bias: bool
    activation: str

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            check_size(f"dense: {name}", getattr(self, name), _MOST_COLUMNS)
        check_flag("dense: bias", self.bias)
        check_choice("dense: activation", self.activation, _ACTIVATIONS.values())


@dataclass(frozen=True, slots=True)
class DenseHead:
    """How the last hidden states of a text become its vector: pooled, then through layers.

    Attributes:
        pooling: the mean over a text's tokens, or the first or last token.
        layers: from the first to the last.
    """

    pooling: Pooling
    layers: tuple[DenseLayer, ...]

    def __post_init__(self) -> None:
        check_choice("dense: pooling", self.pooling, POOLINGS)
        if not 1 <= len(self.layers) <= _MOST_LAYERS:
            raise ModelError(f"dense: {len(self.layers)} layers, not 1 to {_MOST_LAYERS}")
        for before, after in itertools.pairwise(self.layers):
            if before.outputs != after.inputs:
                raise ModelError(
                    f"dense: a layer with {before.outputs} outputs comes before one with "
                    f"{after.inputs} inputs"
                )

    def to_public(self) -> dict[str, Any]:
        """The layers in JSON types."""
        return {"pooling": self.pooling, "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_public(cls, data: object) -> Self:
        """Inverse of `to_public`, for data from a peer.

        Raises:
            ModelError: something is missing, of a wrong type or out of bounds.
        """
        if not isinstance(data, Mapping) or data.keys() != {"pooling", "layers"}:
            raise ModelError(f"dense: {short(data)} is not a pooling and layers")
        given, names = data["layers"], {each.name for each in fields(DenseLayer)}
        if not isinstance(given, list) or len(given) > _MOST_LAYERS:
            raise ModelError(f"dense: layers: {short(given)} is not a list of 1 to {_MOST_LAYERS}")
        for layer in given:
            if not isinstance(layer, Mapping) or layer.keys() != names:
                raise ModelError(f"dense: a layer must have {', '.join(sorted(names))}")
        return cls(data["pooling"], tuple(DenseLayer(**layer) for layer in given))

    @property
    def columns(self) -> int:
        """Size of a vector."""
        return self.layers[-1].outputs

    @property
    def runs(self) -> list[tuple[DenseLayer, ...]]:
        """The layers, with those together that are one matrix: all but the last of a run have no
        activation.
        """
        found: list[tuple[DenseLayer, ...]] = []
        run: tuple[DenseLayer, ...] = ()
        for layer in self.layers:
            run = (*run, layer)
            if layer.activation != IDENTITY:
                found.append(run)
                run = ()
        return [*found, run] if run else found

    def tensors(self) -> dict[str, Shape]:
        """Canonical name and stored shape of every weight."""
        shapes: dict[str, Shape] = {}
        for number, layer in enumerate(self.layers):
            name = dense_name(number)
            shapes[f"{name}.weight"] = layer.outputs, layer.inputs
            if layer.bias:
                shapes[f"{name}.bias"] = (layer.outputs,)
        return shapes


def dense_name(number: int) -> str:
    """Canonical name of a layer, without `.weight`."""
    return f"sentence.dense.{number}"


def read_dense(folder: Path) -> DenseLayer:
    """Read the layer in a module's folder. Its weights must be there, but are not read.

    Raises:
        ModelError: a setting is not supported, or there are no weights, or they are pickled.
    """
    file = folder / "config.json"
    data = read_json(file)
    unknown = sorted(data.keys() - _SETTINGS)
    if unknown:
        raise ModelError(f"{file}: {short(unknown[0])} is not a setting of Dense that is known")
    for name in ("module_input_name", "module_output_name"):
        if data.get(name) not in (None, _VECTOR):
            raise ModelError(
                f"{file}: {name} {short(data[name])} is not supported; supported: {_VECTOR!r}"
            )
    try:
        layer = DenseLayer(
            required(data, "in_features"),
            required(data, "out_features"),
            data.get("bias", True),
            _activation(required(data, "activation_function")),
        )
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    _check_weights(folder)
    return layer


def _activation(name: object) -> str:
    found = _SHORT_NAMES.get(name, name) if isinstance(name, str) else name
    check_choice("activation_function", found, _ACTIVATIONS)
    return _ACTIVATIONS[str(found)]


def _check_weights(folder: Path) -> None:
    if (folder / SAFETENSORS).is_file():
        return
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLES:
            raise ModelError(
                f"{file}: pickled weights can run code when read and are refused. Where you trust "
                f"them, `puma convert {folder.parent} OUT` writes them as safetensors"
            )
    raise ModelError(
        f"{folder} has no {SAFETENSORS}: download it again. If the model comes with pickled "
        "weights only and you trust them, `puma convert NAME OUT` writes them as safetensors"
    )
