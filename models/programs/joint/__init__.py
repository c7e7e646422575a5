"""Decoding steps of several requests as one joint step, and what each costs alone."""
