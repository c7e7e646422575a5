"""Models for pipelines, and transformers' own pipelines on the same folders."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from tiny_models import save, tiny_model
from tiny_texts import save_wordpiece

from models.checkpoints.weights import open_checkpoint
from models.texts.needs import canonical_task, check_checkpoint
from models.texts.tasks import text_task
from models.tokens.tokenizer import Tokenizer

TOLERANCE = 0.01
ENTITIES = {"num_labels": 4, "id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}}


def folder_of(factory, model_type, head, save_tokenizer=save_wordpiece, **changes):
    """A model whose head tells tokens apart, with a tokenizer."""
    folder = factory.mktemp(f"{model_type}-{head}")
    model = tiny_model(model_type, head, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "score", "qa_outputs")):
                parameter *= 4
            if name.endswith("word_embeddings.weight") and "masked" not in head:
                parameter *= 4
    return save_tokenizer(save(model, folder))


@cache
def theirs(task, folder, **options):
    return transformers.pipeline(task, model=str(folder), device="cpu", **options)


def assert_same(ours, expected):
    """Equal, with the same fields in any order, except for fractional numbers."""
    if isinstance(expected, dict):
        assert set(ours) == set(expected)
        for key in expected:
            assert_same(ours[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(ours, list)
        assert len(ours) == len(expected)
        for mine, other in zip(ours, expected, strict=True):
            assert_same(mine, other)
    elif isinstance(expected, float | np.floating):
        assert type(ours) is float
        assert ours == pytest.approx(float(expected), abs=TOLERANCE)
    else:
        assert ours == expected


def evaluated(job, model):
    """What torch's model gives for the sequences of a job, in the form that the parties give."""
    results = []
    typed = getattr(model.config, "type_vocab_size", 0) > 1
    for encoding in job.encodings:
        given = {"input_ids": torch.tensor([encoding.ids])}
        if typed:
            given["token_type_ids"] = torch.tensor([encoding.types])
        with torch.no_grad():
            logits = model(**given).logits.double().numpy()
        results.append(logits[0] if logits.ndim == 3 else logits)
    return results


def computed(job, model):
    """The result of a job whose sequences torch evaluates."""
    return job.finish(evaluated(job, model))


def with_settings(folder, copy, **changes):
    """A copy of a model's folder whose tokenizer has other settings."""
    shutil.copytree(folder, copy)
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return copy


def task_of(name, folder):
    """A task on texts, without a cluster."""
    name = canonical_task(name)
    head = check_checkpoint(name, folder)
    with open_checkpoint(folder, head=head) as checkpoint:
        own = checkpoint.sentences, checkpoint.ranking
        return text_task(name, checkpoint.config, Tokenizer.load(folder), *own)
