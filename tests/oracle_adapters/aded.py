"""ADED's oracle cases, by what their input holds: a context to draft for, sequences to count, contexts to adapt to,
children to score, or candidate paths to verify. The drafter is called as `generate` calls it, and adapts."""

from itertools import pairwise
from typing import Any

from deciding import written

from broadsheet.decode import ADED, DecodeStats, TrigramTable
from broadsheet.decode.aded import Node, TreeSearch
from broadsheet.decode.draft import Draft
from broadsheet.decode.table import pack


def run(case: dict[str, Any]) -> dict[str, Any]:
    for key, family in _FAMILIES.items():
        if key in case:
            return family(case)
    raise ValueError(f"got {sorted(case)}; expected one of {', '.join(_FAMILIES)}")


def _draft(case: dict[str, Any]) -> dict[str, Any]:
    table = TrigramTable.from_sequences(case["corpus_token_sequences"], keep=case.get("keep_top", 12))
    aded = ADED(
        table,
        iterations=case.get("search_iterations", 150),
        depth=case.get("max_states_per_path", 4),
        prefixes=case.get("top_prefixes", 24),
        tree_size=case.get("max_draft_tokens", 64),
    )
    _read(aded, case["context"])
    draft = aded.draft(room=1000)
    leaves = set(range(len(draft))) - set(draft.parents)
    return {
        "draft_trie_prefixes": sorted(draft.path(node) for node in range(len(draft))),
        "n_draft_nodes": len(draft),
        "n_root_to_leaf_paths": len(leaves),
    }


def _build(case: dict[str, Any]) -> dict[str, Any]:
    sequences = case["sequences"]
    table = TrigramTable.from_sequences(sequences, keep=case.get("keep_top"))
    pairs = sorted({pair for sequence in sequences for pair in pairwise(sequence)})
    found = {f"{a},{b}": table.successors(a, b) for a, b in pairs}
    return {"probabilities": {pair: _named(row) for pair, row in found.items() if row}}


def _adapt(case: dict[str, Any]) -> dict[str, Any]:
    table = TrigramTable()
    for name, row in case["table"].items():
        a, b = map(int, name.split(","))
        table.adapted[pack(a, b)] = {int(c): value for c, value in row.items()}
    window = case.get("window_tokens", 16)
    aded = ADED(table, increment=case["increment"], cap=case["cap"], window=window)
    for context in case["contexts_in_order"]:
        _read(aded, context)
    return {"table": {f"{pair >> 32},{pair & 0xFFFFFFFF}": _named(row) for pair, row in table.adapted.items()}}


def _puct(case: dict[str, Any]) -> dict[str, Any]:
    children = [
        Node(i, child["prior"], (0, i), child["visits"], child["total_reward"])
        for i, child in enumerate(case["children"])
    ]
    search = TreeSearch(c1=case["c1"], c2=case["c2"])
    scores = search.scores(Node(0, 1.0, (0, 0), case["parent_visits"], 0.0, children))
    return {"scores": ["inf" if score == float("inf") else score for score in scores]}


def _verify(case: dict[str, Any]) -> dict[str, Any]:
    paths, argmax = case["candidates"], case["target_argmax_at_each_candidate_token"]
    draft = Draft.from_paths(path[1:] for path in paths)
    choices: dict[tuple[int, ...], int] = {}
    for path, row in zip(paths, argmax, strict=True):
        for depth, choice in enumerate(row):
            choices.setdefault(tuple(path[1 : depth + 1]), choice)
    tokens, nodes = written(draft, [choices[tuple(draft.path(node))] for node in range(-1, len(draft))])
    emitted = [paths[0][0], *tokens[:-1]]
    return {
        "best_path": next(i for i, path in enumerate(paths) if path[: len(emitted)] == emitted),
        "accepted_draft_tokens": len(nodes),
        "tokens_emitted": emitted,
        "next_token_from": tokens[-1],
    }


def _read(aded: ADED, context: list[int]) -> None:
    """Let it read a context whose last token was just written: the root of the next draft."""
    aded.stats_ = DecodeStats()
    aded.begin(context[:-1])
    aded.wrote(context[-1:], accepted=0)


def _named(row: Any) -> dict[str, float]:
    return {str(token): value for token, value in row.items()}


_FAMILIES = {
    "corpus_token_sequences": _draft,
    "sequences": _build,
    "contexts_in_order": _adapt,
    "children": _puct,
    "candidates": _verify,
}
