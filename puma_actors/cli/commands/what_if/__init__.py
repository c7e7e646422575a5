"""`puma what-if`."""
