"""Losses over vectors and over what a language model writes."""
