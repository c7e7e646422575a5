"""`puma costs` and `puma inspect`: figures that are known before anything runs."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from models.checkpoints.weights import StoredCheckpoint, demo_model_path, open_checkpoint
from models.programs.head_layers import columns_of, default_rows
from models.programs.memory import footprint
from models.programs.opened import opened_bytes
from models.programs.predict import predict, share_bytes
from models.programs.program import Batch, Drafted, Rows
from models.programs.steps import RequestSettings
from models.texts.embed import vector_rows
from models.texts.needs import tasks_of_checkpoint
from models.texts.requested import DraftOptions
from models.tokens.tokenizer import Tokenizer
from protocols.arithmetic import lift, matmul, mul
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role, SecretBits, SecretTensor
from protocols.boolean import and_bits
from protocols.compare import less, maximum
from protocols.drivers.trace import trace
from protocols.embedding import embed, reveal
from protocols.errors import ConfigError, ModelError
from protocols.functions.activations import GELU, SILU, activate
from protocols.functions.attention import (
    AttentionRange,
    attend,
    near_dealt,
    softmax_numerators,
)
from protocols.functions.elementary import exp_negative, reciprocal, rsqrt
from protocols.functions.normalize import Norm, norm_range, normalize
from protocols.linear import Table
from protocols.selection import Term, select
from protocols.triple import mul3
from puma_actors.api.drafting import check_draft
from puma_actors.cli.commands.weights import print_weights, weights_report
from puma_actors.cli.commands.what_if.chosen import choice_report, print_choice
from puma_actors.cli.notice import warn
from puma_actors.cli.output import amount, print_json, progress, say, stdout
from puma_actors.planning.choice import Chooser
from puma_actors.transports.delay.network import Network, parse_network

COUNT = 8000
"""Elements a protocol is traced with; a multiple of 8, so that bits fill bytes."""

_SCORES = 64
"""Scores of a row."""
USUAL_PROMPT = 32
_SHOWN_ITEMS = 12
_ROWS = {
    "all": "a result for each",
    "first": "a result for the first",
    "last": "a result for the last",
    "mean": "the mean of their hidden states",
    "unit": "the mean of their hidden states, scaled to length 1",
    "unit-first": "a result for the first, scaled to length 1",
    "unit-last": "a result for the last, scaled to length 1",
}

Program = Callable[[Lane], Coroutine[Any, Any, Any]]


def _programs() -> list[tuple[str, int, Program]]:
    """Name, elements the cost is divided by, program."""

    def x(lane: Lane, *shape: int, width: int = 64, frac: int = 18) -> SecretTensor:
        return lane.blank(shape or (COUNT,), width, frac)

    def bit(lane: Lane) -> SecretBits:
        return lane.blank_bits((COUNT,))

    def pick(lane: Lane) -> Coroutine[Any, Any, Any]:
        term = Term((bit(lane),), x(lane))
        return select(lane, [term], width=64, frac=18, shape=(COUNT,))

    def attention(lane: Lane) -> Coroutine[Any, Any, Any]:
        mask = np.tri(32, 32, dtype=np.bool_)
        return attend(lane, x(lane, 1, 32, 32, width=46), x(lane, 1, 32, 64), mask, ranges)

    def numerators(lane: Lane, *, rows: int) -> Coroutine[Any, Any, Any]:
        mask = np.ones((rows, _SCORES), dtype=np.bool_)
        scores, bits = x(lane, 1, rows, _SCORES, width=46), ranges.score_bits
        near = near_dealt(lane.settings, [mask], 1, bits) is not None
        return softmax_numerators(lane, scores, mask, bits, near=near)

    ranges = AttentionRange(score_bits=11, value_bits=8, rope_frac=0)
    norm, layer_norm = Norm(768, 1e-5), Norm(768, 1e-5, center=True)
    bounds = norm_range(norm, 100.0)
    table = Table(Role.TRACE, (49152, 576), None, None)

    def wide(lane: Lane) -> SecretTensor:
        return x(lane, 8, 768, frac=22)

    rows = (COUNT // 64, 64)
    return [
        ("product, truncated", COUNT, lambda s: mul(s, x(s), x(s), 18)),
        ("lift to 64 bits", COUNT, lambda s: lift(s, x(s, width=46))),
        ("product of three", COUNT, lambda s: mul3(s, x(s), x(s), x(s), 18)),
        ("matrix product (32,64)(64,32)", 1024, _matrix_product),
        ("comparison, 20 bits", COUNT, lambda s: less(s, x(s), digits=5)),
        ("AND of 4", COUNT, lambda s: and_bits(s, [bit(s)] * 4)),
        ("selection", COUNT, pick),
        ("maximum of 64, 20 bits", COUNT, lambda s: maximum(s, x(s, *rows, width=20, frac=6))),
        ("exp", COUNT, lambda s: exp_negative(s, x(s, width=32))),
        ("SiLU", COUNT, lambda s: activate(s, x(s, width=46), SILU)),
        ("GeLU", COUNT, lambda s: activate(s, x(s, width=46), GELU)),
        ("reciprocal", COUNT, lambda s: reciprocal(s, x(s), 8, 15)),
        ("rsqrt", COUNT, lambda s: rsqrt(s, x(s), 14, 29)),
        ("RMSNorm, rows of 768", 6144, lambda s: normalize(s, wide(s), norm, bounds)),
        ("LayerNorm, rows of 768", 6144, lambda s: normalize(s, wide(s), layer_norm, bounds)),
        ("maximum and exp, a score of a row of 64", _SCORES, partial(numerators, rows=1)),
        ("maximum and exp, a score of 8,192 rows", 8192 * _SCORES, partial(numerators, rows=8192)),
        ("softmax (32,32) @ (32,64)", 1024, attention),
        ("embedding, a token of 49152 x 576", 1, lambda s: embed(s, table, 1)),
        ("reveal to the client", COUNT, lambda s: reveal(s, x(s, width=46))),
    ]


def _matrix_product(lane: Lane) -> Coroutine[Any, Any, Any]:
    left, right = lane.blank((1, 32, 64), 64, 18), lane.blank((1, 64, 32), 64, 18)
    return matmul(lane, left, right, 18)


def run_costs(settings: Settings, *, as_json: bool) -> None:
    """Print a table of declared costs."""
    rows = [(name, count, trace(program, settings)[0]) for name, count, program in _programs()]
    if as_json:
        print_json(
            {
                "approximation": settings.approximation,
                "tree": settings.tree,
                "protocols": [
                    {
                        "name": name,
                        "rounds": cost.rounds,
                        "online_bits": 8 * cost.online / count,
                        "offline_bits": 8 * cost.offline / count,
                    }
                    for name, count, cost in rows
                ],
            }
        )
        return
    table = RichTable(
        title=f"Cost per element ({settings.approximation}, tree {settings.tree})",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in ("protocol", "rounds", "online bits", "offline bits"):
        table.add_column(column, justify="left" if column == "protocol" else "right")
    for name, count, cost in rows:
        table.add_row(
            name,
            str(cost.rounds),
            f"{8 * cost.online / count:,.0f}",
            f"{8 * cost.offline / count:,.0f}",
        )
    stdout.print(table)
    say(
        "online: sent by all parties once the input is known; offline: sent by the dealer, ahead.",
        style="dim",
    )


@dataclass(frozen=True, slots=True)
class Inspected:
    """The request whose cost is asked for.

    Attributes:
        prompt: its tokens; None: the usual number. decode: new tokens.
        network: as text. draft: what proposes tokens.
    """

    prompt: int | None
    decode: int
    settings: RequestSettings
    network: str | None
    draft: DraftOptions


def run_inspect(path: str | None, asked: Inspected, *, as_json: bool) -> None:
    """Print whether a model is supported, its predicted cost, and what would be chosen."""
    network, prompt, decode = parse_network(asked.network), asked.prompt, asked.decode
    found = demo_model_path() if path is None else path
    try:
        with progress(quiet=as_json) as report:
            checkpoint = open_checkpoint(found, progress=report)
        lacking = _lacking(checkpoint)
    except ModelError as error:
        if as_json:
            print_json({"model": str(found), "supported": False, "reason": str(error)})
        raise
    with checkpoint:
        if checkpoint.config.head != "causal-lm":
            decode = 0
        if prompt is None:
            prompt = max(1, min(USUAL_PROMPT, checkpoint.config.max_positions - decode))
        _check_lengths(checkpoint, prompt, decode)
        facts = _report(checkpoint, asked, prompt, decode, network)
    if lacking is not None:
        facts.update({"supported": False, "reason": lacking})
    if as_json:
        print_json(facts)
    else:
        _print_report(facts)


def _lacking(checkpoint: StoredCheckpoint) -> str | None:
    """Why no task can run though the weights are supported; None: they can.

    Raises:
        ModelError: the tokenizer is there, and of no use.
    """
    try:
        if not Tokenizer.is_at(checkpoint.path):
            return (
                "it has no tokenizer, so no text can be given, token ids alone: save the tokenizer "
                "beside the weights with transformers' "
                "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
            )
        warn(Tokenizer.load(checkpoint.path))
    except BaseException:
        checkpoint.close()
        raise
    return None


def _wanted_rows(checkpoint: StoredCheckpoint) -> Rows:
    """The results that the head is used for: one row for the next token, or a sentence's vector."""
    config = checkpoint.config
    if config.head == "causal-lm":
        return "last"
    settings = checkpoint.sentences
    if settings is None or settings.refusal:
        return default_rows(config)
    return vector_rows(config, settings, unit=settings.normalize)


