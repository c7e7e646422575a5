"""`puma chat`: a conversation in the terminal."""
