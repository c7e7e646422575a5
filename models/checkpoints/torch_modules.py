"""Tensors inside a torch module built by the user: where they are, and their values.

Torch is not imported: only methods of the user's objects are called. A part whose computation is
not known is refused by name, because its weights would be read but the answers would not be the
model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.checkpoints.lora import Values, low_rank
from models.configs.names import Shape
from protocols.errors import ModelError

Module = Any
"""A `torch.nn.Module`."""

SAVE_IT = (
    "if the plain model is meant, save it with save_pretrained(FOLDER) and use "
    "from_pretrained(FOLDER)"
)
_MERGE = "merge it first: model = model.merge_and_unload()"
_DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")
_KNOWN = ("torch.nn.modules.", "transformers.")
_QUANTISED = "transformers.integrations."  # some hold plain weights, but round them when they run
_HARMLESS_HOOKS = ("transformers.", "accelerate.")  # they move tensors, or record outputs
_LORA_LAYERS = ("Linear", "Embedding")


@dataclass(frozen=True, slots=True, eq=False)
class Addend:
    """`scale * (left @ right)` of a low-rank adapter, transposed if the weight is."""

    left: Module
    right: Module
    scale: float
    transposed: bool

    def values(self) -> Values:
        """The values in float32, like the weight that they are added to."""
        return low_rank(read(self.left), read(self.right), self.scale, transposed=self.transposed)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A parameter or buffer of a model, and what adapters add to it."""

    tensor: Module
    addends: tuple[Addend, ...] = ()

    @property
    def shape(self) -> Shape:
        """The shape as torch reports it."""
        return tuple(int(n) for n in self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """The stored size, without adapters."""
        return int(self.tensor.nelement()) * int(self.tensor.element_size())

    def values(self) -> Values:
        """A fresh C-contiguous array."""
        found = read(self.tensor)
        for addend in self.addends:
            found += addend.values()
        return found

    def equals(self, other: Place) -> bool:
        """Whether the values are the same; two names of one tensor are equal without a read."""
        if not self.addends and not other.addends and self.tensor is other.tensor:
            return True
        return self.shape == other.shape and np.array_equal(self.values(), other.values())

    def check(self, name: str, where: str) -> None:
        """Raise ModelError unless the values are in memory and of a type that can be read."""
        for tensor in (self.tensor, *(t for a in self.addends for t in (a.left, a.right))):
            _check_tensor(tensor, name, where)


def read(tensor: Module) -> Values:
    """Values of a torch tensor on any device: a fresh C-contiguous float32 array."""
    own = tensor.detach().cpu()
    found = own.float()
    values: Values = found.numpy()
    fresh = found.data_ptr() != tensor.data_ptr() and values.flags.c_contiguous
    return values if fresh else values.copy(order="C")


def _check_tensor(tensor: Module, name: str, where: str) -> None:
    kind = type(tensor)
    if tensor.device.type == "meta":
        raise ModelError(
            f"{where}: the values of {name} are not in memory (device meta; accelerate leaves them "
            "on disk or loads them later): load the model without device_map"
        )
    plain = kind.__name__ in ("Tensor", "Parameter") and kind.__module__.startswith("torch")
    if not plain or str(tensor.layout) != "torch.strided":
        raise ModelError(
            f"{where}: {name} is a {kind.__module__}.{kind.__name__}, which is quantised, sharded "
            "or sparse: load the model as plain tensors in float32, float16 or bfloat16"
        )
    if str(tensor.dtype) not in _DTYPES:
        raise ModelError(
            f"{where}: {name} is stored as {tensor.dtype}, which is not supported; supported: "
            f"{', '.join(_DTYPES)}: load the model unquantised"
        )


# -- the tree of modules ---------------------------------------------------------------------------


def places(module: Module, where: str, name: str = "") -> Iterator[tuple[str, Place]]:
    """Every parameter and saved buffer, by its name in a model without adapters.

    Raises:
        ModelError: a part that comes from neither torch nor transformers, or an adapter that is not
        a sum.
    """
    at = name or "the model itself"
    _check_hooks(module, where, at)
    if _is_peft(module):
        yield from _adapted(module, where, name)
        return
    kind = type(module)
    path = f"{kind.__module__}."
    if not path.startswith(_KNOWN) or path.startswith(_QUANTISED):
        raise ModelError(
            f"{where}: {at} is a {kind.__module__}.{kind.__name__}, which may compute something "
            f"else than the transformers class: {SAVE_IT}; for a quantised model, give the result "
            "of model.dequantize()"
        )
    dot = f"{name}." if name else ""
    passing = module._non_persistent_buffers_set
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and key not in passing:
            yield dot + key, Place(tensor)
    for key, child in module._modules.items():
        if child is not None:
            yield from places(child, where, dot + key)


def _check_hooks(module: Module, where: str, at: str) -> None:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(not _origin(hook).startswith(_HARMLESS_HOOKS) for hook in hooks):
        raise ModelError(
            f"{where}: {at} has a forward hook, which may change its answers: remove it "
            "(HANDLE.remove())"
        )
    if "forward" in vars(module) and "_hf_hook" not in vars(module):
        raise ModelError(
            f"{where}: forward of {at} was replaced by another function, which may compute "
            f"something else: {SAVE_IT}"
        )


def _origin(hook: Callable[..., Any]) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


# -- adapters of PEFT ------------------------------------------------------------------------------


def _is_peft(module: Module) -> bool:
    return type(module).__module__.startswith("peft.")


def _adapted(module: Module, where: str, name: str) -> Iterator[tuple[str, Place]]:
    kind = type(module)
    if kind.__name__ == "ModulesToSaveWrapper":
        yield from places(_chosen(module), where, name)
        return
    if kind.__module__ != "peft.tuners.lora.layer" or kind.__name__ not in _LORA_LAYERS:
        raise ModelError(
            f"{where}: {name} has an adapter of kind {kind.__module__}.{kind.__name__}, which is "
            f"not supported unmerged: {_MERGE}"
        )
    if module.disable_adapters and module.merged:
        raise ModelError(
            f"{where}: {name} has adapters that were merged and then disabled: enable them, or "
            "unmerge them (unmerge_adapter())"
        )
    addends = () if module.disable_adapters or module.merged else _addends(module, where, name)
    for key, place in places(module.base_layer, where, name):
        is_weight = key == f"{name}.weight"
        yield key, Place(place.tensor, place.addends + addends) if is_weight else place


def _chosen(wrapper: Module) -> Module:
    """The copy of a module that is in use: the active adapter's, as PEFT's `forward` decides."""
    active = wrapper.active_adapters
    own = active and all(adapter in wrapper.modules_to_save for adapter in active)
    if wrapper.disable_adapters or not own:
        return wrapper.original_module
    return wrapper.modules_to_save[active[0]]


def _addends(module: Module, where: str, name: str) -> tuple[Addend, ...]:
    """What the active adapters of a LoRA layer add to its weight; the scale is PEFT's own, with
    rsLoRA's if it is used.
    """
    found = []
    for adapter in module.active_adapters:
        embedded = adapter in module.lora_embedding_A
        if not embedded and adapter not in module.lora_A:
            continue
        if adapter in module.lora_variant or module.lora_bias.get(adapter):
            raise ModelError(
                f"{where}: the adapter {adapter!r} of {name} is more than a sum of LoRA (DoRA, a "
                f"bias or another variant), which is not supported unmerged: {_MERGE}"
            )
        scale = float(module.scaling[adapter])
        if embedded:
            left, right = module.lora_embedding_B[adapter], module.lora_embedding_A[adapter]
        else:
            left, right = module.lora_B[adapter].weight, module.lora_A[adapter].weight
        transposed = embedded or bool(module.fan_in_fan_out)
        found.append(Addend(left, right, scale, transposed))
    return tuple(found)
