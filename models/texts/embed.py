"""feature-extraction and sentence-embedding: vectors for tokens and for whole texts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import ModelConfig
from models.configs.tasks.sentences import SentenceSettings
from models.programs.program import UNIT_ROWS, Rows
from models.texts.task import Job, TextTask, many
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ModelError


class Features(TextTask):
    """The last hidden states, as transformers' FeatureExtractionPipeline gives them."""

    name: ClassVar[str] = "feature-extraction"

    def job(
        self, inputs: Any, *, return_tensors: bool = False, truncation: bool | None = None
    ) -> Job:
        """
        Args:
            inputs: a text or a list of texts.
            return_tensors: arrays (1, tokens, hidden size) instead of nested lists.
        """
        items, single = many(inputs)

        def finish(results: Sequence[Floats]) -> Any:
            found = [result[None] if return_tensors else [result.tolist()] for result in results]
            return found[0] if single else found

        return Job([self.encode(item, truncation=truncation) for item in items], "all", finish)


def vector_rows(config: ModelConfig, settings: SentenceSettings, *, unit: bool) -> Rows:
    """The rows to ask for. A single token's hidden state is scaled by the client, which learns it
    anyway.
    """
    if unit and (config.dense is not None or settings.pooling == "mean"):
        return UNIT_ROWS[settings.pooling]
    return settings.pooling


class Sentences(TextTask):
    """One vector per text. The mean over the tokens is computed and scaled on shares, and Dense
    layers are evaluated on shares: the client learns only the vector.

    Raises:
        ModelError: the model's own settings are not supported.
    """

    name: ClassVar[str] = "sentence-embedding"

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        settings: SentenceSettings | None = None,
    ) -> None:
        super().__init__(config, tokenizer)
        self.settings = settings or SentenceSettings()
        if self.settings.refusal:
            raise ModelError(self.settings.refusal)
        # sentence-transformers cuts every text that is too long.
        self._set_limit(self.settings.max_length or tokenizer.max_length or config.max_positions)

    def job(
        self, inputs: Any, *, normalize: bool | None = None, truncation: bool | None = None
    ) -> Job:
        """
        Args:
            inputs: a text or a list of texts.
            normalize: scale vectors to length 1; default: the model's own setting.
            truncation: False: refuse texts with more tokens than the model has positions; default:
                cut them to the model's own limit, as sentence-transformers does.

        The result is an array (size,), or (texts, size) for a list: the hidden size, or the outputs
        of the last Dense layer.
        """
        items, single = many(inputs)
        wanted = self.settings.normalize if normalize is None else normalize
        rows = vector_rows(self.config, self.settings, unit=wanted)
        unit = wanted and rows not in UNIT_ROWS.values()

        def finish(results: Sequence[Floats]) -> Any:
            found = np.concatenate(list(results))
            if unit:
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            return found[0] if single else found

        encodings = [self.encode(self._prepared(item), truncation=truncation) for item in items]
        return Job(encodings, rows, finish)

    def _prepared(self, item: Any) -> Any:
        if not isinstance(item, str):
            return item
        text = self.settings.prompt + item
        return text.lower() if self.settings.lower else text
