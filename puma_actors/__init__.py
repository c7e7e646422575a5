"""The actor runtime: wire, transports, rounds, roles, command line."""
