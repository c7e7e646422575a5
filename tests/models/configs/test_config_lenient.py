"""What a `config.json` says without changing the function is no reason to refuse it."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import SETTINGS

from models.configs.reading import config_from_hf
from protocols.errors import ModelError

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def settings(model_type: str, **changed: Any) -> dict[str, Any]:
    return {"model_type": model_type, **SETTINGS[model_type], **changed}


@pytest.mark.parametrize("model_type", SETTINGS)
@pytest.mark.parametrize("token", [50256, -1])
def test_special_tokens_that_the_vocabulary_lacks(model_type: str, token: int) -> None:
    """Any small GPT-2 has 50256. The padding of RoBERTa stays: positions begin after it."""
    positioned = config_from_hf(settings(model_type), {}).skipped_token is not None
    names = TOKENS[:2] if positioned else TOKENS
    config = config_from_hf(settings(model_type, **dict.fromkeys(names, token)), {})
    assert config.bos_token_id is None
    assert config.eos_token_ids == ()
    assert config.pad_token_id == (1 if positioned else None)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_end_tokens_of_which_the_vocabulary_has_some(model_type: str) -> None:
    config = config_from_hf(
        settings(model_type, eos_token_id=[4, 50256]), {"eos_token_id": [5, -1, 128001]}
    )
    assert config.eos_token_ids == (4, 5)


@pytest.mark.parametrize("value", ["</s>", True, 1.5, [1]])
def test_what_is_no_token_at_all_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="is not a token id below vocab_size 40"):
        config_from_hf(settings("gpt2", bos_token_id=value), {})


@pytest.mark.parametrize("value", ["</s>", [None], [[1]], {"a": 1}])
def test_what_is_no_end_token_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="eos_token_ids"):
        config_from_hf(settings("gpt2", eos_token_id=value), {})


def test_longrope_under_its_name_in_old_phi3_files() -> None:
    long = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
    names: tuple[dict[str, Any], ...] = (
        {"type": "yarn"},
        {"type": "su"},
        {"rope_type": "longrope"},
    )
    given = [
        settings("phi3", rope_parameters=None, partial_rotary_factor=0.5, rope_scaling=scaling)
        for scaling in ({**long, **name} for name in names)
    ]
    first, *others = (config_from_hf(data, {}) for data in given)
    assert others == [first, first]
