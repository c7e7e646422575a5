"""`puma zero-shot` and `rerank`: their options."""

from pathlib import Path
from typing import Annotated

import typer

from puma_actors.cli.commands.texts.options import FileOption, RequiredModelOption, Texts
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import JsonOption, RunChoice
from puma_actors.cli.spread import spread
from puma_actors.cli.where import Where


def zero_shot(
    texts: Texts,
    model: RequiredModelOption,
    labels: Annotated[
        str, typer.Option("--labels", "-l", help="The classes, with commas between them.")
    ],
    template: Annotated[
        str, typer.Option(help="A sentence with {} where the class belongs.")
    ] = "This example is {}.",
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Several classes may fit at once.")
    ] = False,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Sort texts privately into classes that you name (head: sequence-classification).

    The model must be trained on natural language inference, with a label "entailment". Each
    class costs one pass over the text.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_rows
    from puma_actors.cli.commands.texts.inputs import read_texts
    from puma_actors.cli.settings import settings_of

    given = read_texts(texts)
    alone = texts.file is None and len(given) == 1
    run_text(
        "zero-shot-classification",
        model,
        lambda pipe: given[0] if alone else given,
        show_each(
            None if alone else given,
            lambda found: show_rows(
                [
                    {"label": label, "score": score}
                    for label, score in zip(found["labels"], found["scores"], strict=True)
                ],
                {"label": "label", "score": "score"},
            ),
        ),
        settings=settings_of(choice),
        where=where,
        task_options={
            "candidate_labels": labels,
            "hypothesis_template": template,
            "multi_label": multi_label,
            "truncation": texts.truncate,
        },
        as_json=as_json,
    )


def rerank(
    model: RequiredModelOption,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", "-q", help="What to look for; - reads it from stdin. Repeatable."),
    ] = None,
    document: Annotated[
        list[str] | None,
        typer.Option("--document", "-d", help="A text to sort; - reads it from stdin. Repeatable."),
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="A file (UTF-8) with one document per line, or JSON lines if its name ends in "
            ".jsonl; -: standard input.",
            show_default=False,
        ),
    ] = None,
    file: FileOption = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Documents to show; default: all.", show_default=False)
    ] = None,
    truncate: Annotated[
        bool | None,
        typer.Option(
            "--truncate/--no-truncate",
            help="Cut pairs that are too long (the default), or refuse them.",
            show_default=False,
        ),
    ] = None,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Sort documents privately by how well they answer a query (a cross-encoder with one output).

    "corpus_id" is the number of the document, from 0. In JSON lines of --file, an input is
    {"query": ..., "documents": [...]}.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.run_text import run_text, show_each, show_rows
    from puma_actors.cli.commands.texts.inputs import read_queries, single_or_all, titles_of
    from puma_actors.cli.settings import settings_of

    items = read_queries(query or [], document or [], documents, file)
    alone = file is None
    columns = {"corpus_id": "document", "score": "score", "text": "text"}
    run_text(
        "text-ranking",
        model,
        lambda pipe: single_or_all(items, alone=alone),
        show_each(titles_of(items, alone=alone), lambda found: show_rows(found, columns)),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k, "return_documents": True, "truncation": truncate},
        as_json=as_json,
    )


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (zero_shot, rerank):
        app.command(command.__name__.replace("_", "-"))(spread(command))
