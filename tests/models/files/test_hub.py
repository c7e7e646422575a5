"""Models by their names on the hub: judged before they are fetched, and then one set of weights."""

import itertools
import json
import shutil

import fake_hub
import pytest
import transformers
from dense_folders import IDENTITY, TANH, add_dense
from tiny_models import assert_same_weights, config_json, quantisable_llama, save, state, tiny_model
from tiny_texts import save_byte_level

from models.checkpoints.hub import resolve_model
from models.checkpoints.weights import open_checkpoint
from protocols.errors import ModelError
from puma_actors.api.pipelines import pipeline

BIG = bytes(300_000)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with fake_hub.FakeHub(tmp_path / "hub") as running:
        running.use(monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture
def lab(hub):
    """A model beside what its folder often holds as well."""
    folder = hub.add("lab/m", dict.fromkeys(EXTRA, BIG))
    save(tiny_model("llama", "causal-lm"), folder)
    save_byte_level(folder)
    return folder


EXTRA = (
    "consolidated.safetensors",
    "pytorch_model.bin",
    "tf_model.h5",
    "model.fp16.safetensors",
    "onnx/model.onnx",
    "onnx/config.json",
    "original/params.json",
    "original/consolidated.00.pth",
    "openvino/openvino_model.xml",
    "trainer_state.json",
    "pytorch_model.bin.index.json",
    "modeling_own.py",
    "README.md",
)


def configured(model_type: str, head: str = "none", **changes: object) -> bytes:
    return json.dumps(config_json(model_type, head, **changes)).encode()


def test_one_set_of_weights_is_fetched_after_the_settings(hub, lab):
    told = []
    with open_checkpoint("lab/m", progress=lambda *phase: told.append(phase)) as checkpoint:
        assert checkpoint.config.num_layers == 2
    names = hub.names()
    assert names[0] == "config.json"
    assert names[-1] == "model.safetensors"
    assert set(names) == {file.name for file in lab.iterdir() if file.is_file()} - set(EXTRA)
    assert told[-1] == ("fetching model.safetensors", 1.0)
    assert all(before[1] <= after[1] for before, after in itertools.pairwise(told))
    hub.fetched.clear()
    open_checkpoint("lab/m").close()
    assert hub.fetched == []  # the cache has it


def test_sizes_may_be_in_another_list(hub, lab):
    hub.listed_sizes = False
    open_checkpoint("https://huggingface.co/lab/m").close()
    assert not set(hub.names()) & set(EXTRA)


UNNAMED = {"model-00009-of-00009.safetensors", "extra.safetensors"}


def test_shards_are_those_of_the_index(hub):
    model = quantisable_llama()
    folder = hub.add("lab/large", dict.fromkeys(UNNAMED, BIG))
    model.save_pretrained(folder, max_shard_size="1MB")
    with open_checkpoint("lab/large") as checkpoint:
        assert_same_weights(checkpoint, state(model))
    assert not UNNAMED & set(hub.names())
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json names .* is missing"):
        open_checkpoint("lab/large")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b'{"model_type": "no_such"}'}, r"model_type: 'no_such'"),
        ({"config.json": configured("llama", hidden_act="mish")}, "hidden_act: 'mish'"),
        ({"config.json": configured("bert", is_decoder=True)}, "is_decoder"),
        ({"config.json": b"[]"}, "not a JSON object"),
        ({}, r"no config\.json"),
    ],
)
def test_what_is_not_supported_is_refused_before_its_weights(hub, files, says):
    hub.add("lab/no", {"model.safetensors": BIG, "tokenizer.json": BIG, **files})
    with pytest.raises(ModelError, match=says):
        open_checkpoint("lab/no")
    assert set(hub.names()) <= {"config.json"}


