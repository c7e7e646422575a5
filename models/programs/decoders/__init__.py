"""Programs of the decoders, one file a family: each token sees those before it."""
