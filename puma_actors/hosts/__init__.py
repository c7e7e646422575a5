"""Roles on hosts of their own: the party as a service, its store and limits, how it is called."""
