"""`generate` takes what transformers' users give it, and answers as transformers does."""

import json
import shutil

import anyio
import pytest
import torch
import transformers
from conversation import IDS, PROMPT

from models.tokens.sampling import SamplingConfig
from protocols.errors import ConfigError
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.pipelines import TextPipeline

CHAT = [{"role": "user", "content": PROMPT}]
RECOMMENDED = {"do_sample": True, "temperature": 3.0, "top_k": 20, "eos_token_id": 4}


@pytest.fixture(scope="module")
def copy(folder, tmp_path_factory):
    """A model that recommends sampling, with a template that takes a system prompt."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("chats") / "model")
    (copy / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    said = {"name": "default", "template": settings["chat_template"]}
    named = [said, {"name": "short", "template": "{{ messages[-1].content }}{{ more }}"}]
    changed = {**settings, "chat_template": named}
    (copy / "tokenizer_config.json").write_text(json.dumps(changed))
    return copy


@pytest.fixture(scope="module")
def model(copy):
    with PrivateModel.from_pretrained(copy) as model:
        yield model


@pytest.fixture(scope="module")
def theirs(copy):
    return transformers.AutoModelForCausalLM.from_pretrained(copy).eval()


GREEDY = [
    {"max_new_tokens": 3},
    {"max_length": len(IDS) + 2},
    {"max_length": 3, "max_new_tokens": 2},
    {"max_new_tokens": 3, "temperature": 0.5, "pad_token_id": 0, "num_return_sequences": 1},
    {"max_new_tokens": 3, "repetition_penalty": 1.6, "use_cache": True, "num_beams": 1},
]


@pytest.mark.parametrize("options", GREEDY)
def test_greedy_answers_equal_those_of_transformers(model, theirs, options):
    expected = theirs.generate(torch.tensor([IDS]), do_sample=False, **options)[0, len(IDS) :]
    model.generate(CHAT, do_sample=False, **options)
    assert model.usage.token_ids == expected.tolist()
    assert model.usage.prompt_ids == IDS


def test_a_generation_config_and_ends(model, theirs, answer):
    end = answer[2]
    for ends in (end, [end, 4], None):
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=4, eos_token_id=ends, pad_token_id=0
        )
        given = {"eos_token_id": ends} if ends is None else {}
        expected = theirs.generate(torch.tensor([IDS]), generation_config=config, **given)
        model.generate(CHAT, generation_config=config, **given)
        assert model.usage.token_ids == expected[0, len(IDS) :].tolist()
        assert model.usage.stop_reason == ("length" if ends is None else "end of text")


def test_sampling_is_that_of_the_settings(model):
    """Whoever names the settings: the model, or a call that samples."""
    model.generate(CHAT, max_new_tokens=3, seed=5)
    found = model.usage.token_ids
    for options in (
        {"do_sample": True},
        {"generation_config": {"do_sample": True, "top_k": 20}},
        {"temperature": 3.0},
    ):
        model.generate(CHAT, max_new_tokens=3, seed=5, **options)
        assert model.usage.token_ids == found
    sampling = SamplingConfig(max_new_tokens=3, seed=5, temperature=3.0, top_k=20)
    model.generate(CHAT, sampling)
    assert model.usage.token_ids == found


def test_every_kind_of_prompt(model, copy):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    batch = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    encode = model.cluster.encode
    for prompt in (PROMPT, CHAT, tuple(CHAT), IDS, batch["input_ids"], [IDS]):
        assert encode(prompt) == IDS
    long = [{"role": "system", "content": "the dog"}, *CHAT]
    expected = tokenizer.apply_chat_template(long, add_generation_prompt=True)["input_ids"]
    assert encode(long) == encode(PROMPT, system="the dog") == expected
    short = {"chat_template": "short"}
    assert encode(CHAT, **short) == encode(PROMPT, raw=True) == IDS[1:-1]
    said = encode(CHAT, template_args={"more": " dog"}, **short)
    assert said == encode(f"{PROMPT} dog", raw=True)


REFUSED = [
    ((), {}, "there is no prompt: give a text, a chat or token ids"),
    ((), {"input_ids": [IDS]}, "input_ids is not supported"),
    (([PROMPT],), {}, "a list of texts: give one text at a time"),
    (([CHAT, CHAT],), {}, "a list of chats: give one chat at a time"),
    (([IDS, IDS],), {}, "2 rows of ids: give one at a time"),
    (({"input_ids": [IDS]},), {}, "a dictionary: give its input_ids"),
    (({"role": "user", "content": "x"},), {}, "a dictionary: give a list of messages"),
    (([*CHAT, {"role": "assistant", "content": "x"}],), {}, "ends with the assistant's message"),
    ((CHAT,), {"raw": True}, "a chat needs the chat template"),
    ((PROMPT,), {"raw": True, "system": "the dog"}, "system is for the chat template, which raw"),
    ((PROMPT,), {"raw": True, "template_args": {}}, "template_args is for the chat template"),
    ((IDS,), {"system": "the dog"}, "system is for a text or a chat, and token ids were given"),
    ((PROMPT,), {"num_beams": 2}, "num_beams=2"),
    ((PROMPT,), {"eos_token_id": 10**6}, "eos_token_id=1000000 is not in the model's vocabulary"),
    ((PROMPT,), {"max_length": 7}, "max_length=7 counts the prompt, which has 7 tokens"),
    ((PROMPT, SamplingConfig()), {"do_sample": True}, "not both"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_refused_by_name(model, arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(*arguments, **options)


def test_pipelines_take_the_same_names(model, theirs):
    pipe = TextPipeline("text-generation", model.cluster, do_sample=False)

    def call(**options):
        async def run():
            return await pipe(CHAT, return_full_text=False, **options)

        return model.call(run)

    expected = theirs.generate(torch.tensor([IDS]), do_sample=False, max_length=len(IDS) + 2)
    call(max_length=len(IDS) + 2, pad_token_id=0, num_return_sequences=1)
    assert pipe.usage.token_ids == expected[0, len(IDS) :].tolist()
    with pytest.raises(ConfigError, match="num_return_sequences=2 is not supported"):
        call(num_return_sequences=2)
    with pytest.raises(ConfigError, match="did you mean 'max_length'"):
        anyio.run(lambda: pipe(CHAT, max_lenth=2))
