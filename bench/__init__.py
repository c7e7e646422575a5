"""Benchmarks: `python -m bench --list`. Not shipped."""
