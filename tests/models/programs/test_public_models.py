"""The programs of models run unchanged on public weights: same ranges, cost and accuracy."""

import numpy as np
import pytest
from secure_models import family_values, infer, share_model
from stored_matrices import part
from tiny_models import ENCODERS

from models.owner.calibrate import plain_run
from models.programs.families import parameters_of
from models.programs.head_layers import default_rows
from models.programs.predict import predict
from models.programs.program import Batch
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, encode, signed
from protocols.base.shares import COMPUTING, Role, constant
from protocols.public_weight import PublicTable, PublicWeight

IDS = [5, 9, 30, 2, 17, 22, 8, 11, 38]
FRACTIONS = {"gain": FRACTION_BITS, "rows": RESIDUAL_BITS, "relative": FRACTION_BITS}
FAMILIES = ["llama", "gpt2", "qwen3", "bert", "deberta-v2"]


def public(role, parameter, matrix):
    """A tensor that all parties know."""
    kind = parameter.kind
    if kind in FRACTIONS:
        return constant(role, encode(matrix, FRACTIONS[kind]), frac=FRACTIONS[kind])
    if kind == "weight":
        if role is Role.TRACE:
            return PublicWeight.blank(parameter.shape)
        return PublicWeight.of(role, [part(matrix, across=True)])
    return (
        PublicTable.blank(parameter.shape)
        if role is Role.TRACE
        else PublicTable.of(role, [part(matrix)])
    )


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    """The same model with secret and with public weights."""
    head = "sequence-classification" if request.param in ENCODERS else "causal-lm"
    secret = share_model(*family_values(request.param, head, tmp_path_factory.mktemp("model")))
    known = share_model(secret.config, secret.floats)
    known.held = {
        role: {
            name: public(role, each, secret.floats[name])
            for name, each in parameters_of(secret.config).items()
        }
        for role in (*COMPUTING, Role.TRACE)
    }
    return secret, known


def test_the_integers_are_those_of_secret_weights(models):
    secret, known = models
    for name, held in known.held[Role.DEALER].items():
        if isinstance(held, PublicWeight):
            found = held.integers(0, held.shape[1]).T
            np.testing.assert_array_equal(found, signed(encode(secret.floats[name], held.frac)))


def test_results_and_cost_are_those_of_secret_weights(models):
    secret, known = models
    batch = Batch((len(IDS),), default_rows(known.config))
    runs = [infer(model, [IDS], batches=[batch]) for model in (secret, known)]
    (step,) = predict(known.plan, batch)
    assert runs[0].outcome.cost == runs[1].outcome.cost == step.cost
    expected = plain_run(known.config, known.floats, [IDS], rows=batch.rows)
    for run in runs:
        assert np.abs(run.chunks[0] - expected).max() < 0.02


def test_decoding(models):
    _, known = models
    if known.config.family in ENCODERS:
        return
    found = np.concatenate(infer(known, [IDS[:7], IDS[7:8], IDS[8:]]).chunks)
    assert np.abs(found - plain_run(known.config, known.floats, [IDS])).max() < 0.02
