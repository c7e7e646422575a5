"""One session of one party: handshake, ports and mailboxes, rounds.

Messages of computations are handled here; requests and their meaning are handled in `roles`.
"""
