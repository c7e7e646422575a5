"""Answers with a draft are those without, at the cost that was predicted."""

import pytest
from conversation import IDS, PROMPT, Scripted, generated, text_of
from family_variants import LONGROPE, STRETCHED
from tiny_models import save, tiny_model

from models.programs.program import Batch, Drafted
from models.tokens.sampling import SamplingConfig
from protocols.base.lane import Settings
from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.api.pipelines import TextPipeline
from puma_actors.session.inference import InferenceLink

EVERY_FAMILY = [
    *((name, {}) for name in ("gpt2", "llama", "qwen3", "falcon", "gpt_neox", "opt", "granite")),
    ("mistral", {"sliding_window": 3}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    ("gemma3_text", {}),
    ("smollm3", {}),
    ("falcon", {"alibi": True, "num_attention_heads": 4}),
    ("llama", STRETCHED),
    ("phi3", LONGROPE),
]
WRONG = {2, 5, 6, 9}


def as_predicted(cluster, prompt):
    """Whether what was counted is what shapes alone tell."""
    usage = cluster.usage
    return usage.steps == cluster.predict(len(prompt), usage.drafts, usage.settings)


@pytest.mark.parametrize(("model_type", "changes"), EVERY_FAMILY)
async def test_every_family_rolls_back(model_type, changes, tmp_path):
    """Sliding windows, and learned, rotary and no positions, with and without a stretch."""
    model = tiny_model(model_type, "causal-lm", eos_token_id=None, **changes)
    ids = [5, 9, 30, 2, 17]
    async with LocalCluster.from_pretrained(save(model, tmp_path)) as cluster:
        wanted = await generated(cluster, ids, max_new_tokens=12)
        assert cluster.usage.drafts == [Drafted(0, 0)] * 11
        assert as_predicted(cluster, ids)
        draft = Scripted(wanted, WRONG)
        found = await generated(cluster, ids, max_new_tokens=12, draft=draft, draft_tokens=4)
        assert found == wanted
        # 1 right; 3, 4 right; none; 7, 8 right; the rest.
        steps = cluster.usage.drafts
        assert sum(1 + step.accepted for step in steps) == 11
        assert [step.accepted < step.proposed for step in steps].count(True) >= 3
        assert len(steps) < 8
        assert as_predicted(cluster, ids)


@pytest.mark.parametrize("draft", [None, "ngram"])
async def test_steps_that_begin_before_their_input_are_those_without_a_draft(
    folder, draft, monkeypatch
):
    """In the others the dealer answers for the embedding before it deals for the rest."""
    early, leave = {}, InferenceLink.__aexit__

    async def noted(link, *error):
        if link.role is Role.DEALER:
            early[link.number] = link.early
        return await leave(link, *error)

    monkeypatch.setattr(InferenceLink, "__aexit__", noted)
    async with LocalCluster.from_pretrained(folder) as cluster:
        await generated(cluster, IDS, max_new_tokens=4, draft=draft)
    first, *further = (early[number] for number in sorted(early))
    assert first is False
    assert further
    assert set(further) == {draft is None}


@pytest.fixture(scope="module")
def cluster_of(folder):
    """Opens a cluster on the small model."""
    return lambda **options: LocalCluster.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": True},
        {"public_weights": True},
        {"settings": Settings(reveal="argmax", tree="traffic", lanes=2)},
        {"settings": Settings(approximation="fast", block=200)},
    ],
    ids=["codec", "public weights", "secret logits", "blocks"],
)
async def test_every_way_to_run(cluster_of, options):
    async with cluster_of(**options) as cluster:
        wanted = await generated(cluster, max_new_tokens=10)
        assert await generated(cluster, max_new_tokens=10, draft=Scripted(wanted, {4})) == wanted
        assert len(cluster.usage.drafts) <= 3
        assert as_predicted(cluster, IDS)


async def test_nothing_is_accepted(cluster_of, answer):
    """Then a step yields a token as ever."""
    async with cluster_of() as cluster:
        draft = Scripted(answer, range(8))
        assert await generated(cluster, max_new_tokens=8, draft=draft, draft_tokens=3) == answer
        assert [step.accepted for step in cluster.usage.drafts] == [0] * 7
        assert cluster.usage.drafts[0] == Drafted(3, 0)
        assert cluster.usage.tokens_a_step == 1
        assert as_predicted(cluster, IDS)


async def test_all_is_accepted(cluster_of, answer):
    async with cluster_of() as cluster:
        draft = Scripted([*answer, 0, 0, 0])
        assert await generated(cluster, max_new_tokens=8, draft=draft, draft_tokens=3) == answer
        # No more is proposed than is wanted: the last step needs no proposal.
        assert cluster.usage.drafts == [Drafted(3, 3), Drafted(2, 2)]
        assert cluster.usage.tokens_a_step == 3.5
        assert cluster.usage.stop_reason == "length"
        await generated(cluster, max_new_tokens=1, draft=draft)
        assert cluster.usage.drafts == []
        await generated(cluster, max_new_tokens=2, draft=draft)
        assert cluster.usage.drafts == [Drafted(0, 0)]


