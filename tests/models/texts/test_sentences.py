"""Folders of sentence-transformers: what they say about pooling is done, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_models import save, tiny_model
from tiny_texts import TEXTS, save_wordpiece

from models.texts.sentences import SentenceSettings, sentence_settings
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


def test_texts_are_cut_where_the_model_says_so(plain, tmp_path):
    folder = describe(plain, tmp_path / "cut", limits={"max_seq_length": 5, "do_lower_case": True})
    found = embedded(folder, [TEXTS[0], "the cat sat"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    pipe = local_pipeline("sentence-embedding", folder, truncation=False)
    with pytest.raises(ConfigError, match="10 tokens do not fit the limit of 5"):
        pipe.check(TEXTS[0])
    pipe.requests.checkpoint.close()
    pipe = local_pipeline("sentence-embedding", plain)
    with pytest.raises(ConfigError, match="do not fit the limit of 20"):
        pipe.check("cat " * 19)
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
    ({"pooling": {"pooling_mode_lasttoken": True}}, "pooling 'lasttoken' is not supported"),
    (
        {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
        r"pooling 'cls \+ mean'",
    ),
    ({"pooling": {}}, "pooling 'none'"),
    ({"parts": ("Transformer", "Pooling", "Dense")}, "part 2, Dense, is not supported"),
    ({"parts": ("CLIPModel",)}, "part 0, CLIPModel"),
    ({"parts": ("Transformer",)}, "names no Pooling"),
    ({"limits": {"max_seq_length": 0}}, "max_seq_length: 0"),
    (
        {
            "prompts": {"prompts": {"q": "dog "}, "default_prompt_name": "q"},
            "pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        },
        "include_prompt",
    ),
    ({"prompts": {"default_prompt_name": "q"}}, "'q' is none of the prompts"),
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
