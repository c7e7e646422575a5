"""The cost of a request, as JSON and as a short table."""

from typing import Any

from rich.table import Table

from models.programs.steps import AUTO
from protocols.base.cost import Cost
from puma_actors.api.life import Cluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.api.usage import Usage
from puma_actors.cli.output import amount, stderr
from puma_actors.planning.choice import chosen_public
from puma_actors.transports.delay.network import Network

_ENDS = {"length": "token limit", "context": "context full"}
"""Explanations of the terse values of `Usage.stop_reason`."""


def network_of(cluster: Cluster) -> Network | None:
    """The emulated network between the roles; None if there is none, or a real one."""
    return cluster.network


def _starting(cluster: Cluster) -> dict[str, tuple[str, float]]:
    """The phases before the request: name in JSON -> text and seconds."""
    seconds = cluster.seconds
    if isinstance(cluster, RemoteCluster):
        return {
            "load": ("open the session", seconds["open"]),
            "connect": ("agree on keys", seconds["connect"]),
        }
    load = seconds["kernels"] + seconds["load"] + seconds["calibrate"]
    return {"load": ("load the model", load), "share": ("share the weights", seconds["share"])}


def usage_report(cluster: Cluster, usage: Usage, *, generated: bool = True) -> dict[str, Any]:
    """Token ids, seconds, traffic, network and kind of weights, as the JSON output names them.

    generated: whether there are new tokens, with their seconds and a reason why they ended: "end of
        text", "stop string", "length" (as many as requested) or "context" (no room left).
    """
    total = usage.total
    spent = {"prefill": usage.seconds.get("prefill", 0.0)}
    made: dict[str, Any] = {}
    if generated:
        spent["decode"] = usage.seconds.get("decode", 0.0)
        made = {
            "token_ids": usage.token_ids,
            "stop_reason": usage.stop_reason,
            "draft": _draft_report(usage),
        }
    return {
        "prompt_ids": usage.prompt_ids,
        **made,
        "seconds": {
            **{key: value for key, (_, value) in _starting(cluster).items()},
            **spent,
        },
        "traffic": {
            "rounds": total.rounds,
            "online_bytes": total.online,
            "offline_bytes": total.offline,
        },
        "prepared_steps": usage.prepared,
        "network": network.to_public() if (network := network_of(cluster)) else None,
        "settings": {
            "approximation": usage.settings.first.approximation,
            **chosen_public(usage.settings, several=generated),
        },
        "weights": cluster.weights,
    }


def print_summary(cluster: Cluster, usage: Usage, *, stopped: bool = False) -> None:
    """Print a short table on stderr. `stopped`: a generation, with its tokens and stop reason."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "time", "rounds", "online", "dealt ahead"):
        table.add_column(name, justify="left" if not name else "right")
    for what, taken in _starting(cluster).values():
        table.add_row(what, f"{taken:.1f} s")
    spent, tokens = usage.seconds.get("prefill", 0.0), len(usage.prompt_ids)
    if usage.steps and stopped:
        table.add_row(*_row(f"prefill, {tokens} tokens", spent, usage.steps[0]))
    elif usage.steps:
        table.add_row(*_row(f"forward, {tokens} tokens", spent, usage.total))
    decoded = usage.steps[1 : 1 + len(usage.drafts)]
    if decoded:
        count = len(decoded)
        total = sum(decoded, Cost())
        mean = Cost(total.rounds // count, total.online // count, total.offline // count)
        each = usage.seconds.get("decode", 0.0) / count
        table.add_row(*_row(_decoding(usage, count), each, mean))
    stderr.print()
    stderr.print(table)
    if (network := network_of(cluster)) is not None:
        stderr.print(f"network {network.describe()}", style="dim")
    stderr.print(_trees(cluster, usage, several=stopped), style="dim")
    if usage.prepared:
        stderr.print("prepared: nothing was dealt for this request", style="dim")
    reason = _ENDS.get(usage.stop_reason, usage.stop_reason)
    end = f"stopped: {reason} · no" if stopped else "no"
    hidden = _hidden(cluster, "prompt" if stopped else "text")
    stderr.print(f"{end} party saw the {hidden}", style="dim")


def _trees(cluster: Cluster, usage: Usage, *, several: bool) -> str:
    """Which trees the steps had, and whether they were chosen."""
    first, further = usage.settings.first.tree, usage.settings.further.tree
    trees = f"{first} first, then {further}" if several and further != first else first
    return f"tree {trees}" + (" (chosen)" if cluster.settings.tree == AUTO else "")


def _draft_report(usage: Usage) -> dict[str, Any]:
    """What was drafted, as JSON."""
    return {
        "by": usage.draft,
        "steps": len(usage.drafts),
        "proposed": sum(step.proposed for step in usage.drafts),
        "accepted": sum(step.accepted for step in usage.drafts),
        "tokens_a_step": usage.tokens_a_step,
    }


def _decoding(usage: Usage, steps: int) -> str:
    """What the row of steps after the first is called."""
    if usage.draft != "none":
        name = "one more step" if steps == 1 else f"each of {steps} more steps"
        return f"{name}, {usage.tokens_a_step:.2f} tokens a step"
    return "one more token" if steps == 1 else f"each of {steps} more tokens"


def _hidden(cluster: Cluster, text: str) -> str:
    """What no party saw of a request."""
    if cluster.weights == "public":
        return f"{text} or an activation; the weights are public"
    return f"{text}, the weights or an activation"


def _row(name: str, seconds: float, cost: Cost) -> tuple[str, ...]:
    return (
        name,
        f"{seconds:.2f} s",
        f"{cost.rounds:,}",
        amount(cost.online),
        amount(cost.offline),
    )
