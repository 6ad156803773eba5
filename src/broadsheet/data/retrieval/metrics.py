"""nDCG and reciprocal rank of rankings, by ir-measures (trec_eval's: linear gain, log2 discount).

Knows: names of documents in order, judgements. Does not know: how the order came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError

if TYPE_CHECKING:
    from broadsheet.data.retrieval.lists import RankList

MEASURES = ("nDCG@10", "RR@10")


def evaluate(
    rankings: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = MEASURES,
) -> dict[str, dict[str, float]]:
    """Each measure for each judged query.

    Rankings become runs with scores n, n − 1, …, 1: trec_eval orders by score and breaks ties by name, so equal scores
    would reorder them. A query without a ranking, or without a relevant document, counts 0.

    Args:
        rankings: names of documents by query, best first.
        qrels: relevance by query and document; what is not named counts as 0. Documents that no ranking has still
            count in the ideal one.
        measures: in ir-measures' words, e.g. `"nDCG@10"`, `"RR@10"`, `"R@20"`.

    Returns:
        `{measure: {query: value}}`, over the queries of `qrels`.

    Raises:
        InputError: ir-measures is missing, or does not know a measure.
        ValueError: a ranking names a document twice.

    Example:
        evaluate({"q": ["a", "b"]}, {"q": {"b": 1}})["RR@10"]["q"]  # 0.5
    """
    for query, names in rankings.items():
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"the ranking of query {query!r} names document {twice!r} twice; expected each once")
    wanted = {name: _measure(name) for name in measures}
    judged = {query: {d: int(r) for d, r in row.items()} for query, row in qrels.items() if row}
    run = {
        query: {name: float(len(names) - i) for i, name in enumerate(names)}
        for query, names in rankings.items()
        if query in judged and names
    }
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    names_of = {measure: name for name, measure in wanted.items()}
    if run:
        import ir_measures

        for found in ir_measures.iter_calc(list(wanted.values()), judged, run):
            if found.query_id in run:
                values[names_of[found.measure]][found.query_id] = float(found.value)
    return values


def evaluate_lists(
    lists: Sequence[RankList], rankings: Sequence[Sequence[str]], measures: Sequence[str] = MEASURES
) -> dict[str, list[float]]:
    """Each measure for each list, given names of documents in their new order.

    Example:
        evaluate_lists(lists, [each.ids for each in lists])  # the first stage's own order
    """
    # Numbered, because two lists may be of one query.
    names = [str(i) for i in range(len(lists))]
    values = evaluate(
        dict(zip(names, rankings, strict=True)),
        {name: each.judged for name, each in zip(names, lists, strict=True)},
        measures,
    )
    return {measure: [row[name] for name in names] for measure, row in values.items()}


@cache
def _measure(name: str) -> Any:
    try:
        import ir_measures
    except ImportError:
        raise InputError("nDCG is computed by ir-measures, which is missing: pip install ir-measures") from None
    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
        raise InputError(f"ir-measures does not know {name!r} ({error}); write it as in nDCG@10") from None
