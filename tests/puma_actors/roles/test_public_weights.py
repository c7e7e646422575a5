"""Public weights, private prompts: the parties open the checkpoint themselves."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from family_variants import outputs
from reference import save_model, save_tokenizer
from tiny_models import ENCODERS, KIN, SETTINGS, class_of, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.programs.families import sources_of
from models.programs.head_layers import default_rows
from models.programs.plan import Plan, draft_plan
from models.programs.program import Batch
from protocols.base.shares import Role
from protocols.errors import ModelError, RemoteProtocolError
from protocols.public_weight import PublicTable, PublicWeight
from puma_actors.api.local import LocalCluster
from puma_actors.roles.messages import PlanMessage
from puma_actors.roles.opened import Opened
from puma_actors.roles.upload import InMemory, Upload

IDS = [5, 9, 30, 2, 17]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def stored(folder, model_type, head, dtype):
    """A checkpoint, and transformers' model of the stored values."""
    save(tiny_model(model_type, head).to(dtype), folder)
    return class_of(model_type, head).from_pretrained(folder, dtype=torch.float32).eval()


def is_mapped(data):
    """Whether an array is a view of a file."""
    while data is not None and not isinstance(data, np.memmap):
        data = getattr(data, "base", None)
    return data is not None


@pytest.mark.parametrize("model_type", [name for name in SETTINGS if name not in KIN])
async def test_every_family_answers_as_transformers_does(tmp_path, model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    dtype = DTYPES[sorted(SETTINGS).index(model_type) % 3]
    reference = stored(tmp_path, model_type, head, dtype)
    async with LocalCluster.from_pretrained(tmp_path, public_weights=True) as cluster:
        found = await cluster.forward(IDS)
        np.testing.assert_allclose(found, outputs(reference, head, IDS), atol=0.02)
        assert cluster.plan.weights == "public"
        batch = Batch((len(IDS),), default_rows(cluster.config))
        assert cluster.usage.steps == cluster.predict(batch)


async def test_weights_are_the_files_own_bytes(tmp_path):
    stored(tmp_path, "llama", "causal-lm", torch.bfloat16)
    async with LocalCluster.from_pretrained(tmp_path, public_weights=True) as cluster:
        for party in cluster._parties:
            held = party._parameters
            weights = [each for each in held.values() if isinstance(each, PublicWeight)]
            assert len(weights) == 4 * cluster.config.num_layers + 1
            assert isinstance(held["table"], PublicTable)
            for weight in (*weights, held["table"].weight):
                assert bool(weight.parts) is not party.role.is_dealer
                for part in weight.parts:
                    assert is_mapped(part.data)
                    assert part.data.nbytes == 2 * part.shape[0] * part.shape[1]


async def test_a_generation(tmp_path):
    folder = save_tokenizer(save_model(tmp_path))
    answers = []
    for public in (False, True):
        async with LocalCluster.from_pretrained(folder, public_weights=public) as cluster:
            stream = cluster.generate("I see", max_new_tokens=5, temperature=0.0)
            answers.append([token.id async for token in stream])
    assert answers[0] == answers[1]


async def test_what_is_no_file_is_held_in_float32(tmp_path):
    """A matrix that is balanced first, and an order of columns over several tensors."""
    model = tiny_model("llama", "causal-lm")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 2.0**-14
        model.model.layers[0].mlp.down_proj.weight *= 2.0**14
    save(model, tmp_path)
    expected = outputs(model, "causal-lm", IDS)
    async with LocalCluster.from_pretrained(tmp_path, public_weights=True) as cluster:
        np.testing.assert_allclose(await cluster.forward(IDS), expected, atol=0.02)
        held = cluster._parties[1]._parameters
        first, second = (held[f"layers.{i}.gate_up"].parts[0].data for i in range(2))
        assert not is_mapped(first)
        assert is_mapped(second)


async def test_a_model_in_memory(tmp_path):
    model = tiny_model("gpt2", "causal-lm")
    async with LocalCluster.from_model(model, public_weights=True) as cluster:
        found = await cluster.forward(IDS)
    np.testing.assert_allclose(found, outputs(model, "causal-lm", IDS), atol=0.02)


# -- which kind a plan says ------------------------------------------------------------------------


def plan_of(folder, weights):
    with open_checkpoint(folder) as checkpoint:
        drafted = draft_plan(checkpoint.config)
    return Plan(drafted.config, drafted.ranges, weights=weights)


def test_the_kind_is_part_of_the_digest(tmp_path):
    save_model(tmp_path)
    private, public = (plan_of(tmp_path, kind) for kind in ("private", "public"))
    assert "weights" not in private.to_public()
    assert private.digest() != public.digest()
    assert Plan.from_public(public.to_public()).weights == "public"
    with pytest.raises(ModelError, match="weights = open is neither private nor public"):
        Plan.from_public({**public.to_public(), "weights": "open"})


@pytest.mark.parametrize("kind", ["private", "public"])
def test_a_party_takes_one_kind(tmp_path, kind):
    save_model(tmp_path)
    plan = plan_of(tmp_path, kind)
    message = PlanMessage(plan=plan.to_public(), digest=plan.digest())
    with open_checkpoint(tmp_path) as checkpoint:
        sources = list(sources_of(checkpoint))
        kept = Opened(Role.DEALER, sources) if kind == "private" else InMemory(Role.DEALER)
        with pytest.raises(RemoteProtocolError, match=f"has {kind} weights.*only takes"):
            Upload(Role.DEALER, message, kept)
        if kind == "private":
            for send in (lambda: kept.seed(1, b""), lambda: kept.words(0, 0, 1, b"")):
                with pytest.raises(RemoteProtocolError, match="public weights"):
                    send()


def test_the_command_line(puma, tmp_path):
    folder = save_tokenizer(save_model(tmp_path / "model"))
    request = ["generate", "-p", "I see", "--public-weights", "--max-new-tokens", 2]
    code, out, err = puma(*request, "--model", folder)
    assert code == 0, err
    assert out.strip()
    assert "note: public weights: the parties know the model, not the prompt" in err
    assert "no party saw the prompt or an activation; the weights are public" in " ".join(
        err.split()
    )
    code, _, err = puma(*[each for each in request if each != "--public-weights"], "-m", folder)
    assert code == 0, err
    assert "no party saw the prompt, the weights or an activation" in " ".join(err.split())
    code, _, err = puma(*request, "--cluster", tmp_path / "c.toml", "--model", "m")
    assert code == 2
    assert "--public-weights: `puma upload` decides this for remote parties" in err
    code, _, err = puma(*request, "--model", folder, "--require", "private-weights")
    assert code == 2
    assert "--public-weights: not with --require private-weights" in err


def test_a_text_task_says_which_kind(puma, tmp_path):
    folder = save_tokenizer(save(tiny_model("bert", "masked-lm", vocab_size=300), tmp_path / "m"))
    request = ["embed", "--text", "I see", "--model", folder]
    code, out, err = puma(*request, "--public-weights", "--json")
    assert code == 0, err
    assert "note: public weights: the parties know the model" in err
    assert json.loads(out)["weights"] == "public"
    code, out, err = puma(*request, "--require", "private-weights", "--json")
    assert code == 0, err
    assert json.loads(out)["weights"] == "private"


def test_tensors_of_other_names_are_found(tmp_path):
    """A tied weight under its other name, and the prefix of a compiled model."""
    model = tiny_model("llama", "causal-lm", tie_word_embeddings=True)
    save(model, tmp_path)
    tensors = {f"_orig_mod.{n}": t.clone() for n, t in model.state_dict().items()}
    del tensors["_orig_mod.model.embed_tokens.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        name = "model.embed_tokens.weight"
        packed = checkpoint.packed(name)
        assert packed is not None
        values = packed.data.view("<f4")
        np.testing.assert_array_equal(values, checkpoint.tensor(name))
        assert checkpoint.packed("model.norm.weight") is None
