"""Documentation as several retrieval tasks, for training and evaluation: its summaries, names and halves.

Knows: passages of documentation, BM25's hits beside the right one, BEIR folders. Does not know: models, losses.

Packages of training and of evaluation are those of `Documentation`: none is both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data.retrieval.search import BM25
from broadsheet.embed.data import tasks
from broadsheet.embed.data.chunks import Continuation
from broadsheet.embed.data.tasks import Query, RetrievalTask

if TYPE_CHECKING:
    from broadsheet.data.retrieval.documentation import DocPassage, Documentation
    from broadsheet.data.retrieval.lists import RankList

TASKS = {
    "summary": "the summary of a docstring finds its body",
    "name": "the name of a function or class finds its docstring's body",
    "half": "the first half of a body finds the second",
    "long": "the summary finds a long body",
}
_LONG = (150, 400)  # words of a long body, at least and at most


def examples(
    task: str, n: int, negatives: int, *, words: int = 40, seed: int = 0, data: str = "pydocs"
) -> list[dict[str, Any]]:
    """Items `query`, `positive`, `negatives` from packages that no evaluation uses.

    Args:
        task: "summary", "name" or "half". Their passages are the same, so that tasks differ in their queries alone.
        n: the largest number of items.
        negatives: of each, drawn at random from the first 20 that BM25 finds for the summary, the right one left out.
        words: of a passage, at most.
        seed: of split and choice: that of the question.
        data: `pydocs`, or `pydocs:stdlib`.

    Raises:
        InputError: no such task to train on, or no examples.

    Example:
        fit(embedder, examples("summary", 600, 1), GRL(embedder), "runs/grl", steps=75)
    """
    if task not in ("summary", "name", "half"):
        raise InputError(f"got {task!r} to train on; expected summary, name or half")
    if n < 1 or negatives < 0:
        raise InputError(f"got {n} examples with {negatives} negatives; expected at least 1 and 0")
    docs = tasks.documentation(words, seed, data)
    title = {entry.id: entry.title for entry in docs.entries}
    found: list[tuple[str, str, str, list[str]]] = []
    for each in docs.train(n, candidates=1 + negatives, depth=max(20, 1 + negatives)):
        right = _right(each)
        wrong = [str(text) for i, text in enumerate(each.documents) if i != right]
        if len(wrong) == negatives:
            found.append((each.query, title[each.id], str(each.documents[right]), wrong))
    if not found:
        raise InputError(f"the documentation gives no examples with {negatives} negatives; ask for fewer negatives")
    if task == "half":
        return [
            {
                "query": _halves(right)[0],
                "positive": _halves(right)[1],
                "negatives": [_halves(text)[1] for text in wrong],
            }
            for *_, right, wrong in found
        ]
    return [
        {"query": name if task == "name" else summary, "positive": right, "negatives": wrong}
        for summary, name, right, wrong in found
    ]


def answers(
    n: int,
    candidates: int,
    *,
    test: bool,
    words: int = 40,
    seed: int = 0,
    data: str = "pydocs",
) -> list[Continuation]:
    """Questions what a function or class does, with its summary as the answer and bodies to find it in.

    Args:
        n: the number of questions; of the packages that are trained on the largest number.
        candidates: bodies of each, the right one among them: those that BM25 finds for the answer, in the order that it
            gives them for the question.
        test: of held-out packages, or of the others.
        words: of a body, at most.
        seed, data: as in `examples`.

    Raises:
        InputError: the held-out packages have fewer.
    """
    docs = tasks.documentation(words, seed, data)
    lists = docs.answerable(n, candidates)[0] if test else docs.train(n, candidates)
    named = {entry.id: f"{entry.title} of {entry.package}" for entry in docs.entries}
    found = []
    for each in lists:
        if len(each.documents) == candidates:
            asked, bodies = f"What does {named[each.id]} do?", [str(text) for text in each.documents]
            ranked = BM25(bodies).search([asked], candidates)[0][0]
            order = list(dict.fromkeys([*ranked, *range(candidates)]))  # those that share no word stand behind
            keys = tuple(bodies[i] for i in order)
            found.append(Continuation(each.id, asked, each.query, keys, order.index(_right(each))))
    return found


def question(
    task: str, queries: int, passages: int, *, words: int = 40, seed: int = 0, data: str = "pydocs"
) -> RetrievalTask:
    """A task for evaluation: one of `TASKS` over held-out packages of `data`, or a BEIR folder.

    Raises:
        InputError: it is neither, or has fewer queries.
    """
    if task not in TASKS:
        return tasks.retrieval(task, queries, passages, words=words, seed=seed)
    if queries < 1 or passages < 0:
        raise InputError(f"got {queries} queries and {passages} passages; expected 1 or more, and 0 (all) or more")
    low, high = _LONG if task == "long" else (0, words)
    docs = tasks.documentation(high, seed, data)
    asked = _long(docs, queries, low) if task == "long" else docs.pairs(queries, held_out=True)
    able = [e for e in docs.entries if docs.held_out(e.package) and len(e.text.split()) >= low]
    return _task(task, asked, able, passages, seed, "of packages held out from training")


def tuning(
    task: str,
    queries: int,
    passages: int,
    *,
    without: Collection[str],
    words: int = 40,
    seed: int = 0,
    data: str = "pydocs",
) -> RetrievalTask:
    """A task of the packages that are trained on, to choose settings by: no evaluation has its queries or passages.

    Args:
        task: "summary", "name" or "half".
        queries, passages: at most.
        without: positives that are trained on, as `examples` gives them; none of them is searched.

    Raises:
        InputError: there is no other passage.
    """
    docs = tasks.documentation(words, seed, data)
    known = set(without)
    able = [e for e in docs.entries if not docs.held_out(e.package) and _found(task, e) not in known]
    left = {entry.id for entry in able}
    asked = [entry for entry in docs.pairs(len(docs.entries), held_out=False) if entry.id in left][:queries]
    if not asked:
        raise InputError(
            "all passages are trained on, so none is left to choose a learning rate by; give one with --learning-rate, "
            "or train on fewer"
        )
    return _task(task, asked, able, max(passages, len(asked)), seed, "of packages that are trained on")


def _task(
    task: str, asked: list[DocPassage], able: list[DocPassage], passages: int, seed: int, about: str
) -> RetrievalTask:
    """What is asked, over its own passages and others of those that may be searched."""
    passage = {entry.id: _found(task, entry) for entry in able}
    wanted = [entry.id for entry in asked]
    # Ordered by hashed name: adding or removing a passage leaves the order of the others.
    others = sorted(passage.keys() - set(wanted), key=lambda name: fingerprint([seed, name]))
    kept = {*wanted, *(others[: max(0, passages - len(wanted))] if passages else others)}
    return RetrievalTask(
        [Query(entry.id, _asking(task, entry)) for entry in asked],
        {name: text for name, text in passage.items() if name in kept},
        {name: {name: 1} for name in wanted},
        f"{TASKS[task]}: {len(wanted)} queries, {len(kept):,} passages {about}",
    )


def _right(found: RankList) -> int:
    return next(i for i, label in enumerate(found.labels) if label > 0)


def _asking(task: str, entry: DocPassage) -> str:
    return entry.title if task == "name" else _halves(entry.text)[0] if task == "half" else entry.summary


def _found(task: str, entry: DocPassage) -> str:
    """The text that is searched."""
    return _halves(entry.text)[1] if task == "half" else entry.text


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def _long(docs: Documentation, queries: int, low: int) -> list[DocPassage]:
    """Held-out entries with a long body, in random order; no package has more than a tenth, if there are others."""
    able = [e for e in docs.entries if e.unique and docs.held_out(e.package) and len(e.text.split()) >= low]
    able.sort(key=lambda entry: fingerprint([docs.seed, entry.id]))
    of_each = Counter[str]()
    first: list[DocPassage] = []
    later: list[DocPassage] = []
    for entry in able:
        of_each[entry.package] += 1
        (first if of_each[entry.package] <= max(1, -(-queries // 10)) else later).append(entry)
    if len(able) < queries:
        raise InputError(f"the corpus has {len(able)} queries with a long body; expected {queries}: ask for fewer")
    return [*first, *later][:queries]
