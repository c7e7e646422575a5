"""Compare the private model's tokens with those of torch in float32."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from bench.model import tokens_of
from bench.tools.harness import Benchmark, Errors, Options, Result, Spread
from models.files.locate import demo_model_path
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster

NEW_TOKENS = 24
LOGIT_TOKENS = 64
TIE = 0.05
"""If torch's two best logits are closer than this, a difference means nothing."""
_NAME, _DRAFTS = "fidelity.demo", "fidelity.drafts"
PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Explain how rainbows form to a ten year old.",
    "Write a short poem about the sea in winter.",
    "List five countries in South America and their capitals.",
    "How do I write a function in Python that reverses a string?",
    "Why did the Roman Empire fall? Give several reasons.",
    "Tell me a story about a robot that learns to paint.",
    "What is 17 times 23? Show every step of the calculation.",
    "Translate into French and explain the grammar: I would like two tickets, please.",
    "Compare cats and dogs as pets for a family with small children.",
    "Ignore punctuation: ;;; ??? !!! -- and then describe what a semicolon is used for.",
    "Summarise the plot of Romeo and Juliet, act by act.",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A token that torch would not have chosen after the same tokens.

    Attributes:
        gap: torch's best logit minus its second best.
        deficit: torch's best logit minus that of our token.
    """

    position: int
    ours: int
    theirs: int
    gap: float
    deficit: float

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "ours": self.ours,
            "torch": self.theirs,
            "gap": round(self.gap, 6),
            "deficit": round(self.deficit, 6),
        }


def differences(chosen: list[int], logits: NDArray[np.floating[Any]]) -> list[Difference]:
    """Where greedy choices differ from the best of `logits` (tokens, vocabulary). The logits follow
    the same tokens, so one difference does not cause others.
    """
    found = []
    for position, (token, row) in enumerate(zip(chosen, logits, strict=True)):
        best, second = (int(place) for place in np.argsort(row, kind="stable")[::-1][:2])
        if token != best:
            gap, deficit = float(row[best] - row[second]), float(row[best] - row[token])
            found.append(Difference(position, token, best, gap, deficit))
    return found


class TorchModel:
    """The same file, read by transformers and evaluated by torch in float32.

    Raises:
        ConfigError: torch is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import torch
            import transformers
            from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
        except ImportError as error:
            raise ConfigError(
                f"fidelity compares with torch, which is missing ({error}): "
                "run `make test` once, or `pip install -e '.[test]'`"
            ) from None
        self._torch = torch
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        with torch.device("meta"):
            names = transformers.LlamaForCausalLM(config)
        # Called directly: from_pretrained(gguf_file=...) also calls it, but needs `accelerate`.
        read: Any = load_gguf_checkpoint
        loaded = read(str(path), return_tensors=True, model_to_load=names)
        model: Any = transformers.LlamaForCausalLM(config).to(torch.float32)  # type: ignore[arg-type]
        tensors = {name: value.float() for name, value in loaded["tensors"].items()}
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        if set(missing) - tied or unexpected:
            raise ConfigError(f"{path}: transformers could not read {missing or unexpected}")
        model.tie_weights()
        self._model = model.eval()

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """(tokens, vocabulary)."""
        with self._torch.no_grad():
            rows = self._model(self._torch.tensor([ids])).logits[0]
        result: NDArray[np.float32] = rows.numpy()
        return result


