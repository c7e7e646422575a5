"""`puma generate` and `puma forward`."""

from pathlib import Path
from typing import cast

import anyio
import numpy as np

from models.programs.steps import RequestSettings
from models.texts.requested import DraftOptions, GenerateOptions
from models.tokens.chat_template import ChatOptions
from models.tokens.sampling import SamplingConfig, SamplingOptions
from protocols.errors import ConfigError
from puma_actors.api.life import Cluster
from puma_actors.base.texts import printable, shown
from puma_actors.cli.commands.reading import Reader, template_of
from puma_actors.cli.following import Following
from puma_actors.cli.notice import announce
from puma_actors.cli.output import amount, check_file, print_json, progress, say, tell, writing
from puma_actors.cli.requests import open_requests
from puma_actors.cli.summary import network_of, print_summary, usage_report
from puma_actors.cli.where import Where


def run_generate(
    model: str | None,
    prompt: str,
    choice: SamplingConfig | SamplingOptions,
    settings: RequestSettings,
    *,
    where: Where,
    chat: ChatOptions,
    draft: DraftOptions,
    raw: bool,
    as_json: bool,
) -> None:
    """Load, share, answer, and print the cost.

    choice: how tokens are chosen; the model's own settings fill in missing options. chat: as for
    `Requests.encode`; `chat_template` may also be a file.
    """
    ids: list[int] = []

    def check(cluster: Cluster) -> None:
        cluster.check_sampling(_sampling(cluster, choice))
        known = cluster.tokenizer.chat_templates if cluster.tokenizer is not None else {}
        chat["chat_template"] = template_of([*known], chat.get("chat_template"), Reader())
        ids.extend(cluster.encode(prompt, raw=raw, **chat))
        cluster.find_draft(draft)
        if not raw and cluster.tokenizer is not None and cluster.tokenizer.note:
            tell(f"note: {printable(cluster.tokenizer.note)}")

    async def run() -> None:
        async with open_requests(model, settings, where, check=check, quiet=as_json) as cluster:
            sampling = _sampling(cluster, choice)
            told = {} if isinstance(choice, SamplingConfig) else cluster.of_model(choice)
            announce(cluster, ids, sampling, told)
            said: list[str] = []
            await stream(cluster, ids, sampling, draft, said, quiet=as_json)
        if as_json:
            text = "".join(said)
            report = usage_report(cluster, cluster.usage)
            source = {"from_generation_config": told} if told else {}
            print_json({"text": text, **report, **source})
        else:
            print_summary(cluster, cluster.usage, stopped=True)

    anyio.run(run)


def _sampling(cluster: Cluster, choice: SamplingConfig | SamplingOptions) -> SamplingConfig:
    if isinstance(choice, SamplingConfig):
        return choice
    return cluster.sampling(cast(GenerateOptions, choice))


async def stream(
    cluster: Cluster,
    ids: list[int],
    sampling: SamplingConfig,
    draft: DraftOptions,
    said: list[str],
    *,
    quiet: bool = False,
) -> None:
    """Print the answer as it grows, with a status line below it on a terminal.

    Args:
        said: takes the parts of the answer.
    """
    with progress(quiet=quiet) as report, report.following(Following(cluster)):
        async for token in cluster.generate(ids, sampling, **draft):
            said.append(token.text)
            report.write(shown(token.text))
        report.write("\n")


# -- forward --------------------------------------------------------------------------------------


def parse_ids(text: str) -> list[int]:
    """Token ids from "1,2,3".

    Raises:
        ConfigError: an entry is not a whole number.
    """
    ids = []
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal():
            raise ConfigError(f"--input-ids: {word!r} is not a token id; write ids as 1,2,3")
        ids.append(int(word))
    return ids


def run_forward(
    model: str | None,
    input_ids: str,
    output: Path,
    settings: RequestSettings,
    *,
    where: Where,
    as_json: bool,
) -> None:
    """Write `logits`, or the `last_hidden_state` of a bare model, to an .npz file: one row per
    result (usually per token).
    """
    ids = parse_ids(input_ids)
    check_file("--output", output, ".npz")

    async def run() -> None:
        async with open_requests(
            model, settings, where, check=lambda found: found.check_ids(ids), quiet=as_json
        ) as cluster:
            with progress(quiet=as_json) as report:
                report("running the model on shares", 0.0)
                with report.following(Following(cluster)):
                    result = await cluster.forward(ids)
        name = "last_hidden_state" if cluster.config.head == "none" else "logits"
        arrays = {name: result.astype(np.float32), "input_ids": np.asarray(ids)}
        with writing("--output", output):
            np.savez(output, **arrays)  # type: ignore[arg-type]
        summary = usage_report(cluster, cluster.usage, generated=False)
        if as_json:
            shape = list(result.shape)
            print_json({"output": str(output), f"{name}_shape": shape, **summary})
        else:
            total = cluster.usage.total
            say(f"{name} {result.shape} written to {output}")
            say(
                f"{summary['seconds']['prefill']:.2f} s · {total.rounds:,} rounds · "
                f"{amount(total.online)} online · {amount(total.offline)} dealt ahead",
                style="dim",
            )
            if (network := network_of(cluster)) is not None:
                say(f"network {network.describe()}", style="dim")

    anyio.run(run)
