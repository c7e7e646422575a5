"""The functions of a transformer on shares: activations, exp, negative powers, norms, softmax."""
