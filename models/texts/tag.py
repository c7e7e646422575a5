"""token-classification: label every token, or find the entities that tokens form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from models.texts.task import Job, TextTask, check_choice, check_words, many, softmax
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats

STRATEGIES = ("none", "simple", "first", "average", "max")
_OF_WORDS = ("first", "average", "max")
Piece = dict[str, Any]


class Tag(TextTask):
    """Inputs and outputs as those of transformers' TokenClassificationPipeline."""

    name: ClassVar[str] = "token-classification"

    def job(
        self,
        inputs: Any,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        truncation: bool = False,
    ) -> Job:
        """
        Args:
            inputs: a text or a list of texts.
            aggregation_strategy: "none": every token; "simple": neighbours with the same label (B-
                and I- prefixes are understood); "first", "average", "max": the same with whole
                words, labelled by their first token, by the mean of their scores, or by their most
                certain token.
            ignore_labels: labels that are left out.
        """
        items, single = many(inputs)
        check_choice("aggregation_strategy", aggregation_strategy, STRATEGIES)
        ignored = set(check_words("ignore_labels", ignore_labels))
        encodings = [self.encode(item, truncation=truncation) for item in items]

        def finish(results: Sequence[Floats]) -> Any:
            found = []
            for item, encoding, logits in zip(items, encodings, results, strict=True):
                pieces = self._pieces(item, encoding, softmax(logits), aggregation_strategy)
                entities = self._entities(pieces, aggregation_strategy)
                key = "entity" if aggregation_strategy == "none" else "entity_group"
                found.append([entity for entity in entities if entity[key] not in ignored])
            return found[0] if single else found

        return Job(encodings, "all", finish)

    def _pieces(self, text: str, encoding: Encoding, scores: Floats, strategy: str) -> list[Piece]:
        """The tokens of the text with their scores, and whether each continues a word."""
        unknown = self.tokenizer.special_id("unk_token")
        pieces = []
        for place, token in enumerate(encoding.ids):
            if encoding.special[place]:
                continue
            start, end = encoding.offsets[place]
            word, there = self.tokenizer.token_of(token), text[start:end]
            if self.tokenizer.marks_subwords:
                continues = len(word) != len(there)
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            if token == unknown:
                word, continues = there, False
            pieces.append(
                {
                    "word": word,
                    "scores": scores[place],
                    "start": start,
                    "end": end,
                    "index": place,
                    "continues": continues,
                }
            )
        return pieces

    def _entities(self, pieces: list[Piece], strategy: str) -> list[Piece]:
        if strategy in _OF_WORDS:
            words: list[list[Piece]] = []
            for piece in pieces:
                if words and piece["continues"]:
                    words[-1].append(piece)
                else:
                    words.append([piece])
            return self._groups([self._word(word, strategy) for word in words])
        entities = [self._labelled(piece["scores"], piece) for piece in pieces]
        return entities if strategy == "none" else self._groups(entities)

    def _labelled(self, scores: Floats, piece: Piece) -> Piece:
        best = int(scores.argmax())
        return {
            "entity": self.label(best),
            "score": float(scores[best]),
            **{key: piece[key] for key in ("index", "word", "start", "end") if key in piece},
        }

    def _word(self, pieces: list[Piece], strategy: str) -> Piece:
        if strategy == "first":
            scores = pieces[0]["scores"]
        elif strategy == "max":
            scores = max(pieces, key=lambda piece: float(piece["scores"].max()))["scores"]
        else:
            scores = np.mean([piece["scores"] for piece in pieces], axis=0)
        return self._labelled(scores, self._joined(pieces))

    def _groups(self, entities: list[Piece]) -> list[Piece]:
        """Join neighbours with the same label; a B- prefix starts a new entity."""
        groups: list[list[Piece]] = []
        for entity in entities:
            begins, tag = _tag(entity["entity"])
            if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                **self._joined(group),
            }
            for group in groups
        ]

    def _joined(self, pieces: list[Piece]) -> Piece:
        return {
            "word": self.tokenizer.join([piece["word"] for piece in pieces]),
            "start": pieces[0]["start"],
            "end": pieces[-1]["end"],
        }


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's kind."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label
