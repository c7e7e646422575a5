"""Files whose quantised weights look like any others."""

from __future__ import annotations

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


class TensorFile(Protocol):
    """What a checkpoint reads its tensors from."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By name."""

    def check(self, name: str) -> None:
        """Raise ModelError unless it can be read."""

    def tensor(self, name: str) -> Values:
        """In float32, fresh."""

    def raw(self, name: str) -> bytes:
        """As it is stored."""


def wrap(
    owner: Mapping[str, SafetensorsFile], quantisation: Quantisation, naming: Naming
) -> dict[str, TensorFile]:
    """The file of each tensor, with the quantised ones under the names of the weights that they
    make up. Raises ModelError for parts that are missing or do not fit.
    """
    kinds: dict[str, Callable[[str, Parts], Packed | None]] = {
        "gptq": lambda end, parts: Gptq(parts, quantisation) if end == "qweight" else None,
        "awq": lambda end, parts: Awq(parts, quantisation) if end == "qweight" else None,
        "bitsandbytes": of_bitsandbytes,
        "fp8": lambda end, parts: Fp8(parts) if end == "weight_scale_inv" else None,
    }
    make = kinds[quantisation.method]
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
    return {**{name: file for name, file in owner.items() if name not in used}, **made}


@dataclass(frozen=True, slots=True)
class _Single:
    """A file of one tensor that is computed."""

    name: str
    packed: Packed

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return {self.name: StoredTensor(self.packed.shape, "F32", 0, self.packed.nbytes)}

    def check(self, name: str) -> None:
        """It was checked when it was made."""

    def tensor(self, name: str) -> Values:
        return self.packed.values()

    def raw(self, name: str) -> bytes:
        return self.packed.values().tobytes()
