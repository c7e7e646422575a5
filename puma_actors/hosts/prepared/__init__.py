"""Preparing units at three parties: their part, and that of whoever asks for it."""
