"""Parts of unlearning: terms of a text and their stand-ins, translation, decoding, and what is still known.

Methods are in the papers' own files.
"""
