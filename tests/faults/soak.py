"""Many clients at once, some of which are killed, and a party that is killed and comes back.

    python -m faults soak [--requests 100] [--clients 10] [--seed 1]     (PYTHONPATH: see `faults`)

Every answer must be that of the plaintext model, or the client must have been refused cleanly: one
line, exit code 1 or 3. Parties must not grow, nor keep connections or sessions.
"""

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from reference import CHOICE, WORDS, torch_greedy, torch_model
from rich.console import Console
from rich.table import Table

from faults.harness import DEADLINE, MODEL, TOKENS, Caller, Cluster, kill
from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import COMPUTING

PROMPTS = 12
GROWTH = 48 << 20
"""Bytes that a party may grow by from the middle to the end: what the allocator keeps varies."""
_CLIENT_KILLS, _PARTY_KILLS = 0.15, 3
_MB = 1 << 20


@dataclass
class Request:
    """One client process and its expected answer."""

    caller: Caller
    wanted: list[int]
    began: float
    doomed_at: float = float("inf")  # when it is killed


@dataclass
class Figures:
    """The figures printed at the end."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    restarts: int = 0


def answers(cluster: Cluster, choose: random.Random) -> dict[str, list[int]]:
    """Prompts whose plaintext answer is clear-cut, and that answer."""
    found: dict[str, list[int]] = {}
    tokenizer = Tokenizer.load(cluster.model)
    with open_checkpoint(cluster.model) as checkpoint:
        plain = torch_model(checkpoint)
    while len(found) < PROMPTS:
        prompt = " ".join(choose.choices(WORDS[3:], k=choose.randint(2, 12)))
        tokens, leads = torch_greedy(plain, tokenizer.chat(prompt), TOKENS)
        if min(leads) > CHOICE:
            found[prompt] = tokens
    return found


class Soak:
    """See the module docstring."""

    def __init__(self, cluster: Cluster, requests: int, clients: int, seed: int) -> None:
        self.cluster = cluster
        self.total, self.clients = requests, clients
        self.choose = random.Random(seed)
        self.figures = Figures()
        self._answers = answers(cluster, self.choose)
        self._running: list[Request] = []
        self._done = 0
        self._victim = self.choose.choice(COMPUTING)
        step = requests // (_PARTY_KILLS + 1)
        self._party_kills = [step * (1 + index) for index in range(_PARTY_KILLS)]

    def run(self) -> Figures:
        """All requests, with kills; memory at rest before, in the middle, and after."""
        for _ in range(3):
            self.cluster.ask()
        self._sample("start")
        for upto, label in ((self.total // 2, "middle"), (self.total, "end")):
            while self._done < upto:
                self._fill(upto)
                self._reap()
                self._strike()
                time.sleep(0.02)
            self.cluster.linked()
            self.cluster.ask()
            self._sample(label)
        self._check_growth()
        return self.figures

    def _fill(self, upto: int) -> None:
        while len(self._running) < min(self.clients, upto - self._done):
            prompt = self.choose.choice(list(self._answers))
            options = ("-m", MODEL, "-p", prompt, "-n", TOKENS, "--json")
            caller = self.cluster.caller("generate", *options)
            request = Request(caller, self._answers[prompt], time.monotonic())
            if self.choose.random() < _CLIENT_KILLS:
                request.doomed_at = request.began + self.choose.uniform(0.0, 4.0)
            self._running.append(request)

    def _strike(self) -> None:
        now = time.monotonic()
        for request in self._running:
            if now > request.doomed_at:
                kill(request.caller.process, signal.SIGKILL)
        if self._party_kills and self._done >= self._party_kills[0]:
            self._party_kills.pop(0)
            party = self.cluster.parties[self._victim]
            kill(party.process, signal.SIGKILL)
            party.process.join(DEADLINE)
            self.cluster.start(self._victim)
            self.figures.restarts += 1

    def _reap(self) -> None:
        for request in list(self._running):
            spent = time.monotonic() - request.began
            if request.caller.process.is_alive():
                if spent > DEADLINE:
                    self._end(request, "hung")
                continue
            self._end(request, self._judge(request, spent))

    def _end(self, request: Request, outcome: str) -> None:
        self._running.remove(request)
        self._done += 1
        self.figures.outcomes[outcome] += 1
        if outcome in ("hung", "wrong", "unclear"):
            kill(request.caller.process, signal.SIGKILL)
            text = f"{request.caller.process.exitcode}: {request.caller.errors.read_text()[-300:]}"
            self.figures.problems.append(f"{outcome}: {text}")

    def _judge(self, request: Request, spent: float) -> str:
        code, lines = request.caller.process.exitcode, request.caller.lines
        if code == 0:
            self.figures.seconds.append(spent)
            found = json.loads(request.caller.out.read_text())["token_ids"]
            return "right" if found == request.wanted else "wrong"
        if code == -signal.SIGKILL:
            return "killed"
        if code in (1, 3) and len(lines) == 1:
            self.figures.refusals[_kind(lines[0])] += 1
            return "refused"
        return "unclear"

    def _sample(self, label: str) -> None:
        self.cluster.at_rest()
        for role, party in self.cluster.parties.items():
            process = psutil.Process(party.process.pid)
            sample = {"when": label, "rss": process.memory_info().rss, "files": process.num_fds()}
            self.figures.memory.setdefault(str(role), []).append(sample)

    def _check_growth(self) -> None:
        for role, samples in self.figures.memory.items():
            first, last = samples[-2], samples[-1]
            if role != self._victim and last["rss"] - first["rss"] > GROWTH:
                self.figures.problems.append(f"{role} grew by {last['rss'] - first['rss']} bytes")
            if last["files"] > first["files"] + 4:
                self.figures.problems.append(f"{role} keeps files: {first} to {last}")


def _kind(line: str) -> str:
    """A refusal without what differs from one to the next."""
    words = [word for word in line.split() if "://" not in word]
    return " ".join("evaluator" if "evaluator" in word else word for word in words)[:70]


def show(figures: Figures, spent: float) -> None:
    """The figures as tables."""
    console = Console()
    table = Table(box=None, title="requests")
    for heading in ("outcome", "count"):
        table.add_column(heading)
    for outcome, count in figures.outcomes.most_common():
        table.add_row(outcome, str(count))
    for reason, count in figures.refusals.most_common(8):
        table.add_row(f"  refused: {reason}", str(count))
    console.print(table)
    memory = Table(box=None, title="parties at rest")
    for heading in ("party", "when", "resident", "open files"):
        memory.add_column(heading)
    for role, samples in figures.memory.items():
        for s in samples:
            memory.add_row(role, s["when"], f"{s['rss'] / _MB:.0f} MB", str(s["files"]))
    console.print(memory)
    times = sorted(figures.seconds) or [0.0]
    console.print(
        f"{spent:.0f} s · answers: median {times[len(times) // 2]:.1f} s, slowest {times[-1]:.1f} s"
        f" · {figures.restarts} restarts of a party · {len(figures.problems)} problems"
    )
    for problem in figures.problems:
        console.print(problem, style="red", markup=False)


def main(arguments: list[str]) -> int:
    """Exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    limits = f"[limits]\nsessions = {given.clients + 2}\n"
    with (
        tempfile.TemporaryDirectory(prefix="puma-") as folder,
        Cluster(Path(folder), limits, relaxed=True) as cluster,
    ):
        figures = Soak(cluster, given.requests, given.clients, given.seed).run()
    spent = time.monotonic() - started
    show(figures, spent)
    results = Path("fault-results")
    results.mkdir(exist_ok=True)
    content = {
        "requests": given.requests,
        "clients": given.clients,
        "seed": given.seed,
        "seconds": round(spent, 1),
        "outcomes": figures.outcomes,
        "refusals": figures.refusals,
        "answer_seconds": [round(seconds, 2) for seconds in figures.seconds],
        "restarts": figures.restarts,
        "memory": figures.memory,
        "problems": figures.problems,
    }
    (results / "soak.json").write_text(json.dumps(content, indent=1))
    return 1 if figures.problems else 0
