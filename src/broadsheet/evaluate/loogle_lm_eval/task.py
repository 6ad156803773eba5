"""What the YAML files of this folder call: rows, scores, and the mean of hits.

Knows: what lm-evaluation-harness hands over. Does not know: prompts and metrics, which are `loogle`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from broadsheet.console import InputError
from broadsheet.evaluate.loogle import LooGLE, Question, Score, Task, both_ends, mean


def rows(
    task: Task, data: str = "", max_prompt_tokens: int = 0, tokenizer: str = "", pretrained: str = "", **_: Any
) -> dict[str, Any]:
    """The questions of one task as a data set with the split "test".

    Args:
        data: a file or folder of LooGLE rows; by default the hub's `bigainlco/LooGLE`.
        max_prompt_tokens: a longer prompt loses its middle; the model's context less the answer is a good number. 0
            leaves it to the harness, which cuts off the beginning, and with it the instruction.
        tokenizer, pretrained: whose tokens are counted; the first that is given. The harness fills in `pretrained`
            when it is called from Python with model arguments.

    Raises:
        InputError: `max_prompt_tokens` without a tokenizer, or data that cannot be read or has no such question.
    """
    from datasets import Dataset

    source = data or f"hf:bigainlco/LooGLE/{task}:test"
    loogle = LooGLE()
    questions = [question for question in LooGLE().read(source) if question.task == task]
    if not questions:
        raise InputError(f"{source} holds no question of the task {task}; give other data, or leave the task out")
    cut = _cutter(max_prompt_tokens, tokenizer or pretrained) if max_prompt_tokens else str
    return {"test": Dataset.from_list([_row(question, cut(loogle.prompt(question))) for question in questions])}


shortdep_qa = partial(rows, "shortdep_qa")
shortdep_cloze = partial(rows, "shortdep_cloze")
longdep_qa = partial(rows, "longdep_qa")
longdep_summarization = partial(rows, "longdep_summarization")


def _row(question: Question, prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "gold": question.gold,
        "task": question.task,
        "title": question.title,
        "question": question.question,
        "answer": json.dumps(question.answer),
        "kind": question.kind,
    }


def _cutter(length: int, name: str) -> Any:
    """A function that takes the middle out of a text of more than `length` tokens.

    The harness wants text, so the cut is made where tokens begin and end in the text itself: nothing is decoded, and
    what is read is what was written. At the seam two tokens may merge or one may part when the text is tokenized anew.
    """
    from transformers import AutoTokenizer

    if not name:
        raise InputError(
            'max_prompt_tokens needs a tokenizer: give "tokenizer" in --metadata, a folder or hub id, as well'
        )
    tokenizer = AutoTokenizer.from_pretrained(name)

    def cut(text: str) -> str:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(spans) <= length:
            return text
        kept = both_ends(range(len(spans)), length)
        head = length // 2
        return text[: spans[kept[head - 1]][1] if head else 0] + text[spans[kept[head]][0] :]

    return cut


def score(row: dict[str, Any], results: Sequence[str]) -> dict[str, Score]:
    """Every metric of the row's task for the answer that was generated."""
    question = Question(
        row["task"], "", row["question"], json.loads(row["answer"]), title=row["title"], kind=row["kind"]
    )
    return LooGLE().score(question, results[0])


def hits(values: Sequence[Score]) -> float:
    """Sum of hits over sum of possible hits."""
    return mean(values)
