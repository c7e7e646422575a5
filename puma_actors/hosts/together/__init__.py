"""Decoding steps of several sessions on one model, taken as one by the three parties alone."""
