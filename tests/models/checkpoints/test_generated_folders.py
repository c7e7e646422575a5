"""Generated checkpoint folders, opened here and by transformers: the same, or refused by name.

`make test` tries a dozen; `make test-checkpoints` tries hundreds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_variants import outputs
from folder_cases import MANY_ENDS, TRAINED, VOCABULARY, FolderCase, folder_case
from tiny_models import class_of
from tokenizer_folders import TEXTS

from models.configs.encoders.encoder import EncoderConfig
from models.tokens.tokenizer import Tokenizer
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster

LOGITS = 0.02
"""Largest difference from transformers in float32."""
LEAD = 0.05
"""Where the best two logits are closer than this, either is a fair choice."""
NEW = 5


@dataclass(frozen=True)
class Refusal:
    """A refusal where transformers computes something, and why it is right."""

    says: str
    where: Callable[[FolderCase], bool]
    because: str


REFUSED = [
    Refusal(
        r"is made of tokenizer\.json, or of .* is missing",
        lambda case: not case.has_whole_tokenizer(),
        "transformers makes a tokenizer without any token",
    ),
    Refusal(
        r"transformers says Exception: .*Unk token",
        lambda case: not case.has_usual_form(),
        "transformers fails as soon as a text has an unknown word",
    ),
    Refusal(
        r"output_attentions: True is not supported",
        lambda case: case.family == "falcon" and "output_attentions" in case.config,
        "Falcon then takes another way in transformers, which attends to later tokens",
    ),
    Refusal(
        r"generation_config\.json says num_beams: 4",
        lambda case: (case.generation or {}).get("num_beams") == 4,
        "the client does not search over beams",
    ),
    Refusal(
        r"eos_token_ids must be a list of at most 64",
        lambda case: (case.generation or {}).get("eos_token_id") == MANY_ENDS,
        "a public list that peers agree on is bounded",
    ),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = [folder_case(n) for n in range(metafunc.config.getoption("--folders"))]
        metafunc.parametrize("case", cases, ids=str)


def assert_justified(error: PumaError, case: FolderCase) -> None:
    found = [each for each in REFUSED if re.search(each.says, str(error)) and each.where(case)]
    assert found, str(error)


async def test_the_same_as_transformers_or_refused(tmp_path: Path, case: FolderCase) -> None:
    if case.names in TRAINED:
        reference = reference_model(case, case.write(tmp_path, "new"))
        case.write(tmp_path)
    else:
        reference = reference_model(case, case.write(tmp_path))
    tokens = same_tokens(tmp_path, case)
    try:
        cluster = LocalCluster.from_pretrained(tmp_path, head=case.head)
    except PumaError as error:
        if reference is not None:
            assert_justified(error, case)
        return
    assert reference is not None, "transformers would not have all weights"
    async with cluster:
        await same_outputs(cluster, reference, case)
        if case.head == "causal-lm":
            await same_greedy(cluster, reference, case, tokens)


def same_tokens(folder: Path, case: FolderCase) -> Any:
    """Check the tokens of texts. The tokenizer of transformers, or None if there is none."""
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as reason:  # of every kind
        with pytest.raises(PumaError):
            pytest.fail(f"{reason}: {Tokenizer.load(folder)}")
        return None
    try:
        ours = Tokenizer.load(folder)
    except PumaError as error:
        assert_justified(error, case)
        return None
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    return theirs


def reference_model(case: FolderCase, folder: Path) -> Any:
    """The model of transformers in float32; None where it would fill weights with random ones."""
    made = class_of(case.family, case.head)
    model, notes = made.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return None if notes["missing_keys"] or notes["mismatched_keys"] else model.eval()


async def same_outputs(cluster: LocalCluster, reference: Any, case: FolderCase) -> None:
    ids = [5, 9, 30, 2, 17, 22, 8, 351, 120]
    types = None
    if isinstance(cluster.config, EncoderConfig) and cluster.config.type_vocab_size > 1:
        types = [0] * 4 + [1] * 5
    found = await cluster.forward(ids, types=types)
    expected = outputs(reference, case.head, ids, types)
    np.testing.assert_allclose(found, expected, atol=LOGITS)


async def same_greedy(cluster: LocalCluster, reference: Any, case: FolderCase, tokens: Any) -> None:
    prompt: str | list[int] = "the fox says" if tokens is not None else [5, 9, 30]
    ids = tokens(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    if not ids or max(ids) >= VOCABULARY:
        return
    try:
        stream = cluster.generate(prompt, raw=True, max_new_tokens=NEW, temperature=0.0)
        found = [token.id async for token in stream if token.id is not None]
    except PumaError as error:
        assert_justified(error, case)
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as a minimum length beyond the maximum
        theirs = reference.generate(
            torch.tensor([ids]),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    expected = theirs.sequences[0, len(ids) :].tolist()
    raise_unless_same(found, expected, theirs.scores, cluster)


def raise_unless_same(
    found: list[int], expected: list[int], scores: Any, cluster: LocalCluster
) -> None:
    """Equal up to a step where two tokens are as likely; the end tokens are not in `found`."""
    assert cluster.usage.token_ids[: len(found)] == found
    ours = cluster.usage.token_ids
    for step, (mine, other) in enumerate(zip(ours, expected, strict=False)):
        if mine != other:
            best = scores[step][0].topk(2).values
            assert float(best[0] - best[1]) < LEAD, f"step {step}: {mine} for {other}"
            return
    # transformers ignores ends that only the tokenizer or `config.json` names.
    extra = {*cluster.config.eos_token_ids}
    if cluster.tokenizer is not None:
        extra |= set(cluster.tokenizer.eos_token_ids)
    assert len(ours) == len(expected) or ours[-1] in extra, (ours, expected)
