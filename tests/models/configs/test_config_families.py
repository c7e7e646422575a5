"""Encoders, GPT-2 and Falcon: their `config.json`, their refusals, and every family on the wire."""

import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference import radians
from tiny_models import CASES, SETTINGS, config_json

from models.checkpoints import module_settings
from models.configs.reading import (
    ACTIVATIONS,
    BertConfig,
    Data2VecTextConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FalconConfig,
    GemmaConfig,
    Gpt2Config,
    GptNeoxConfig,
    GraniteConfig,
    ModelConfig,
    ModernBertConfig,
    MpnetConfig,
    OptConfig,
    Phi3Config,
    RobertaConfig,
    SmolLm3Config,
    config_from_public,
    supported_families,
)
from models.configs.reading import LlamaConfig as Llama
from protocols.errors import ModelError
from protocols.functions import activation_tables

CLASSES: dict[str, type[ModelConfig]] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": RobertaConfig,
    "camembert": RobertaConfig,
    "data2vec-text": Data2VecTextConfig,
    "mpnet": MpnetConfig,
    "electra": ElectraConfig,
    "distilbert": DistilBertConfig,
    "deberta-v2": DebertaV2Config,
    "modernbert": ModernBertConfig,
    "gpt2": Gpt2Config,
    "opt": OptConfig,
    "gpt_neox": GptNeoxConfig,
    "gemma": GemmaConfig,
    "gemma2": GemmaConfig,
    "gemma3_text": GemmaConfig,
    "phi3": Phi3Config,
    "granite": GraniteConfig,
    "smollm3": SmolLm3Config,
    "falcon": FalconConfig,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
}


def read(model_type: str, head: str = "none", **changes):
    return CLASSES[model_type].from_hf(config_json(model_type, head, **changes))


def test_encoders():
    config = read("bert", "masked-lm", layer_norm_eps=1e-6, hidden_act="gelu_new")
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (40, 16, 24)
    assert (config.num_layers, config.num_heads, config.head_dim) == (2, 4, 4)
    assert (config.max_positions, config.position_offset, config.type_vocab_size) == (20, 0, 2)
    assert (config.layer_norm_eps, config.hidden_act) == (1e-6, "gelu_new")
    assert (config.head, config.pooler, config.transform_act) == ("masked-lm", False, "gelu_new")
    assert read("bert", "sequence-classification").pooler
    roberta = read("roberta", "masked-lm", hidden_act="relu")
    assert (roberta.max_positions, roberta.position_offset) == (18, 2)
    assert (roberta.hidden_act, roberta.transform_act) == ("relu", "gelu")
    assert not read("roberta", "sequence-classification").pooler
    distil = read("distilbert", activation="relu")
    assert (distil.hidden_size, distil.intermediate_size, distil.num_heads) == (16, 24, 4)
    assert (distil.type_vocab_size, distil.layer_norm_eps, distil.hidden_act) == (0, 1e-12, "relu")


def test_roberta_positions_follow_the_padding_token():
    config = read("roberta", pad_token_id=5)
    assert (config.position_offset, config.max_positions) == (6, 14)
    assert config.tensors()["roberta.embeddings.position_embeddings.weight"] == (20, 16)


def test_gpt2():
    config = read("gpt2", "causal-lm", n_inner=None, activation_function="relu")
    assert (config.intermediate_size, config.hidden_act, config.max_positions) == (64, "relu", 20)
    assert (config.tie_embeddings, config.layer_norm_eps) == (True, 1e-5)
    assert config.attention_scale(3) == 0.5
    config = read("gpt2", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    assert config.attention_scale(3) == 0.125
    assert read("gpt2", scale_attn_weights=False).attention_scale(3) == 1.0


@pytest.mark.parametrize(
    ("changes", "kv_heads", "norms"),
    [
        ({}, 1, 1),
        ({"multi_query": False}, 4, 1),
        ({"multi_query": False, "parallel_attn": False}, 4, 0),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, 2),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 4, 1),
    ],
)
def test_falcon_layouts(changes, kv_heads, norms):
    config = read("falcon", "causal-lm", **changes)
    assert (config.num_kv_heads, config.parallel_norms) == (kv_heads, norms)
    assert config.intermediate_size == 64
    fused = config.tensors()["transformer.h.0.self_attention.query_key_value.weight"]
    assert fused == ((4 + 2 * kv_heads) * 4, 16)