def _check_lengths(checkpoint: StoredCheckpoint, prompt: int, decode: int) -> None:
    limit = checkpoint.config.max_positions
    if prompt + decode > limit:
        raise ConfigError(
            f"{prompt} prompt tokens and {decode} new ones need more than the model's {limit} "
            "positions: ask for fewer"
        )


def _report(
    checkpoint: StoredCheckpoint,
    asked: Inspected,
    prompt: int,
    decode: int,
    network: Network | None,
) -> dict[str, Any]:
    config = checkpoint.config
    rows = _wanted_rows(checkpoint)
    batch, draft = Batch((prompt,), rows), check_draft(asked.draft)[1]
    choice = Chooser(config, network).compare(batch, 1 + decode, asked.settings.variants(), draft)
    settings, proposed = choice.settings, Drafted(min(draft, max(0, decode - 1)), 0)
    steps = predict(config, batch, [proposed] * min(decode, 1), settings)
    if decode > 1:
        last = [Drafted(0, 0)]  # one token is left, so nothing is proposed
        steps += predict(config, prompt + decode - 1, last, settings)[1:]
    first = "prefill" if config.head == "causal-lm" else "forward"
    names = [first, "first decode", "last decode"]
    return {
        "model": str(checkpoint.path),
        "supported": True,
        "head": config.head,
        "labels": list(config.labels),
        "tasks": tasks_of_checkpoint(config),
        "architecture": config.to_public(),
        "parameters": sum(int(np.prod(checkpoint.shape(n))) for n in checkpoint.names()),
        "prompt_tokens": prompt,
        "new_tokens": decode,
        "rows": rows,
        "columns": columns_of(config, rows),
        "predicted": {
            name: _cost_dict(step.cost) for name, step in zip(names, steps, strict=False)
        },
        f"{first}_by_protocol": {
            name: _cost_dict(cost) for name, cost in sorted(steps[0].by_protocol.items())
        },
        "choice": choice_report(choice, network, first),
        "weights": weights_report(checkpoint, prompt),
        "share_bytes": dict.fromkeys(map(str, COMPUTING), share_bytes(config)),
        "public_weights": {"evaluator_bytes": opened_bytes(config)},
        "request_bytes": {
            str(role): footprint(
                config, batch, max(1, decode), settings, dealer=role.is_dealer, draft=draft
            ).total
            for role in COMPUTING
        },
    }


