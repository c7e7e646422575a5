"""Models with adapters of PEFT, whose weights are random (PEFT begins with adapters of zeros)."""

from typing import Any

import peft
import torch


def with_lora(model: Any, targets: list[str], *, name: str = "default", **settings: Any) -> Any:
    """A `PeftModel` around the model, in evaluation mode."""
    adapted = peft.get_peft_model(model, lora(targets, **settings), adapter_name=name)
    randomise(adapted)
    return adapted.eval()


def lora(targets: list[str], **settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": targets, **settings})


def randomise(model: Any) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0.0, 0.3)
