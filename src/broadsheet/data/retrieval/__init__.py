"""Retrieval: test collections, first-stage search, and how good a ranking is; for all that ranks or embeds.

Knows: queries, passages, judgements, BM25, trec_eval's measures and TREC's files. Does not know: models.
"""
