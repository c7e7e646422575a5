"""question-answering on shares, against torch and the steps of transformers' former pipeline."""

from itertools import product

import pytest
import torch
import transformers
from pipeline_cases import TOLERANCE, assert_same

from protocols.errors import ConfigError
from puma_actors.api.pipelines import pipeline


@pytest.fixture(scope="module")
def ask(reader):
    with pipeline("question-answering", reader) as pipe:
        yield pipe


def torch_answers(folder, question, context, kept, *, longest=15, limit=20, overlap=10):
    """The words of each window's best spans with the sum of their scores; the score of no answer.

    (transformers has no such pipeline any more; this is what the one of version 4 computes, span
    by span, of which it keeps twice as many as answers are wanted and 10.)
    """
    model = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=limit,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    scores, nothing = {}, []
    for i, (ids, types) in enumerate(
        zip(windows["input_ids"], windows["token_type_ids"], strict=True)
    ):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        inside = [place for place, text in enumerate(windows.sequence_ids(i)) if text == 1]
        allowed = [0, *inside]
        starts = torch.softmax(out.start_logits[0, allowed].double(), 0).tolist()
        ends = torch.softmax(out.end_logits[0, allowed].double(), 0).tolist()
        nothing.append(starts[0] * ends[0])
        spans = [
            (starts[a] * ends[b], first, last)
            for (a, first), (b, last) in product(enumerate(inside, 1), repeat=2)
            if 0 <= last - first < longest
        ]
        for score, first, last in sorted(spans, reverse=True)[:kept]:
            begin = windows[i].word_to_chars(windows[i].token_to_word(first), 1)[0]
            end = windows[i].word_to_chars(windows[i].token_to_word(last), 1)[1]
            words = context[begin:end].lower()
            scores[words] = scores.get(words, 0.0) + score
    return scores, min(nothing), len(windows["input_ids"])


def test_question_answering(ask, reader):
    context = "The cat sat on London."
    scores, _, windows = torch_answers(reader, "the cat?", context, 12)
    assert windows == 1
    answer = ask(question="the cat?", context=context)
    assert set(answer) == {"score", "start", "end", "answer"}
    assert answer["answer"] == context[answer["start"] : answer["end"]]
    assert answer["answer"].lower() == max(scores, key=scores.get)
    assert answer["score"] == pytest.approx(max(scores.values()), abs=TOLERANCE)
    several = ask({"question": "the cat?", "context": context}, top_k=4)
    scores, _, _ = torch_answers(reader, "the cat?", context, 18)
    for found in several:
        assert found["score"] == pytest.approx(scores[found["answer"].lower()], abs=TOLERANCE)
    assert sorted((a["score"] for a in several), reverse=True) == [a["score"] for a in several]
    both = ask(question=["the cat?", "on?"], context=context)
    assert_same(both[0], answer)
    assert_same(ask(question="the cat?", context=[context, "Cats!"])[0], answer)
    assert len(both) == 2
    short = ask(question="the cat?", context=context, max_answer_len=1, align_to_words=False)
    assert len(ask.pipe.tokenizer.encode_text(short["answer"], special_tokens=False)) == 1


def test_long_contexts_are_read_in_windows(ask, reader):
    context = "The cat sat on the dogs. London ran, in Paris! A dog: no cats on a mat? " * 2
    scores, nothing, windows = torch_answers(reader, "the cat?", context, 16, overlap=4)
    assert windows > 3
    found = ask(question="the cat?", context=context, doc_stride=4, top_k=3)
    assert len(ask.usage.steps) == 1
    for answer in found:
        assert answer["answer"] == context[answer["start"] : answer["end"]]
    best = found[0]
    assert best["score"] == pytest.approx(scores[best["answer"].lower()], abs=2 * TOLERANCE)
    many = ask(
        question="the cat?",
        context=context,
        doc_stride=4,
        top_k=500,
        handle_impossible_answer=True,
    )
    (empty,) = [answer for answer in many if answer["answer"] == ""]
    assert empty["score"] == pytest.approx(nothing, abs=TOLERANCE)
    with pytest.raises(ConfigError, match="shorten the question, or use larger windows"):
        ask(question="the cat " * 7, context=context)
