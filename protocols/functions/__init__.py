"""Functions of a Transformer on shares: activations, exp, negative powers, norms, softmax."""
