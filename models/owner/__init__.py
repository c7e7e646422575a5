"""The owner's work on its own model before sharing: ranges, probes, comparisons."""
