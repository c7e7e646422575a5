"""A digest of the programs that this installation runs.

All parties and the client evaluate the same program on the same streams. Different programs would
not fail but give nonsense, so the handshake compares digests of their sources.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

import models
import protocols


@cache
def program_digest() -> str:
    """16 hexadecimal digits that change with any source file of `protocols` and `models`."""
    digest = sha256()
    for package in (models, protocols):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
