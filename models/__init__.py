"""Model families as programs over `Ops`; weights, tokenizers, generation."""
