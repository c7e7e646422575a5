"""What drafters propose, and what refuses them."""

import json
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import WORDS, save_model, save_tokenizer

from models.checkpoints.weights import open_checkpoint
from models.drafts.drafter import Pace, computing
from models.drafts.ngram import LONGEST, SHORTEST, NgramDrafter
from models.drafts.small_model import ModelDrafting, check_tokenizers
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters
from models.tokens.sampling import Sampler, SamplingConfig
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError

IDS = [1, 7, 30, 4, 4, 22, 9]


def tokens(drafter, ids, most):
    return [proposal.token for proposal in drafter.propose(ids, most)]


# -- n-grams ---------------------------------------------------------------------------------------


def test_a_run_is_continued_as_it_was_before():
    ids = [5, 6, 7, 8, 9, 1, 2, 6, 7]
    assert tokens(NgramDrafter(), ids, 3) == [8, 9, 1]
    assert tokens(NgramDrafter(), ids, 1) == [8]


def test_the_longest_run_wins_and_then_the_latest():
    assert tokens(NgramDrafter(), [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 1) == [4]
    assert tokens(NgramDrafter(), [2, 3, 4, 2, 3, 5, 2, 3], 1) == [5]


def test_one_token_alone_says_nothing():
    assert tokens(NgramDrafter(), [3, 1, 2, 3], 4) == []
    assert tokens(NgramDrafter(), [3], 4) == tokens(NgramDrafter(), [3, 3], 4) == []


def test_a_repetition_goes_on():
    assert tokens(NgramDrafter(), [9, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert tokens(NgramDrafter(), [4, 4, 4], 3) == [4, 4, 4]


def brute(ids, most):
    """The same, by looking everywhere."""
    for size in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if len(ids) > size and ids[end - size : end] == ids[-size:]:
                text = list(ids)
                while len(text) < len(ids) + most:
                    text.append(text[len(text) - len(ids) + end])
                return text[len(ids) :]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.data())
def test_looking_up_while_the_text_grows_equals_looking_everywhere(ids, data):
    drafter = NgramDrafter()
    at = 1
    while at <= len(ids):
        assert tokens(drafter, ids[:at], 4) == brute(ids[:at], 4)
        at += data.draw(st.integers(1, 5))


# -- how many --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), max_size=64), st.lists(st.floats(0, 1), max_size=200))
def test_the_pace_stays_within_bounds(added, shares):
    """Also in what drafts cost, whatever a token costs."""
    costs = [0, *accumulate(added)]
    pace, tokens, time = Pace(costs), 0, 0
    for share in shares:
        proposed = pace.next
        assert 0 <= proposed < len(costs)
        kept = int(share * proposed)
        pace.note(proposed, kept)
        tokens, time = tokens + 1 + kept, time + 100 + costs[proposed]
        assert time <= 102 * tokens + 45


def test_an_answer_of_which_nothing_is_accepted_takes_at_most_five_per_cent_more():
    pace, longer = Pace([computing(count) for count in range(9)]), []
    for step in range(1, 200):
        longer.append(computing(pace.next))
        pace.note(pace.next, 0)
        assert sum(longer) <= 100 * step * 0.05 or step < 15
    assert any(longer)


def test_where_a_token_costs_steps_the_pace_waits_until_it_has_saved_them():
    pace, waited = Pace([0, 300]), 0
    while not pace.next:
        pace.note(0, 0)
        waited += 1
    assert waited == 128
    assert Pace([]).next == Pace([0]).next == 0


def test_the_pace_follows_what_is_accepted():
    pace = Pace([computing(count) for count in range(9)])
    for _ in range(3):
        assert pace.next > 0
        pace.note(pace.next, pace.next)
    assert pace.next == 8
    pace.note(0, 0)  # a step without proposals says nothing
    assert pace.next == 8
    pace.note(8, 7)
    assert pace.next == 8
    pace.note(8, 0)
    assert pace.next == 1
    for _ in range(8):
        pace.note(pace.next, 0)
    assert pace.next == 0  # nothing is left to pay for the next draft
    for _ in range(16):
        pace.note(0, 0)
    assert pace.next == 1
    pace.note(1, 1)
    assert pace.next == 4


# -- a small model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def drafting(folder):
    return ModelDrafting.load(folder, Tokenizer.load(folder), len(WORDS))


@pytest.fixture(scope="module")
def plain(folder):
    with open_checkpoint(folder) as checkpoint:
        parameters = dict(load_parameters(checkpoint))
        yield lambda ids: plain_run(checkpoint.config, parameters, [ids], "last")[-1]


def continued(plain, ids, sampling, count):
    """A greedy answer by evaluating everything anew."""
    text, sampler = list(ids), Sampler(sampling, prompt=len(ids))
    for _ in range(count):
        text.append(sampler.next(plain(text), text))
    return text[len(ids) :]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_small_model_proposes_its_own_answer(drafting, plain, penalty):
    """Also after some of its proposals were rejected, and its cache rolled back."""
    sampling = SamplingConfig(repetition_penalty=penalty)
    drafter = drafting.begin(sampling, len(IDS), ())
    wanted = continued(plain, IDS, sampling, 6)
    assert tokens(drafter, IDS, 6) == wanted
    assert tokens(drafter, [*IDS, *wanted[:2]], 4) == wanted[2:]
    other = [*IDS, *wanted[:2], 0 if wanted[2] else 1]
    assert tokens(drafter, other, 4) == continued(plain, other, sampling, 4)
    assert tokens(drafter, IDS, 2) == wanted[:2]


def test_what_a_small_model_draws_has_the_announced_chances(drafting, plain):
    sampling = SamplingConfig(temperature=1.5, top_k=20, seed=1)
    drafter = drafting.begin(sampling, len(IDS), ())
    text = list(IDS)
    for proposal in drafter.propose(IDS, 5):
        expected = Sampler(sampling, prompt=len(IDS)).chances(plain(text), text)
        assert np.abs(proposal.chances - expected).max() < 1e-4
        assert proposal.chances[proposal.token] > 0
        text.append(proposal.token)


def test_a_small_model_draws_apart_from_the_large_one(drafting, plain):
    """Under one seed the draws must not be those that judge them."""
    sampling = SamplingConfig(temperature=3.0, seed=5)
    text = [*IDS, *tokens(drafting.begin(sampling, len(IDS), ()), IDS, 12)]
    assert text[len(IDS) :] != continued(plain, IDS, sampling, 12)


def test_a_full_context_ends_a_draft(drafting):
    drafter = drafting.begin(SamplingConfig(), 1, ())
    assert len(drafter.propose([3] * 62, 8)) == 3  # 64 positions: 62, 63 and 64 tokens in
    assert drafter.propose([3] * 65, 8) == []


def test_logits_fit_the_large_vocabulary(folder):
    for size in (len(WORDS) - 4, len(WORDS) + 3):
        drafting = ModelDrafting.load(folder, Tokenizer.load(folder), size)
        sampling = SamplingConfig(temperature=2.0, seed=1)
        for proposal in drafting.begin(sampling, len(IDS), ()).propose(IDS, 4):
            assert proposal.token < min(size, len(WORDS))
            assert proposal.chances.shape == (size,)


def test_another_tokenizer_is_refused(folder, tmp_path):
    mine = Tokenizer.load(folder)
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    check_tokenizers(mine, Tokenizer.from_folder(tmp_path))
    vocabulary = found["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    first = min(vocabulary["cat"], vocabulary["dog"])
    with pytest.raises(ConfigError, match=f"differs from the model's, first at token id {first}:"):
        check_tokenizers(mine, Tokenizer.from_folder(tmp_path))
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    vocabulary["another"] = len(WORDS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=f"first at token id {len(WORDS)}:"):
        check_tokenizers(mine, Tokenizer.from_folder(tmp_path))
    with pytest.raises(ConfigError, match="the model has no tokenizer"):
        check_tokenizers(None, mine)


def test_a_model_that_predicts_no_tokens_is_refused(folder):
    with (
        open_checkpoint(folder, head="none") as checkpoint,
        pytest.raises(ConfigError, match="has head 'none', a draft needs 'causal-lm'"),
    ):
        ModelDrafting(checkpoint, len(WORDS), "")
