"""What the profiler's records say, and how that is shown."""
