"""A party that is larger than one machine: its Dask workers hold its factors, and multiply by them.

Nothing here imports Dask before a party asks for it (`compute` in cluster.toml). The package on a
worker's machine runs `rows` alone.
"""
