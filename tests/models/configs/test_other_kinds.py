"""Kinds of models that are not supported are named, with the reason, before weights are read."""

import json

import fake_hub
import pytest
import transformers

from models.checkpoints.weights import open_checkpoint
from models.configs.gguf import check_architecture
from models.configs.other_kinds import other_kind
from models.configs.reading import config_from_hf, supported_model_types
from protocols.errors import ModelError

KINDS = {
    "an encoder-decoder": "t5 mt5 umt5 bart mbart marian pegasus m2m_100 led blenderbot",
    "a model of speech": "whisper wav2vec2 hubert",
    "a mixture of experts": (
        "mixtral qwen2_moe qwen3_moe gpt_oss deepseek_v2 deepseek_v3 olmoe phimoe granitemoe dbrx"
    ),
    "a model of images and texts": "gemma3 llava paligemma qwen2_vl mllama idefics3 clip",
    "a state-space or recurrent model": "mamba mamba2 jamba falcon_mamba rwkv recurrent_gemma",
}
CASES = [(name, kind) for kind, names in KINDS.items() for name in names.split()]


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_each_is_refused_by_name(tmp_path, model_type, kind):
    config = transformers.CONFIG_MAPPING[model_type]()
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path)
    says = str(caught.value)
    assert says.startswith(f"model_type: '{model_type}' is {kind}")
    assert "supported: bert, camembert" in says
    assert "\n" not in says


def test_no_supported_type_is_called_another_kind():
    assert not [name for name in supported_model_types() if other_kind(name)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"model_type": "new_moe", "num_experts": 64}, "num_experts is 64, and mixtures"),
        ({"model_type": "new", "is_encoder_decoder": True}, "'new' is an encoder-decoder"),
        ({"model_type": "new", "vision_config": {}}, "'new' has vision_config"),
        ({"model_type": "new", "num_experts": 0}, "'new' is not supported"),
        ({"model_type": ["t5"]}, "is not supported"),
        ({}, "None is not supported"),
    ],
)
def test_an_unknown_type_is_judged_by_its_settings(data, says):
    with pytest.raises(ModelError) as caught:
        config_from_hf(data, None)
    assert says in str(caught.value)
    assert "supported: bert" in str(caught.value) or "are supported: bert" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3moe", "a mixture of experts"),
        ("gpt-oss", "a mixture of experts"),
        ("deepseek2", "a mixture of experts"),
        ("t5", "an encoder-decoder"),
        ("mamba", "a state-space"),
        ("qwen2vl", "a model of images"),
    ],
)
def test_architectures_of_gguf_files(name, kind):
    with pytest.raises(ModelError, match=f"'{name}' is {kind}.*supported in GGUF files: llama"):
        check_architecture(name)


@pytest.mark.parametrize("model_type", ["t5", "mixtral", "gemma3", "mamba"])
def test_on_the_hub_the_weights_are_not_fetched(tmp_path, monkeypatch, model_type):
    data = json.dumps({"model_type": model_type}).encode()
    with fake_hub.FakeHub(tmp_path / "hub") as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.add("lab/m", {"config.json": data, "model.safetensors": bytes(100)})
        with pytest.raises(ModelError, match=f"'{model_type}' is a.*weights were not fetched"):
            open_checkpoint("lab/m")
        assert "model.safetensors" not in hub.names()
