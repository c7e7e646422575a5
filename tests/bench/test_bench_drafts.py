"""The small model of the drafts' benchmark: a model's own first layers."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import save_model, save_tokenizer

from bench.fidelity import with_a_draft
from bench.runtime.drafts import FirstLayers, small_model
from bench.tools.checkpoints import write_checkpoint
from bench.tools.report import console, show
from models.checkpoints.weights import open_checkpoint
from models.tokens.sampling import SamplingConfig
from puma_actors.api.local import LocalCluster

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


def test_the_first_layers_are_the_model_without_the_rest(tmp_path: Path) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    for folder, layers in ((whole, 3), (short, 2)):
        folder.mkdir()
        # Weights are drawn in order, so the third layer comes after all that both have.
        write_checkpoint(folder, {**_LLAMA, "num_hidden_layers": layers})
    first = FirstLayers(open_checkpoint(whole), 2)
    with closing(first), closing(open_checkpoint(short)) as wanted:
        assert first.names() == wanted.names()
        for name in wanted.names():
            np.testing.assert_array_equal(first.tensor(name), wanted.tensor(name))


def test_it_proposes_tokens_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, _LLAMA)
    drafter = small_model(tmp_path, 1).begin(SamplingConfig(temperature=0.0), 3, ())
    assert len(drafter.propose((1, 2, 3), 4)) == 4


async def test_answers_with_and_without_a_draft_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tokenizer(save_model(tmp_path, seed=3))
    async with LocalCluster.from_pretrained(folder) as cluster:
        result = await with_a_draft(cluster, ["I see the red cat", "you read a book"], 6)
    assert result.details["identical"] == 2
    assert [report["identical"] for report in result.details["prompts"]] == [True, True]
    assert result.note.startswith("2 of 2 answers are those without a draft, ")
    show(console(), {"memory_bytes": 0, "cpu": "", "cores": 1, "os": ""}, [result])
    assert f"drafts: {result.note}" in " ".join(capsys.readouterr().out.split())
