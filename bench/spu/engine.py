"""Three SPU parties as threads of one process, linked in memory; for SPU's own Python."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from spu import api, libspu
from spu.utils import frontend

from bench.spu.reading import traffic

_PARTIES = 3
_SECRET = libspu.Visibility.VIS_SECRET


class Engine:
    """ABY3 over 64 bits with 18 of fraction and PUMA's exp.

    Args:
        threads: that the parties together may use for one operation.
        log: the file that the process's standard output goes to. SPU tells bytes only there.
    """

    def __init__(self, threads: int, log: Path) -> None:
        config = libspu.RuntimeConfig(libspu.ProtocolKind.ABY3, libspu.FieldType.FM64, 18)
        config.fxp_exp_mode = libspu.RuntimeConfig.ExpMode.EXP_TAYLOR
        config.fxp_exp_iters = 5
        config.max_concurrency = threads
        config.enable_pphlo_profile = True
        self._config = config
        self._io = api.Io(_PARTIES, config)
        self._log = log

    def prepare(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> "Prepared":
        """Compile a function of arrays (or dictionaries of arrays) and share its arguments."""
        flat = jax.tree_util.tree_leaves(arguments)
        options = libspu.CompilerOptions()
        options.enable_optimize_denominator_with_broadcast = True
        executable, _ = frontend.compile(
            frontend.Kind.JAX,
            function,
            arguments,
            {},
            [f"in{number}" for number in range(len(flat))],
            [_SECRET] * len(flat),
            lambda found: [f"out{number}" for number in range(len(found))],
            copts=options,
        )
        shares = [self._io.make_shares(np.ascontiguousarray(value), _SECRET) for value in flat]
        return Prepared(self._config, self._io, self._log, executable, shares)


class Prepared:
    """A compiled function and its shared arguments; `run` as often as wanted."""

    def __init__(self, config: Any, io: Any, log: Path, executable: Any, shares: list[Any]) -> None:
        self._config, self._io, self._log = config, io, log
        self._executable, self._shares = executable, shares

    def run(self) -> tuple[dict[str, float], Any]:
        """Figures and the result. Seconds are the engine's alone: neither sharing nor opening.

        Raises:
            Any error of a party.
        """
        description = libspu.link.Desc()
        description.recv_timeout_ms = 3_600_000
        for rank in range(_PARTIES):
            description.add_party(f"party{rank}", f"thread{rank}")
        ready = threading.Barrier(_PARTIES)
        spans: list[tuple[float, float]] = []
        outputs: dict[int, Any] = {}
        errors: list[BaseException] = []

        def party(rank: int) -> None:
            try:
                runtime = api.Runtime(libspu.link.create_mem(description, rank), self._config)
                for name, share in zip(self._executable.input_names, self._shares, strict=True):
                    runtime.set_var(name, share[rank])
                ready.wait()
                started = time.perf_counter()
                runtime.run(self._executable)
                spans.append((started, time.perf_counter()))
                outputs[rank] = runtime.get_var(self._executable.output_names[0])
            except BaseException as error:
                ready.abort()
                errors.append(error)

        before = self._log.stat().st_size
        threads = [threading.Thread(target=party, args=(rank,)) for rank in range(_PARTIES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next(e for e in errors if not isinstance(e, threading.BrokenBarrierError))
        seconds = max(end for _, end in spans) - min(start for start, _ in spans)
        result = self._io.reconstruct([outputs[rank] for rank in range(_PARTIES)])
        return {"seconds": seconds, **traffic(self._log, before, _PARTIES)}, result
