"""An upload takes along what a sentence-transformers folder says: a cluster answers alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import IDENTITY, TANH, add_dense, expected_vectors
from hosts import Hosts, hosts
from tiny_models import save, tiny_model
from tiny_texts import TEXTS, save_wordpiece

from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError
from puma_actors.api.pipelines import TextPipeline, pipeline
from puma_actors.api.remote import RemoteCluster, upload_model

PREFIX = "sentence_transformers.models."
SHAPES: dict[str, dict[str, Any]] = {
    "first": {"pooling": {"pooling_mode_cls_token": True}},
    "last": {"pooling": {"pooling_mode_lasttoken": True}},
    "bare": {"parts": ("Transformer", "Pooling"), "limits": {"max_seq_length": 5}},
    "prompted": {
        "prompts": {"prompts": {"query": "dog "}, "default_prompt_name": "query"},
        "limits": {"do_lower_case": True},
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_wordpiece(save(tiny_model("bert", "none"), folder))


def described(plain: Path, folder: Path, **shape: Any) -> Path:
    shutil.copytree(plain, folder)
    parts = shape.get("parts", ("Transformer", "Pooling", "Normalize"))
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": PREFIX + part, "path": places[part]} for part in parts]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = shape.get("pooling", {"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    for name, file in (
        ("limits", "sentence_bert_config.json"),
        ("prompts", "config_sentence_transformers.json"),
    ):
        if name in shape:
            (folder / file).write_text(json.dumps(shape[name]))
    return folder


async def upload(cluster: Hosts, path: Path, name: str) -> None:
    with open_checkpoint(path) as checkpoint:
        await upload_model(cluster.client, checkpoint, name, tokenizer=Tokenizer.load(path))


async def remote(cluster: Hosts, name: str) -> Any:
    async with await RemoteCluster.open(cluster.client, name) as requests:
        return await TextPipeline("sentence-embedding", requests)(TEXTS[:2])


async def test_a_cluster_makes_the_vectors_that_one_process_makes(
    folder: Path, certificates: Path, plain: Path, tmp_path: Path
) -> None:
    paths = {name: described(plain, tmp_path / name, **shape) for name, shape in SHAPES.items()}
    async with hosts(folder, certificates, "unix") as cluster:
        for name, path in paths.items():
            await upload(cluster, path, name)
        found = {name: await remote(cluster, name) for name in paths}
    for name, path in paths.items():
        with pipeline("sentence-embedding", path) as pipe:
            np.testing.assert_allclose(found[name], pipe(TEXTS[:2]), atol=2e-3, err_msg=name)
    different = np.abs(np.diff(list(found.values()), axis=0)).max(axis=(1, 2))
    assert different.min() > 0.01  # far above the tolerance: each setting matters


async def test_dense_modules_are_part_of_the_uploaded_model(
    folder: Path, certificates: Path, plain: Path, tmp_path: Path
) -> None:
    layers = [(24, True, TANH), (8, False, IDENTITY)]
    paths = {
        name: add_dense(plain, tmp_path / name, layers, pooling=name, normalize=name == "first")
        for name in ("first", "mean")
    }
    async with hosts(folder, certificates, "unix") as cluster:
        for name, path in paths.items():
            await upload(cluster, path, name)
        found = {name: await remote(cluster, name) for name in paths}
        async with await RemoteCluster.open(cluster.client, "first") as requests:
            with pytest.raises(ConfigError, match="use one of all, first, unit-first"):
                await requests.forward([[3, 5, 4]], rows="mean")
    for name, path in paths.items():
        tokenizer = Tokenizer.load(path)
        ids = [list(tokenizer.encode_text(text).ids) for text in TEXTS[:2]]
        np.testing.assert_allclose(found[name], expected_vectors(path, ids), atol=0.02)


async def test_pooling_that_is_refused_here_is_refused_there(
    folder: Path, certificates: Path, plain: Path, tmp_path: Path
) -> None:
    """The same words; and the tasks that do not need it work all the same."""
    path = described(plain, tmp_path / "max", pooling={"pooling_mode_max_tokens": True})
    says = "pooling 'max' is not supported"
    with pytest.raises(ModelError, match=says):
        pipeline("sentence-embedding", path)
    async with hosts(folder, certificates, "unix") as cluster:
        await upload(cluster, path, "max")
        with pytest.raises(ModelError, match=says):
            await remote(cluster, "max")
        async with await RemoteCluster.open(cluster.client, "max") as requests:
            features = await TextPipeline("feature-extraction", requests)(TEXTS[0])
        assert np.shape(features)[2] == 16
