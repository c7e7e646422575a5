"""One session of one party: handshake, ports and mailboxes, rounds.

Messages of computations live here; who sends requests and why is a matter of `roles`.
"""
