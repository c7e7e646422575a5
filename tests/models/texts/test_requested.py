"""The names of transformers' `generate`: what each means here, or how it is refused."""

import inspect

import pytest
import transformers
from transformers import GenerationConfig

from models.configs.generation import read_generation
from models.texts.requested import OPTIONS, read_options
from models.tokens.sampling import SamplingConfig
from protocols.errors import ConfigError


def chosen(said=None, prompt=3, **options) -> SamplingConfig:
    return read_options(options).sampling(read_generation(said or {}), prompt)


def test_every_name_of_transformers_is_known():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    call = inspect.signature(transformers.GenerationMixin.generate).parameters
    assert known | (call.keys() - {"self", "kwargs"}) <= OPTIONS


SUPPORTED = [
    ({}, {}),
    ({"do_sample": False}, {}),
    ({"do_sample": None}, {}),
    ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
    ({"do_sample": True, "top_k": None}, {"temperature": 1.0}),
    ({"do_sample": True, "top_k": 0, "temperature": 0.5}, {"temperature": 0.5}),
    ({"do_sample": False, "temperature": 0.5, "top_p": 0.9}, {"top_p": 0.9}),
    ({"temperature": 0.5}, {"temperature": 0.5}),
    ({"temperature": None}, {}),
    ({"max_length": 10}, {"max_new_tokens": 7}),
    ({"max_length": 2, "max_new_tokens": 5}, {"max_new_tokens": 5}),
    ({"max_length": 10, "max_new_tokens": None}, {"max_new_tokens": 7}),
    ({"max_new_tokens": None}, {}),
    ({"stop_strings": "x"}, {"stop": ("x",)}),
    ({"stop_strings": ["x", "yz"]}, {"stop": ("x", "yz")}),
    ({"stop_strings": None, "stop": ("x",)}, {"stop": ("x",)}),
    ({"sequence_bias": {(1, 2): 3.0}}, {"sequence_bias": (((1, 2), 3.0),)}),
    ({"repetition_penalty": None}, {}),
    ({"num_return_sequences": 1, "num_beams": 1, "pad_token_id": 0, "use_cache": True}, {}),
    ({"streamer": None, "output_scores": False, "logits_processor": []}, {}),
    ({"generation_config": None}, {}),
    ({"generation_config": {"max_length": 9, "top_p": None}}, {"max_new_tokens": 6}),
    (
        {"generation_config": GenerationConfig(max_new_tokens=4, repetition_penalty=1.2)},
        {"max_new_tokens": 4, "repetition_penalty": 1.2},
    ),
    (
        {"generation_config": GenerationConfig(do_sample=True, top_k=7), "top_k": 9},
        {"temperature": 1.0, "top_k": 9},
    ),
]


@pytest.mark.parametrize(("options", "expected"), SUPPORTED)
def test_supported(options, expected):
    assert chosen(**options) == SamplingConfig(**expected)


RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        ({"do_sample": False}, {}),
        ({"do_sample": True}, {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        ({"temperature": None}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}),
        ({"top_p": None}, {"temperature": 0.6, "top_k": 50}),
        ({"generation_config": GenerationConfig(do_sample=False)}, {}),
    ],
)
def test_beside_what_the_model_recommends(options, expected):
    """As transformers fills in what a call leaves open."""
    expected = SamplingConfig(**{"repetition_penalty": 1.1, **expected})
    assert chosen(RECOMMENDED, **options) == expected


def test_a_call_undoes_what_the_model_says_and_is_not_supported():
    with pytest.raises(ConfigError, match="says num_beams: 4"):
        chosen({"num_beams": 4})
    assert chosen({"num_beams": 4}, num_beams=1) == SamplingConfig()
    with pytest.raises(ConfigError, match="says penalty_alpha"):
        chosen({"num_beams": 4, "penalty_alpha": 0.5}, num_beams=1)


def test_ends():
    assert read_options({}).ends is None
    assert read_options({"eos_token_id": None}).ends == ()
    assert read_options({"eos_token_id": 3}).ends == (3,)
    assert read_options({"eos_token_id": [3, 4]}).ends == (3, 4)
    assert read_options({"generation_config": {"eos_token_id": 5}}).ends == (5,)


REFUSED = [
    ({"num_beams": 4}, "num_beams=4 is not supported by generate: one answer is decoded, without"),
    ({"num_return_sequences": 2}, "num_return_sequences=2 .* call generate once for each answer"),
    ({"num_return_sequences": True}, "num_return_sequences=True"),
    ({"assistant_model": object()}, "assistant_model is not supported .* or draft=PATH"),
    ({"prompt_lookup_num_tokens": 3}, "use draft='ngram'"),
    ({"streamer": object()}, r"streamer is not supported .* use stream\(...\) of a PrivateModel"),
    ({"stopping_criteria": [object()]}, "stopping_criteria .* use stop="),
    ({"logits_processor": [object()]}, "logits_processor .* repetition_penalty"),
    ({"output_scores": True}, "output_scores=True .* `forward` gives logits"),
    ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ({"input_ids": [[1]]}, "input_ids .* as the first argument"),
    ({"attention_mask": [[1]]}, "attention_mask .* nothing is padded"),
    ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
    ({"max_time": 3.0}, "max_time=3.0 .* stream the answer"),
    ({"tokenizer": object()}, "tokenizer is not supported .* the model's own tokenizer is used"),
    ({"temprature": 1.0}, "no option 'temprature': did you mean 'temperature'"),
    ({"do_sampling": True}, "did you mean 'do_sample'"),
    ({"num_beam": 2}, "did you mean 'num_beams'"),
    ({"qqq": 1}, "no option 'qqq': It has bad_words_ids"),
    ({"do_sample": 1}, "do_sample=1: give True or False"),
    ({"do_sample": True, "temperature": 0}, "do_sample=True with temperature=0"),
    ({"do_sample": False, "temperature": "hot"}, "temperature: 'hot' is not usable"),
    ({"max_length": 3}, "max_length=3 counts the prompt, which has 3 tokens: give more, or use"),
    ({"max_length": 0}, "max_length=0: give a whole number >= 1"),
    ({"max_length": True}, "max_length=True"),
    ({"eos_token_id": "</s>"}, "eos_token_id='</s>': give a token id or a list"),
    ({"eos_token_id": []}, "eos_token_id"),
    ({"eos_token_id": -1}, "eos_token_id=-1: .* or None for no end"),
    ({"eos_token_id": True}, "eos_token_id=True"),
    ({"stop": ("x",), "stop_strings": "y"}, "stop and stop_strings are the same"),
    ({"generation_config": 7}, "generation_config is int: give a GenerationConfig"),
    ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2"),
    ({"generation_config": {"temprature": 1}}, "did you mean 'temperature'"),
    ({"top_p": 2.0}, "top_p: 2.0 is not usable"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        chosen(**options)
