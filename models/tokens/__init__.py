"""Text and token ids: tokenizers, chat templates, the choice of the next token."""
