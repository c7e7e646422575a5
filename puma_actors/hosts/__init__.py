"""Roles on separate hosts: the party as a service, its store and limits, and calls to it."""
