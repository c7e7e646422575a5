"""Models and tokenizers of transformers in memory, through five actors."""

import adapters
import numpy as np
import pytest
import torch
import transformers
from pipeline_cases import assert_same
from tiny_models import ENCODERS, tiny_model

from models.checkpoints.in_memory import open_model
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError
from puma_actors import LocalCluster, PrivateModel, pipeline
from puma_actors.api.pipelines import local_pipeline
from puma_actors.roles.owner import Owner

IDS = [5, 9, 30, 2, 17, 6]


def torch_logits(model) -> np.ndarray:
    """Of the weights as they are, computed in float32."""
    with torch.no_grad():
        return model.float()(input_ids=torch.tensor([IDS])).logits[0].double().numpy()


@pytest.fixture
def theirs(classifier):
    """Model and tokenizer of transformers."""
    return (
        transformers.AutoModelForSequenceClassification.from_pretrained(classifier),
        transformers.AutoTokenizer.from_pretrained(classifier),
    )


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [
        ("bert", torch.float16),
        ("roberta", torch.float32),
        ("distilbert", torch.bfloat16),
        ("gpt2", torch.float16),
        ("llama", torch.bfloat16),
        ("qwen3", torch.float32),
        ("falcon", torch.bfloat16),
    ],
)
async def test_every_family(model_type, dtype):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    model = tiny_model(model_type, head).to(dtype)
    if model_type == "bert":  # transformers adds the one, older versions the other
        model.cls.predictions.decoder.bias.data.copy_(model.cls.predictions.bias.data)
    async with LocalCluster.from_model(model) as cluster:
        found = await cluster.forward(IDS)
    np.testing.assert_allclose(found, torch_logits(model), atol=0.02)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_an_adapter(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    adapted = adapters.with_lora(model, ["q_proj", "v_proj"])
    with PrivateModel.from_model(adapted, tokenizer) as private:
        np.testing.assert_allclose(private.forward(IDS), torch_logits(adapted), atol=0.02)
        with adapted.disable_adapter():
            assert np.abs(private.forward(IDS) - torch_logits(adapted)).max() > 0.1
        assert private.generate("What is MPC?", max_new_tokens=2) != ""


def test_a_pipeline(theirs, classifier):
    model, tokenizer = theirs
    texts = ["The cat sat on the dogs.", "London!"]
    expected = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)
    with pipeline("text-classification", model=model, tokenizer=tokenizer) as classify:
        assert_same(classify(texts), expected)
    with pipeline("feature-extraction", model, tokenizer=tokenizer) as extract:
        assert np.shape(extract("London!"))[-1] == 16
    pipe = local_pipeline("sentiment-analysis", model, tokenizer=Tokenizer.from_object(tokenizer))
    assert pipe.requests.config.labels == ("bad", "fair", "good")
    pipe.requests.checkpoint.close()


async def test_an_owner_of_a_model_in_memory(theirs):
    owner = Owner.from_model(theirs[0], texts=[[1, 2, 3]])
    assert owner._checkpoint.config == open_model(theirs[0]).config
    bare = Owner.from_model(theirs[0], head="none")
    assert bare._checkpoint.config.head == "none"


def test_a_model_without_a_tokenizer_takes_ids(theirs):
    with PrivateModel.from_model(tiny_model("gpt2", "causal-lm")) as private:
        assert private.forward([3, 1, 2]).shape == (3, 40)
        with pytest.raises(ConfigError, match="only token ids can be given"):
            private.generate("London!")
    with pytest.raises(ModelError, match=r"or give tokenizer=\.\.\. with a model in memory"):
        pipeline("text-classification", theirs[0])


def test_wrong_objects(theirs, classifier):
    model, tokenizer = theirs
    for make in (LocalCluster.from_model, PrivateModel.from_model):
        with pytest.raises(ConfigError, match="the model is int: give a transformers model"):
            make(1)
        with pytest.raises(ConfigError, match="the tokenizer is BertConfig: give a transformers"):
            make(model, model.config)
    for make in (LocalCluster.from_pretrained, PrivateModel.from_pretrained):
        with pytest.raises(ModelError, match=r"BertForSeq.* in memory goes to from_model"):
            make(model)
    with pytest.raises(ConfigError, match=r"Pipeline: give the model inside it, its \.model"):
        pipeline("text-classification", transformers.pipeline("text-classification", classifier))
    with pytest.raises(ConfigError, match="tokenizer is for a model in memory"):
        pipeline("text-classification", classifier, tokenizer=tokenizer)
    with pytest.raises(ModelError, match="this model: fill-mask needs a model with head"):
        pipeline("fill-mask", model, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="settings"):
        LocalCluster.from_model(model, tokenizer, settings=1)
    for make in (LocalCluster, lambda model, _: Owner(model)):
        with pytest.raises(ConfigError, match=r"checkpoint is BertFor.*use from_model\(model\)"):
            make(model, None)
    with pytest.raises(ConfigError, match="the tokenizer is TokenizersBackend: use from_model"):
        LocalCluster(open_model(model), tokenizer)


def test_a_tokenizer_of_another_model(theirs):
    theirs[1].add_tokens([f"extra{number}" for number in range(20)])
    with pytest.raises(ModelError, match="more tokens than the model's 40: use the model's own"):
        LocalCluster.from_model(*theirs)
