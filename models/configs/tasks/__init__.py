"""What a model is for, beyond its architecture."""
