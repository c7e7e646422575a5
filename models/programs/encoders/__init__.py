"""Programs of the encoders, one file per family: every token sees all others."""
