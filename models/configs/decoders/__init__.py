"""Configurations of the decoders: causal attention, one file a family."""
