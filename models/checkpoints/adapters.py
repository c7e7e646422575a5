"""Read a LoRA adapter from PEFT's files: the terms it adds to weights, and the weights it replaces.

`adapter_config.json` and `adapter_model.safetensors` are in the model's folder, or in another one.
Settings that need more than a sum are refused by name, because the answers would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from models.checkpoints.lora import Values, low_rank
from models.configs.names import Naming, Shape
from models.configs.validate import check_size, number, short
from models.files.locate import ADAPTER, ADAPTER_CONFIG, read_json
from models.files.safetensors_reader import SafetensorsFile
from protocols.errors import ModelError

_MERGE = "load it with PEFT, and save what model.merge_and_unload() returns"
_PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.default)?(\.weight)?"
)
_OWN = re.compile(r"(.+?)(\.base_layer)?\.(weight|bias)")
_MAX_RANK = 1 << 14
# Settings of LoraConfig that do not change the meaning of the stored tensors, and those read below.
# Any other setting with a value is refused: new versions of PEFT add more.
_HARMLESS = frozenset(
    {
        *("alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora", "peft_type"),
        *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights"),
        *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core"),
        *("modules_to_save", "peft_version", "qalora_group_size", "revision"),
        *("target_modules", "task_type"),
    }
)
# Other values change the base weights when the adapter is created: `pissa`, `olora`, `loftq`, ...
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The term that is added to one weight; see `models.checkpoints.lora.low_rank`."""

    file: SafetensorsFile
    left: str
    right: str
    scale: float
    transposed: bool

    @property
    def shape(self) -> Shape:
        """The shape of the term, which is that of the weight."""
        shape = (self.file.tensors[self.left].shape[0], self.file.tensors[self.right].shape[1])
        return shape[::-1] if self.transposed else shape

    def values(self) -> Values:
        """The term in float32."""
        left, right = self.file.tensor(self.left), self.file.tensor(self.right)
        return low_rank(left, right, self.scale, transposed=self.transposed)


@dataclass(slots=True)
class _Pair:
    left: str = ""
    right: str = ""
    embedded: bool = False


@dataclass(slots=True)
class Adapter:
    """An adapter. `added` and `replaced` use canonical names of weights as keys; the values of
    `replaced` are names of tensors in `file`.
    """

    file: SafetensorsFile
    added: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)

    def touched(self) -> set[str]:
        """The names of all weights that the adapter changes."""
        return {*self.added, *self.replaced}


def open_adapter(folder: Path, naming: Naming) -> Adapter:
    """Open the adapter in a folder, for a model with this naming. The caller must close its `file`.

    Raises ModelError for anything but LoRA, for tensors that are not part of a LoRA sum, and for
    ranks that differ from the settings.
    """
    settings = read_json(folder / ADAPTER_CONFIG)
    _check_settings(settings, folder / ADAPTER_CONFIG)
    file = SafetensorsFile(folder / ADAPTER)
    try:
        return _read(file, settings, naming)
    except BaseException:
        file.close()
        raise


def _check_settings(settings: Mapping[str, Any], where: Path) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{where}: the adapter is of kind {short(kind)}; supported: LORA, and what "
            f"merge_and_unload() can merge: {_MERGE}"
        )
    initial = settings.get("init_lora_weights")
    if not any(initial is each or initial == each for each in _INITIAL):
        raise ModelError(
            f"{where}: init_lora_weights {short(initial)} changes the model below the adapter, "
            f"which is not supported unmerged: {_MERGE}"
        )
    for name, value in settings.items():
        if name not in _HARMLESS and value:
            raise ModelError(
                f"{where}: {name}: {short(value)} is more than a sum of LoRA, which is not "
                f"supported unmerged: {_MERGE}"
            )


def _read(file: SafetensorsFile, settings: Mapping[str, Any], naming: Naming) -> Adapter:
    found, pairs = Adapter(file), dict[str, _Pair]()
    for name in file.tensors:
        inner = name.removeprefix(_PREFIX)
        file.check(name)
        if low := _LOW_RANK.fullmatch(inner):
            pair = pairs.setdefault(low[1], _Pair())
            pair.embedded = "embedding" in low[2]
            setattr(pair, "left" if low[2].endswith("B") else "right", name)
        elif (own := _OWN.fullmatch(inner)) and "lora_" not in inner:
            found.replaced[naming.canonical(f"{own[1]}.{own[3]}")] = name
        else:
            raise ModelError(
                f"{file.path}: {name[:80]} is no part of a sum of LoRA, and not supported "
                f"unmerged: {_MERGE}"
            )
    for module, pair in pairs.items():
        weight = naming.canonical(f"{module}.weight")
        found.added[weight] = _low_rank(file, module, pair, weight, settings, naming)
    return found


def _low_rank(
    file: SafetensorsFile,
    module: str,
    pair: _Pair,
    weight: str,
    settings: Mapping[str, Any],
    naming: Naming,
) -> LowRank:
    if not pair.left or not pair.right:
        raise ModelError(f"{file.path}: half of the adapter of {module[:80]} is missing")
    rank = _of_module(settings, "rank_pattern", "r", module)
    alpha = _of_module(settings, "alpha_pattern", "lora_alpha", module)
    where = f"of {module[:80]} in {file.path}"
    check_size(f"r {where}", rank, _MAX_RANK)
    left, right = file.tensors[pair.left].shape, file.tensors[pair.right].shape
    if len(left) != 2 or len(right) != 2 or left[1] != rank or right[0] != rank:
        raise ModelError(
            f"{file.path}: the adapter of {module[:80]} has shapes {left} and {right}, and its "
            f"settings rank {rank}"
        )
    scale = number(f"lora_alpha {where}", alpha, 0.0, 1e6)
    scale /= sqrt(rank) if settings.get("use_rslora") else rank
    transposed = pair.embedded or naming.is_transposed(weight)
    return LowRank(file, pair.left, pair.right, scale, transposed)


def _of_module(settings: Mapping[str, Any], patterns: str, usual: str, module: str) -> object:
    """A setting of one module. As in PEFT, the first pattern that its name ends with is used."""
    own = settings.get(patterns) or {}
    if not isinstance(own, Mapping):
        raise ModelError(f"{patterns}: {short(own)} is not a mapping")
    for pattern, value in own.items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ModelError(f"{patterns}: {short(pattern)} is no pattern ({error})") from None
        if found:
            return value
    return settings.get(usual, 8)  # PEFT's default for both
