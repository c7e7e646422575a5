"""The operations models are written in, and their evaluations: on shares, in floats, as cost."""
