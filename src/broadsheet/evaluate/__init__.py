"""Evaluate: metrics, judges and benchmarks, each as functions of gold answers and predictions, and as an lm-eval task.

from broadsheet.evaluate import LooGLE, Route, answers
"""

from broadsheet.evaluate.answering import Answer, Route, answers
from broadsheet.evaluate.loogle import LooGLE, Question
from broadsheet.evaluate.loogle_lm_eval import lm_eval_path

__all__ = ["Answer", "LooGLE", "Question", "Route", "answers", "lm_eval_path"]
