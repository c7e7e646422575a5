"""Tasks on texts at a cluster give what they give in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, hosts
from pipeline_cases import assert_same, computed, folder_of, task_of, theirs, with_settings
from reference import set_config
from tiny_texts import TEXTS
from transformers import AutoModelForSequenceClassification

from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from puma_actors.api.pipelines import TextPipeline
from puma_actors.api.remote import RemoteCluster, upload_model

LONG = " ".join(TEXTS)
LABELS = {"id2label": {0: "no", 1: "entailment"}, "label2id": {"no": 0, "entailment": 1}}
IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}


async def upload(cluster: Hosts, path: Path, name: str) -> None:
    with open_checkpoint(path) as checkpoint:
        await upload_model(cluster.client, checkpoint, name, tokenizer=Tokenizer.load(path))


async def remote(cluster: Hosts, name: str, task: str, *inputs: Any, **options: Any) -> Any:
    async with await RemoteCluster.open(cluster.client, name) as requests:
        return await TextPipeline(task, requests)(*inputs, **options)


async def test_ranks_and_classes_at_a_cluster(
    folder: Path,
    certificates: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def made(**changes: Any) -> Path:
        return folder_of(tmp_path_factory, "bert", "sequence-classification", **changes)

    ranker = made(num_labels=1)
    set_config(ranker, sentence_transformers=IDENTITY)
    judge = with_settings(made(num_labels=2, **LABELS), tmp_path / "judge", truncation_side="left")
    asked = {"query": "the cat?", "documents": TEXTS}
    async with hosts(folder, certificates, "unix") as cluster:
        await upload(cluster, ranker, "ranker")
        await upload(cluster, judge, "judge")
        ranked = await remote(cluster, "ranker", "text-ranking", asked)
        zero = "zero-shot-classification"
        sorted_ = await remote(cluster, "judge", zero, LONG, ["cat", "dog"])
    model = AutoModelForSequenceClassification.from_pretrained(ranker).eval()
    assert_same(ranked, computed(task_of("text-ranking", ranker).job(asked), model))
    assert_same(sorted_, theirs(zero, judge)(LONG, ["cat", "dog"]))
