"""Side by side with SecretFlow-SPU in one run: `make bench-spu`.

SPU pins old versions of NumPy and jax, so it lives in an environment of its own. `peer` and
`functions` run there and import nothing else of this project; the driver talks to them over pipes.
"""
