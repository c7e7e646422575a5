"""Certificates replaced before they expire, and signed for keys that were made elsewhere."""
