"""The head of a model: its kind, the number of its outputs, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.configs.validate import check_choice, check_size, short, unsupported
from protocols.errors import ModelError

HEADS = (
    "none",
    "causal-lm",
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
)
"""Kinds of heads. `none` is the base model, whose output is the last hidden state."""
LABELLED_HEADS = ("sequence-classification", "token-classification", "question-answering")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MAX_LABELS = 1 << 14

# Label names are only for display. Longer names are cut, and all are dropped if their total length
# exceeds the second limit, so that a configuration stays small enough to publish.
_MAX_LABEL_CHARACTERS = 200
_MAX_LABELS_CHARACTERS = 1 << 16
# End of the name of a transformers class, after the family's name -> head.
_SUFFIXES = {
    "Model": "none",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    # The second head, which predicts whether one sentence follows another, is not used.
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def read_head(
    data: Mapping[str, Any],
    class_name: str,
    heads: tuple[str, ...],
    head: str | None,
    others: Mapping[str, str],
) -> dict[str, Any]:
    """Read `head`, `num_labels`, `labels`, `problem_type` and `entailment` from a `config.json`.

    class_name: the start of the family's class names; others: end of a class name -> its head,
    where this family differs from the usual ones. Without `architectures`, a decoder predicts
    tokens and an encoder has no head. Raises ModelError.
    """
    ends = {**_SUFFIXES, **others}
    known = {class_name + end: head for end, head in ends.items() if head in heads}
    named = _head_of_class(data, class_name, known, override=head is not None)
    if head is None:
        head = named
    check_choice("head", head, heads)
    if head == "question-answering":  # scores for the first and the last token of the answer
        return {"head": head, "num_labels": 2}
    if head not in LABELLED_HEADS:
        return {"head": head}
    count, labels = _read_labels(data)
    found = {"head": head, "num_labels": count, "labels": labels}
    if head != "sequence-classification":
        return found
    return {
        **found,
        "problem_type": data.get("problem_type"),
        "entailment": _entailment(data, count),
    }


def check_labels(head: str, count: object, labels: object, problem_type: object) -> None:
    """Raise ModelError unless the labels of a configuration fit its head."""
    if head == "question-answering":
        check_size("num_labels", count, 2, least=2)
    elif head in LABELLED_HEADS:
        check_size("num_labels", count, MAX_LABELS)
    else:
        check_size("num_labels", count, 0, least=0)
    if not isinstance(labels, tuple) or len(labels) not in (0, count):
        raise ModelError(f"labels must be a list of {count} names or none, found {short(labels)}")
    for label in labels:
        if not isinstance(label, str) or len(label) > _MAX_LABEL_CHARACTERS:
            raise ModelError(
                f"labels: {short(label)} is not a text of up to {_MAX_LABEL_CHARACTERS} characters"
            )
    if sum(map(len, labels)) > _MAX_LABELS_CHARACTERS:
        raise ModelError(f"labels: more than {_MAX_LABELS_CHARACTERS} characters in total")
    if problem_type is not None:
        check_choice("problem_type", problem_type, PROBLEM_TYPES)


def _head_of_class(
    data: Mapping[str, Any], class_name: str, known: Mapping[str, str], *, override: bool
) -> str:
    classes = data.get("architectures")
    if not classes:
        return "causal-lm" if "causal-lm" in known.values() else "none"
    first = classes[0] if isinstance(classes, list) else classes
    if isinstance(first, str) and first in known:
        return known[first]
    # `head` may override another head of the same family. Another family computes another function.
    if override and isinstance(first, str) and first.startswith(class_name):
        return "none"
    model_type = short(data.get("model_type"))
    raise unsupported(f"architectures (model_type {model_type})", first, ", ".join(known))


def _entailment(data: Mapping[str, Any], count: int) -> int | None:
    """The label that means entailment: the first whose name begins with "entail".

    transformers looks for it in `label2id`, which may differ from `id2label`.
    """
    names, numbers = data.get("id2label"), data.get("label2id")
    if not isinstance(names, Mapping):
        return None  # transformers names the labels anew
    if not isinstance(numbers, Mapping):
        numbers = {str(names.get(key, names.get(str(key)))): key for key in range(count)}
    found = (each for name, each in numbers.items() if str(name).lower().startswith("entail"))
    number = next(found, None)
    return number if type(number) is int and 0 <= number < count else None


def _read_labels(data: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The number of labels and their names; if neither is given, transformers assumes two."""
    names, count = data.get("id2label"), data.get("num_labels")
    if names is None:
        count = 2 if count is None else count
        check_size("num_labels", count, MAX_LABELS)
        return count, ()
    if not isinstance(names, Mapping):
        raise ModelError(f"id2label: {short(names)} is not a mapping of numbers to names")
    check_size("id2label (number of labels)", len(names), MAX_LABELS)
    if count is not None and count != len(names):
        raise ModelError(f"num_labels: {short(count)} differs from the {len(names)} of id2label")
    by_number = {str(key): value for key, value in names.items()}
    if by_number.keys() != set(map(str, range(len(names)))):
        raise ModelError(f"id2label does not number its labels from 0 to {len(names) - 1}")
    labels = [str(by_number[str(i)])[:_MAX_LABEL_CHARACTERS] for i in range(len(names))]
    fits = sum(map(len, labels)) <= _MAX_LABELS_CHARACTERS
    return len(names), tuple(labels) if fits else ()
