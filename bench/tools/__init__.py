"""What benchmarks are made of: running, sharing, reports."""
