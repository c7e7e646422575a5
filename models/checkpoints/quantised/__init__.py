"""Quantised tensors of safetensors, turned back into float32 when they are read."""
