"""A party's shares of models on its disk: files, manifests and checksums. Uses no network."""