def _cost_dict(cost: Cost) -> dict[str, int]:
    return {
        "rounds": cost.rounds,
        "online_bytes": cost.online,
        "offline_bytes": cost.offline,
    }


def _fact(value: Any) -> str:
    """A setting in one line; if there are many labels, only the first ones."""
    if isinstance(value, dict) and "layers" in value:
        return " -> ".join([value["pooling"], *map(_layer, value["layers"])])
    if not isinstance(value, list):
        return str(value)
    shown = ", ".join(str(item) for item in value[:_SHOWN_ITEMS]) or "none"
    return shown if len(value) <= _SHOWN_ITEMS else f"{shown} and {len(value) - _SHOWN_ITEMS} more"


def _layer(layer: dict[str, Any]) -> str:
    bias = "" if layer["bias"] else ", no bias"
    return f"{layer['inputs']} x {layer['outputs']} ({layer['activation']}{bias})"


def _print_report(report: dict[str, Any]) -> None:
    public = report["architecture"]
    reason = report.get("reason")
    say((report["model"], "bold"), ": supported" if reason is None else f": {reason}")
    facts = RichTable(box=None, pad_edge=False, show_header=False)
    facts.add_row("parameters", f"{report['parameters']:,}")
    tasks = "tasks" if reason is None else "tasks, with a tokenizer"
    facts.add_row(tasks, ", ".join(report["tasks"]))
    for name, value in public.items():
        facts.add_row(name, _fact(value))
    stdout.print(facts)
    wanted = f"{report['prompt_tokens']} tokens, {_ROWS[report['rows']]}"
    if public["dense"] is not None:
        wanted = f"{wanted}, after Dense layers with {report['columns']} outputs"
    say(f"\nPredicted for {wanted}", style="italic")
    costs = RichTable(box=None, pad_edge=False)
    for column in ("step", "rounds", "online", "dealt ahead"):
        costs.add_column(column, justify="left" if column == "step" else "right")
    for name, cost in report["predicted"].items():
        costs.add_row(
            name,
            f"{cost['rounds']:,}",
            amount(cost["online_bytes"]),
            amount(cost["offline_bytes"]),
        )
    stdout.print(costs)
    memory = ", ".join(f"{role} {amount(size)}" for role, size in report["share_bytes"].items())
    say(f"\nshares of the weights in memory: {memory}")
    public = amount(report["public_weights"]["evaluator_bytes"])
    say(f"with public weights: {public} at each evaluator, beside the checkpoint's mapped bytes")
    peaks = ", ".join(f"{role} {amount(size)}" for role, size in report["request_bytes"].items())
    say(f"in addition, for this request: {peaks}")
    print_choice(report["choice"])
    print_weights(report["weights"])
    say(
        "with typical ranges: those proven from the weights may change a few rounds",
        style="dim",
    )
