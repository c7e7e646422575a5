"""What `puma inspect` says about keeping a model's weights in one process."""

from typing import Any

from rich.table import Table

from models.checkpoints.checkpoint import Checkpoint
from puma_actors.api.keeping import fits
from puma_actors.api.speed import choices
from puma_actors.base.available import available_memory
from puma_actors.cli.output import amount, say, stdout
from puma_actors.roles.spool import spool_folder

_LABELS = {
    "memory": "weights in memory",
    "disk": "weights on disk",
    "public": "--public-weights",
}


def weights_report(checkpoint: Checkpoint, tokens: int) -> dict[str, Any]:
    """What each way takes, which one is used by default, and the least time of a pass of `tokens`
    rows. Raises ConfigError if the disk's speed cannot be measured.
    """
    found = choices(checkpoint, tokens, spool_folder())
    return {
        "available_bytes": available_memory(),
        "kept": "memory" if fits(checkpoint.config, None) else "disk",
        "tokens": tokens,
        "choices": {
            kept: {
                "memory_bytes": choice.memory,
                "disk_bytes": choice.disk,
                "pass_seconds": {
                    "read": choice.seconds.disk,
                    "compute": choice.seconds.work,
                    "pass": choice.seconds.total,
                },
            }
            for kept, choice in found.items()
        },
    }


def print_weights(weights: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("all roles in one process", no_wrap=True)
    for column in ("memory", "disk", "a pass, at least", "reading"):
        table.add_column(column, justify="right")
    for kept, choice in weights["choices"].items():
        seconds = choice["pass_seconds"]
        table.add_row(
            _LABELS[kept] + (" (default)" if kept == weights["kept"] else ""),
            amount(choice["memory_bytes"]),
            amount(choice["disk_bytes"]) if choice["disk_bytes"] else "",
            _seconds(seconds["pass"]),
            _seconds(seconds["read"]) if seconds["read"] else "",
        )
    stdout.print()
    stdout.print(table)
    say(
        f"{amount(weights['available_bytes'])} of memory are available; a pass of "
        f"{weights['tokens']} tokens reads, expands and multiplies at the same time, as fast as "
        "this machine just did",
        style="dim",
    )


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"
