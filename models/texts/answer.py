"""question-answering: find the part of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.texts.task import Job, TextTask, check_count, softmax
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats
from protocols.errors import ConfigError

_NOWHERE = -1e4
Answers = list[dict[str, Any]]


class Answer(TextTask):
    """Inputs and outputs as those of transformers' QuestionAnsweringPipeline (up to version 4).

    A context that does not fit is read in overlapping windows, all in one request.
    """

    name: ClassVar[str] = "question-answering"

    def job(
        self,
        inputs: Any = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Job:
        """
        Args:
            inputs: {"question": ..., "context": ...} or a list of them, instead of the two below.
            question, context: one text each, one list each, or one text for all in the other list.
            top_k: number of answers to return.
            max_answer_len: longest answer, in tokens.
            max_seq_len: longest window, in tokens, question included; default: 384, or what the
                model can take.
            doc_stride: tokens that neighbouring windows share; default: 128, or half a window.
            handle_impossible_answer: an empty answer is allowed.
            align_to_words: answers are whole words.
        """
        items, single = _questions(inputs, question, context)
        check_count("top_k", top_k)
        check_count("max_answer_len", max_answer_len)
        limit, overlap = self._windows(max_seq_len, doc_stride)
        windows: list[list[Encoding]] = []
        for asked, text in items:
            whole = self.tokenizer.encode_text(asked, text)
            if not whole.places(1):
                raise ConfigError("a context is empty: give the text that contains the answer")
            windows.append(whole.windows(limit, overlap, side=self.tokenizer.truncation_side))

        def finish(results: Sequence[Floats]) -> Any:
            rest, found = iter(results), []
            for (_, text), parts in zip(items, windows, strict=True):
                answers: Answers = []
                nothing = np.inf
                for part in parts:
                    starts, ends = self._probabilities(part, next(rest))
                    nothing = min(nothing, starts[0] * ends[0])
                    starts[0] = ends[0] = 0.0
                    spans = _best_spans(part, starts, ends, top_k, max_answer_len, align_to_words)
                    _merge(answers, text, spans)
                if handle_impossible_answer:
                    answers.append({"score": float(nothing), "start": 0, "end": 0, "answer": ""})
                answers.sort(key=lambda answer: -answer["score"])
                kept = answers[:top_k]
                found.append(kept[0] if len(kept) == 1 else kept)
            return found[0] if single else found

        return Job([part for parts in windows for part in parts], "all", finish)

    def _windows(self, limit: int | None, overlap: int | None) -> tuple[int, int]:
        """Tokens of a window, and the number that neighbouring windows share."""
        if limit is None:
            limit = min(self.max_length, 384)
        check_count("max_seq_len", limit)
        if limit > self.max_length:
            raise ConfigError(f"max_seq_len={limit}: the model takes {self.max_length} tokens")
        if overlap is None:
            overlap = min(limit // 2, 128)
        check_count("doc_stride", overlap, least=0)
        return limit, overlap

    def _probabilities(self, window: Encoding, logits: Floats) -> tuple[Floats, Floats]:
        """Probabilities of the answer's first and last token, (tokens,) each, over the context's
        tokens and the first token of all, which stands for no answer.
        """
        allowed = np.array([number == 1 for number in window.texts])
        first = self.tokenizer.special_id("cls_token")
        allowed |= np.array([token == first for token in window.ids])
        masked = np.where(allowed[:, None], logits, _NOWHERE)
        return softmax(masked[:, 0]), softmax(masked[:, 1])


def _questions(inputs: Any, question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of question and context, and whether the input was a single pair, not a list."""
    if inputs is None:
        inputs = _paired(question, context)
    single = isinstance(inputs, Mapping)
    items = [inputs] if single else inputs
    if not isinstance(items, Sequence) or not items:
        raise ConfigError("no question was given: give question=... and context=...")
    return [(_part(item, "question"), _part(item, "context")) for item in items], single


def _paired(question: Any, context: Any) -> Any:
    """The two keywords in the form of `inputs`; a single text belongs to all of the others."""
    alone = [isinstance(each, str) or each is None for each in (question, context)]
    if all(alone):
        return {"question": question, "context": context}
    questions = [question] * len(context) if alone[0] else question
    contexts = [context] * len(question) if alone[1] else context
    if len(contexts) != len(questions):
        raise ConfigError(
            f"{len(questions)} questions for {len(contexts)} contexts: give as many, or one of them"
        )
    pairs = zip(questions, contexts, strict=True)
    return [{"question": asked, "context": text} for asked, text in pairs]


def _part(item: Any, key: str) -> str:
    text = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"a {key} is empty or missing: give question=... and context=...")
    return text


def _best_spans(
    window: Encoding,
    starts: Floats,
    ends: Floats,
    top_k: int,
    longest: int,
    align: bool,
) -> list[tuple[int, int, float]]:
    """First and last character and score of the best spans of the context in a window."""
    scores = np.tril(np.triu(np.outer(starts, ends)), longest - 1)
    # Several token spans may cover the same words.
    wanted = 2 * top_k + 10 if align else top_k
    best = np.argsort(-scores, axis=None, kind="stable")[:wanted]
    found = []
    for first, last in zip(*np.unravel_index(best, scores.shape), strict=True):
        if window.texts[first] != 1 or window.texts[last] != 1 or last < first:
            continue
        if align:
            begin, end = window.word_span(int(first))[0], window.word_span(int(last))[1]
        else:
            begin, end = window.offsets[first][0], window.offsets[last][1]
        found.append((begin, end, float(scores[first, last])))
    return found


def _merge(answers: Answers, text: str, spans: Sequence[tuple[int, int, float]]) -> None:
    """Add answers to those found so far; repeated words add to their score."""
    for begin, end, score in spans:
        answer = text[begin:end]
        for known in answers:
            if known["answer"].lower() == answer.lower():
                known["score"] += score
                break
        else:
            answers.append({"score": score, "start": begin, "end": end, "answer": answer})
