"""Read from `quantization_config` how the weights of a checkpoint are quantised.

Only settings for turning stored numbers back into weights are read. Those for quantised activations
are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.configs.validate import short, unsupported
from protocols.errors import ModelError

_PACKED_BITS = (2, 4, 8)
_SUPPORTED = (
    "weights in float32, float16, bfloat16, or quantised by gptq (2, 4, 8 bits), awq (gemm, 4 "
    "bits), bitsandbytes, fp8"
)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A quantisation method, and the number of bits of each packed number.

    Attributes:
        plus_one: whether zero points are stored minus one, as in the first version of GPTQ's files.
    """

    method: Literal["gptq", "awq", "bitsandbytes", "fp8"]
    bits: int = 8
    plus_one: bool = False


def quantisation_of(data: Mapping[str, Any]) -> Quantisation | None:
    """The quantisation in a `config.json`; None if nothing is quantised. Raises ModelError for
    methods and formats that are not supported.
    """
    settings = data.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise ModelError(f"quantization_config: {short(settings)} is not a mapping")
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"  # older files leave it out
    if method == "gptq":
        return _gptq(settings)
    if method == "awq":
        return _awq(settings)
    if method == "bitsandbytes":
        flags = [settings.get(name) for name in ("load_in_4bit", "load_in_8bit")]
        return None if flags == [False, False] else Quantisation("bitsandbytes")
    if method == "fp8":
        _expect(settings, "fmt", (None, "e4m3"))
        return Quantisation("fp8")
    raise unsupported("quantization_config", method, _SUPPORTED)


def _awq(settings: Mapping[str, Any]) -> Quantisation:
    for name, wanted in (("bits", (4,)), ("zero_point", (True, None))):
        _expect(settings, name, wanted)
    form = settings.get("version") or settings.get("format") or "gemm"
    if str(form).lower() != "gemm":
        raise unsupported("quantization_config.version", form, "gemm")
    return Quantisation("awq", 4)


def _gptq(settings: Mapping[str, Any]) -> Quantisation:
    _expect(settings, "bits", _PACKED_BITS)
    _expect(settings, "checkpoint_format", (None, "gptq", "gptq_v2"))
    _expect(settings, "pack_dtype", (None, "int32"))
    _expect(settings, "is_marlin_format", (None, False))
    _expect(settings, "dynamic", (None, {}))
    return Quantisation("gptq", settings["bits"], settings.get("checkpoint_format") != "gptq_v2")


def _expect(settings: Mapping[str, Any], name: str, wanted: tuple[object, ...]) -> None:
    value = settings.get(name)
    if value not in wanted:
        some = ", ".join(str(each).lower() for each in wanted if each is not None)
        raise unsupported(f"quantization_config.{name}", value, some or "none")
