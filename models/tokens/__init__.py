"""Text and token ids: tokenizers, chat templates and the choice of the next token."""
