"""What the owner does before sharing, and to check its own model: ranges, probes, comparisons."""
