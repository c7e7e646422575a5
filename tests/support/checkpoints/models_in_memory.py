"""What tests of models in memory compare."""

import hashlib

import numpy as np
import torch

from models.owner.calibrate import plain_run
from models.programs.families import load_parameters

IDS = [5, 9, 30, 2, 17, 6]


def fingerprint(model) -> str:
    """Of every tensor, its type and place, and of the modules' modes and classes."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        found.update(f"{name} {value.dtype} {value.requires_grad} {value.data_ptr()}".encode())
        found.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        found.update(f"{name} {type(module)} {module.training}".encode())
    return found.hexdigest()


def logits(checkpoint) -> np.ndarray:
    return plain_run(checkpoint.config, dict(load_parameters(checkpoint)), [IDS], "all")


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].double().numpy()
