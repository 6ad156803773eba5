"""Modules of an embedder: the encoder, what stands around a text, masks, pooling."""
