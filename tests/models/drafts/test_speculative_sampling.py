"""Drafted answers have the distribution of answers without a draft.

Answers of three tokens of a tiny model, drawn often, against their exact chances: the sum over all
answers of (count - expected)^2 / expected is near its degrees of freedom, and far above for a
sampler that accepts whatever is proposed.
"""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import save_model

from models.checkpoints.weights import open_checkpoint
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.tokens.sampling import Proposal, Sampler, SamplingConfig

IDS = (1, 2, 0)
DRAWS = 4000
SETTINGS = SamplingConfig(temperature=1.3, top_k=4, repetition_penalty=1.2, top_p=0.97)


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """The large model's logits, and those of the small one that drafts."""
    found = []
    for seed in (3, 4):
        folder = save_model(tmp_path_factory.mktemp("model"), seed=seed, vocab_size=5)
        with open_checkpoint(folder) as checkpoint:
            config, parameters = checkpoint.config, dict(load_parameters(checkpoint))
        found.append(cache(lambda ids, c=config, p=parameters: plain_run(c, p, [ids], "last")[-1]))
    return found


@pytest.fixture(scope="module")
def expected(logits):
    """The chance of every answer."""
    sampler = Sampler(SETTINGS, prompt=len(IDS))
    found = {}
    for answer in itertools.product(range(5), repeat=3):
        chance, text = 1.0, IDS
        for token in answer:
            chance *= sampler.chances(logits[0](text), text)[token]
            text = (*text, token)
        found[answer] = chance
    assert abs(sum(found.values()) - 1) < 1e-9
    return found


def drawn(draft, text, logits, count):
    """Proposals of each kind."""
    if draft == "ngram":  # any rule that does not draw: here, the last token again
        return [Proposal(text[-1])] * count
    proposals = []
    for _ in range(count):
        proposals.append(draft.propose(logits[1](text), text))
        text = (*text, proposals[-1].token)
    return proposals


def statistic(logits, expected, kind):
    """The sum over the answers of (count - expected)^2 / expected; and the share of accepted."""
    config = SamplingConfig(**{**vars(SETTINGS), "seed": 11})
    judge = Sampler(config, prompt=len(IDS))
    draft = "ngram" if kind == "ngram" else Sampler(config, prompt=len(IDS), stream="draft")
    counts = dict.fromkeys(expected, 0)
    accepted = proposed = 0
    for _ in range(DRAWS):
        text = IDS
        while len(text) < len(IDS) + 3:
            # A step evaluates the draft; what it yields beyond the third token is not wanted.
            for proposal in [*drawn(draft, text, logits, 2), None]:
                token = judge.next(logits[0](text), text, proposal)
                text = (*text, token)
                agrees = proposal is not None and token == proposal.token
                proposed, accepted = proposed + 1, accepted + agrees
                if not agrees or len(text) == len(IDS) + 3:
                    break
        counts[text[len(IDS) :]] += 1
    likely = {answer: chance * DRAWS for answer, chance in expected.items() if chance > 0}
    if any(count for answer, count in counts.items() if answer not in likely):
        return np.inf, len(likely) - 1, accepted / proposed
    total = sum((counts[answer] - want) ** 2 / want for answer, want in likely.items())
    return total, len(likely) - 1, accepted / proposed


@pytest.mark.parametrize("kind", ["ngram", "small model"])
def test_answers_have_their_chances(logits, expected, kind):
    total, freedom, accepted = statistic(logits, expected, kind)
    assert total < freedom + 5 * np.sqrt(2 * freedom)
    assert 0.05 < accepted < 0.95  # both happen


@pytest.mark.parametrize("wrong", ["accepts all", "draws again"])
def test_wrong_rules_are_seen(logits, expected, wrong, monkeypatch):
    if wrong == "accepts all":
        monkeypatch.setattr(Sampler, "_judged", lambda self, chances, token, proposed: token)
    else:  # from all that is likely, not from what the draft neglects

        def judged(self, chances, token, proposed):
            keep = self._random.random() * proposed[token] < chances[token]
            return token if keep else self._draw(chances)

        monkeypatch.setattr(Sampler, "_judged", judged)
    total, freedom, _ = statistic(logits, expected, "small model")
    assert total > freedom + 20 * np.sqrt(2 * freedom)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_the_chance_of_every_token(seed, size):
    """Exactly: accepted, or drawn from the rest. `random()` is replaced by every quantile."""
    rng = np.random.default_rng(seed)
    wanted, proposed = rng.dirichlet(np.ones(size) * 0.5, 2)
    accepted = np.minimum(wanted, proposed)
    rest = np.maximum(wanted - proposed, 0)
    total = accepted + (1 - accepted.sum()) * rest / max(rest.sum(), 1e-300)
    np.testing.assert_allclose(total, wanted, atol=1e-9)
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed))
    for token in range(size):
        found = sampler._judged(wanted, token, proposed)
        assert found == token or wanted[found] > proposed[found]
        assert sampler._judged(proposed, token, proposed) == token


def test_equal_distributions_accept_everything():
    """Also where rounding leaves a draw of the edge."""
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=1))
    chances = np.array([0.5, 0.5, 0.0])
    assert [sampler._judged(chances, 1, chances) for _ in range(50)] == [1] * 50
