"""A checkpoint over a transformers model in memory, with or without PEFT adapters.

Only the tensor being read is copied, and nothing in the model is changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.module_settings import check_settings
from models.checkpoints.torch_modules import SAVE_IT, Module, places
from models.configs.architecture import ModelConfig
from models.configs.reading import config_from_hf
from models.configs.tasks.ranking import ranking_settings
from protocols.errors import ConfigError, ModelError

_EXPECTED = (
    "give a transformers model, such as AutoModelForCausalLM.from_pretrained(NAME), or the path "
    "of a saved one to from_pretrained"
)


def open_model(model: object, *, head: str | None = None) -> Checkpoint:
    """A checkpoint over a transformers model, a `peft.PeftModel` with LoRA, or `torch.compile` of
    either.

    Values are read when a tensor is requested, so changes to the model up to then count. Dropout is
    left out, whether or not the model is in training mode.

    Args:
        head: one of `models.configs.heads.HEADS`; overrides the head of the model's class.

    Raises:
        ConfigError: the object is none of these. ModelError: as `open_checkpoint`, and for parts
        that are not from transformers, values that are not in memory, and adapters other than LoRA.
    """
    return _ModelCheckpoint(_transformers_model(model), head=head)


def config_of_model(model: object, *, head: str | None = None) -> ModelConfig:
    """The configuration of a model in memory. Raises as `open_model` does."""
    return _config(_transformers_model(model), head)


class _ModelCheckpoint(Checkpoint):
    """Parameters by canonical name."""

    def __init__(self, model: Module, *, head: str | None) -> None:
        self.where = _where(model)
        config = _config(model, head)
        found = dict(places(model, self.where))
        check_settings(model, config, self.where)
        names = config.naming.stored_names(found)
        self._places = {name: found[stored] for name, stored in names.items()}
        shapes = {name: place.shape for name, place in self._places.items()}
        self.config = self._untied(config).adapted(shapes)
        self._check_tensors(shapes)
        for name in self.names():
            self._places[name].check(name, self.where)
        self._check_copies()
        if config.head == "sequence-classification":
            self.ranking = ranking_settings(model.config.to_dict())
        self.nbytes = sum(self._places[name].nbytes for name in self.names())

    def close(self) -> None:
        self._places = {}

    def _read(self, name: str) -> NDArray[np.float32]:
        if name not in self._places:
            raise ModelError(f"{self.where}: the checkpoint is closed: open the model again")
        place = self._places[name]
        if place.shape != self.shape(name):
            raise ModelError(
                f"{self.where}: {name} now has shape {place.shape}, and had {self.shape(name)}: do "
                "not change the model while it is being read"
            )
        place.check(name, self.where)  # it may have been moved or converted since then
        return place.values()

    def _untied(self, config: ModelConfig) -> ModelConfig:
        """The configuration, with head and embedding tied or not as they are in memory.

        An adapter on either of them unties them, whatever `tie_word_embeddings` says.
        """
        for name, source in config.tied().items():
            if not name.endswith(".weight") or not {name, source} <= self._places.keys():
                continue
            for each in (name, source):
                self._places[each].check(each, self.where)
            if not self._places[name].equals(self._places[source]):
                return replace(config, tie_embeddings=False)
        return config

    def _check_copies(self) -> None:
        for name, source in self.config.tied().items():
            place = self._places.get(name)
            if place is None:
                continue
            place.check(name, self.where)
            if not place.equals(self._places[source]):
                raise ModelError(
                    f"{self.where}: {name} differs from {source}, but this model uses one for "
                    "both: copy the right one to the other"
                )


def _transformers_model(model: object) -> Module:
    """The model inside wrappers that do not change its function."""
    found: Any = model
    if type(found).__name__ == "OptimizedModule":  # of torch.compile
        found = found._orig_mod
    if type(found).__module__.startswith("peft.") and hasattr(found, "peft_config"):
        _check_adapters(found)
        found = found.get_base_model() if hasattr(found, "get_base_model") else found.model
    kind = type(found)
    if not hasattr(found, "named_parameters") or not hasattr(found, "config"):
        raise ConfigError(f"the model is {_name(kind)}: {_inside(found) or _EXPECTED}")
    if not kind.__module__.startswith("transformers."):
        raise ConfigError(
            f"the model is {_name(kind)}, which may compute something else than a class of "
            f"transformers: {SAVE_IT}"
        )
    return found


def _check_adapters(model: Module) -> None:
    for name, settings in model.peft_config.items():
        kind = str(getattr(settings.peft_type, "value", settings.peft_type))
        if kind != "LORA":
            raise ModelError(
                f"{_where(model)}: the adapter {str(name)[:40]!r} is of kind {kind}; supported: "
                "LORA, and what merge_and_unload() can merge: model = model.merge_and_unload()"
            )


def _inside(found: Any) -> str:
    """The end of a message: what to pass instead of an object that contains a model."""
    for attribute in ("module", "model"):
        if hasattr(getattr(found, attribute, None), "config"):
            return f"give the model inside it, its .{attribute}"
    return ""


def _config(model: Module, head: str | None) -> ModelConfig:
    """The configuration as `save_pretrained` would write it, with the head of the current class."""
    data = json.loads(model.config.to_json_string())
    data["architectures"] = [type(model).__name__]
    # A model that was dequantised on loading (GGUF too) keeps this; modules and tensors tell more.
    data.pop("quantization_config", None)
    generation: Any = getattr(model, "generation_config", None)
    if generation is None or not model.can_generate():  # it is not saved then
        return config_from_hf(data, None, head=head)
    return config_from_hf(data, json.loads(generation.to_json_string()), head=head)


def _where(model: Module) -> str:
    return f"the {type(model).__name__} in memory"


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
