"""Configurations of the decoders: causal attention, one file per family."""
