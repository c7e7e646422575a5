"""Where the parties of one process keep a model: in memory if it fits there, else on disk."""

from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of
from models.programs.opened import opened_bytes
from models.programs.predict import common_bytes, owner_bytes
from protocols.base.shares import EVALUATORS
from protocols.errors import ConfigError
from puma_actors.base.available import available_memory
from puma_actors.roles.spool import Spool, check_room, spool_bytes, spool_folder

_FLOAT = 4  # bytes of a weight at the owner
_MARGIN = 1 << 30  # bytes left for requests and everything else


def spool_for(config: ModelConfig, memory: int | None) -> Spool | None:
    """A spool for a model that does not fit into memory in one piece; None if it does.

    Args:
        memory: bytes that the model may take, for all roles together; default: what is available,
            less 1 GiB (or an eighth, if that is less).

    Raises:
        ConfigError: even without its matrices it does not fit, or there is no room on disk.
    """
    memory = _budget(memory)
    if fits(config, memory):
        return None
    need = on_disk_bytes(config)
    if need > memory:
        raise ConfigError(
            f"the model needs {need / 1e9:,.1f} GB of memory even with its weights on disk, and "
            f"{memory / 1e9:,.1f} GB may be used: give it more, or run the parties on machines of "
            "their own (--cluster)"
        )
    check_room(spool_folder(), spool_bytes(parameters_of(config)))
    return Spool()


def fits(config: ModelConfig, memory: int | None) -> bool:
    """Whether a model with its weights fits; `memory` as for `spool_for`."""
    return in_memory_bytes(config) <= _budget(memory)


def _budget(memory: int | None) -> int:
    if memory is not None:
        return memory
    free = available_memory()
    return free - min(_MARGIN, free // 8)


def in_memory_bytes(config: ModelConfig) -> int:
    """Bytes of all roles together at the peak: the owner's values turn into shares one by one."""
    entries = spool_bytes(parameters_of(config)) // 8
    return max(common_bytes(config), _FLOAT * entries)


def on_disk_bytes(config: ModelConfig) -> int:
    """The same if the parties read matrices from disk while they use them."""
    return common_bytes(config, on_disk=True) + owner_bytes(config)


def public_bytes(config: ModelConfig) -> int:
    """The same if the weights are public."""
    return len(EVALUATORS) * opened_bytes(config) + owner_bytes(config)
