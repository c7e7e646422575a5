"""Public weights in a party's store: while they arrive, and when they are used."""

from typing import Any

import numpy as np

from models.programs.families import parameters_of
from models.programs.opened import made_of, unread
from models.programs.plan import Plan
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, RangeError, RemoteProtocolError, StoreError
from puma_actors.hosts.stores.draft import Draft
from puma_actors.hosts.stores.manifest import matrix_file
from puma_actors.hosts.stores.stored import Stored
from puma_actors.roles.described import Bytes, read_stored


class DraftShelf:
    """A `Shelf` in a draft."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def append(self, number: int, data: bytes | memoryview) -> None:
        """As `Shelf`."""
        self._draft.write(matrix_file(number), data)

    def head(self, number: int, size: int) -> bytes:
        """As `Shelf`."""
        with (self._draft.folder / matrix_file(number)).open("rb") as file:
            return file.read(size)

    def whole(self, number: int) -> Bytes:
        """As `Shelf`."""
        path = self._draft.folder / matrix_file(number)
        mapped: Bytes = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        return mapped


def take_down(stored: Stored, plan: Plan, role: Role) -> dict[str, Any]:
    """What a party computes with, of a stored model of public weights. Matrices stay in their
    files, which are compared with their checksums now, and are refused once they are changed.

    Raises:
        StoreError: a file is damaged.
    """
    held = {}
    for number, (name, parameter) in enumerate(parameters_of(plan.config).items()):
        if role.is_dealer:
            held[name] = unread(parameter)
            continue
        file = stored.matrix(number)
        try:
            found = read_stored(parameter, file.mapped())
            held[name] = made_of(role, parameter, found, file.check)
        except (LocalProtocolError, RangeError, RemoteProtocolError) as error:
            with stored.reading():
                raise StoreError(f"{matrix_file(number)} is unusable ({error})") from None
    return held
