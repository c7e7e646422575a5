"""`puma convert`: a pickled checkpoint becomes safetensors."""
