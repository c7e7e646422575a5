"""Products of ring words with public matrices as checkpoints store them, decoded in the cache."""
