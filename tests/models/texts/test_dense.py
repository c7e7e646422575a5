"""Dense modules of sentence-transformers: evaluated on shares after the pooling, or refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from dense_folders import (
    GELU,
    IDENTITY,
    RELU,
    SILU,
    TANH,
    add_dense,
    expected_vectors,
    write_json,
)
from secure_models import infer, infer_batch, share_model
from tiny_models import save, tiny_model
from tiny_texts import TEXTS, save_wordpiece

from models.checkpoints.weights import open_checkpoint
from models.configs.tasks.dense import DenseHead, DenseLayer
from models.configs.tasks.sentences import sentence_settings
from models.owner.calibrate import calibrate, plain_run
from models.owner.comparing import compare_model
from models.programs.families import load_parameters, parameters_of
from models.programs.head_layers import check_rows, columns_of, default_rows, proven_rows
from models.programs.memory import footprint
from models.programs.plan import Plan
from models.programs.predict import predict
from models.programs.program import UNIT_ROWS, Batch
from models.programs.public import plan_digests
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.errors import ConfigError, ModelError, RangeError
from puma_actors.api.pipelines import local_pipeline, pipeline
from puma_actors.cli.commands.converting import conversion

SEQUENCES = [[3, 9, 30, 2, 17, 22, 4], [3, 11, 4], [7]]

CASES = {
    # Named after published models with such modules, some of them of other families.
    "labse": ("bert", "first", [(16, True, TANH)], True),
    "distiluse": ("distilbert", "mean", [(10, True, TANH)], False),
    "gtr": ("bert", "mean", [(12, False, IDENTITY)], True),
    "embedding-gemma": ("gemma2", "mean", [(40, False, IDENTITY), (16, False, IDENTITY)], True),
    "bare": ("roberta", "first", [(20, True, IDENTITY)], False),
    "last": ("qwen3", "last", [(8, True, "torch.nn.Identity")], True),
    "last-bare": ("gpt2", "last", [(8, False, GELU)], False),
    "opt": ("opt", "mean", [(8, True, RELU)], True),
    "runs": (
        "mpnet",
        "first",
        [(12, False, IDENTITY), (8, True, SILU), (9, True, IDENTITY), (7, False, IDENTITY)],
        False,
    ),
}


def loaded(folder):
    with open_checkpoint(folder, head="none") as checkpoint:
        config, values = checkpoint.config, dict(load_parameters(checkpoint))
        wanted = parameters_of(config)
        assert {name: value.shape for name, value in values.items()} == {
            name: parameter.shape for name, parameter in wanted.items()
        }
        assert list(values) == list(wanted)
        return config, values, checkpoint.sentences


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    model_type, pooling, layers, normalize = CASES[request.param]
    place = tmp_path_factory.mktemp("dense")
    plain = save(tiny_model(model_type, "none"), place / "plain")
    folder = add_dense(plain, place / "made", layers, pooling=pooling, normalize=normalize)
    config, values, settings = loaded(folder)
    assert (settings.refusal, settings.normalize) == ("", normalize)
    assert default_rows(config) == pooling
    rows = UNIT_ROWS[pooling] if normalize else pooling
    assert columns_of(config, rows) == layers[-1][0]
    return folder, share_model(config, values), rows


def test_vectors_are_those_of_the_modules(case):
    folder, model, rows = case
    expected = expected_vectors(folder, SEQUENCES)
    found = plain_run(model.config, model.floats, SEQUENCES, rows)
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))
    np.testing.assert_allclose(infer_batch(model, SEQUENCES, rows), expected, atol=0.02)


@pytest.mark.parametrize("settings", [Settings(), Settings(block=64, tree="traffic", lanes=2)])
def test_costs_are_predicted_exactly(case, settings):
    _, model, rows = case
    for wanted in {rows, *proven_rows(model.config)}:
        batch = Batch((len(SEQUENCES[0]),), wanted)
        found = infer(model, SEQUENCES[:1], settings, batches=[batch]).outcome.cost
        (step,) = predict(model.plan, batch, settings=settings)
        assert found == step.cost


def test_hidden_states_stay_what_they_were(case):
    """For feature-extraction: the layers are for vectors of texts only."""
    _, model, _ = case
    found = plain_run(model.config, model.floats, SEQUENCES)
    bare = {n: v for n, v in model.floats.items() if not n.startswith("dense.")}
    np.testing.assert_array_equal(
        found, plain_run(replace(model.config, dense=None), bare, SEQUENCES)
    )


def test_a_plan_survives_the_wire(case):
    _, model, rows = case
    plan = Plan.from_public(json.loads(json.dumps(model.plan.to_public())))
    assert plan == model.plan
    assert plan_digests(plan) == plan_digests(model.plan)
    bare = replace(plan, config=replace(plan.config, dense=None))
    assert plan.digest() != bare.digest()
    need = footprint(plan.config, Batch((5,), rows), 1, Settings(), dealer=False)
    assert need.work > 0


def test_the_layers_are_places_of_a_comparison(case):
    _, model, _ = case
    found = compare_model(model.config, dict(model.floats), SEQUENCES[:2])
    named = [place.name for place in found.places if place.name.startswith("dense.")]
    assert named == [f"dense.{number}" for number in range(len(model.config.dense.runs))]
    assert found.cosine > 0.999


def test_neighbours_without_an_activation_are_one_matrix(tmp_path):
    plain = save(tiny_model("bert", "none"), tmp_path / "plain")
    layers = [(12, False, IDENTITY), (8, True, TANH), (9, True, IDENTITY), (7, False, IDENTITY)]
    _, values, _ = loaded(add_dense(plain, tmp_path / "made", layers))
    shapes = {name: v.shape for name, v in values.items() if name.startswith("dense.")}
    assert shapes == {"dense.0": (17, 8), "dense.1": (9, 7)}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return save_wordpiece(save(tiny_model("bert", "none"), folder))


def test_a_pipeline(text_model, tmp_path):
    folder = add_dense(text_model, tmp_path / "made", [(24, True, TANH)], pooling="first")
    tokenizer = Tokenizer.load(folder)
    expected = expected_vectors(folder, [list(tokenizer.encode_text(t).ids) for t in TEXTS])
    with pipeline("sentence-embedding", folder) as pipe:
        found = pipe(TEXTS)
        longer = pipe(TEXTS[0], normalize=False)
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(longer / np.linalg.norm(longer), expected[0], atol=0.02)
    assert abs(np.linalg.norm(longer) - 1) > 0.05
    with pipeline("feature-extraction", folder) as pipe:
        assert np.shape(pipe(TEXTS[1]))[2] == 16


def test_rows_of_another_pooling_are_refused(case):
    _, model, _ = case
    pooling = model.config.dense.pooling
    allowed = ["all", pooling, UNIT_ROWS[pooling]]
    for rows in {"all", *UNIT_ROWS, *UNIT_ROWS.values()}:
        if rows in allowed:
            check_rows(model.config, rows)
        else:
            with pytest.raises(ConfigError, match=f"use one of {', '.join(allowed)}"):
                check_rows(model.config, rows)


BAD = {
    "activation": ({"activation_function": "torch.nn.modules.activation.Mish"}, "Mish.*supported"),
    "code": ({"activation_function": "my_module.Tanh"}, r"activation_function: 'my_module\.Tanh'"),
    "no activation": ({"activation_function": None}, "lacks 'activation_function'"),
    "no outputs": ({"out_features": None}, "lacks 'out_features'"),
    "bias": ({"bias": 1}, "bias: 1 is not true or false"),
    "size": ({"out_features": 1 << 20}, "outputs: 1048576"),
    "input": ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
    "output": ({"module_output_name": "other"}, "module_output_name 'other'"),
    "unknown": ({"dropout": 0.1}, "'dropout' is not a setting"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_are_not_supported_are_named(text_model, tmp_path, name):
    changes, says = BAD[name]
    folder = add_dense(text_model, tmp_path / "made", [(24, True, TANH)])
    file = folder / "2_Dense/config.json"
    write_json(file, {**json.loads(file.read_bytes()), **changes})
    with pytest.raises(ModelError, match=f"2_Dense/config.json: .*{says}"):
        local_pipeline("sentence-embedding", folder)
    with open_checkpoint(folder) as checkpoint:  # which does other tasks
        assert checkpoint.config.dense is None
        assert "2_Dense" in checkpoint.sentences.refusal


def test_names_of_the_vector_may_be_given(text_model, tmp_path):
    folder = add_dense(text_model, tmp_path / "made", [(24, True, TANH)])
    file = folder / "2_Dense/config.json"
    names = {"module_input_name": "sentence_embedding", "module_output_name": None}
    write_json(file, {**json.loads(file.read_bytes()), **names})
    assert sentence_settings(folder).normalize


def test_pickled_weights_are_refused_and_converted(text_model, tmp_path):
    made = add_dense(text_model, tmp_path / "made", [(24, True, TANH), (6, False, IDENTITY)])
    pickled = shutil.copytree(made, tmp_path / "pickled")
    weights = pickled / "3_Dense/model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"3_Dense/pytorch_model\.bin: .*`puma convert .*pickled"):
        local_pipeline("sentence-embedding", pickled)
    said = conversion.main(str(pickled), str(tmp_path / "new"))
    assert said["class"] == "BertModel"
    for found, expected in zip(loaded(tmp_path / "new"), loaded(made), strict=True):
        if isinstance(found, dict):
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
        else:
            assert found == expected
    (made / "3_Dense/model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"3_Dense has no model\.safetensors: download it again"):
        local_pipeline("sentence-embedding", made)


def test_weights_that_do_not_fit_are_refused(text_model, tmp_path):
    for name, tensors, says in (
        ("names", {"weight": torch.zeros(24, 16)}, "holds weight, not linear.weight and"),
        ("none", {}, "holds nothing, not"),
        (
            "shape",
            {"linear.weight": torch.zeros(24, 15), "linear.bias": torch.zeros(24)},
            r"sentence\.dense\.0\.weight has shape \(24, 15\), expected \(24, 16\)",
        ),
        (
            "kind",
            {"linear.weight": torch.zeros(24, 16).long(), "linear.bias": torch.zeros(24)},
            "linear.weight is stored as I64",
        ),
    ):
        folder = add_dense(text_model, tmp_path / name, [(24, True, TANH)])
        safetensors.torch.save_file(tensors, folder / "2_Dense/model.safetensors")
        with pytest.raises(ModelError, match=says):
            open_checkpoint(folder)


def test_layers_that_do_not_fit_are_refused(text_model, tmp_path):
    folder = add_dense(text_model, tmp_path / "made", [(24, True, TANH), (6, True, TANH)])
    modules = json.loads((folder / "modules.json").read_bytes())
    write_json(folder / "modules.json", [*modules[:2], modules[3]])
    with pytest.raises(ModelError, match=r"the first layer has 24 inputs, and .* 16 columns"):
        open_checkpoint(folder)
    write_json(folder / "modules.json", [*modules[:3], modules[2]])
    with pytest.raises(ModelError, match="a layer with 24 outputs comes before one with 16 inputs"):
        local_pipeline("sentence-embedding", folder)
    write_json(folder / "modules.json", [*modules[:2], modules[4], modules[2]])
    with pytest.raises(ModelError, match=r"part 2, Normalize, is not supported; .* in this order"):
        local_pipeline("sentence-embedding", folder)
    write_json(folder / "modules.json", [*modules[:2], {"type": "my.Dense", "path": "2_Dense"}])
    with pytest.raises(ModelError, match=r"part 2, my\.Dense, is not supported"):
        local_pipeline("sentence-embedding", folder)
    kind = "sentence_transformers.sentence_transformer.modules.dense.Dense"
    write_json(folder / "modules.json", [*modules[:2], {"type": kind, "path": "2_Dense"}])
    assert not sentence_settings(folder).normalize


LAYERS = DenseHead("first", (DenseLayer(16, 8, True, "tanh"), DenseLayer(8, 4, False, "identity")))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (5, "is not a pooling and layers"),
        ({"pooling": "first"}, "is not a pooling and layers"),
        ({**LAYERS.to_public(), "pooling": "max"}, "pooling: 'max'"),
        ({**LAYERS.to_public(), "layers": {}}, "is not a list"),
        ({**LAYERS.to_public(), "layers": []}, "0 layers"),
        ({**LAYERS.to_public(), "layers": [5] * 17}, "is not a list"),
        ({**LAYERS.to_public(), "layers": [5]}, "a layer must have"),
        ({**LAYERS.to_public(), "layers": LAYERS.to_public()["layers"][::-1]}, "4 outputs comes"),
    ],
)
def test_layers_of_a_peer_are_checked(data, says):
    assert DenseHead.from_public(json.loads(json.dumps(LAYERS.to_public()))) == LAYERS
    with pytest.raises(ModelError, match=f"^dense: .*{says}"):
        DenseHead.from_public(data)


def test_a_model_with_another_head_has_none(text_model):
    with open_checkpoint(text_model) as checkpoint:
        config = replace(checkpoint.config, dense=LAYERS)
    assert config.with_head("masked-lm").dense is None
    with pytest.raises(ModelError, match="no layers of a model without a head"):
        replace(config, head="masked-lm")


def test_weights_that_do_not_fit_the_ring_are_refused_at_their_place(case):
    _, model, _ = case
    name = [name for name in model.floats if name.startswith("dense.")][-1]
    spoiled = {**model.floats, name: model.floats[name] * np.float32(1e12)}
    with pytest.raises(RangeError, match=rf"^{name}: "):
        calibrate(model.config, spoiled)
