"""The vocabulary models are written in, and who evaluates it: on shares, in floats, as cost."""
