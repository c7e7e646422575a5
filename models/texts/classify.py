"""text-classification: label a text, or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.programs.head_layers import default_rows
from models.texts.task import Job, TextTask, check_choice, check_count, many, softmax
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats
from protocols.errors import ConfigError

_FUNCTIONS = ("softmax", "sigmoid", "none")
_BEST = object()
"""Value of `top_k` when it is not given: one label, not in a list."""


class Classify(TextTask):
    """Inputs and outputs as those of transformers' TextClassificationPipeline."""

    name: ClassVar[str] = "text-classification"

    def job(
        self,
        inputs: Any,
        *,
        top_k: Any = _BEST,
        function_to_apply: str | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> Job:
        """
        Args:
            inputs: a text, a pair {"text": ..., "text_pair": ...}, or a list of them.
            top_k: number of labels to return, best first; None for all. Without it only the best
                one.
            function_to_apply: "softmax", "sigmoid" or "none"; by default it depends on the problem:
                none for a regression, a sigmoid for several labels at once or a single label,
                otherwise softmax.
            truncation, max_length: see `TextTask.encode`.
        """
        items, single = many(inputs)
        if top_k is not _BEST and top_k is not None:
            check_count("top_k", top_k)
        if max_length is not None:
            check_count("max_length", max_length)
        given = self._usual_function() if function_to_apply is None else function_to_apply
        function = given.lower() if isinstance(given, str) else given
        check_choice("function_to_apply", function, _FUNCTIONS)

        def finish(results: Sequence[Floats]) -> Any:
            answers = [self._answer(result[0], function, top_k) for result in results]
            return answers[0] if single else answers

        cut: dict[str, Any] = {"truncation": truncation, "max_length": max_length}
        encodings = [self._encode(item, cut) for item in items]
        return Job(encodings, default_rows(self.config), finish)

    def wraps(self, inputs: Any, options: Mapping[str, Any]) -> bool:
        return isinstance(inputs, str) and "top_k" not in options

    def _encode(self, item: Any, cut: dict[str, Any]) -> Encoding:
        if not isinstance(item, Mapping):
            if not isinstance(item, str):
                raise ConfigError('a pair of texts is given as {"text": ..., "text_pair": ...}')
            return self.encode(item, **cut)
        if "text" not in item or not item.keys() <= {"text", "text_pair"}:
            raise ConfigError('a pair of texts needs the keys "text" and "text_pair", and no other')
        return self.encode(item["text"], item.get("text_pair"), **cut)

    def _usual_function(self) -> str:
        kind, count = self.config.problem_type, self.config.num_labels
        if kind == "regression":
            return "none"
        return "sigmoid" if kind == "multi_label_classification" or count == 1 else "softmax"

    def _answer(self, logits: Floats, function: str, top_k: Any) -> Any:
        scores = logits
        if function == "softmax":
            scores = softmax(logits)
        elif function == "sigmoid":
            scores = 1 / (1 + np.exp(-logits))
        order = np.argsort(-scores, kind="stable")
        labels = [{"label": self.label(int(i)), "score": float(scores[i])} for i in order]
        return labels[0] if top_k is _BEST else labels[:top_k]
