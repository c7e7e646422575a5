"""Weights under their canonical names, one tensor at a time, from any supported format."""
