"""What a model's `generation_config.json` does to requests on shares, and who hears of it."""

import json
import shutil

import pytest
import transformers
from conversation import IDS, PROMPT

from puma_actors.api.blocking import PrivateModel
from puma_actors.api.pipelines import pipeline


def saying(folder, tmp_path, **values):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps(values))
    return copy


def theirs(folder, new: int) -> list[int]:
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = model.generate(torch.tensor([IDS]), max_new_tokens=new, pad_token_id=0)
    return found[0, len(IDS) :].tolist()


def test_answers_equal_those_of_generate(folder, tmp_path, answer):
    said = {"repetition_penalty": 1.6, "suppress_tokens": [answer[0]], "forced_eos_token_id": 5}
    copy = saying(folder, tmp_path, **said)
    expected = theirs(copy, 6)
    assert expected != answer[:6]
    with PrivateModel.from_pretrained(copy) as model:
        model.generate(PROMPT, max_new_tokens=6)
        assert model.usage.token_ids == expected
        options = {"repetition_penalty": 1.0, "suppress_tokens": (), "forced_eos_token_id": None}
        model.generate(PROMPT, max_new_tokens=3, **options)
        assert model.usage.token_ids == answer[:3]


def test_the_command_line_says_what_the_model_said(puma, folder, tmp_path, answer):
    copy = saying(folder, tmp_path, do_sample=True, temperature=5.0, repetition_penalty=1.6)
    generate = ("generate", "-m", copy, "-p", PROMPT, "-n", "2")
    code, out, err = puma(*generate, "--temperature", "0", "--json")
    assert code == 0
    assert json.loads(out)["from_generation_config"] == {"repetition_penalty": 1.6}
    assert "note: the model's generation_config.json says repetition_penalty 1.6: options" in err
    code, out, err = puma(*generate, "--ignore-generation-config", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["token_ids"] == answer[:2]
    assert "from_generation_config" not in json.loads(out)
    code, out, err = puma(*generate, "--secret-logits")
    assert code == 2
    assert "(now: temperature, top_k, repetition_penalty; options not given come from" in err


@pytest.mark.parametrize(("named", "reason"), [(None, "length"), (5, "end of text")])
def test_the_tokenizers_end_token(folder, tmp_path, answer, named, reason):
    """It ends a text beside the model's own, but not that of a model which is said to have none."""
    copy = saying(folder, tmp_path, eos_token_id=named)
    vocab = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    end = next(word for word, number in vocab.items() if number == answer[1])
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": end}))
    assert answer[1] not in (5, answer[0])
    with PrivateModel.from_pretrained(copy) as model:
        model.generate(IDS, max_new_tokens=3)
        assert model.usage.stop_reason == reason


def test_what_is_not_supported_is_refused_before_anything_runs(puma, folder, tmp_path):
    copy = saying(folder, tmp_path, num_beams=4)
    code, out, err = puma("generate", "-m", copy, "-p", PROMPT)
    assert (code, out) == (2, "")
    assert "generation_config.json says num_beams: 4, which is not supported" in err
    assert "sharing" not in err


@pytest.mark.parametrize("do_sample", [None, False])
def test_pipelines_follow_the_model_too(folder, tmp_path, answer, do_sample):
    copy = saying(folder, tmp_path, do_sample=True, temperature=1e-4, top_k=1)
    with pipeline("text-generation", copy) as pipe:
        chat = [{"role": "user", "content": PROMPT}]
        found = pipe(chat, max_new_tokens=2, do_sample=do_sample, return_full_text=False)
        assert pipe.usage.token_ids == answer[:2]
        assert found[0]["generated_text"]
