"""Options of the tasks on texts, typed so that mypy checks them from the call to the task."""

from collections.abc import Mapping, Sequence
from typing import cast

from models.texts.requested import DraftOptions, GenerateOptions
from models.tokens.sampling_config import ChoiceOptions
from protocols.errors import ConfigError


class TaskOptions(ChoiceOptions, DraftOptions, total=False):
    """Options of all tasks together; a task's `job` says which ones it takes. A call with an option
    that its task does not take is refused immediately.
    """

    # text-generation, beside the fields of `SamplingConfig`; see `GenerateOptions`
    do_sample: bool | None
    eos_token_id: int | Sequence[int] | None
    stop_strings: str | Sequence[str] | None
    generation_config: object
    pad_token_id: int | None
    num_return_sequences: int
    return_full_text: bool

    # shared by several tasks
    top_k: int | None
    truncation: bool | None
    max_length: int | None

    # text-classification
    function_to_apply: str | None

    # token-classification
    aggregation_strategy: str
    ignore_labels: Sequence[str]
    stride: int | None

    # zero-shot-classification
    candidate_labels: str | Sequence[str] | None
    hypothesis_template: str
    multi_label: bool

    # text-ranking
    query: str | Sequence[str] | None
    documents: Sequence[str] | None
    return_documents: bool

    # fill-mask
    targets: str | Sequence[str] | None

    # question-answering
    question: str | Sequence[str] | None
    context: str | Sequence[str] | None
    max_answer_len: int
    max_seq_len: int | None
    doc_stride: int | None
    handle_impossible_answer: bool
    align_to_words: bool

    # feature-extraction, sentence-embedding
    return_tensors: bool
    normalize: bool | None

    # Options of transformers' pipelines without effect here.
    batch_size: int
    num_workers: int
    padding: bool | str


def chosen_options(options: Mapping[str, object], *, without: frozenset[str]) -> TaskOptions:
    """The options without some of them; the task checks the values."""
    return cast(TaskOptions, {name: each for name, each in options.items() if name not in without})


def generate_options(options: Mapping[str, object]) -> GenerateOptions:
    """The text-generation options that `generate` takes, whether it knows them or not."""
    found = {name: each for name, each in options.items() if name != "return_full_text"}
    return cast(GenerateOptions, found)


def with_labels(options: TaskOptions, given: Sequence[object]) -> TaskOptions:
    """The options with `candidate_labels`, which transformers takes as the second argument, too.

    Raises:
        ConfigError: there are more arguments, or the labels are given twice.
    """
    if not given:
        return options
    if len(given) > 1 or "candidate_labels" in options:
        raise ConfigError("a call takes inputs, then candidate_labels, and options by name")
    return cast(TaskOptions, {**options, "candidate_labels": given[0]})
