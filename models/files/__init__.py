"""Files as they lie on disk: which one holds the model, headers read with every length checked."""
