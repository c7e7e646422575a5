"""Configurations of the encoders: every token sees all others, one file per family."""
