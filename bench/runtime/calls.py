"""Function calls of a decode step, all five roles in this process: what Python costs.

Unlike seconds they do not depend on the machine, or on what else it does.

A request for more tokens is compared with one for fewer; the difference is that of whole steps,
however far the dealer was ahead. Counted are the events of `sys.setprofile` on the event loop's
thread: Python functions (a coroutine counts again whenever it goes on) and built-in functions.
NumPy's operators and types are no functions to it.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import anyio

from bench.tools.checkpoints import write_checkpoint
from bench.tools.harness import Benchmark, Options, Result
from models.files.locate import demo_model_path
from puma_actors.api.local import LocalCluster

_NAME = "calls.decode"
_PROMPT = 30
_FEWER, _MORE = 2, 4
_SHOWN = 30
_ROOT = Path(__file__).parents[2]
_SMALL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
"""Two of the demo model's layers: a layer's calls depend on no weight."""

Function = tuple[str, str]
"""Where a function is, and its name: a file below the root or a package, or "built in"."""


class Calls:
    """Counts the calls of this thread: `with Calls() as calls: ...`."""

    def __init__(self) -> None:
        self._python: Counter[CodeType] = Counter()
        self._builtin: Counter[str] = Counter()

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, given: Any) -> None:
        if event == "call":
            self._python[frame.f_code] += 1
        elif event == "c_call":
            self._builtin[given.__qualname__] += 1

    @property
    def functions(self) -> Counter[Function]:
        """Calls by function."""
        found: Counter[Function] = Counter()
        for code, count in self._python.items():
            found[_place(code.co_filename), code.co_qualname] += count
        for name, count in self._builtin.items():
            found["built in", name] += count
        return found


def _place(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_ROOT / ".venv") or not path.is_relative_to(_ROOT):
        return "/".join(path.parts[-2:])
    return str(path.relative_to(_ROOT))


async def _request(cluster: LocalCluster, tokens: int) -> Counter[Function]:
    ids = [(7 * place + 5) % 500 for place in range(_PROMPT)]
    with Calls() as calls:
        async with aclosing(
            cluster.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens)
        ) as answer:
            count = 0
            async for _token in answer:
                count += 1
    if count != tokens:
        raise RuntimeError(f"{count} tokens came instead of {tokens}: the answer ended early")
    return calls.functions


async def _step(folder: Path) -> Counter[Function]:
    """Calls of a decode step, by function."""
    async with LocalCluster.from_pretrained(folder) as cluster:
        await _request(cluster, _FEWER)  # tables and caches are made here
        fewer, more = await _request(cluster, _FEWER), await _request(cluster, _MORE)
    more.subtract(fewer)
    return Counter({key: round(count / (_MORE - _FEWER)) for key, count in more.items()})


def _result(case: str, counted: Counter[Function]) -> Result:
    places: Counter[str] = Counter()
    for (place, _), count in counted.items():
        places[place] += count
    details = {
        "calls": counted.total(),
        "python": counted.total() - places["built in"],
        "places": [list(item) for item in places.most_common(_SHOWN)],
        "functions": [[*key, count] for key, count in counted.most_common(_SHOWN)],
    }
    return Result(_NAME, case, details=details)


def decode(options: Options) -> Iterator[Result]:
    """Two layers of the demo model's size, then the demo model itself."""
    with tempfile.TemporaryDirectory(prefix="puma-bench-") as name:
        write_checkpoint(Path(name), _SMALL)
        yield _result("2 layers, random weights", anyio.run(_step, Path(name)))
    if not options.quick:
        yield _result("demo model", anyio.run(_step, demo_model_path()))


BENCHMARKS = [Benchmark(_NAME, "function calls of a decode step, by function", decode, False)]
