"""Channels between actors, found by URL scheme.

transport = transport_for("memory://name")            ConfigError names the schemes that exist
async with await transport.listen(url) as listener:   Listener
    channel = await listener.accept()                 Channel
channel = await transport.connect(url)
register("tcp", TcpTransport)                         adds a scheme

`delayed` has a wrapper that makes any of them as slow as a network between hosts.
"""

from puma_actors.transports.base import (
    Channel,
    ChannelEnded,
    Listener,
    Transport,
    connect,
    listen,
    register,
    transport_for,
)
from puma_actors.transports.memory import MemoryTransport

register("memory", MemoryTransport)

__all__ = [
    "Channel",
    "ChannelEnded",
    "Listener",
    "MemoryTransport",
    "Transport",
    "connect",
    "listen",
    "register",
    "transport_for",
]
