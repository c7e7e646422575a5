"""The demo model under MPC against torch in float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import CHOICE, agreeing, torch_greedy, torch_logits, torch_model

from models.files.locate import demo_model_path
from models.programs.program import Batch
from models.programs.steps import StepSettings
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from puma_actors.api.blocking import PrivateModel

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France? Answer in one sentence."
NEW = 12
TOKENS = 56
LAYERS = 30
MOST_ROUNDS = 26 * LAYERS + 10
"""Of a step with the tree of fewest rounds: its layers, and the embedding, last norm and head."""
BRIEF = {"role": "system", "content": "Be brief."}
RAW = {"unicode": "Größe naïve 東京 🙂 мир"}
CHATS = {"chat, French": "Traduis « chien »."}
"""A few prompts; `python -m bench fidelity` has twelve, and longer answers."""
LONG = "Write a short story about an old lighthouse keeper, his dog and 3 storms."


@pytest.fixture(scope="module")
def model():
    with PrivateModel.from_pretrained(demo_model_path()) as model:
        yield model


@pytest.fixture(scope="module")
def reference(model):
    return torch_model(model.cluster.checkpoint)


def prompt_ids(model, name: str) -> list[int]:
    if name in RAW:
        return model.cluster.encode(RAW[name], raw=True)
    return chat(model, CHATS[name])


def chat(model, text: str) -> list[int]:
    return model.cluster.tokenizer.chat([BRIEF, {"role": "user", "content": text}])


def say(capsys, line: str) -> None:
    with capsys.disabled():
        print(f"\n    {line}", end="")


@pytest.mark.parametrize("name", [*RAW, *CHATS])
def test_greedy_tokens_equal_torch(model, reference, capsys, name):
    """By induction over the answer: after the same tokens, the same next token. Feeding prompt and
    answer at once gives the logits after each of its tokens.
    """
    ids = prompt_ids(model, name)
    answer, _ = torch_greedy(reference, ids, NEW)
    fed = ids + answer[:-1]
    ours = model.forward(fed)
    theirs = torch_logits(reference, fed)
    for note in agreeing(ours[-NEW:], theirs[-NEW:]):
        say(capsys, f"{name}: {note}")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= CHOICE
    assert model.usage.steps == model.cluster.predict(Batch((len(fed),)))


def test_the_answer_to_the_demo_question(model, reference):
    text = model.generate(QUESTION, max_new_tokens=NEW)
    usage = model.usage
    assert text == "The capital of France is Paris."
    assert usage.stop_reason == "end of text"
    expected, leads = torch_greedy(reference, usage.prompt_ids, len(usage.token_ids))
    assert usage.token_ids == expected
    assert min(leads) > CHOICE


def test_decoding_with_the_cache_equals_torch_and_costs_what_was_predicted(model, reference):
    ids = model.cluster.encode("import numpy as np\n", raw=True)
    expected, leads = torch_greedy(reference, ids, NEW)
    assert min(leads) > CHOICE  # a prompt without a fair choice: every token must be the same
    tokens = list(model.stream(ids, max_new_tokens=NEW))
    usage = model.usage
    assert usage.token_ids == expected
    assert [token.id for token in tokens if token.id is not None] == expected
    assert "".join(token.text for token in tokens) == model.cluster.tokenizer.decode(expected)
    assert usage.steps == model.cluster.predict(len(ids), NEW - 1)
    assert all(step.rounds <= MOST_ROUNDS for step in usage.steps[1:])


def test_predicted_rounds_of_a_layer(model):
    assert model.cluster.plan.config.num_layers == LAYERS
    prefill, *decode = model.cluster.predict(32, 33, StepSettings.of(Settings(tree="rounds")))
    assert prefill.rounds <= MOST_ROUNDS
    assert max(step.rounds for step in decode) <= MOST_ROUNDS - LAYERS
    assert prefill.online > 0 < prefill.offline
    (far,) = model.cluster.predict(511, 1, StepSettings.of(Settings(tree="rounds")))[1:]
    assert far.rounds <= MOST_ROUNDS


def test_logit_error_over_a_long_text(model, reference, capsys):
    """With this model's massive activations in the middle of it. The set of the paper's own
    formulas is measured beside it, on the beginning.
    """
    ids = chat(model, LONG)
    new = TOKENS - len(ids)
    assert new >= NEW
    ids = ids + torch_greedy(reference, ids, new)[0]
    theirs = torch_logits(reference, ids)
    with torch.no_grad():
        hidden = reference(torch.tensor([ids]), output_hidden_states=True).hidden_states
    largest = max(float(layer.abs().max()) for layer in hidden)
    assert largest > 20_000

    errors = {}
    for approximation, tokens in (("tight", TOKENS), ("puma", 16)):
        usual = model.cluster.settings
        model.cluster.settings = replace(usual, approximation=approximation)
        try:
            ours = model.forward(ids[:tokens])
            predicted = model.cluster.predict(Batch((tokens,)))
        finally:
            model.cluster.settings = usual
        assert model.usage.steps == predicted
        error = errors[approximation] = float(np.abs(ours - theirs[:tokens]).max())
        spent: Cost = model.usage.total
        say(
            capsys,
            f"{approximation}: largest logit error {error:.4f} over {tokens} tokens, "
            f"{spent.rounds} rounds, {spent.online / 1e6:.0f} + {spent.offline / 1e6:.0f} MB",
        )
        if approximation == "tight":
            agreeing(ours[-new - 1 : -1], theirs[-new - 1 : -1])
    say(capsys, f"largest residual {largest:.0f}\n")
    assert errors["tight"] <= 0.03
    assert errors["puma"] > errors["tight"]
