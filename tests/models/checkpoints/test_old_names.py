"""Files of families whose tensors were once called otherwise."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import save, tiny_model

from models.checkpoints.weights import open_checkpoint


@pytest.mark.parametrize(
    ("model_type", "now", "then"),
    [
        ("gpt_neox", "lm_head.weight", "embed_out.weight"),
        ("opt", "model.decoder.", "decoder."),
        ("deberta-v2", "LayerNorm.weight", "LayerNorm.gamma"),
    ],
)
def test_old_names(tmp_path, model_type, now, then):
    head = "none" if model_type == "deberta-v2" else "causal-lm"
    folder = save(tiny_model(model_type, head, tie_word_embeddings=False), tmp_path)
    file = folder / "model.safetensors"
    with open_checkpoint(folder) as checkpoint:
        before = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    renamed = {name.replace(now, then): values for name, values in load_file(file).items()}
    assert any(then in name and now not in name for name in renamed)
    save_file(renamed, file)
    with open_checkpoint(folder) as checkpoint:
        for name, values in before.items():
            np.testing.assert_array_equal(checkpoint.tensor(name), values)
