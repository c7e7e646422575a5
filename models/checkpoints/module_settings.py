"""Check that a model in memory was built with the settings that its configuration has now.

transformers reads the configuration when it builds a model, and either can be changed later without
the other. Activations and the eps of norms do not show in the names and shapes of weights.
"""

from __future__ import annotations

from typing import Any

from models.configs.architecture import ModelConfig
from protocols.errors import ModelError

_ACTIVATION_MODULES = ("transformers.activations", "torch.nn.modules.activation")
_CLASSES = {
    "gelu": ("GELUActivation",),
    "gelu_fast": ("FastGELUActivation",),
    "gelu_new": ("NewGELUActivation",),
    "gelu_pytorch_tanh": ("GELUTanh", "PytorchGELUTanh"),
    "quick_gelu": ("QuickGELUActivation",),
    "relu": ("ReLU",),
    "silu": ("SiLUActivation", "SiLU"),
    "tanh": ("Tanh",),
}
"""`models.configs.architecture.ACTIVATIONS` -> classes of `transformers.activations.ACT2CLS`."""
_POOLER = "pooler.activation"


def check_settings(model: Any, config: ModelConfig, where: str) -> None:
    """Raise ModelError naming the first activation or norm that differs from the configuration.

    model: a torch module whose parts all come from torch, transformers or PEFT.
    """
    eps = getattr(config, "rms_norm_eps", getattr(config, "layer_norm_eps", None))
    for name, part in model.named_modules():
        kind = type(part)
        if kind.__module__ in _ACTIVATION_MODULES:
            act = "tanh" if name.endswith(_POOLER) else config.activation_of(name)
            if kind.__name__ not in _CLASSES[act]:
                raise _differs(where, f"{name} is {kind.__name__}", f"has {act!r}")
        elif kind.__name__.endswith("Norm"):
            found = getattr(part, "variance_epsilon", getattr(part, "eps", None))
            if found != eps:
                raise _differs(where, f"{name} has eps {str(found)[:40]}", f"says {eps}")


def _differs(where: str, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{where}: {found}, and its configuration {expected}: build the model anew from the "
        "right configuration"
    )
