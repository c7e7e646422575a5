"""Settings of `generation_config.json`, against transformers' `generate` and its processors."""

import json

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.configs.generation import GenerationSettings, read_generation
from models.configs.reading import config_from_hf, config_from_public, load_config
from models.tokens.processors import softmax
from models.tokens.sampling import Sampler, SamplingConfig, filter_logits, settings_of_model
from protocols.errors import ConfigError, ModelError

VOCABULARY = 40
PROMPT = [3, 7, 12, 7, 30]
MANY = [1] * 70_000
IDS = st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        **{**tiny_models.SETTINGS["llama"], "initializer_range": 0.6, "max_position_embeddings": 64}
    )
    return transformers.LlamaForCausalLM(config).eval()


# -- whole generations -----------------------------------------------------------------------------

GREEDY = [
    {},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3},
    {"suppress_tokens": [21, 5, 99]},
    {"begin_suppress_tokens": [0, 1, 2, 5, 8, 13, 21, 34]},
    {"bad_words_ids": [[21], [4]]},
    {"bad_words_ids": [[7, 30], [30, 21], [12, 7, 30, 8]]},
    {"forced_eos_token_id": 4},
    {"forced_eos_token_id": [9, 4]},
    {"forced_bos_token_id": 9},
    {"min_new_tokens": 6},
    {"min_length": 9},
    {"exponential_decay_length_penalty": [2, 1.8]},
    {"sequence_bias": [[[21], -6.0], [[7, 30, 21], 4.0], [[30, 9], 3.5]]},
    {"temperature": 0.3, "top_k": 5, "top_p": 0.5},  # without do_sample: nothing
    {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[21]],
        "min_new_tokens": 4,
        "suppress_tokens": [8],
        "forced_eos_token_id": 9,
    },
    {"renormalize_logits": True, "remove_invalid_values": True, "repetition_penalty": 1.3},
]


def generated(model, config, prompt: list[int], new: int) -> list[int]:
    """What the client would choose, of logits that the model computes in the open."""
    options = {"max_new_tokens": new}
    sampling = SamplingConfig(**{**options, **settings_of_model(config.generation, options)})
    sampler = Sampler(sampling, prompt=len(prompt), ends=config.eos_token_ids)
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        ids.append(sampler.next(logits, ids))
        if ids[-1] in config.eos_token_ids:
            break
    return ids[len(prompt) :]


CASES = [(values, end) for values in GREEDY for end in (4, None)]
CASES += [({"min_new_tokens": 3, "bad_words_ids": [[4], [21]]}, [4, 21])]
# transformers itself fails where there is no end to make likelier.
CASES.remove(({"exponential_decay_length_penalty": [2, 1.8]}, None))


@pytest.mark.parametrize(("values", "end"), CASES)
def test_greedy_tokens_equal_generate(tmp_path, model, values, end):
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    said = {**values, "eos_token_id": end}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    text = json.loads((tmp_path / "config.json").read_text())
    text["eos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(text))
    config = load_config(tmp_path, head="causal-lm")
    model.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    for prompt in (PROMPT, [3]):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=9, do_sample=False, pad_token_id=1
        )
        found = generated(model, config, prompt, 9)
        assert found == expected[0, len(prompt) :].tolist()


# -- the chances of a draw -------------------------------------------------------------------------

DRAWS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.1, 4),
        "top_k": st.integers(1, 50),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 0.9),
        "typical_p": st.floats(0.05, 0.99),
        "epsilon_cutoff": st.floats(0.001, 0.5),
        "eta_cutoff": st.floats(0.001, 0.5),
        "repetition_penalty": st.floats(0.5, 2),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(IDS, min_size=1, max_size=2), min_size=1, max_size=4),
        "suppress_tokens": st.lists(IDS, min_size=1, max_size=5),
        "begin_suppress_tokens": st.lists(IDS, min_size=1, max_size=5),
        "min_new_tokens": st.integers(1, 6),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 3), st.floats(1.01, 2)),
    },
)


def reference(model, values, logits, ids, prompt: int) -> np.ndarray:
    config = transformers.GenerationConfig(**values, do_sample=True)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor([4, 9])
    config.max_length = prompt + 9
    steps = model._get_logits_processor(config, input_ids_seq_length=prompt, model_kwargs={})
    scores = steps(torch.tensor([ids]), torch.tensor(logits[None]))
    return torch.softmax(scores, -1)[0].numpy()


