"""`puma prepare`."""
