"""Run the commands that take text, and show their results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import numpy as np
from rich.table import Table

from models.programs.steps import RequestSettings
from models.texts.options import TaskOptions
from protocols.base.ring import Floats
from puma_actors.api.life import Cluster
from puma_actors.api.local import LocalCluster
from puma_actors.api.pipelines import TextPipeline, local_pipeline
from puma_actors.api.requests import Requests
from puma_actors.cli.following import Following
from puma_actors.cli.output import print_json, progress, say, stdout, tell
from puma_actors.cli.progress import Reporter
from puma_actors.cli.requests import local_options, open_requests
from puma_actors.cli.summary import print_summary, usage_report
from puma_actors.cli.where import Where

_MASKS = ("[MASK]", "<mask>")
_SHOWN_ENTRIES = 4
_SHOWN_CHARACTERS = 48


def run_text(
    task: str,
    model: str | None,
    inputs: Callable[[TextPipeline], Any],
    show: Callable[[Any], None],
    *,
    settings: RequestSettings,
    where: Where,
    task_options: TaskOptions,
    as_json: bool,
) -> None:
    """Load, share, run a task once, and show its result and cost. A note on stderr says what is cut
    from texts that are too long.

    Args:
        inputs: creates the inputs, once the tokenizer is known.
        show: prints the result, unless JSON is wanted.
    """

    async def run() -> None:
        if where.cluster is None:
            result, pipe = await _here()
        else:
            result, pipe = await _elsewhere()
        if as_json:
            plain = result.tolist() if isinstance(result, np.ndarray) else result
            report = usage_report(_cluster(pipe), pipe.usage, generated=False)
            dropped = pipe.usage.dropped_tokens
            told = {"dropped_tokens": dropped} if any(dropped) else {}
            print_json({"result": plain, **told, **report})
        else:
            show(result)
            print_summary(_cluster(pipe), pipe.usage)

    async def _here() -> tuple[Any, TextPipeline]:
        with progress(quiet=as_json) as report:
            options = local_options(settings, where, report)  # before the model is read
            pipe = local_pipeline(task, model, **options)
            given, cluster = inputs(pipe), pipe.requests
            assert isinstance(cluster, LocalCluster)
            _announce(pipe.check(given, **task_options))
            async with cluster:
                return await _run(pipe, given, report), pipe

    async def _elsewhere() -> tuple[Any, TextPipeline]:
        def check(requests: Requests) -> None:
            pipe = TextPipeline(task, requests)
            _announce(pipe.check(inputs(pipe), **task_options))

        async with open_requests(model, settings, where, check=check, quiet=as_json) as requests:
            pipe = TextPipeline(task, requests)
            with progress(quiet=as_json) as report:
                return await _run(pipe, inputs(pipe), report), pipe

    async def _run(pipe: TextPipeline, given: Any, report: Reporter) -> Any:
        pipe.notice = lambda note: None  # `_announce` has said it
        report("running the model on shares", 0.0)
        with report.following(Following(pipe.requests, lambda: pipe.share)):
            return await pipe(given, **task_options)

    anyio.run(run)


def _announce(note: str) -> None:
    if note:
        tell(f"note: {note}")


def _cluster(pipe: TextPipeline) -> Cluster:
    assert isinstance(pipe.requests, Cluster)
    return pipe.requests


def with_mask(pipe: TextPipeline, text: str) -> str:
    """The text with the usual spellings of a mask replaced by the model's own mask token."""
    own = pipe.tokenizer.special_token("mask_token")
    if own is not None:
        for spelling in _MASKS:
            text = text.replace(spelling, own)
    return text


def show_each(titles: Sequence[str] | None, show: Callable[[Any], None]) -> Callable[[Any], None]:
    """A function that prints the results of several inputs, each under its title; for a single
    input (`titles` is None), `show` itself.
    """
    if titles is None:
        return show

    def show_all(results: Sequence[Any]) -> None:
        for number, (title, result) in enumerate(zip(titles, results, strict=True)):
            if number:
                stdout.print()
            say(_cell(title), style="bold")
            show(result)

    return show_all


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print a table of some entries of each row. `columns`: key of a row -> heading."""
    if not rows:
        say("nothing found", style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key, heading in columns.items():
        numeric = isinstance(rows[0][key], int | float)
        table.add_column(heading, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    stdout.print(table)


def show_masks(found: Sequence[Any]) -> None:
    """Print one table per mask."""
    tables = [found] if isinstance(found[0], Mapping) else found
    for number, rows in enumerate(tables):
        if number:
            stdout.print()
        show_rows(rows, {"token_str": "token", "score": "score", "sequence": "text"})


def show_vectors(texts: Sequence[str], vectors: Floats) -> None:
    """Print the beginning of every vector, and the cosine of every pair."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = (vectors / lengths) @ (vectors / lengths).T
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", justify="right")
    table.add_column("text", overflow="fold")
    table.add_column(f"first of {vectors.shape[1]} entries")
    for number, (text, vector) in enumerate(zip(texts, vectors, strict=True), 1):
        entries = " ".join(f"{value:.4f}" for value in vector[:_SHOWN_ENTRIES])
        table.add_row(str(number), _cell(text), entries)
    stdout.print(table)
    if len(texts) < 2:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("cosine", *map(str, range(1, len(texts) + 1))):
        table.add_column(heading, justify="right")
    for number, row in enumerate(cosines, 1):
        table.add_row(str(number), *(f"{value:.4f}" for value in row))
    stdout.print()
    stdout.print(table)


def _cell(value: Any) -> str:
    """A text in one line; a score with four decimals."""
    if isinstance(value, float):
        return f"{value:.4f}"
    text = " ".join(str(value).split()) or repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
