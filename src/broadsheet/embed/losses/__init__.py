"""Losses that several papers share: contrast between queries and passages, NT-Xent over labels."""
