"""`puma embed`, `classify`, `fill-mask`, `answer` and `tag`: their options."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from puma_actors.cli.commands.texts.options import (
    EmbeddingModelOption,
    FileOption,
    FilesOption,
    RequiredModelOption,
    Texts,
)
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import JsonOption, RunChoice
from puma_actors.cli.spread import spread
from puma_actors.cli.where import Where


class Aggregation(StrEnum):
    """How tokens become entities."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


def embed(
    texts: Texts,
    model: EmbeddingModelOption = None,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Compute a vector of each text privately, and compare them.

    Pooling and scaling to length 1 happen on shares. Shows the beginning of every
    vector and the cosine of every pair; --json has whole vectors.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_vectors
    from puma_actors.cli.commands.texts.inputs import read_texts
    from puma_actors.cli.settings import settings_of

    given = read_texts(texts)
    run_text(
        "sentence-embedding",
        model,
        lambda pipe: given,
        lambda vectors: show_vectors(given, vectors),
        settings=settings_of(choice),
        where=where,
        task_options={"truncation": texts.truncate},
        as_json=as_json,
    )


def classify(
    texts: Texts,
    model: RequiredModelOption,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="A second text, for models that take pairs; one for each text, and - reads it "
            "from stdin.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Labels to show; default: all.", show_default=False)
    ] = None,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Label texts, or pairs of texts, privately (head: sequence-classification).

    Scores are probabilities: softmax over the labels, or one sigmoid each if several
        labels can apply at once. The number of a regression is shown unchanged. In JSON lines, a
        pair is {"text": ..., "text_pair": ...}.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_rows
    from puma_actors.cli.commands.texts.inputs import read_pairs, single_or_all, titles_of
    from puma_actors.cli.settings import settings_of

    items = read_pairs(texts, pair or [])
    alone = texts.file is None
    run_text(
        "text-classification",
        model,
        lambda pipe: single_or_all(items, alone=alone),
        show_each(
            titles_of(items, alone=alone),
            lambda labels: show_rows(labels, {"label": "label", "score": "score"}),
        ),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k, "truncation": texts.truncate},
        as_json=as_json,
    )


def fill_mask(
    texts: Texts,
    model: RequiredModelOption,
    top_k: Annotated[int, typer.Option(min=1, help="Tokens to show for each mask.")] = 5,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Predict the token behind a mask privately (head: masked-lm).

    Write [MASK] or <mask> in the text, once or more. The parties do not learn where the mask is.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_masks, with_mask
    from puma_actors.cli.commands.texts.inputs import read_texts
    from puma_actors.cli.settings import settings_of

    given = read_texts(texts)
    alone = texts.file is None and len(given) == 1

    def inputs(pipe: Any) -> Any:
        masked = [with_mask(pipe, text) for text in given]
        return masked[0] if alone else masked

    run_text(
        "fill-mask",
        model,
        inputs,
        # As in transformers, the result for a list of one text is that of the text.
        show_each(None if len(given) == 1 else given, show_masks),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k, "truncation": texts.truncate},
        as_json=as_json,
    )


def answer(
    model: RequiredModelOption,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question", "-q", help="What to look for; - reads it from stdin. Repeatable."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            "-c",
            help="The text with the answer; - reads it from stdin. A long one is read in windows. "
            "One for all questions, one for each, or several for one question.",
        ),
    ] = None,
    context_file: FilesOption = None,
    file: FileOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Answers to show.")] = 1,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Find the part of a text that answers a question, privately (head: question-answering).

    "start" and "end" count the context's characters. In JSON lines, a question is {"question": ...,
        "context": ...}.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_rows
    from puma_actors.cli.commands.texts.inputs import read_questions, single_or_all, titles_of
    from puma_actors.cli.settings import settings_of

    columns = {name: name for name in ("answer", "score", "start", "end")}
    items = read_questions(question or [], context or [], context_file or [], file)
    alone = file is None
    many_contexts = len({item["question"] for item in items}) == 1
    run_text(
        "question-answering",
        model,
        lambda pipe: single_or_all(items, alone=alone),
        show_each(
            titles_of(items, alone=alone, key="context" if many_contexts else "question"),
            lambda found: show_rows(found if isinstance(found, list) else [found], columns),
        ),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k},
        as_json=as_json,
    )


def tag(
    texts: Texts,
    model: RequiredModelOption,
    aggregation: Annotated[
        Aggregation,
        typer.Option(
            help="'none': every token by itself; 'simple': join neighbours with the same label; "
            "'first', 'average', 'max': also whole words, by first token, mean or best score."
        ),
    ] = Aggregation.SIMPLE,
    stride: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Read a text that is too long in windows that share so many tokens.",
            show_default=False,
        ),
    ] = None,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Label the words of a text privately (head: token-classification).

    Words with the label "O" are left out. "start" and "end" count characters.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_rows
    from puma_actors.cli.commands.texts.inputs import read_texts
    from puma_actors.cli.settings import settings_of

    label = "entity" if aggregation is Aggregation.NONE else "entity_group"
    columns = {"word": "word", label: "label", "score": "score", "start": "start", "end": "end"}
    given = read_texts(texts)
    alone = texts.file is None and len(given) == 1
    run_text(
        "token-classification",
        model,
        lambda pipe: given[0] if alone else given,
        show_each(None if alone else given, lambda entities: show_rows(entities, columns)),
        settings=settings_of(choice),
        where=where,
        task_options={
            "aggregation_strategy": str(aggregation),
            "truncation": texts.truncate,
            "stride": stride,
        },
        as_json=as_json,
    )


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (embed, classify, fill_mask, answer, tag):
        app.command(command.__name__.replace("_", "-"))(spread(command))
