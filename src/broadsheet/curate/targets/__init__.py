"""Rows to fine-tune on: their formats, what is known of their targets, and the passes over them."""
