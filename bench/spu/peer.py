"""SPU's side of the benchmark: reads one JSON object a line, answers with one.

    python -m bench.spu.peer LOG THREADS

Requests: `{"prepare": NAME, "shape": [...]}` or `{"prepare": "model", "folder": F, "ids": [...]}`,
then `{"run": true}` as often as wanted. Answers: `{"seconds", "megabytes", "sends", "error"}`, or
`{"failed": REASON}`. The first line sent tells versions. Everything that libraries print goes to
the file LOG.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bench.spu import functions
from bench.spu.engine import Engine, Prepared
from bench.spu.reading import read_weights

Case = tuple[Callable[..., Any], tuple[Any, ...], Any]
"""A function, its arguments, the exact result."""


def _rng() -> np.random.Generator:
    return np.random.default_rng(2307_12533)  # as in bench/tools/workloads.py


def _floats(values: Any) -> Any:
    return np.asarray(values, dtype=np.float32)


def product(count: int) -> Case:
    x, y = _rng().uniform(-8, 8, (2, count))
    return jnp.multiply, (_floats(x), _floats(y)), x * y


def matmul(rows: int, depth: int, columns: int) -> Case:
    x = _rng().normal(size=(rows, depth))
    w = _rng().normal(size=(depth, columns)) / sqrt(depth)
    return jnp.matmul, (_floats(x), _floats(w)), x @ w


def comparison(count: int) -> Case:
    x = _floats(_rng().uniform(-8, 8, count))
    return (lambda x: x < 0), (x,), x < 0


def gelu(*shape: int) -> Case:
    x = _floats(_rng().uniform(-12, 12, shape))
    return functions.puma_gelu, (x,), functions.exact_gelu(x)


def softmax(rows: int, columns: int) -> Case:
    x = _floats(_rng().normal(size=(rows, columns)) * 3)
    return functions.puma_softmax, (x,), functions.exact_softmax(x)


def norm(rows: int, size: int) -> Case:
    rng = _rng()
    gain, shift = _floats(rng.normal(size=(2, size)))
    x = _floats(rng.normal(size=(rows, size)))
    return functions.layer_norm, (x, gain, shift), functions.layer_norm(x, gain, shift)


def embedding(tokens: int, rows: int, columns: int) -> Case:
    rng = _rng()
    table = _floats(rng.normal(size=(rows, columns)) * 0.1)
    ids = rng.integers(0, rows, tokens).astype(np.int32)
    return functions.embed, (ids, table), table[ids]


def model(folder: Path, ids: list[int]) -> Case:
    """A checkpoint of the benchmark: the same weights as ours."""
    given = json.loads((folder / "config.json").read_text())
    arguments = read_weights(folder), np.array(ids, dtype=np.int32)
    exact = functions.model(given, exact=True)(*arguments)
    return functions.model(given, exact=False), arguments, exact


CASES: dict[str, Callable[..., Case]] = {
    "product": product,
    "matmul": matmul,
    "comparison": comparison,
    "gelu": gelu,
    "softmax": softmax,
    "norm": norm,
    "embedding": embedding,
}


class Peer:
    """Answers requests one after another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared: Prepared | None = None
        self._exact: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if name := request.get("prepare"):
            self._prepared = None  # frees the last one first
            if name == "model":
                case = model(Path(request["folder"]), request["ids"])
            else:
                case = CASES[name](*request["shape"])
            function, arguments, exact = case
            self._exact = np.asarray(exact, dtype=np.float64)
            self._prepared = self._engine.prepare(function, arguments)
            return {"exact": self._exact.ravel()[:8].tolist()}
        if self._prepared is None:
            raise ValueError("send a request to prepare first")
        figures, result = self._prepared.run()
        distance = np.abs(np.asarray(result, dtype=np.float64) - self._exact)
        return {**figures, "error": float(distance.max())}


def main(log: Path, threads: int) -> None:
    replies = os.fdopen(os.dup(1), "w")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def reply(answer: dict[str, Any]) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    peer = Peer(Engine(threads, log))
    python = ".".join(map(str, sys.version_info[:3]))
    reply({"python": python, **{name: version(name) for name in ("spu", "jax", "numpy")}})
    for line in sys.stdin:
        try:
            reply(peer.answer(json.loads(line)))
        except Exception as error:
            reply({"failed": f"{type(error).__name__}: {error}"[:2000]})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
