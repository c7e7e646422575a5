"""A party's shares of models on its disk: files, manifests and checksums. It knows no network."""
