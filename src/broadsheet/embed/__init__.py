"""Texts to vectors with a causal LM."""
