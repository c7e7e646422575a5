"""`puma perplexity`: how well a model predicts a text, in plaintext and in private."""

from pathlib import Path

import anyio
from rich.table import Table

from models.programs.steps import RequestSettings
from puma_actors.api.scoring import Perplexities, Told, plan_windows, score_plain, score_private
from puma_actors.cli.commands.reading import Reader
from puma_actors.cli.following import Following
from puma_actors.cli.output import amount, print_json, progress, say, stdout
from puma_actors.cli.requests import open_cluster
from puma_actors.cli.where import Where
from puma_actors.roles.owner import Progress


def run_perplexity(
    model: str | None,
    file: Path,
    settings: RequestSettings,
    *,
    window: int | None,
    stride: int | None,
    max_tokens: int | None,
    where: Where,
    as_json: bool,
) -> None:
    """Score a text twice and print both perplexities."""
    text = Reader().whole("--file", file)

    async def run() -> None:
        with progress(quiet=as_json) as report:
            cluster = open_cluster(model, settings, where, report)
            with cluster.checkpoint:  # the cluster closes it too, once it has started
                ids = cluster.text_ids(text)[:max_tokens]
                windows = plan_windows(cluster, ids, window, stride)
                report("plaintext first", 0.0)
                plain = score_plain(cluster.checkpoint, ids, windows, _told("plaintext", report))
                async with cluster:
                    report(f"private: {len(windows)} windows", 0.0)
                    told = _told("private", report)
                    shares = _Shares([window.stop - window.start for window in windows], told)
                    with report.following(Following(cluster, shares)):
                        private = await score_private(cluster, ids, windows, shares.told)
        found = Perplexities(tuple(windows), plain, private)
        if as_json:
            facts = {"model": cluster.checkpoint.where, "approximation": settings.approximation}
            print_json({**facts, "tokens": len(ids), **found.to_json()})
        else:
            _print(found, settings)

    anyio.run(run)


class _Shares:
    """The tokens of the windows that are done, and those of all windows."""

    def __init__(self, sizes: list[int], told: Told) -> None:
        self._sizes, self._told, self._done = sizes, told, 0

    def __call__(self) -> tuple[int, int]:
        return sum(self._sizes[: self._done]), sum(self._sizes)

    def told(self, done: int, windows: int, rest: float) -> None:
        self._done = done
        self._told(done, windows, rest)


def _told(kind: str, report: Progress) -> Told:
    def told(done: int, windows: int, rest: float) -> None:
        left = f"about {rest / 60:.0f} min" if rest >= 90 else f"about {rest:.0f} s"
        # The first word differs between windows: without a terminal each gets its own line.
        report(f"{kind}:{done}/{windows} windows, {left} left", done / windows)

    return told


def _print(found: Perplexities, settings: RequestSettings) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "perplexity", "s per window", "rounds", "online", "dealt ahead"):
        table.add_column(name, justify="left" if not name else "right")
    count, cost = len(found.windows), found.mean_cost
    seconds = f"{sum(found.plain.seconds) / count:.2f}"
    table.add_row("plaintext (float64)", f"{found.plain.perplexity:.4f}", seconds)
    table.add_row(
        f"private ({settings.approximation})",
        f"{found.private.perplexity:.4f}",
        f"{sum(found.private.seconds) / count:.2f}",
        f"{cost.rounds:,}",
        amount(cost.online),
        amount(cost.offline),
    )
    stdout.print(table)
    say(
        f"relative difference {found.relative:+.4%} · {len(found.plain.likelihoods):,} tokens "
        f"scored in {count} windows; traffic is the average per window",
        style="dim",
    )
