"""Roles as separate processes on loopback, and everything that can go wrong with them.

    export PYTHONPATH=tests:tests/support:tests/support/checkpoints:tests/support/sharing
    python -m faults            the whole matrix, as a table (`make test-faults`)
    python -m faults soak       many clients and random kills (`make soak`)

`matrix` lists the cells: who is hit, when, and by what. `cell` runs one and holds it to what must
be true afterwards. `harness` runs the processes, `proxy` stands between them, `hooks` stop them at
a moment or make them send something wrong, `strangers` are callers that are no good from the start.
"""
