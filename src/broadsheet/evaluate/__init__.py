"""Evaluate: metrics, judges and benchmarks, each as functions of gold answers and predictions, and as an lm-eval task.

The papers' own classes (`broadsheet papers --stage evaluate`) are found in their files; the parts are listed here.

Example:
    from broadsheet.evaluate import LooGLE, Route, answers
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "answering": ("Answer", "Route", "answers"),
        "loogle": ("Question",),
        "loogle_lm_eval": ("lm_eval_path",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get