def test_a_pipeline_judges_before_the_weights(hub):
    hub.add("lab/b", {"model.safetensors": BIG, "config.json": configured("bert", "masked-lm")})
    with pytest.raises(ModelError, match=r"lab/b.*needs a model with head 'sequence-class"):
        pipeline("text-classification", "lab/b")
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_P", "type": "x.LSTM"}]
    hub.add("lab/b", {"modules.json": json.dumps(modules).encode()})
    with pytest.raises(ModelError, match="LSTM"):
        pipeline("sentence-embedding", "lab/b")
    assert "model.safetensors" not in hub.names()


def test_dense_modules_are_fetched_and_judged_before_the_weights(hub, tmp_path):
    plain = save(tiny_model("bert", "none"), tmp_path / "plain")
    made = add_dense(plain, tmp_path / "made", [(8, True, TANH), (4, False, IDENTITY)])
    shutil.copytree(made, hub.add("lab/d", {"2_Dense/pytorch_model.bin": BIG}), dirs_exist_ok=True)
    with open_checkpoint("lab/d") as checkpoint:
        assert checkpoint.config.dense.columns == 4
    names = hub.names()
    assert names[-1] == "model.safetensors"
    assert {"2_Dense/model.safetensors", "3_Dense/model.safetensors"} < set(names)
    assert "2_Dense/pytorch_model.bin" not in names

    pickled = shutil.copytree(
        made, hub.add("lab/p", {"model.safetensors": BIG}), dirs_exist_ok=True
    )
    weights = pickled / "3_Dense/model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    hub.fetched.clear()
    with pytest.raises(ModelError, match=r"3_Dense has no model\.safetensors.*`puma convert NAME"):
        pipeline("sentence-embedding", "lab/p")
    assert "model.safetensors" not in hub.names()


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_a_folder_of_sentence_transformers(hub, place):
    folder = hub.add("lab/s", {"onnx/model.onnx": BIG, "1_Pooling/config.json": b"{}"})
    kinds = [(place, "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{k}"} for path, k in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    save(tiny_model("bert", "none"), folder / place)
    found = resolve_model("lab/s", head="none")
    open_checkpoint(found / place, head="none").close()
    assert (found / "1_Pooling/config.json").is_file()
    assert "onnx/model.onnx" not in hub.names()
    modules[0]["path"] = "../.."
    (folder / "modules.json").write_text(json.dumps(modules))
    hub.fetched.clear()
    with pytest.raises(ModelError):
        resolve_model("lab/s")
    assert not any(name.endswith("safetensors") for name in hub.names())


# -- GGUF ------------------------------------------------------------------------------------------

UD = "UD-IQ4_XS/m-UD-IQ4_XS.gguf"
QUANTS = (
    "m-Q2_K.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K.gguf",
    "m.q8_0.gguf",
    "UD-IQ4_XS/m-UD-IQ4_XS.gguf",
)


@pytest.fixture
def quants(hub):
    hub.add("lab/g", {name: BIG + name.encode() for name in QUANTS})
    hub.add("lab/g", {"mmproj-m-f16.gguf": BIG, "imatrix.dat": BIG, "config.json": b"{}"})
    return hub


def test_several_ggufs_are_listed_with_their_sizes(quants):
    with pytest.raises(ModelError, match=r"5 GGUF files; nothing was fetched") as caught:
        resolve_model("lab/g")
    assert all(f"{name} (300.0 kB)" in str(caught.value) for name in QUANTS)
    assert "mmproj" not in str(caught.value)
    assert quants.fetched == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lab/g:Q4_K_M", "m-Q4_K_M.gguf"),
        ("lab/g:q4_k", "m-Q4_K.gguf"),
        ("hf.co/lab/g:Q8_0", "m.q8_0.gguf"),
        ("lab/g:IQ4_XS", "UD-IQ4_XS/m-UD-IQ4_XS.gguf"),
        ("lab/g:m-Q2_K.gguf", "m-Q2_K.gguf"),
        ("lab/g/m-Q2_K.gguf", "m-Q2_K.gguf"),
        ("lab/g/UD-IQ4_XS/m-UD-IQ4_XS.gguf", "UD-IQ4_XS/m-UD-IQ4_XS.gguf"),
    ],
)
def test_one_gguf_is_named(quants, name, file):
    found = resolve_model(name)
    assert found.read_bytes() == BIG + file.encode()
    assert quants.names() == [file]


