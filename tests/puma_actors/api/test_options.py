"""Keywords that are passed on are those of who takes them in the end."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

from models.texts.answer import Answer
from models.texts.classify import Classify
from models.texts.embed import Features, Sentences
from models.texts.fill import FillMask
from models.texts.options import TaskOptions, chosen_options, generate_options
from models.texts.rank import Rank
from models.texts.requested import GenerateOptions
from models.texts.tag import Tag
from models.texts.zero_shot import ZeroShot
from models.tokens.chat_template import ChatOptions
from models.tokens.sampling import SamplingConfig, SamplingOptions
from puma_actors.api.local import LocalCluster
from puma_actors.api.options import (
    CLUSTER_OPTIONS,
    ClusterOptions,
    PipelineOptions,
    RunOptions,
    cluster_options,
)

TASKS = (Answer, Classify, Features, FillMask, Rank, Sentences, Tag, ZeroShot)
WITHOUT_EFFECT = {"batch_size", "num_workers", "padding"}


def keywords(function) -> set[str]:
    found = inspect.signature(function).parameters.values()
    return {each.name for each in found if each.kind is each.KEYWORD_ONLY}


def test_a_cluster_has_the_keywords_of_its_options():
    assert keywords(LocalCluster.__init__) == get_type_hints(ClusterOptions).keys()
    assert get_type_hints(ClusterOptions).keys() == CLUSTER_OPTIONS
    assert get_type_hints(RunOptions).keys() == CLUSTER_OPTIONS - {"network", "recorder"}


def test_sampling_options_are_the_fields_of_a_sampling_config():
    hints = get_type_hints(SamplingConfig)
    assert {field.name: hints[field.name] for field in fields(SamplingConfig)} == get_type_hints(
        SamplingOptions
    )


def test_task_options_are_those_of_all_tasks_together():
    known = set().union(*(keywords(task.job) for task in TASKS))
    generation = get_type_hints(GenerateOptions).keys() - get_type_hints(ChatOptions).keys()
    generation |= {"return_full_text"}
    assert get_type_hints(TaskOptions).keys() == known | generation | WITHOUT_EFFECT


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_option_has_a_type_that_its_task_takes(task):
    hints, takes = get_type_hints(TaskOptions), get_type_hints(task.job)
    for name in keywords(task.job) - {"top_k", "truncation"}:
        assert takes[name] == hints[name], name


def test_the_options_of_a_pipeline_are_told_apart():
    """Each goes to one place, and none is lost on the way."""
    assert not CLUSTER_OPTIONS & get_type_hints(TaskOptions).keys()
    given: PipelineOptions = {"codec": True, "network": "lan", "top_k": 3, "temperature": 0.5}
    assert cluster_options(given) == {"codec": True, "network": "lan"}
    rest = chosen_options(given, without=CLUSTER_OPTIONS)
    assert rest == {"top_k": 3, "temperature": 0.5}
    assert generate_options({**rest, "return_full_text": False}) == rest
