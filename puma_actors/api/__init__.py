"""The public API: clusters in this process or remote, with or without an event loop."""