async def test_ngrams_and_a_small_model(cluster_of, folder):
    async with cluster_of() as cluster:
        wanted = await generated(cluster, max_new_tokens=20)
        for draft in ("ngram", folder, str(folder)):
            assert await generated(cluster, max_new_tokens=20, draft=draft) == wanted
            assert cluster.usage.draft == str(draft)
            assert as_predicted(cluster, IDS)
        assert cluster.usage.tokens_a_step > 4  # it drafts for itself
        copied = [*IDS, *wanted, *IDS]
        again = await generated(cluster, copied, max_new_tokens=12)
        assert await generated(cluster, copied, max_new_tokens=12, draft="ngram") == again
        for none in (None, "none"):
            assert await generated(cluster, max_new_tokens=3, draft=none) == wanted[:3]
            assert cluster.usage.draft == "none"


async def test_where_an_answer_ends(cluster_of, answer):
    """At its end token, a stop string and the context, within a step as between two."""
    end = next(token for token in answer[2:] if token not in answer[:2])
    at = answer.index(end)
    async with cluster_of() as cluster:
        draft = Scripted(answer)
        found = await generated(cluster, max_new_tokens=8, eos_token_id=end, draft=draft)
        assert found == answer[: at + 1]
        assert cluster.usage.stop_reason == "end of text"
        assert sum(step.accepted for step in cluster.usage.drafts) <= at + 1
        found = await generated(
            cluster, max_new_tokens=8, eos_token_id=end, min_new_tokens=6, draft=draft
        )
        usual = await generated(cluster, max_new_tokens=8, eos_token_id=end, min_new_tokens=6)
        assert found == usual
        assert len(found) > 5

        words = cluster.tokenizer.decode(answer).split()
        stop = f"{words[2]} {words[3]}"
        text = await text_of(cluster, max_new_tokens=8, stop=(stop,), draft=draft)
        assert text == await text_of(cluster, max_new_tokens=8, stop=(stop,))
        assert cluster.usage.stop_reason == "stop string"

        limit = cluster.plan.config.max_positions
        ids = [i % 40 for i in range(limit - 5)]
        usual = await generated(cluster, ids, max_new_tokens=50)
        draft = Scripted([*usual, 1, 2, 3, 4])
        assert await generated(cluster, ids, max_new_tokens=50, draft=draft) == usual
        assert len(usual) == 6
        assert cluster.usage.stop_reason == "context"


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": (16, 25)},
        {"forced_eos_token_id": 0},
        {"temperature": 1.5, "seed": 4, "top_k": 9, "top_p": 0.9},
    ],
    ids=str,
)
async def test_settings_act_as_without_a_draft(cluster_of, options):
    """Also under sampling: a draft that is not drawn leaves the draws of a seed as they are."""
    async with cluster_of() as cluster:
        usual = await generated(cluster, max_new_tokens=9, **options)
        draft = Scripted(usual, {3})
        assert await generated(cluster, max_new_tokens=9, draft=draft, **options) == usual
        assert len(cluster.usage.drafts) < 5
        sampling = SamplingConfig(max_new_tokens=9, **options)
        assert await generated(cluster, sampling=sampling, draft=draft) == usual


async def test_a_request_that_is_left_early(cluster_of, answer):
    """The next one finds nothing of it."""
    async with cluster_of() as cluster:
        tokens = cluster.generate(PROMPT, max_new_tokens=8, draft=Scripted(answer))
        for _ in range(3):
            await anext(tokens)
        await tokens.aclose()
        assert cluster.usage.token_ids == answer[:3]
        assert cluster.usage.tokens_a_step == 2
        found = await generated(cluster, max_new_tokens=8, draft=Scripted(answer, {1}))
        assert found == answer


async def test_pipelines_take_drafts(cluster_of):
    async with cluster_of() as cluster:
        pipe = TextPipeline("text-generation", cluster)
        chosen = {"max_new_tokens": 8, "return_full_text": False}
        usual = await pipe([PROMPT, PROMPT], **chosen)
        answer = pipe.usage.token_ids[:8]
        assert await pipe([PROMPT, PROMPT], draft=Scripted(answer), **chosen) == usual
        assert pipe.usage.draft == "scripted"
        assert pipe.usage.tokens_a_step > 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"draft": 3}, "draft=3: give 'ngram'"),
        ({"draft": ""}, "draft=.*: give 'ngram'"),
        ({"draft": "ngram", "draft_tokens": 0}, "draft_tokens=0: give a whole number from 1 to 64"),
        ({"draft": "ngram", "draft_tokens": 65}, "draft_tokens=65: give a whole number"),
        ({"draft": "ngram", "draft_tokens": True}, "draft_tokens=True: give a whole number"),
        ({"draft_tokens": 4}, "draft_tokens=4 without a draft"),
        ({"prompt_lookup_num_tokens": 4}, "use draft='ngram'"),
        ({"assistant_model": "x"}, "or draft=PATH with a small model"),
        ({"drafts": "ngram"}, "did you mean 'draft'"),
    ],
    ids=str,
)
async def test_unusable_options_are_refused_before_anything_runs(cluster_of, options, reason):
    cluster = cluster_of()
    try:
        with pytest.raises(ConfigError, match=reason):
            await generated(cluster, **options)
    finally:
        await cluster.aclose()


async def test_a_request_says_what_memory_a_draft_takes(cluster_of, monkeypatch):
    """The parties count the rows of a step, and so does a client of one process."""
    from models.programs.memory import footprint

    async with cluster_of() as cluster:
        plan = cluster.plan
    needs = [
        footprint(plan.config, Batch((4,), "last"), steps, dealer=False, draft=draft).total
        for steps, draft in ((40, 0), (40, 16), (2, 16), (2, 0))
    ]
    assert needs[1] > needs[0] * 1.2
    assert needs[2] == needs[3]  # no room for a proposal
