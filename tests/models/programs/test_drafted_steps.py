"""A step of several tokens gives the logits of one token at a time, in every family of decoders."""

import numpy as np
import pytest
from family_variants import LONGROPE, READ, STRETCHED, VARIANTS
from secure_models import family_values
from tiny_models import DECODERS

from models.programs.families import forward
from models.programs.predict import predict
from models.programs.program import Batch, Cache, Drafted, next_batch, rotation_of
from protocols.drivers.plain import Plain
from protocols.drivers.trace import run_now

IDS = [5, 9, 30, 2, 17, 22, 8, 11, 38, 21, 6, 14]
CASES = [*((name, {}) for name in DECODERS), *VARIANTS, *READ, ("llama", STRETCHED)]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_a_step_of_several_tokens(model_type, changes, tmp_path):
    config, values = family_values(model_type, "causal-lm", tmp_path, **changes)

    def logits(ids, batch, cache):
        ops = Plain(np.asarray(ids, dtype=np.int64))
        return run_now(forward(ops, config, values, batch, cache))

    start, cache = 4, Cache.empty(config.num_layers)
    logits(IDS[:start], Batch((start,), "last"), cache)
    wanted = [logits([token], next_batch(), cache)[-1] for token in IDS[start:]]

    drafted = Cache.empty(config.num_layers)
    ops = Plain(np.zeros(0, dtype=np.int64))
    logits(IDS[:start], Batch((start,), "last"), drafted)
    for right, proposed in ((0, 3), (2, 2), (1, 4), (0, 0), (0, 1)):
        at = drafted.length
        given = [*IDS[at : at + 1 + right], *[7] * (proposed - right)]
        found = logits(given, next_batch(proposed), drafted)
        for row in range(right + 1):
            np.testing.assert_allclose(found[row], wanted[at - start + row], rtol=0, atol=1e-9)
        drafted.keep(ops, at + 1 + right)
        assert drafted.length == at + 1 + right
        for half in (drafted.keys, drafted.values):
            assert all(tensor.shape[1] == drafted.length for tensor in half)


@pytest.mark.parametrize("changes", [STRETCHED, LONGROPE], ids=["dynamic", "longrope"])
def test_angles_that_depend_on_the_length(changes, tmp_path):
    """Each token of a draft turns as if it were the last one; a prompt's tokens all turn alike."""
    kind = "phi3" if changes is LONGROPE else "llama"
    config, _ = family_values(kind, "causal-lm", tmp_path, **changes)
    start = 7
    each = [rotation_of(config.turns, next_batch(), start + i).cos[0] for i in range(4)]
    together = rotation_of(config.turns, next_batch(3), start).cos
    np.testing.assert_array_equal(together, each)
    if changes is STRETCHED:
        prompt = rotation_of(config.turns, Batch((4,)), start).cos
        assert not np.array_equal(prompt, together)


def test_predictions_follow_what_is_accepted(tmp_path):
    """The cost of a step depends on its own proposals and on what stayed before."""
    config, _ = family_values("llama", "causal-lm", tmp_path)
    steps = [Drafted(3, 1), Drafted(0, 0), Drafted(2, 2), Drafted(2, 0)]
    first, *found = (step.cost for step in predict(config, 4, steps))
    assert [step.tokens for step in predict(config, 4, steps)] == [4, 4, 1, 3, 3]
    usual = [step.cost for step in predict(config, 4, 6)]
    assert first == usual[0]
    assert found[1] == usual[3]  # the cache holds 4 + 1 + 1 tokens, then comes one
    other = [step.cost for step in predict(config, 4, [Drafted(3, 0), Drafted(0, 0)])]
    assert other[1] == found[0]
    assert other[2] == usual[2]
    assert {step.rounds for step in found} == {usual[1].rounds}
