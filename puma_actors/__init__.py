"""Private inference among three computing parties: the runtime.

    from puma_actors import LocalCluster, PrivateModel, pipeline

From the bottom up: `base`, `transports`, `session`, `roles`, `hosts`, `api`, `profiling`, `cli`.
Imports only go down.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puma_actors.base.hiding import refuse_hidden

if TYPE_CHECKING:
    from puma_actors.api.blocking import PrivateModel
    from puma_actors.api.local import LocalCluster
    from puma_actors.api.pipelines import pipeline

__all__ = ["LocalCluster", "PrivateModel", "pipeline"]

_HOMES = {
    "LocalCluster": "puma_actors.api.local",
    "PrivateModel": "puma_actors.api.blocking",
    "pipeline": "puma_actors.api.pipelines",
}

refuse_hidden(Path(__file__).parents[1])


def __getattr__(name: str) -> Any:
    """Import on first use: most of the program needs no NumPy, let alone kernels."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
