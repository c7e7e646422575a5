"""What the dealer sends for a request, made before any client comes, kept on disk and used once."""
