"""A refusal is of the same kind at the caller as at the party that refuses."""

from types import SimpleNamespace

import pytest

from protocols.errors import (
    Busy,
    ConfigError,
    ModelError,
    PumaError,
    RemoteProtocolError,
    StoreError,
    StoreNameError,
)
from puma_actors.hosts.admission import enter, refuse
from puma_actors.transports.frames import NO_SESSION, Frame, Kind


class Wire:
    """Returns the refusal."""

    peer_address = "there"
    refused: Frame

    async def send(self, frame: Frame) -> None:
        if frame.kind is Kind.ERROR:
            self.refused = frame

    async def receive(self) -> Frame:
        return self.refused


async def heard(wire: Wire) -> PumaError:
    request = SimpleNamespace(model_dump=dict)
    with pytest.raises(PumaError) as caught:
        await enter(wire, request)
    return caught.value


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Busy, Busy),
        (StoreError, StoreError),
        (StoreNameError, ConfigError),
        (ConfigError, ConfigError),
        (ModelError, ConfigError),
        (RemoteProtocolError, ConfigError),
    ],
)
async def test_a_refusal_keeps_its_kind(said, kind):
    wire = Wire()
    await refuse(wire, NO_SESSION, said("tiny is of no use"))
    error = await heard(wire)
    assert type(error) is kind
    assert str(error) == "tiny is of no use"


@pytest.mark.parametrize("damaged", [None, 1, "yes", [True]])
async def test_what_is_no_flag_is_none(damaged):
    """Parties of other versions may send none, and strangers anything."""
    wire = Wire()
    wire.refused = Frame(Kind.ERROR, NO_SESSION, (), {"text": "no", "damaged": damaged}, [])
    assert type(await heard(wire)) is ConfigError
