"""What a program imports: clusters in this process or elsewhere, with or without an event loop."""
