"""The cryptography: shares, random streams, rounds as awaitables. No socket, no event loop."""
