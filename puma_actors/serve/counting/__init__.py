"""What the gateway counts: numbers for `/metrics`, with no word of any conversation."""
