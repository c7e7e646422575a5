"""Model files on disk: which one holds the model, and headers read with every length checked."""
