"""Emulated networks: their description, and channels with their delays."""
