"""Whose turn it is: the queue of a model, and the sessions that its requests use."""
