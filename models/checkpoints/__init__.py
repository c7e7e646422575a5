"""Weights under their canonical names, one tensor at a time, whatever the format."""
