"""Every setting of every family against transformers: the same outputs, or a refusal by name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from family_variants import outputs
from safetensors.torch import save_file
from setting_cases import config_of, setting_cases
from transformers.initialization import no_init_weights

from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ModelConfig
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.programs.head_layers import default_rows
from protocols.errors import ModelError

IDS = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
HEADS = [
    (model_type, head)
    for model_type in tiny_models.SETTINGS
    for head in (
        ("masked-lm", "sequence-classification")
        if model_type in tiny_models.ENCODERS
        else ("causal-lm",)
    )
]
SHARE = 96
"""`make test` runs one case in so many; which ones depends on the family."""

STRICTER = {
    "is_encoder_decoder": "the class ignores it, `generate` does not",
    "pruned_heads": "transformers 4 removes the heads",
    "per_layer_config": "transformers 5 builds each layer from it where the class knows how",
    "position_embedding_type": "transformers 4 computes other positions",
    "is_decoder": "the class masks what follows if cross attention is used",
    "add_cross_attention": "the class refuses or adds layers in some versions",
    "partial_rotary_factor": "honoured beside `rope_theta` by some versions",
    "use_bidirectional_attention": "depends on the implementation of attention",
    "token_classification_bias": "another head of the same family would change",
    "decoder_bias": "another head of the same family would change",
    "pooler_hidden_act": "another head of the same family would change",
    "rope_parameters": "contradicts itself, or names no kind of layer where each has its own",
    "rope_scaling": "contradicts `rope_parameters`, or itself",
    "sliding_window": "a number other than half of `local_attention`, or 0",
    "attention_chunk_size": "the cache drops what lies outside",
    "output_attentions": "another path of the class",
    "is_causal": "null",
    "max_position_embeddings": "0: no text would be short enough",
    "layer_norm_eps": "0: a norm may divide by zero",
    "rms_norm_eps": "0: a norm may divide by zero",
    "head_dim": "0: no size",
}
"""Settings that are refused although this version of transformers computes the same -> why."""

ALIASES = {
    "num_hidden_layers": "num_layers",
    "n_layers": "num_layers",
    "hidden_dim": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "activation": "hidden_act",
    "activation_function": "hidden_act",
    "hidden_activation": "hidden_act",
    "classifier_activation": "classifier_act",
    "pooler_hidden_act": "pooler_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_eps": "layer_norm_eps",
    "word_embed_proj_dim": "embedding_columns",
    "embedding_size": "embedding_columns",
    "tie_word_embeddings": "decoder",
    "multi_query": "query_key_value",
    "rope_scaling": "rotary",
    "max_position_embeddings": "max_positions",
}
"""Settings that errors call by our own name for them."""


class InconsistentError(Exception):
    """transformers itself computes other logits when it generates than in one run."""


@dataclass
class Theirs:
    """What transformers computes for a `config.json`."""

    model: Any
    values: np.ndarray

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self.model.named_parameters()}

    def same_as(self, other: Theirs) -> bool:
        return self.shapes == other.shapes and bool(np.abs(self.values - other.values).max() < 1e-6)


def theirs(model_type: str, head: str, data: dict[str, Any]) -> Theirs:
    """Weights follow from their names alone, so that only settings differ between two models."""
    config = config_of(data)
    with no_init_weights():
        model = tiny_models.class_of(model_type, head)(config)
    model.tie_weights()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model = model.float().eval()
    model.config.return_dict = True
    if head == "causal-lm":
        check_generation(model)
    return Theirs(model, outputs(model, head, IDS))


def check_generation(model: Any) -> None:
    """The cache has windows of its own, which follow from the settings."""
    model.generation_config = transformers.GenerationConfig(pad_token_id=1)
    with torch.no_grad():
        found = model.generate(
            torch.tensor([IDS[:8]]),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    whole = outputs(model, "causal-lm", found.sequences[0].tolist())[7:11]
    if np.abs(torch.cat(found.logits).numpy() - whole).max() > 1e-3:
        raise InconsistentError


def save(model: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    return folder


class Judge:
    """Compares one model with all its variants."""

    def __init__(self, model_type: str, head: str, tmp_path: Path) -> None:
        self.kind, self.head, self.tmp_path = model_type, head, tmp_path
        self.architecture = tiny_models.class_of(model_type, head).__name__
        self.usual = theirs(model_type, head, self._data(tiny_models.config_json(model_type)))
        self.folder = save(self.usual.model, tmp_path / "usual")
        self._known: tuple[ModelConfig, np.ndarray] | None = None
        usual = self._ours(self.folder, self._data(tiny_models.config_json(model_type)))
        assert np.abs(usual - self.usual.values).max() < 0.02

    def _data(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "architectures": [self.architecture]}

    def verdict(self, key: str, data: dict[str, Any]) -> str | None:
        """What is wrong with this setting; None: nothing."""
        data = self._data(data)
        expected, folder, broken = None, self.folder, ""
        try:
            expected = theirs(self.kind, self.head, data)
            if expected.shapes != self.usual.shapes:
                folder = save(expected.model, self.tmp_path / "other")
        except InconsistentError:
            broken = "transformers generates with another function, and this is accepted"
        except Exception:  # whatever transformers raises, it computes nothing
            with suppress(ModelError):
                self._ours(folder, data)
            return None
        try:
            found = self._ours(folder, data)
        except ModelError as error:
            return self._of_refusal(key, str(error), expected)
        if expected is None:
            return broken
        apart = float(np.abs(found - expected.values).max())
        return None if apart < 0.02 else f"differs by {apart:.3f}"

    def _ours(self, folder: Path, data: dict[str, Any]) -> np.ndarray:
        (folder / "config.json").write_text(json.dumps(data))
        with open_checkpoint(folder) as checkpoint:
            config = checkpoint.config
            if self._known and folder == self.folder and config == self._known[0]:
                return self._known[1]
            values = dict(load_parameters(checkpoint))
            found = np.asarray(plain_run(config, values, [IDS], default_rows(config)))
        if self._known is None:
            self._known = config, found
        return found

    def _of_refusal(self, key: str, says: str, expected: Theirs | None) -> str | None:
        same = expected is not None and expected.same_as(self.usual)
        if same and key not in STRICTER:
            return f"is refused though nothing changes: {says}"
        named = key in says or ALIASES.get(key, key) in says or "rope_parameters" in says
        return None if named else f"is refused without its name: {says}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models of this size take several times as long on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_no_setting_makes_a_silent_difference(
    model_type: str, head: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    judge = Judge(model_type, head, tmp_path)
    wrong = []
    first = zlib.crc32(f"{model_type} {head}".encode())
    for index, (key, data) in enumerate(setting_cases(model_type)):
        if (index + first) % SHARE and not request.config.getoption("--every-setting"):
            continue
        if (verdict := judge.verdict(key, data)) is not None:
            wrong.append(f"{key} = {str(data.get(key))[:70]} {verdict[:170]}")
    assert not wrong, "\n".join(wrong)
