"""Wrap files with quantised weights, so that these can be read like all other weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from models.checkpoints.lora import Values
from models.checkpoints.quantised.bitsandbytes import of_bitsandbytes
from models.checkpoints.quantised.fp8 import Fp8
from models.checkpoints.quantised.grouped import Awq, Gptq
from models.checkpoints.quantised.parts import Packed, Parts
from models.configs.names import Naming
from models.configs.quantisation import Quantisation
from models.files.safetensors_reader import SafetensorsFile, StoredTensor
from protocols.errors import ModelError

_WEIGHTS_ALONE = (
    "this model was quantised by bitsandbytes with 8 bits, which also rounds what the layers are "
    "given. Only its weights are taken: logits may differ from the quantised model's by more than "
    "0.02"
)


_NOTHING = (
    "quantization_config in config.json says {method}, but no weight is quantised: the weights are "
    "used as they are stored, while transformers may quantise them when it loads them; remove the "
    "setting if it is left over"
)


class WeightsAloneWarning(UserWarning):
    """The weights are used without a rounding that the original model applies at run time."""


class TensorFile(Protocol):
    """The interface through which a checkpoint reads its tensors."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by name."""

    def check(self, name: str) -> None:
        """Raise ModelError unless the tensor can be read."""

    def tensor(self, name: str) -> Values:
        """The tensor as a new float32 array."""

    def raw(self, name: str) -> bytes:
        """The tensor's bytes as stored."""


def wrap(
    owner: Mapping[str, SafetensorsFile], quantisation: Quantisation, naming: Naming
) -> dict[str, TensorFile]:
    """The file of each tensor, by name. One entry with the weight's name replaces the parts of a
    quantised weight. Raises ModelError for parts that are missing or do not fit.
    """
    kinds: dict[str, Callable[[str, Parts], Packed | None]] = {
        "gptq": lambda end, parts: Gptq(parts, quantisation) if end == "qweight" else None,
        "awq": lambda end, parts: Awq(parts, quantisation) if end == "qweight" else None,
        "bitsandbytes": of_bitsandbytes,
        "fp8": lambda end, parts: Fp8(parts) if end == "weight_scale_inv" else None,
    }
    make = kinds[quantisation.method]
    if any(name.endswith(".SCB") for name in owner):
        warnings.warn(_WEIGHTS_ALONE, WeightsAloneWarning, stacklevel=4)
    made: dict[str, TensorFile] = {}
    used: set[str] = set()
    for name in owner:
        module, _, end = name.rpartition(".")
        packed = make(end, Parts(owner, module))
        if packed is None:
            continue
        module = packed.parts.module
        weight = f"{module}.weight"
        if naming.is_transposed(naming.canonical(weight)):
            raise ModelError(f"{weight}: a quantised matrix of (inputs, outputs) is not supported")
        made[weight] = _Single(weight, packed)
        used |= {each for each in owner if each.startswith(f"{module}.") and packed.uses(each)}
    if not made:
        text = _NOTHING.format(method=quantisation.method)
        warnings.warn(text, WeightsAloneWarning, stacklevel=4)
    return {**{name: file for name, file in owner.items() if name not in used}, **made}


@dataclass(frozen=True, slots=True)
class _Single:
    """A file with one tensor, which is computed from its parts."""

    name: str
    packed: Packed

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return {self.name: StoredTensor(self.packed.shape, "F32", 0, self.packed.nbytes)}

    def check(self, name: str) -> None:
        """Do nothing: the tensor was checked when it was created."""

    def tensor(self, name: str) -> Values:
        return self.packed.values()

    def raw(self, name: str) -> bytes:
        return self.packed.values().tobytes()
