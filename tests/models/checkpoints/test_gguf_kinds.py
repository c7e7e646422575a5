"""GGUF files of every storage type, architecture and pre-tokenizer that is read."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import metadata, tiny, write
from tokenizer_folders import TEXTS
from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from models.checkpoints.gguf_weights import LAYOUTS
from models.checkpoints.weights import open_checkpoint
from models.configs import gguf as gguf_configs
from models.configs.reading import load_config
from models.configs.rope import RopeScaling, rotary_turns
from models.files import gguf_reader
from models.files.gguf_reader import GgufFile
from models.tokens.gguf_splits import SPLITS
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ModelError

# -- storage types ---------------------------------------------------------------------------------


def blocks(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Two rows of 512 numbers: random bytes in which no float, however long, is large."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return rng.integers(0, 64, (2, 512 // block * size), dtype=np.uint8)


def by_hand(raw: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == Kind.F64:
        return raw.view(np.float64).astype(np.float32)
    if kind != Kind.Q8_K:
        return gguf.dequantize(raw, kind)
    parts = raw.reshape(2, 2, 292)
    rows = [[p[:4].copy().view(np.float32)[0] * p[4:260].view(np.int8) for p in r] for r in parts]
    return np.array(rows).reshape(2, 512).astype(np.float32)


def test_every_storage_type(tmp_path):
    """What the library dequantises, and two types that it does not."""
    theirs = [k for k in Kind if k in (Kind.F32, Kind.F16) or k in gguf.quants._type_traits]
    assert {*theirs, Kind.F64, Kind.Q8_K} == gguf_reader._SUPPORTED
    rng, raw = np.random.default_rng(1), {}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for kind in sorted(gguf_reader._SUPPORTED):
        raw[kind] = blocks(kind, rng)
        shape = (2, 512) if kind in (Kind.F32, Kind.F16, Kind.F64) else None
        stored = raw[kind] if shape is None else raw[kind].view(f"f{raw[kind].shape[1] // 512}")
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
    writer.add_tensor("whole numbers", np.ones((2, 4), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf")
    for kind, stored in raw.items():
        found = file.tensor(kind.name)
        assert found.shape == (2, 512)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert len(np.unique(found)) > 1
        np.testing.assert_array_equal(found, by_hand(stored, kind), kind.name)
    with pytest.raises(ModelError, match="whole numbers is stored as I32, which is not supported"):
        file.check("whole numbers")
    file.close()


# -- architectures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "architecture", "changes"),
    [
        ("llama", "llama", {}),
        ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", "llama", {"sliding_window": None}),
        ("mistral", "mistral", {"sliding_window": None}),
        ("qwen2", "qwen2", {}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("qwen3", "qwen3", {}),
    ],
)
def test_architectures_equal_the_same_model_as_safetensors(
    tmp_path, model_type, architecture, changes
):
    model = tiny(model_type, **changes)
    model.save_pretrained(tmp_path / "folder")
    if changes.get("tie_word_embeddings"):
        del model.lm_head
    write(tmp_path / "m.gguf", model, architecture)
    with (
        open_checkpoint(tmp_path / "m.gguf") as found,
        open_checkpoint(tmp_path / "folder") as expected,
    ):
        # Tokens are the tokenizer's, in a GGUF; the eps is stored as a float32.
        assert found.config.rms_norm_eps == pytest.approx(expected.config.rms_norm_eps)
        names = ("bos_token_id", "eos_token_ids", "pad_token_id", "rms_norm_eps")
        same = {**expected.config.to_public(), **dict.fromkeys(names)}
        assert {**found.config.to_public(), **dict.fromkeys(names)} == same
        assert found.names() == expected.names()
        for name in found.names():
            np.testing.assert_array_equal(found.tensor(name), expected.tensor(name), name)


def test_every_architecture_has_a_layout():
    assert set(LAYOUTS) == set(gguf_configs._READERS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attention.causal": False}, r"llama\.attention\.causal: False"),
        ({"rope.scaling.type": "linear"}, r"llama\.rope\.scaling\.factor: None"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "'yarn' is not supported"),
        ({"logit_scale": 2.0}, r"llama\.logit_scale: 2\.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_settings_that_change_the_function_are_refused(tmp_path, settings, says):
    write(tmp_path / "m.gguf", tiny("llama"), "llama", settings=settings)
    with pytest.raises(ModelError, match=says):
        load_config(tmp_path / "m.gguf")


# -- rotary frequencies ----------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_frequencies_of_llama_3_1(tmp_path):
    """As transformers computes them from the settings that a GGUF file no longer has."""
    model = tiny("llama", rope_parameters={**LLAMA3, "rope_theta": 500.0}, head_dim=16)
    plain = 1.0 / (500.0 ** (torch.arange(0, 16, 2) / 16))
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    assert factors.min() == pytest.approx(1)
    assert factors.max() == pytest.approx(8)
    path = tmp_path / "m.gguf"
    write(path, model, "llama", factors={"freqs": factors}, settings={"rope.freq_base": 500.0})
    config = load_config(path)
    found = config.turns(20).astype(np.float64) / 2**64 * 2 * np.pi
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq, rtol=1e-6)
    again = type(config).from_public(json.loads(json.dumps(config.to_public())))
    assert again == config
    with open_checkpoint(path) as checkpoint:
        assert "rope_freqs.weight" not in checkpoint.names()


def test_linear_scaling_and_neutral_frequencies(tmp_path):
    path = tmp_path / "m.gguf"
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    write(path, tiny("llama"), "llama", settings=linear)
    assert load_config(path).rope_scaling == RopeScaling(kind="linear", factor=4.0)
    write(path, tiny("llama"), "llama", factors={"freqs": [1, 1]})
    assert load_config(path).rope_scaling is None
    write(path, tiny("llama"), "llama", factors={"freqs": [1, 2, 3]})
    with pytest.raises(ModelError, match=r"3 numbers where 4 entries are rotated"):
        load_config(path)
    write(path, tiny("llama"), "llama", factors={"freqs": [1, 0]})
    with pytest.raises(ModelError, match=r"factors: 0\.0 is not a number from"):
        load_config(path)


def test_each_frequency_is_divided_by_its_factor():
    scaling = RopeScaling(
        kind="longrope", attention_factor=1.0, factors=(1.0, 2.0), original_max_positions=8
    )
    plain, found = rotary_turns(100.0, 4, None, 5), rotary_turns(100.0, 4, scaling, 5)
    assert found[0] == plain[0]
    assert abs(int(found[1]) * 2 - int(plain[1])) <= 2


# -- pre-tokenizers --------------------------------------------------------------------------------

SPLIT_TEXTS = [
    *TEXTS,
    "I'LL don't ABCdef 12345 a/b//c\n\n  x",
    "e\u0301a\u0308 ﬁ٣٤ ½²",
    "\u00a0x\r\n",
]


@pytest.mark.parametrize("name", sorted(SPLITS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()))
def test_splits_equal_transformers(name):
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ours = SPLITS[name].pre_tokenizer(prefix=False)
    for text in SPLIT_TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), text


def test_all_of_transformers_kinds_are_known():
    assert GGUF_PRE_TOKENIZER_SPLITS.keys() <= SPLITS.keys()


def test_begin_and_end_tokens():
    plain = Tokenizer.from_gguf(metadata()).encode("hello world")
    assert Tokenizer.from_gguf(metadata(pre="tekken")).encode("hello world") == [0, *plain]
    both = Tokenizer.from_gguf(metadata(add_bos_token=True, add_eos_token=True))
    assert both.encode("hello world") == [0, *plain, 2]
    with pytest.raises(ModelError, match=r"eos_token_id is missing though it is wanted"):
        Tokenizer.from_gguf(metadata(add_eos_token=True, eos_token_id=None))


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_missing_kind_is_warned_about(pre):
    found = Tokenizer.from_gguf(metadata(pre=pre))
    assert "does not name its pre-tokenizer" in found.warning
    assert Tokenizer.from_files(found.to_files()).warning == found.warning
    assert found.encode("hello 123") == Tokenizer.from_gguf(metadata(pre="gpt-2")).encode(
        "hello 123"
    )
    assert Tokenizer.from_gguf(metadata()).warning is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre: 'superbpe' is not supported"):
        Tokenizer.from_gguf(metadata(pre="superbpe"))
