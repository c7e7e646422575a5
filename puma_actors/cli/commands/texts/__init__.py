"""Inputs and options of the commands that take text, and the commands that take labels."""
