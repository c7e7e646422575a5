"""token-classification: label every token, or find the entities that tokens form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from models.texts.task import Job, TextTask, check_choice, check_count, check_words, many, softmax
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats
from protocols.errors import ConfigError

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
        truncation: bool | None = None,
        stride: int | None = None,
    ) -> Job:
        """
        Args:
            inputs: a text or a list of texts.
            aggregation_strategy: "none": every token; "simple": neighbours with the same label (B-
                and I- prefixes are understood); "first", "average", "max": the same with whole
                words, labelled by their first token, by the mean of their scores, or by their most
                certain token.
            ignore_labels: labels that are left out.
            truncation: see `TextTask.encode`.
            stride: read texts that are too long in windows that share this many tokens, and keep
                the longer, then the more certain one of entities that overlap. Not with
                aggregation "none".
        """
        items, single = many(inputs)
        check_choice("aggregation_strategy", aggregation_strategy, STRATEGIES)
        ignored = set(check_words("ignore_labels", ignore_labels))
        if stride is not None:
            self._check_stride(stride, aggregation_strategy, truncation)
        parts = [self._parts(item, truncation, stride) for item in items]
        key = "entity" if aggregation_strategy == "none" else "entity_group"

        def finish(results: Sequence[Floats]) -> Any:
            rest, found = iter(results), []
            for item, windows in zip(items, parts, strict=True):
                entities: list[Piece] = []
                for window in windows:
                    scores = softmax(next(rest))
                    pieces = self._pieces(item, window, scores)
                    grouped = self._entities(pieces, aggregation_strategy)
                    entities += [entity for entity in grouped if entity[key] not in ignored]
                found.append(_apart(entities) if len(windows) > 1 else entities)
            return found[0] if single else found

        return Job([window for windows in parts for window in windows], "all", finish)

    def _check_stride(self, stride: object, strategy: str, truncation: bool | None) -> None:
        check_count("stride", stride, least=0)
        if strategy == "none":
            raise ConfigError(
                "stride joins the entities of several windows, and aggregation_strategy='none' "
                f"makes none: use one of {', '.join(STRATEGIES[1:])}"
            )
        if truncation is not None:
            raise ConfigError("stride reads whole texts: leave out truncation")

    def _parts(self, item: Any, truncation: bool | None, stride: int | None) -> list[Encoding]:
        """One encoding per window; a single one of a text that fits or is cut."""
        if stride is None:
            return [self.encode(item, truncation=truncation)]
        whole = self.encode(item, truncation=truncation, whole=True)
        return whole.windows(self.max_length, stride, 0, side=self.tokenizer.truncation_side)

    def _pieces(self, text: str, encoding: Encoding, scores: Floats) -> list[Piece]:
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


def _apart(entities: list[Piece]) -> list[Piece]:
    """The entities of overlapping windows, one where several overlap, as transformers chooses."""
    found: list[Piece] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if found and found[-1]["start"] <= entity["start"] < found[-1]["end"]:
            if _weight(entity) > _weight(found[-1]):
                found[-1] = entity
        else:
            found.append(entity)
    return found


def _weight(entity: Piece) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
