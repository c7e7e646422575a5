"""Programs of the decoders, one file per family: each token sees those before it."""