@pytest.mark.parametrize("name", ["lab/g:Q5_K_M", "lab/g/m-Q5.gguf", "lab/g:Q4"])
def test_no_such_gguf(quants, name):
    with pytest.raises(ModelError, match=r"m-Q4_K_M\.gguf \(300"):
        resolve_model(name)
    assert quants.fetched == []


def test_a_split_gguf(hub):
    hub.add("lab/p", {f"Q8/m-Q8_0-0000{i}-of-00002.gguf": BIG for i in (1, 2)})
    for name in ("lab/p", "lab/p:Q8_0", "lab/p/Q8/m-Q8_0-00002-of-00002.gguf"):
        with pytest.raises(ModelError, match="llama-gguf-split --merge"):
            resolve_model(name)
    assert hub.fetched == []


def test_a_gguf_whose_architecture_the_hub_tells(hub):
    hub.add("lab/q", {"m.gguf": BIG})
    hub.facts["lab/q"] = {"gguf": {"architecture": "rwkv7"}}
    with pytest.raises(ModelError, match="'rwkv7' is a state-space or recurrent model"):
        resolve_model("lab/q")
    hub.facts["lab/q"] = {"gguf": {"architecture": "llama"}}
    assert resolve_model("lab/q").name == "m.gguf"


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "m.pth"])
def test_pickles_alone_are_told_as_such(hub, name):
    hub.add("lab/p", {name: BIG, "config.json": configured("bert"), "vocab.txt": b"a"})
    for given in ("lab/p", f"lab/p/{name}"):
        with pytest.raises(ModelError, match=r"pickled weights only \(.*puma convert lab/p FOLDER"):
            resolve_model(given)
    assert hub.fetched == []


def test_other_formats_and_other_names(hub):
    hub.add("lab/o", {"consolidated.safetensors": BIG, "tf_model.h5": BIG, "config.json": b"{}"})
    says = r"no model that can be read.*tf_model\.h5.*name it, lab/o/consolidated\.safetensors"
    with pytest.raises(ModelError, match=says):
        resolve_model("lab/o")
    folder = hub.add("lab/n", {"config.json": configured("llama", "causal-lm")})
    save(tiny_model("llama", "causal-lm"), folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    open_checkpoint("lab/n/weights.safetensors").close()


def test_nobody_answers_and_nothing_is_in_the_cache(hub):
    hub.stop()
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        open_checkpoint("some-org/some-model")
    assert "\n" not in str(caught.value)


def test_the_cache_is_enough_when_nobody_answers(hub, lab):
    hub.add("lab/g", {"m-Q4_0.gguf": BIG, "m-Q8_0.gguf": BIG})
    open_checkpoint("lab/m").close()
    resolve_model("lab/g:Q8_0")
    hub.stop()
    open_checkpoint("lab/m").close()
    assert resolve_model("lab/g").name == "m-Q8_0.gguf"


def test_a_gated_or_missing_repository(hub, lab):
    hub.gated.add("lab/m")
    for name in ("lab/m", "lab/nothing"):
        with pytest.raises(ModelError, match=r"HF_TOKEN"):
            open_checkpoint(name)


def test_the_command_refuses_and_says_so_in_json(hub, puma):
    hub.add("lab/no", {"model.safetensors": BIG, "config.json": b'{"model_type": "no_such"}'})
    code, out, _ = puma("inspect", "lab/no", "--json")
    assert code == 2
    assert json.loads(out)["supported"] is False
    assert hub.names() == ["config.json"]


def test_transformers_reads_what_was_fetched(hub, lab):
    model = transformers.AutoModelForCausalLM.from_pretrained(resolve_model("lab/m"))
    with open_checkpoint("lab/m") as checkpoint:
        expected = state(model)
        assert_same_weights(checkpoint, {name: expected[name] for name in checkpoint.names()})