async def _greedy(cluster: LocalCluster, torch: TorchModel, options: Options) -> Result:
    prompts, count = (PROMPTS[:1], 2) if options.quick else (PROMPTS, NEW_TOKENS)
    reports: list[dict[str, Any]] = []
    seconds, total, equal = [], 0, 0
    for prompt in prompts:
        started = time.perf_counter()
        async for _token in cluster.generate(prompt, max_new_tokens=count):
            pass
        seconds.append(time.perf_counter() - started)
        given, chosen = cluster.usage.prompt_ids, cluster.usage.token_ids
        logits = torch.logits(given + chosen[:-1])[len(given) - 1 :]
        found = differences(chosen, logits)
        total, equal = total + len(chosen), equal + len(chosen) - len(found)
        print(f"{len(chosen) - len(found)} of {len(chosen)} equal: {prompt}", file=sys.stderr)
        reports.append(
            {
                "prompt": prompt,
                "text": cluster.tokenizer.decode(chosen) if cluster.tokenizer else "",
                "tokens": len(chosen),
                "differences": [item.to_json() for item in found],
            }
        )
    gaps = [item["gap"] for report in reports for item in report["differences"]]
    return Result(
        _NAME,
        f"greedy, {len(prompts)} prompts, up to {count} tokens",
        Spread.of(seconds),
        approximation=cluster.settings.approximation,
        details={
            "tokens": total,
            "equal": equal,
            "differing_beyond_a_tie": sum(gap > TIE for gap in gaps),
            "prompts": reports,
        },
    )


async def _logits(
    cluster: LocalCluster, torch: TorchModel, approximation: str, options: Options
) -> Result:
    ids = tokens_of(cluster, 8 if options.quick else LOGIT_TOKENS)
    cluster.settings = replace(cluster.settings, approximation=approximation)
    started = time.perf_counter()
    ours = await cluster.forward(ids)
    seconds = time.perf_counter() - started
    distance = np.abs(ours - torch.logits(ids))
    return Result(
        _NAME,
        f"logits of {len(ids)} tokens",
        Spread.of([seconds]),
        approximation=approximation,
        cost=cluster.usage.total,
        errors=Errors(float(distance.max()), float(distance.mean())),
    )


async def _measure(options: Options) -> list[Result]:
    path = demo_model_path()
    torch = TorchModel(path)
    async with LocalCluster.from_pretrained(path, settings=Settings()) as cluster:
        greedy = await _greedy(cluster, torch, options)
        return [greedy, *[await _logits(cluster, torch, kind, options) for kind in APPROXIMATIONS]]


async def with_a_draft(
    cluster: LocalCluster, prompts: Sequence[str], count: int, draft: str = "ngram"
) -> Result:
    """Greedy answers with a draft beside those without one."""
    reports: list[dict[str, Any]] = []
    seconds = []
    for prompt in prompts:
        async for _token in cluster.generate(prompt, max_new_tokens=count):
            pass
        plain, started = list(cluster.usage.token_ids), time.perf_counter()
        async for _token in cluster.generate(prompt, max_new_tokens=count, draft=draft):
            pass
        seconds.append(time.perf_counter() - started)
        usage = cluster.usage
        reports.append(
            {
                "prompt": prompt,
                "identical": usage.token_ids == plain,
                "tokens": len(plain),
                "proposed": sum(step.proposed for step in usage.drafts),
                "accepted": sum(step.accepted for step in usage.drafts),
            }
        )
        print(f"{'same' if usage.token_ids == plain else 'OTHER'}: {prompt}", file=sys.stderr)
    same = sum(report["identical"] for report in reports)
    return Result(
        _DRAFTS,
        f"{len(prompts)} prompts, up to {count} tokens, draft: {draft}",
        Spread.of(seconds),
        details={"identical": same, "prompts": reports},
        note=f"{same} of {len(prompts)} answers are those without a draft, "
        f"{sum(report['proposed'] for report in reports)} tokens proposed, "
        f"{sum(report['accepted'] for report in reports)} accepted",
    )


async def _measure_drafts(options: Options) -> Result:
    prompts, count = (PROMPTS[:1], 2) if options.quick else (PROMPTS, NEW_TOKENS)
    async with LocalCluster.from_pretrained(demo_model_path(), settings=Settings()) as cluster:
        return await with_a_draft(cluster, prompts, count)


def demo(options: Options) -> Iterator[Result]:
    yield from anyio.run(_measure, options)


def drafts(options: Options) -> Iterator[Result]:
    yield anyio.run(_measure_drafts, options)


BENCHMARKS = [
    Benchmark(
        _NAME, "demo model against torch float32: tokens, logits (long)", demo, default=False
    ),
    Benchmark(_DRAFTS, "the same prompts with a draft and without (long)", drafts, default=False),
]
