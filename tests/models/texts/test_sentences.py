"""Folders of sentence-transformers: their pooling is applied, or refused by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tiny_models import save, tiny_model
from tiny_texts import TEXTS, save_wordpiece

from models.checkpoints.weights import open_checkpoint
from models.configs.tasks.sentences import SentenceSettings, sentence_settings
from models.programs.plan import Plan, draft_plan
from protocols.drivers.ops import Ranges
from protocols.errors import ConfigError, ModelError
from puma_actors.api.pipelines import local_pipeline, pipeline

PREFIX = "sentence_transformers.models."


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return save_wordpiece(save(tiny_model("bert", "none"), folder))


def describe(
    plain,
    folder,
    *,
    parts=("Transformer", "Pooling", "Normalize"),
    pooling=None,
    limits=None,
    prompts=None,
):
    """A copy with the files that sentence-transformers adds."""
    shutil.copytree(plain, folder)
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": places.get(part, "3_Other"), "type": PREFIX + part}
        for i, part in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if limits is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def hidden_states(folder, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()


def unit(vector):
    return vector / np.linalg.norm(vector)


def embedded(folder, texts, **options):
    with pipeline("sentence-embedding", folder, **options) as pipe:
        return pipe(texts)


def test_the_mean_with_and_without_its_length(plain, tmp_path):
    states = hidden_states(plain, TEXTS[0])
    found = embedded(plain, TEXTS[0])
    assert found.shape == (16,)
    np.testing.assert_allclose(found, unit(states.mean(0)), atol=2e-3)
    bare = describe(plain, tmp_path / "bare", parts=("Transformer", "Pooling"))
    assert sentence_settings(bare) == SentenceSettings(normalize=False)
    np.testing.assert_allclose(embedded(bare, TEXTS[0]), states.mean(0), atol=2e-3)
    scaled = embedded(bare, TEXTS, normalize=True)
    assert scaled.shape == (3, 16)
    np.testing.assert_allclose(scaled[0], found, atol=1e-3)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls", "include_prompt": True}]
)
def test_the_first_token(plain, tmp_path, pooling):
    folder = describe(plain, tmp_path / "cls", pooling=pooling)
    assert sentence_settings(folder).pooling == "first"
    expected = unit(hidden_states(plain, TEXTS[0])[0])
    np.testing.assert_allclose(embedded(folder, TEXTS[0]), expected, atol=2e-3)


def test_the_last_token(plain, tmp_path):
    """As of Qwen3-Embedding and e5-mistral."""
    folder = describe(plain, tmp_path / "last", pooling={"pooling_mode_lasttoken": True})
    assert sentence_settings(folder).pooling == "last"
    expected = unit(hidden_states(plain, TEXTS[0])[-1])
    np.testing.assert_allclose(embedded(folder, TEXTS[0]), expected, atol=2e-3)


def test_texts_are_cut_where_the_model_says_so(plain, tmp_path, logs):
    folder = describe(plain, tmp_path / "cut", limits={"max_seq_length": 5, "do_lower_case": True})
    found = embedded(folder, [TEXTS[0], "the cat sat"])
    assert "the limit of 5 tokens are cut, 1 of 2; tokens left out: 5, at" in logs.getvalue()
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    with pipeline("sentence-embedding", folder, truncation=True) as pipe:
        np.testing.assert_allclose(pipe(TEXTS[0]), found[0], atol=1e-3)
        assert pipe.usage.dropped_tokens == [5]
    pipe = local_pipeline("sentence-embedding", folder, truncation=False)
    assert pipe.check(TEXTS[0]) == ""
    with pytest.raises(ConfigError, match="21 tokens do not fit the limit of 20"):
        pipe.check("cat " * 19)
    pipe.requests.checkpoint.close()


@pytest.mark.parametrize("named", [True, False])
def test_texts_are_cut_to_the_tokenizers_limit_or_the_positions(plain, tmp_path, named):
    """As sentence-transformers does where max_seq_length is not given."""
    folder = shutil.copytree(plain, tmp_path / "copy")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 8 if named else 10**30
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pipe = local_pipeline("sentence-embedding", folder)
    limit = 8 if named else 20
    note = f"text of 23 tokens is cut to the limit of {limit}, which leaves out {23 - limit};"
    assert note in pipe.check("cat " * 21)
    pipe.requests.checkpoint.close()


def test_a_prompt_stands_before_every_text(plain, tmp_path):
    prompts = {"prompts": {"query": "dog "}, "default_prompt_name": "query"}
    folder = describe(plain, tmp_path / "prompt", prompts=prompts)
    expected = unit(hidden_states(plain, f"dog {TEXTS[1]}").mean(0))
    np.testing.assert_allclose(embedded(folder, TEXTS[1]), expected, atol=2e-3)
    unnamed = {**prompts, "default_prompt_name": None}
    assert sentence_settings(describe(plain, tmp_path / "none", prompts=unnamed)).prompt == ""


BAD = [
    ({"pooling": {"pooling_mode_max_tokens": True}}, "pooling 'max' is not supported"),
    ({"pooling": {"pooling_mode_weightedmean_tokens": True}}, "pooling 'weightedmean' is not"),
    (
        {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
        r"pooling 'cls \+ mean'",
    ),
    ({"pooling": {}}, "pooling 'none'"),
    ({"parts": ("Transformer", "Pooling", "LSTM")}, "part 2, LSTM, is not supported"),
    ({"parts": ("CLIPModel",)}, "part 0, CLIPModel"),
    ({"parts": ("Transformer",)}, "has no Pooling"),
    ({"limits": {"max_seq_length": 0}}, "max_seq_length: 0"),
    (
        {
            "prompts": {"prompts": {"q": "dog "}, "default_prompt_name": "q"},
            "pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        },
        "include_prompt",
    ),
    ({"prompts": {"default_prompt_name": "q"}}, "'q' is not one of the prompts"),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_what_is_not_supported_is_named(plain, tmp_path, changes, says):
    with pytest.raises(ModelError, match=says):
        local_pipeline("sentence-embedding", describe(plain, tmp_path / "bad", **changes))


def test_damaged_descriptions(plain, tmp_path):
    folder = describe(plain, tmp_path / "bad")
    for text in ("{", "[5]", '[{"path": ""}]'):
        (folder / "modules.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read as a list of modules"):
            sentence_settings(folder)
    (folder / "modules.json").write_text('[{"type": "x.Transformer", "path": "../elsewhere"}]')
    with pytest.raises(ModelError, match="not the name of a folder beside it"):
        sentence_settings(folder)


def test_a_transformer_in_a_folder_of_its_own(plain, tmp_path):
    folder = tmp_path / "old"
    described = describe(plain, tmp_path / "made")
    shutil.copytree(plain, folder / "0_Transformer")
    shutil.copytree(described / "1_Pooling", folder / "1_Pooling")
    modules = json.loads((described / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    expected = unit(hidden_states(plain, TEXTS[1]).mean(0))
    np.testing.assert_allclose(embedded(folder, TEXTS[1]), expected, atol=2e-3)


SETTINGS = SentenceSettings("first", False, 5, True, "query: ", "")


def test_settings_travel_in_the_plan(plain, tmp_path):
    folder = describe(plain, tmp_path / "cls", pooling={"pooling_mode_cls_token": True})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.sentences == SentenceSettings("first")
        draft = draft_plan(checkpoint.config)
    for settings in (None, SETTINGS, SentenceSettings(refusal="no")):
        plan = replace(draft, ranges=Ranges({}, {}), sentences=settings)
        sent = json.loads(json.dumps(plan.to_public()))
        assert Plan.from_public(sent) == plan
        assert ("sentences" in sent) == (settings is not None)
        assert settings is None or plan.digest() != replace(plan, sentences=None).digest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pooling", "max"),
        ("pooling", 1),
        ("normalize", 1),
        ("max_length", 0),
        ("max_length", "5"),
        ("lower", "no"),
        ("prompt", None),
        ("prompt", "x" * 20_000),
        ("refusal", 3),
        ("unknown", 1),
    ],
)
def test_settings_of_a_peer_are_checked(name, value):
    with pytest.raises(ModelError, match="sentences: "):
        SentenceSettings.from_public({**SETTINGS.to_public(), name: value})


def test_settings_of_a_peer_are_a_mapping():
    with pytest.raises(ModelError, match="sentences: must have"):
        SentenceSettings.from_public([1])


def test_other_heads_have_no_use_for_them(tmp_path):
    folder = save_wordpiece(save(tiny_model("bert", "sequence-classification"), tmp_path / "made"))
    described = describe(folder, tmp_path / "described")
    with open_checkpoint(described) as checkpoint:
        assert checkpoint.sentences is None
    with open_checkpoint(described, head="none") as checkpoint:
        assert checkpoint.sentences == SentenceSettings()
