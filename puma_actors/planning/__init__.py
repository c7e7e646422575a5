"""How long a request would take, and what is best for it, before anything of it runs."""
