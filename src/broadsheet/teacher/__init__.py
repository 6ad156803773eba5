"""One way to ask a language model, wherever it runs: a local model, any OpenAI-compatible endpoint, or llama.cpp.

`Teacher.load(spec)` picks the backend; `chat`, `complete` and `score` are the same for all of them. Answers are kept in
a disk cache, so that a rerun costs nothing and a killed run resumes where it stopped; a `Budget` stops the spending.

Knows: conversations, sampling settings, answers, log-probabilities. Does not know: what the answers are for.
"""

from broadsheet.teacher.base import Budget, BudgetExhausted, Completion, TokenLogprob, Usage
from broadsheet.teacher.teacher import Teacher

__all__ = ["Budget", "BudgetExhausted", "Completion", "Teacher", "TokenLogprob", "Usage"]
