"""Modules of an embedder that several papers share: encoders, templates, layers, masks, special tokens."""
