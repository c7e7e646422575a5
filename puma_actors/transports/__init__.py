"""Channels between actors, found by URL scheme.

transport = transport_for("memory://name")            ConfigError names the schemes that exist
async with await transport.listen(url) as listener:   Listener
    channel = await listener.accept()                 Channel
channel = await transport.connect(url)
channel = await connect(url, retry=30)                tries again while there is no listener yet
register("pigeon", PigeonTransport)                   adds a scheme

    memory://NAME                                     one process
    unix:///PATH                                      one user on one machine
    tls://HOST:PORT?certs=FOLDER&role=ROLE&name=NAME  networks; both sides prove who they are
    tcp://HOST:PORT?insecure_no_tls=1                 unencrypted

`delay` has a wrapper that makes any of them as slow as a network between hosts.
"""

from puma_actors.transports.base import (
    Channel,
    ChannelEnded,
    Listener,
    Refused,
    Transport,
    Unreachable,
    connect,
    connect_patiently,
    listen,
    register,
    transport_for,
)
from puma_actors.transports.memory import MemoryTransport
from puma_actors.transports.tcp import TcpTransport
from puma_actors.transports.tls import TlsTransport
from puma_actors.transports.unix import UnixTransport

register("memory", MemoryTransport)
register("tcp", TcpTransport)
register("tls", TlsTransport)
register("unix", UnixTransport)

__all__ = [
    "Channel",
    "ChannelEnded",
    "Listener",
    "MemoryTransport",
    "Refused",
    "TcpTransport",
    "TlsTransport",
    "Transport",
    "UnixTransport",
    "Unreachable",
    "connect",
    "connect_patiently",
    "listen",
    "register",
    "transport_for",
]
