"""The commented cluster.toml that `puma party --example` prints; docs/cluster.toml is a copy."""

EXAMPLE = """\
# cluster.toml: the addresses of the three computing parties, and this machine's settings.
# `puma party` reads it on their machines; `puma upload`, `models`, `generate --cluster` and `ping`
# read it on the owner's and clients' machines. Paths are relative to this file. Every value can be
# given in the environment instead: PUMA_CLUSTER__TIMEOUTS__SILENCE=5, PUMA_CLUSTER__NAME=dora.

# The name in this machine's certificate. Default: its role.
# name = "dora"

# ca.pem and this machine's own certificate and key, from `puma certs`.
certificates = "certs"

# Where a party keeps its shares of the models. Must be on a local disk.
store = "store"

# Where this party listens, if not at its address below (behind a router, in a container).
# listen = "tls://0.0.0.0:7101"

# The scheduler of this party's own Dask workers, which then hold the matrices and multiply by them
# (here, or `puma party --compute`). Needs puma-actors[dask], and [compute_tls] below.
# compute = "tls://scheduler.example.org:8786"

# A tcp:// scheduler runs the code of anybody who can reach it; it is refused unless this is true.
# insecure_compute_no_tls = true

# Delay incoming frames as a network would (here, or `puma party --network`). All parties, the
# owner and the clients need the same setting.
# network = "wan"                          # or "40ms,100mbit", or a .toml file

# tcp:// is neither encrypted nor authenticated; it is refused unless this is true.
# insecure_no_tls = true

[parties]
dealer = "tls://dealer.example.org:7101"            # or unix:///run/puma/dealer
evaluator-a = "tls://evaluator-a.example.org:7102"
evaluator-b = "tls://evaluator-b.example.org:7103"

# Seconds.
[timeouts]
handshake = 10.0    # for connecting and agreeing on keys
silence = 10.0      # a connection with nothing received for this long is considered dead
retry = 30.0        # how long a caller keeps trying while a party does not answer
opening = 300.0     # how long a session may wait until all parties have loaded its model
idle = 600.0        # a session in which nothing happens for this long is ended
grace = 30.0        # how long running sessions may continue after SIGTERM

# The resources of one party. Callers are told to try again later when it is full.
[limits]
sessions = 4                # at once, of clients and owners together
memory = 8000000000         # bytes: loaded models, and the needs of sessions and their requests
inference_tokens = 2048     # prompt and answer together, of all requests a session runs at a time
unfinished = 200000000000   # bytes on disk: uploads that were cut and can be continued
prepared = 50000000000      # bytes on disk: units made by `puma prepare`; 0: none are made
max_batch = 8               # requests that take a decoding step together, the same at all parties

# Names in certificates. A missing list admits every certificate of the authority with that role;
# an empty list admits no one. In `parties`, "evaluator-a/alice" admits alice only in that role.
[allow]
# clients = ["client", "alice"]
# owners = ["owner"]
# parties = ["dealer/dealer", "evaluator-a/alice", "evaluator-b/bob"]

# For the connections to `compute`. Whoever has a certificate of this authority can use the workers
# and be one: it must be this party's own, made by another `puma certs init`.
# [compute_tls]
#   authority = "workers/ca.pem"
#   certificate = "workers/dealer.party.pem"
#   key = "workers/dealer.party.key"
"""