@settings(max_examples=120, deadline=None)
@given(
    values=DRAWS,
    ids=st.lists(IDS, min_size=1, max_size=10),
    prompt=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_chances_equal_those_of_transformers(model, values, ids, prompt, seed):
    logits = np.random.default_rng(seed).normal(0, 3, VOCABULARY)
    prompt = min(prompt, len(ids))
    said = read_generation(json.loads(json.dumps({**values, "do_sample": True})))
    chosen = SamplingConfig(max_new_tokens=9, **settings_of_model(said, {}))
    sampler = Sampler(chosen, prompt=prompt, ends=(4, 9))
    found = softmax(filter_logits(sampler._processed(logits, ids), chosen))
    expected = reference(model, values, logits, ids, prompt)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


# -- who says what ---------------------------------------------------------------------------------


def test_options_win_over_the_model():
    said = read_generation(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    )
    assert settings_of_model(said, {}) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": 1.1,
    }
    assert settings_of_model(said, {"top_p": 0.5, "top_k": 0}) == {
        "temperature": 0.6,
        "repetition_penalty": 1.1,
    }
    assert settings_of_model(said, {"temperature": 0.0}) == {"repetition_penalty": 1.1}
    assert settings_of_model(said, {"repetition_penalty": 1.0}, draw=False) == {}
    shy = read_generation({"temperature": 0.6, "stop_strings": "END"})
    assert settings_of_model(shy, {}) == {"stop": ("END",)}
    assert settings_of_model(shy, {"stop": ()}, draw=True) == {"temperature": 0.6, "top_k": 50}
    assert settings_of_model(None, {}) == {}
    assert settings_of_model(None, {}, draw=True) == {"temperature": 1.0, "top_k": 50}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_beams": 4}, "num_beams: 4"),
        ({"num_beams": 1, "penalty_alpha": 0.6}, "penalty_alpha: 0.6"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"num_return_sequences": 3}, "num_return_sequences: 3"),
        ({"bad_words_ids": {"a": 1}}, "bad_words_ids"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty: nan"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(values, says):
    said = read_generation(values)
    with pytest.raises(ConfigError, match=rf"{says}.*not supported.*--ignore-generation-config"):
        settings_of_model(said, {})


def test_what_does_nothing_is_no_reason_to_refuse():
    harmless = {"num_beams": 1, "use_cache": True, "transformers_version": "5", "pad_token_id": 1}
    assert read_generation({**harmless, "guidance_scale": None, "early_stopping": False}) is None
    assert settings_of_model(read_generation({"top_k": 50, "min_length": 0}), {}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "warm"),
        ("top_p", 1.5),
        ("suppress_tokens", [-1]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [4]),
        ("sequence_bias", [[[1], "a"]]),
        ("exponential_decay_length_penalty", [1]),
        ("forced_eos_token_id", "x"),
        ("min_length", 1.5),
    ],
)
def test_values_that_are_not_usable(name, value):
    said = read_generation({name: value, "do_sample": True})
    with pytest.raises(ConfigError, match=rf"{name}: .* is not usable; it must be"):
        SamplingConfig(**settings_of_model(said, {}))


def test_a_draw_among_nothing():
    everything = SamplingConfig(temperature=1.0, suppress_tokens=tuple(range(4)))
    with pytest.raises(ConfigError, match="rule out every token"):
        Sampler(everything).next(np.zeros(4), [1])


# -- in the published configuration ----------------------------------------------------------------


def test_published_with_the_architecture(tmp_path, model):
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, top_p=0.8, bad_words_ids=[[1, 2], [3]], num_beams=3
    )
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    config = load_config(tmp_path, head="causal-lm")
    assert config.generation == GenerationSettings(
        (("top_p", 0.8), ("do_sample", True), ("bad_words_ids", ((1, 2), (3,)))), ("num_beams: 3",)
    )
    assert config_from_public(json.loads(json.dumps(config.to_public()))) == config
    assert load_config(tmp_path, head="none").generation is None


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": []},
        {"generation": {"values": {}}},
        {"generation": {"values": {"num_beams": 2}, "refused": [], "endless": False}},
        {"generation": {"values": {"top_p": {}}, "refused": [], "endless": False}},
        {
            "generation": {
                "values": {"stop_strings": MANY},
                "refused": [],
                "endless": False,
            }
        },
        {"generation": {"values": {}, "refused": [1], "endless": False}},
        {"generation": {"values": {}, "refused": [], "endless": 1}},
        {"generation": {"values": {}, "refused": ["x"] * 99, "endless": False}},
    ],
)
def test_a_published_description_is_checked(tmp_path, model, changes):
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    public = load_config(tmp_path, head="causal-lm").to_public()
    with pytest.raises(ModelError, match="generation"):
        config_from_public({**public, **changes})


@pytest.mark.parametrize(
    ("ends", "generation", "endless"),
    [
        ({"eos_token_id": None}, {}, True),
        ({"eos_token_id": None}, {"eos_token_id": [5]}, False),
        ({"eos_token_id": 4}, {}, False),
        ({}, {}, False),
    ],
)
def test_a_model_that_is_said_to_have_no_end(tmp_path, model, ends, generation, endless):
    """transformers generates to the limit then, whatever the tokenizer calls its end token."""
    data = json.loads(model.config.to_json_string())
    del data["eos_token_id"]
    found = config_from_hf({**data, **ends}, generation, head="causal-lm").generation
    assert (found is not None and found.endless) == endless


def test_settings_of_the_time_before_generation_configs(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 1.2}))
    config = load_config(tmp_path, head="causal-lm")
    assert settings_of_model(config.generation, {}) == {"repetition_penalty": 1.2}
