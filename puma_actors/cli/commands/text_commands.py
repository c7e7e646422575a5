"""`puma embed`, `classify`, `fill-mask`, `answer` and `tag`: their options."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import JsonOption, RunChoice, TextChoice, TextFileOption
from puma_actors.cli.spread import spread
from puma_actors.cli.where import Where


class Aggregation(StrEnum):
    """How tokens become entities."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


_PLACES = "Directory (config.json + safetensors), or name on the Hugging Face hub"
RequiredModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help=f"{_PLACES}; its head must fit this command."),
]
EmbeddingModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"{_PLACES}; of sentence-transformers, or any encoder. Default: all-MiniLM-L6-v2.",
        show_default=False,
    ),
]
TruncateOption = Annotated[
    bool, typer.Option("--truncate", help="Cut a text that is too long, instead of refusing it.")
]


def embed(
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="A text; - reads one from stdin. Repeatable."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Texts, one per line (UTF-8; - for stdin); empty lines are skipped. Unlike "
            "arguments, they do not show in lists of processes."
        ),
    ] = None,
    model: EmbeddingModelOption = None,
    truncate: TruncateOption = False,
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
    from puma_actors.cli.commands.run_text import read_texts, run_text, show_vectors
    from puma_actors.cli.settings import settings_of

    texts = read_texts(text or [], file)
    run_text(
        "sentence-embedding",
        model,
        lambda pipe: texts,
        lambda vectors: show_vectors(texts, vectors),
        settings=settings_of(choice),
        where=where,
        task_options={"truncation": True} if truncate else {},
        as_json=as_json,
    )


def classify(
    *,
    given: TextChoice,
    model: RequiredModelOption,
    pair: Annotated[
        str | None,
        typer.Option(
            help="A second text, for models that take pairs; - reads it from stdin.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Labels to show; default: all.", show_default=False)
    ] = None,
    truncate: TruncateOption = False,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Label a text, or a pair of texts, privately (head: sequence-classification).

    Scores are probabilities: softmax over the labels, or one sigmoid each if several
        labels can apply at once. The number of a regression is shown unchanged.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.reading import Reader
    from puma_actors.cli.commands.run_text import run_text, show_rows
    from puma_actors.cli.settings import settings_of

    reader = Reader()
    text = reader.one("--text", given.text, "--text-file", given.text_file)
    pair = None if pair is None else reader.text("--pair", pair)
    inputs: Any = text if pair is None else {"text": text, "text_pair": pair}
    run_text(
        "text-classification",
        model,
        lambda pipe: inputs,
        lambda labels: show_rows(labels, {"label": "label", "score": "score"}),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k, "truncation": truncate},
        as_json=as_json,
    )


def fill_mask(
    *,
    given: TextChoice,
    model: RequiredModelOption,
    top_k: Annotated[int, typer.Option(min=1, help="Tokens to show for each mask.")] = 5,
    truncate: TruncateOption = False,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Predict the token behind a mask privately (head: masked-lm).

    The text has one or more mask tokens of the model, [MASK] or <mask>. The parties do
    not learn where they are.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.reading import Reader
    from puma_actors.cli.commands.run_text import run_text, show_masks, with_mask
    from puma_actors.cli.settings import settings_of

    text = Reader().one("--text", given.text, "--text-file", given.text_file)
    run_text(
        "fill-mask",
        model,
        lambda pipe: with_mask(pipe, text),
        show_masks,
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k, "truncation": truncate},
        as_json=as_json,
    )


def answer(
    model: RequiredModelOption,
    question: Annotated[
        str,
        typer.Option("--question", "-q", help="What to look for; - reads it from stdin."),
    ],
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-c",
            help="The text with the answer; - reads it from stdin. A long one is read in windows.",
            show_default=False,
        ),
    ] = None,
    context_file: TextFileOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Answers to show.")] = 1,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Find the part of a text that answers a question, privately (head: question-answering).

    "start" and "end" count the context's characters.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.reading import Reader
    from puma_actors.cli.commands.run_text import run_text, show_rows
    from puma_actors.cli.settings import settings_of

    reader = Reader()
    asked = reader.text("--question", question)
    found_in = reader.one("--context", context, "--context-file", context_file)
    columns = {name: name for name in ("answer", "score", "start", "end")}
    run_text(
        "question-answering",
        model,
        lambda pipe: {"question": asked, "context": found_in},
        lambda found: show_rows(found if isinstance(found, list) else [found], columns),
        settings=settings_of(choice),
        where=where,
        task_options={"top_k": top_k},
        as_json=as_json,
    )


def tag(
    *,
    given: TextChoice,
    model: RequiredModelOption,
    aggregation: Annotated[
        Aggregation,
        typer.Option(
            help="'none': every token by itself; 'simple': join neighbours with the same label; "
            "'first', 'average', 'max': also whole words, by first token, mean or best score."
        ),
    ] = Aggregation.SIMPLE,
    truncate: TruncateOption = False,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Label the words of a text privately (head: token-classification).

    Words with the label "O" are left out. "start" and "end" count characters.
    """
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.reading import Reader
    from puma_actors.cli.commands.run_text import run_text, show_rows
    from puma_actors.cli.settings import settings_of

    label = "entity" if aggregation is Aggregation.NONE else "entity_group"
    columns = {"word": "word", label: "label", "score": "score", "start": "start", "end": "end"}
    text = Reader().one("--text", given.text, "--text-file", given.text_file)
    run_text(
        "token-classification",
        model,
        lambda pipe: text,
        lambda entities: show_rows(entities, columns),
        settings=settings_of(choice),
        where=where,
        task_options={"aggregation_strategy": str(aggregation), "truncation": truncate},
        as_json=as_json,
    )


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (embed, classify, fill_mask, answer, tag):
        app.command(command.__name__.replace("_", "-"))(spread(command))
