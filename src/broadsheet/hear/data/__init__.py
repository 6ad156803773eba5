"""A labelled training set for an audio LLM, made on the spot: speech by flite, sounds by sox, no download."""

from broadsheet.hear.data.dataset import Made, make_data

__all__ = ["Made", "make_data"]
