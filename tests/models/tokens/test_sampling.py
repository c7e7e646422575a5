"""Sampling and stop strings, against transformers' logits processors."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.tokens.sampling import (
    Sampler,
    SamplingConfig,
    StopWatcher,
    filter_logits,
    penalize,
    softmax,
)
from protocols.errors import ConfigError, RangeError


def reference(logits: np.ndarray, previous: list[int], config: SamplingConfig) -> np.ndarray:
    """transformers' probabilities in double precision, processors in the order `generate` uses."""
    steps = LogitsProcessorList()
    if config.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    scores = steps(torch.tensor([previous], dtype=torch.long), torch.tensor(logits[None]))
    return torch.softmax(scores, -1)[0].numpy()


def ours(logits: np.ndarray, previous: list[int], config: SamplingConfig) -> np.ndarray:
    return softmax(filter_logits(penalize(logits, previous, config.repetition_penalty), config))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 300),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1.0),
    penalty=st.floats(0.5, 2.0),
)
def test_kept_set_and_probabilities_equal_transformers(
    seed, size, temperature, top_k, top_p, penalty
):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, size)
    previous = rng.integers(0, size, rng.integers(1, 20)).tolist()
    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty
    )
    expected, found = reference(logits, previous, config), ours(logits, previous, config)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_ties_are_kept_as_transformers_keeps_them():
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0, 3.0])
    for top_k in range(1, 9):
        config = SamplingConfig(temperature=1.0, top_k=top_k)
        np.testing.assert_array_equal(
            ours(logits, [0], config) > 0, reference(logits, [0], config) > 0
        )
    assert np.count_nonzero(ours(logits, [0], SamplingConfig(temperature=1.0, top_k=2))) == 3


def test_top_p_keeps_at_least_one_and_penalty_covers_the_prompt():
    logits = np.array([5.0, 0.0, -1.0])
    assert np.count_nonzero(ours(logits, [], SamplingConfig(temperature=1.0, top_p=1e-9))) == 1
    greedy = Sampler(SamplingConfig(repetition_penalty=3.0))
    scores = [2.0, 1.9, -1.0]
    assert greedy.next(scores, []) == 0
    assert greedy.next(scores, [0, 0]) == 1
    np.testing.assert_allclose(penalize(np.array(scores), [0, 2], 2.0), [1.0, 1.9, -2.0])


@given(
    answer=st.lists(st.integers(0, 5), max_size=12),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
)
def test_penalties_of_openai_count_the_answer_and_not_the_prompt(answer, frequency, presence):
    prompt, logits = [0, 0, 1], np.linspace(-3, 3, 6)
    config = SamplingConfig(temperature=1.0, frequency_penalty=frequency, presence_penalty=presence)
    chances = Sampler(config, prompt=len(prompt)).chances(logits, prompt + answer)
    expected = [
        logit - frequency * answer.count(token) - presence * (token in answer)
        for token, logit in enumerate(logits)
    ]
    np.testing.assert_allclose(chances, softmax(np.array(expected)), rtol=1e-12)


def test_greedy_takes_the_first_of_equal_logits():
    assert Sampler(SamplingConfig()).next([0.0, 7.0, 7.0], []) == 1


def test_a_seed_repeats_and_no_seed_varies():
    logits = np.zeros(1000)

    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed))
        return [sampler.next(logits, []) for _ in range(20)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)  # equal with probability 1e-60


def test_draws_follow_the_probabilities():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(SamplingConfig(temperature=1.0, top_k=3, seed=1))
    draws = 20_000
    counts = Counter(sampler.next(logits, []) for _ in range(draws))
    expected = np.array([0.5, 0.3, 0.15]) / 0.95 * draws
    chi2 = sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected))
    assert set(counts) == {0, 1, 2}
    assert chi2 < 13.8  # 0.1 % level, 2 degrees of freedom


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    sampler = Sampler(SamplingConfig(temperature=1e-300, seed=0))
    assert sampler.next([1.0, 50.0, 49.0], []) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("seed", 1.5),
        ("stop", ("",)),
        ("stop", "END"),
        ("max_new_tokens", 0),
    ],
)
def test_an_unusable_setting_is_named(name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        SamplingConfig(**{name: value})
    assert repr(value) in str(caught.value)


def test_bad_logits_and_ids_are_refused():
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0))
    for bad in ([float("nan"), 1.0], [float("inf"), 1.0], [-float("inf"), -float("inf")]):
        with pytest.raises(RangeError, match="NaN or infinity"):
            sampler.next(bad, [])
    with pytest.raises(ConfigError, match="shape"):
        sampler.next(np.zeros((2, 3)), [])
    for token in (-1, 3):
        with pytest.raises(ConfigError, match=f"token id {token}"):
            sampler.next([0.0, 1.0, 2.0], [0, token])


def watch(pieces: list[str], stop: tuple[str, ...]) -> tuple[str, bool]:
    watcher = StopWatcher(stop)
    text = "".join([*map(watcher.push, pieces), watcher.finish()])
    return text, watcher.stopped


def test_stop_string_across_pieces():
    watcher = StopWatcher(("\nUser:",))
    assert watcher.push("Paris.\n") == "Paris."
    assert watcher.push("Us") == ""
    assert watcher.push("e it") == "\nUse it"
    assert watcher.push("\nUser") == ""
    assert watcher.push(": more") == ""
    assert watcher.stopped
    assert watcher.push("never") == ""
    assert watcher.finish() == ""


def test_held_text_is_flushed_and_no_stop_passes_all():
    assert watch(["abc", "EN"], ("END",)) == ("abcEN", False)
    assert watch(["a", "b"], ()) == ("ab", False)
    assert watch(["xaab"], ("aab", "ab")) == ("x", True)  # both end here: the longer one
    assert watch(["aa", "ab"], ("aab",)) == ("a", True)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_the_result_does_not_depend_on_the_pieces(text, stop, cuts):
    edges = [0, *sorted(c for c in cuts if c <= len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    whole, stopped = watch([text], stop)
    assert watch(pieces, stop) == (whole, stopped)
    assert text.startswith(whole)
    assert stopped == any(s in text for s in stop)
    assert not any(s in whole for s in stop)
