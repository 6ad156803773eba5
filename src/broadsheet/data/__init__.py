"""Data: corpora by name, the built-in documentation, rows to train on, retrieval collections."""
