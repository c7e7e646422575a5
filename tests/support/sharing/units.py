"""Prepared units for tests."""

import os
from collections.abc import Mapping
from pathlib import Path

from protocols.base.lane import Path as LanePath
from protocols.base.shares import COMPUTING, Role
from puma_actors.prepare.file import WHOLE, UnitWriter, entry_of, pack_index
from puma_actors.prepare.unit import Label, Origin, Shape, program_version

UNIT = "5" * 32
ORIGIN = Origin(upload="a" * 32, plan="b" * 64, program=program_version())
SHAPE = Shape(tokens=3, steps=2)

Messages = Mapping[tuple[int, Role, LanePath], bytes]
"""By step, sender and tag."""


def label_of(
    unit: str = UNIT,
    role: Role = Role.EVALUATOR_A,
    shape: Shape = SHAPE,
    origin: Origin = ORIGIN,
) -> Label:
    return Label(unit=unit, role=role, origin=origin, shape=shape)


def fill(writer: UnitWriter, messages: Messages) -> None:
    """Write the messages, in order."""
    for step, sender in dict.fromkeys((step, sender) for step, sender, _ in messages):
        found = {
            path: data
            for (when, who, path), data in messages.items()
            if (when, who) == (step, sender)
        }
        for data in found.values():
            writer.write(data)
        index = pack_index(entry_of(path, data) for path, data in found.items())
        writer.end_section(step, sender, index)
    writer.finish()


def fresh_keys() -> dict[Role, bytes]:
    return {role: os.urandom(32) for role in COMPUTING}


def write_unit(
    folder: Path, messages: Messages, label: Label | None = None
) -> tuple[Path, dict[Role, bytes]]:
    """A whole unit in a folder: its path and keys."""
    label, keys = label or label_of(), fresh_keys()
    writer = UnitWriter(folder, label, keys, 1 << 20)
    fill(writer, messages)
    writer.publish()
    return folder / f"{label.unit}{WHOLE}", keys
