"""Attention over parts of the keys: masks, windows, blocks, and what computes them."""
