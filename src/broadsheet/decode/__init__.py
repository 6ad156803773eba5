"""Decode: the same output, generated faster. A method is passed as `model.generate(custom_generate=…)`.

`ADED` drafts from a table of tri-grams (`TrigramTable`) that follows what is written, and has the model verify it.
`NgramDrafter`, ours, also copies from the context and drafts as far as that is faster. The papers' own methods are
found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__, {"base": ("DecodeStats", "Drafter"), "ngram": ("NgramDrafter",), "table": ("TrigramTable",)}
)
__all__ = _exports.names
__getattr__ = _exports.get
