"""The program of each family."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.programs.decoders import falcon, gpt2, llama, opt
from models.programs.encoders import bert, modernbert
from models.programs.folding import Matrix, Source, values_of
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache
from models.programs.rescaling import balanced
from protocols.drivers.ops import Ops, Parameters, Tensor


@dataclass(frozen=True, slots=True)
class Family:
    """A family's program, its shared tensors, and how they are made from a checkpoint."""

    forward: Callable[..., Awaitable[Tensor]]
    parameters_of: Callable[..., dict[str, Parameter]]
    load_parameters: Callable[[Checkpoint], Iterator[tuple[str, Source]]]


def _family(module: Any) -> Family:
    return Family(module.forward, module.parameters_of, module.load_parameters)


_FAMILIES = {
    "bert": _family(bert),
    "data2vec-text": _family(bert),
    "deberta-v2": _family(bert),
    "distilbert": _family(bert),
    "electra": _family(bert),
    "falcon": _family(falcon),
    "gemma": _family(llama),
    "gpt2": _family(gpt2),
    "gpt_neox": _family(falcon),
    "granite": _family(llama),
    "llama": _family(llama),
    "modernbert": _family(modernbert),
    "mpnet": _family(bert),
    "opt": _family(opt),
    "phi3": _family(llama),
    "roberta": _family(bert),
    "smollm3": _family(llama),
}


async def forward(
    ops: Ops, config: ModelConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The result of a model for a batch, under any driver."""
    return await _FAMILIES[config.family].forward(ops, config, parameters, batch, cache)


def parameters_of(config: ModelConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    return _FAMILIES[config.family].parameters_of(config)


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Matrix]]:
    """The float matrices to be shared, (inputs, outputs), in the order of `parameters_of`, balanced
    as described in `models.programs.rescaling`.
    """
    return ((name, values_of(source)) for name, source in sources_of(checkpoint))


def sources_of(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """What the matrices of `load_parameters` are made of, in the same order."""
    config = checkpoint.config
    return balanced(config, _FAMILIES[config.family].load_parameters(checkpoint))


class LazyParameters(Mapping[str, Matrix]):
    """The matrices of `load_parameters`, each made from the checkpoint whenever it is looked up.

    Args:
        looked_up: called with each name that is looked up.
    """

    def __init__(
        self, checkpoint: Checkpoint, looked_up: Callable[[str], None] = lambda name: None
    ) -> None:
        self._sources = dict(sources_of(checkpoint))
        self._looked_up = looked_up

    def __getitem__(self, name: str) -> Matrix:
        self._looked_up(name)
        return values_of(self._sources[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def shallow(config: ModelConfig, most: int = 2) -> ModelConfig:
    """The model with two layers at most, or as many as given; the first stands for all layers
    except the last.
    """
    layers = min(most, config.num_layers)
    windows = getattr(config, "windows", None)
    some: dict[str, Any] = {"num_layers": layers}
    if windows:
        some["windows"] = (max(windows, key=_reach),) * layers
    for name in ("rotary", "local"):
        if getattr(config, name, None):
            some[name] = getattr(config, name)[:layers]
    return replace(config, **some)


def _reach(window: int | None) -> float:
    return float("inf") if window is None else window
