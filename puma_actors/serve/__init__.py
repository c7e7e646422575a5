"""The local gateway: a page to chat on, and the web interface of OpenAI's clients."""
