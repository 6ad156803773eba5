"""Decode: the same output, generated faster. A method is passed as `model.generate(custom_generate=…)`.

`ADED` drafts from a table of tri-grams (`TrigramTable`) that follows what is written, and has the model verify it.
"""

from broadsheet.decode.aded import ADED
from broadsheet.decode.base import DecodeStats, Drafter
from broadsheet.decode.table import TrigramTable

__all__ = ["ADED", "DecodeStats", "Drafter", "TrigramTable"]