def test_falcon_positions():
    assert radians(read("falcon").turns(3)) == pytest.approx([1.0, 0.01])
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert radians(read("falcon", rope_parameters=linear).turns(3)) == pytest.approx([0.5, 0.005])
    assert read("falcon", rope_parameters=linear, alibi=True).rope_scaling is None


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "gpt2", "falcon"])
def test_absent_keys_take_the_values_of_transformers(model_type):
    optional = {"max_position_embeddings", "n_positions", "n_inner"}
    given = {k: v for k, v in SETTINGS[model_type].items() if k not in optional}
    config = CLASSES[model_type].from_hf({"model_type": model_type, **given})
    reference = transformers.AutoConfig.for_model(model_type, **given)
    offset = reference.pad_token_id + 1 if model_type == "roberta" else 0
    assert config.max_positions == reference.max_position_embeddings - offset
    assert config.tie_embeddings == reference.tie_word_embeddings
    names = ("hidden_act", "activation", "activation_function")
    assert config.hidden_act == next(getattr(reference, n) for n in names if hasattr(reference, n))
    eps = getattr(reference, "layer_norm_eps", getattr(reference, "layer_norm_epsilon", 1e-12))
    assert config.layer_norm_eps == eps
    assert config.head == ("causal-lm" if model_type in ("gpt2", "falcon") else "none")


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("bert", {"is_causal": True}, "is_causal"),  # masks what follows, in transformers 5.24
        ("roberta", {"is_causal": True}, "is_causal"),
        ("distilbert", {"is_causal": True}, "is_causal"),
        ("gpt2", {"sliding_window": 3}, "sliding_window"),
        ("gpt2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("falcon", {"sliding_window": 3}, "sliding_window"),
        ("gpt2", {"per_layer_config": {"0": {"layer_norm_epsilon": 0.1}}}, "per_layer_config"),
        ("bert", {"per_layer_config": {"0": {"hidden_act": "relu"}}}, "per_layer_config"),
        ("bert", {"hidden_act": "gelu_10"}, "hidden_act: 'gelu_10'"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        ("bert", {"num_attention_heads": 3}, "num_heads 3 does not divide hidden_size 16"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size"),
        ("bert", {"architectures": ["JinaBertForMaskedLM"]}, "JinaBertForMaskedLM"),
        ("bert", {"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
        ("bert", {"architectures": ["BertForNextSentencePrediction"]}, "BertForMaskedLM"),
        ("roberta", {"position_embedding_type": "relative_key_query"}, "position_embedding_type"),
        ("roberta", {"pad_token_id": None}, "pad_token_id"),
        ("roberta", {"pad_token_id": 40}, "max_position_embeddings"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
        ("roberta", {"architectures": ["BertModel"]}, "RobertaModel"),
        ("distilbert", {"activation": "mish"}, "hidden_act: 'mish'"),
        ("distilbert", {"hidden_size": 32}, "contradicts itself"),
        ("distilbert", {"dim": None}, "lacks 'dim'"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "sigmoid"}, "hidden_act: 'sigmoid'"),
        ("gpt2", {"scale_attn_weights": "yes"}, "scale_attn_weights"),
        ("gpt2", {"n_head": 3}, "num_heads 3 does not divide hidden_size 16"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
        ("falcon", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads: 2"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads 3"),
        ("falcon", {"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "'ntk'"),
        ("falcon", {"activation": "prelu"}, "hidden_act: 'prelu'"),
        ("falcon", {"n_embed": 32}, "contradicts itself"),
    ],
)
def test_what_is_not_evaluated_faithfully_is_refused(model_type, changes, says):
    with pytest.raises(ModelError) as caught:
        read(model_type, **changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("bert", {"chunk_size_feed_forward": 4, "classifier_dropout": 0.3, "pruned_heads": {}}),
        ("bert", {"is_causal": False, "per_layer_config": None, "sliding_window": 3}),
        ("bert", {"embedding_size": 8, "layer_types": ["sliding_attention"] * 2}),
        ("distilbert", {"is_causal": False}),
        ("distilbert", {"sinusoidal_pos_embds": True, "seq_classif_dropout": 0.5}),
        ("gpt2", {"reorder_and_upcast_attn": True, "n_ctx": 1024, "summary_type": "mean"}),
        ("falcon", {"hidden_dropout": 0.4, "apply_residual_connection_post_layernorm": False}),
    ],
)
def test_settings_that_change_nothing(model_type, changes):
    assert read(model_type, **changes) == read(model_type)


# --- on the wire -------------------------------------------------------------------------------

LABELS = {"id2label": {"0": "no", "1": "yes"}, "problem_type": "single_label_classification"}
PUBLIC = [
    CLASSES[model_type].from_hf(config_json(model_type, head, **LABELS))
    for model_type, head in CASES
]


@pytest.mark.parametrize("config", PUBLIC, ids=["-".join(case) for case in CASES])
def test_public_round_trip_through_json(config):
    wire = json.loads(json.dumps(config.to_public()))
    assert config_from_public(wire) == config
    assert hash(config_from_public(wire)) == hash(config)
    other = next(name for name in supported_families() if name != config.family)
    with pytest.raises(ModelError):
        config_from_public({**wire, "family": other})


def test_three_tables_name_the_same_activations():
    functions = {*activation_tables.ACTIVATIONS} - {"swish"}
    assert {*ACTIVATIONS} == functions, "models/configs/architecture.py against activation_tables"
    classes = {*module_settings._CLASSES}
    assert classes == functions, "models/checkpoints/module_settings.py against activation_tables"


def test_every_family_is_covered():
    assert {config.family for config in PUBLIC} == set(supported_families())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(PUBLIC), st.data(), json_values, st.booleans())
def test_any_json_is_accepted_or_refused_cleanly(config, data, value, drop):
    public = config.to_public()
    key = data.draw(st.sampled_from(sorted(public)))
    changed = {**public, key: value}
    if drop:
        del changed[key]
    try:
        accepted = config_from_public(changed)
    except ModelError as error:
        assert len(str(error)) < 400
    else:
        assert config_from_public(accepted.to_public()) == accepted
        assert all(min(shape) >= 1 for shape in accepted.tensors().values())


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "pooler", 1),
        ("bert", "position_offset", -1),
        ("bert", "layer_norm_eps", 0.0),
        ("roberta", "position_offset", 3),
        ("roberta", "pad_token_id", None),
        ("distilbert", "type_vocab_size", 2),
        ("distilbert", "pooler", True),
        ("distilbert", "layer_norm_eps", 1e-5),
        ("gpt2", "scale_attn_weights", None),
        ("falcon", "parallel_norms", 2),
        ("falcon", "num_kv_heads", 2),
        ("falcon", "rope_scaling", {"kind": "linear"}),
        ("llama", "windows", [4]),
        ("llama", "windows", [4, 0]),
        ("llama", "windows", [4, "x"]),
        ("llama", "windows", 4),
        ("llama", "rope_scaling", {"kind": "yarn"}),
        ("llama", "qk_norm", None),
        ("llama", "head", "masked-lm"),
        ("bert", "head", "causal-lm"),
        ("bert", "head", []),
        ("bert", "num_labels", 1),
        ("bert", "labels", ["a"]),
        ("bert", "problem_type", "guess"),
        ("bert", "hidden_act", "swish"),
    ],
)
def test_a_peer_cannot_announce_nonsense(family, key, value):
    config = next(c for c in PUBLIC if c.family == family and c.head == "none")
    with pytest.raises(ModelError) as caught:
        config_from_public({**config.to_public(), key: value})
    assert len(str(caught.value)) < 400
