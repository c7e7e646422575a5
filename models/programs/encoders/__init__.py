"""Programs of the encoders, one file a family: every token sees all others."""
