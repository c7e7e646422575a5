"""zero-shot-classification: sort texts into classes that are named with the call."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import ModelConfig
from models.programs.head_layers import default_rows
from models.texts.task import Job, TextTask, check_words, many, softmax
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ConfigError

TEMPLATE = "This example is {}."


class ZeroShot(TextTask):
    """Inputs and outputs as those of transformers' ZeroShotClassificationPipeline.

    For each label the model, trained on natural language inference, says how far the text entails
    the template with that label.
    """

    name: ClassVar[str] = "zero-shot-classification"

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        assert config.entailment is not None, "checked by `models.texts.needs`"
        self._entailment = config.entailment
        self._contradiction = -1 if config.entailment == 0 else 0

    def job(
        self,
        inputs: Any,
        *,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = TEMPLATE,
        multi_label: bool = False,
        truncation: bool | None = None,
    ) -> Job:
        """
        Args:
            inputs: a text or a list of texts.
            candidate_labels: the classes: a list, or a text with commas between them.
            hypothesis_template: a sentence with {} in place of a class.
            multi_label: several classes may fit: each gets a probability of its own.
            truncation: see `TextTask.encode`; only the text is cut, never the template.
        """
        items, single = many(inputs)
        labels = _labels(candidate_labels)
        hypotheses = [_filled(hypothesis_template, label) for label in labels]
        encodings = [
            self.encode(item, hypothesis, truncation=truncation, first_only=True)
            for item in items
            for hypothesis in hypotheses
        ]

        def finish(results: Sequence[Floats]) -> Any:
            logits = np.concatenate(list(results)).reshape(len(items), len(labels), -1)
            found = [
                self._answer(item, labels, each, multi_label)
                for item, each in zip(items, logits, strict=True)
            ]
            return found[0] if single else found

        return Job(encodings, default_rows(self.config), finish)

    def _answer(
        self, text: str, labels: list[str], logits: Floats, multi_label: bool
    ) -> dict[str, Any]:
        if multi_label or len(labels) == 1:
            scores = softmax(logits[:, [self._contradiction, self._entailment]])[:, 1]
        else:
            scores = softmax(logits[:, self._entailment])
        order = np.argsort(scores)[::-1]
        return {
            "sequence": text,
            "labels": [labels[i] for i in order],
            "scores": [float(scores[i]) for i in order],
        }


def _labels(given: str | Sequence[str] | None) -> list[str]:
    if isinstance(given, str):
        given = [label.strip() for label in given.split(",") if label.strip()]
    labels = check_words("candidate_labels", [] if given is None else given)
    if not labels:
        raise ConfigError("no classes were given: name them in candidate_labels (--labels)")
    return labels


def _filled(template: object, label: str) -> str:
    """The template with a label in place of {}. Raises ConfigError if it has no such place."""
    filled = template
    if isinstance(template, str):
        try:
            filled = template.format(label)
        except (LookupError, ValueError, AttributeError):
            filled = template
    if not isinstance(filled, str) or filled == template:
        raise ConfigError(
            f"hypothesis_template={str(template)[:40]!r}: write a sentence with {{}} where the "
            "class belongs"
        )
    return filled
