"""Every family and head in floating point: the programs over `Ops` are transformers' functions."""

import numpy as np
import pytest
from family_variants import ACTIVATED, ENCODED, READ, TEXTS, VARIANTS, outputs
from tiny_models import ENCODERS, EVERY_CASE, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters, parameters_of
from models.programs.head_layers import columns_of, default_rows


def opened(model, folder):
    checkpoint = open_checkpoint(save(model, folder))
    wanted = parameters_of(checkpoint.config)
    values = dict(load_parameters(checkpoint))
    assert list(values) == list(wanted)
    for name, parameter in wanted.items():
        assert values[name].shape == parameter.shape, name
        assert values[name].dtype == np.float32
    return checkpoint, values


@pytest.mark.parametrize(("model_type", "head"), EVERY_CASE)
def test_a_batch_is_what_transformers_computes_one_by_one(model_type, head, tmp_path):
    model = tiny_model(model_type, head)
    checkpoint, values = opened(model, tmp_path)
    with checkpoint:
        config = checkpoint.config
        found = plain_run(config, values, TEXTS, default_rows(config))
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    assert found.shape == expected.shape == (len(found), columns_of(config))
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(("model_type", "changes"), [*VARIANTS, *READ])
def test_every_setting_that_changes_the_function(model_type, changes, tmp_path):
    model = tiny_model(model_type, "causal-lm", **changes)
    checkpoint, values = opened(model, tmp_path)
    ids = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
    with checkpoint:
        found = plain_run(checkpoint.config, values, [ids])
    expected = outputs(model, "causal-lm", ids)
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(("model_type", "changes"), ENCODED)
def test_every_setting_of_an_encoder(model_type, changes, tmp_path):
    head = "sequence-classification"
    model = tiny_model(model_type, head, **changes)
    checkpoint, values = opened(model, tmp_path)
    texts = [[5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14], [12]]
    with checkpoint:
        config = checkpoint.config
        found = plain_run(config, values, texts, default_rows(config))
    expected = np.concatenate([outputs(model, head, ids) for ids in texts])
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(("model_type", "changes"), ACTIVATED)
def test_every_activation(model_type, changes, tmp_path):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head, **changes)
    checkpoint, values = opened(model, tmp_path)
    with checkpoint:
        found = plain_run(checkpoint.config, values, TEXTS)
    expected = np.concatenate([outputs(model, head, ids) for ids in TEXTS])
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("model_type", [name for name in ENCODERS if name == "bert"])
def test_token_types_of_a_pair(model_type, tmp_path):
    model = tiny_model(model_type, "sequence-classification")
    checkpoint, values = opened(model, tmp_path)
    ids, types = [5, 9, 4, 30, 22], [0, 0, 0, 1, 1]
    with checkpoint:
        found = plain_run(checkpoint.config, values, [ids], "first", types=tuple(types))
        plain = plain_run(checkpoint.config, values, [ids], "first")
    expected = outputs(model, "sequence-classification", ids, types)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-3
