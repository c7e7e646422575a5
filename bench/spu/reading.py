"""What SPU's side reads: its log and checkpoints. It needs NumPy alone, so tests can import it."""

import json
import re
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LINK = re.compile(r"total send bytes (\d+), recv bytes \d+, send actions (\d+)")


def traffic(log: Path, before: int, parties: int) -> dict[str, float]:
    """Megabytes that all parties sent and sends of the busiest, from what SPU has logged after the
    first `before` bytes.

    Raises:
        RuntimeError: the log does not have one line of traffic for each party.
    """
    with log.open("rb") as file:
        file.seek(before)
        found = _LINK.findall(file.read().decode(errors="replace"))
    if len(found) != parties:
        raise RuntimeError(f"SPU's log has the traffic of {len(found)} parties, not of {parties}")
    sent, actions = zip(*((int(size), int(count)) for size, count in found), strict=True)
    return {"megabytes": sum(sent) / 1e6, "sends": max(actions)}


def read_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a folder of safetensors files in bfloat16."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                words = np.frombuffer(data[start:end], dtype="<u2").astype(np.uint32)
                values = (words << np.uint32(16)).view(np.float32)
                found[name] = values.reshape(entry["shape"])
    return found
