"""text-ranking: sort documents by how well they answer a query, with a cross-encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import ModelConfig
from models.configs.tasks.ranking import RankingSettings
from models.programs.head_layers import default_rows
from models.texts.task import Job, TextTask, check_count
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ConfigError, ModelError

_FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "identity": lambda logits: logits,
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "tanh": np.tanh,
}
_NOTHING = "nothing to rank: give query=... and documents=[...]"


class Rank(TextTask):
    """Results as those of `CrossEncoder.rank` of sentence-transformers.

    Raises:
        ModelError: the model's own settings are not supported.
    """

    name: ClassVar[str] = "text-ranking"

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, settings: RankingSettings | None = None
    ) -> None:
        super().__init__(config, tokenizer)
        settings = settings or RankingSettings()
        if settings.refusal:
            raise ModelError(settings.refusal)
        # sentence-transformers cuts every pair that is too long.
        self._set_limit(settings.max_length or tokenizer.max_length or config.max_positions)
        self._function = _FUNCTIONS[settings.activation]

    def job(
        self,
        inputs: Any = None,
        *,
        query: str | Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        top_k: int | None = None,
        return_documents: bool = False,
        truncation: bool | None = None,
    ) -> Job:
        """
        Args:
            inputs: {"query": ..., "documents": [...]} or a list of them, instead of the two below.
            query: a text, or several for the same documents.
            documents: the texts to sort.
            top_k: number of documents to return; default: all.
            return_documents: results also have the document's text.
            truncation: False: refuse pairs with more tokens than the model has positions; default:
                cut them to the model's own limit, as sentence-transformers does.

        The result of a query is a list, best first, of {"corpus_id": number of the document,
        "score": ...}.
        """
        asked, single = _asked(inputs, query, documents)
        if top_k is not None:
            check_count("top_k", top_k)

        def finish(results: Sequence[Floats]) -> Any:
            rest, found = iter(results), []
            for _, texts in asked:
                scores = [float(self._function(next(rest)[0, 0])) for _ in texts]
                order = sorted(range(len(texts)), key=lambda i: -scores[i])[:top_k]
                found.append(
                    [
                        {"corpus_id": i, "score": scores[i]}
                        | ({"text": texts[i]} if return_documents else {})
                        for i in order
                    ]
                )
            return found[0] if single else found

        encodings = [
            self.encode(text, document, truncation=truncation)
            for text, texts in asked
            for document in texts
        ]
        return Job(encodings, default_rows(self.config), finish)


def _asked(inputs: Any, query: Any, documents: Any) -> tuple[list[tuple[str, Sequence[str]]], bool]:
    """Queries with their documents, and whether the input was a single one, not a list.

    Raises:
        ConfigError: a query or a document is missing or no text.
    """
    if inputs is None:
        single = isinstance(query, str)
        inputs = [{"query": each, "documents": documents} for each in _listed(query, single)]
    else:
        single = isinstance(inputs, Mapping)
        inputs = _listed(inputs, single)
    return [_checked(item) for item in inputs], single


def _listed(value: Any, single: bool) -> list[Any]:
    if single:
        return [value]
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(_NOTHING)
    return list(value)


def _checked(item: Any) -> tuple[str, Sequence[str]]:
    if not isinstance(item, Mapping) or item.keys() != {"query", "documents"}:
        raise ConfigError('an input needs the keys "query" and "documents", and no other')
    texts = _listed(item["documents"], False)
    if not all(isinstance(text, str) and text.strip() for text in (item["query"], *texts)):
        raise ConfigError("a query or a document is empty or no text: give some text")
    return item["query"], texts
