"""A corpus as vectors on disk: written in shards, resumed, described, read back."""
