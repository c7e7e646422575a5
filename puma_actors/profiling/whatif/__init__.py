"""What a request would cost on any network: from a recorded profile, or predicted from shapes."""
