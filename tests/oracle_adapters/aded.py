"""ADED's oracle cases, by what their input holds: a context to draft for, sequences to count, contexts to adapt to,
children to score, or candidate paths to verify."""

from itertools import pairwise
from typing import Any

from broadsheet.decode.draft import Draft
from broadsheet.decode.search import TreeSearch, puct
from broadsheet.decode.table import TrigramTable, pack


def run(case: dict[str, Any]) -> dict[str, Any]:
    for key, family in _FAMILIES.items():
        if key in case:
            return family(case)
    raise ValueError(f"got {sorted(case)}; expected one of {', '.join(_FAMILIES)}")


def _draft(case: dict[str, Any]) -> dict[str, Any]:
    table = TrigramTable.from_sequences(case["corpus_token_sequences"], keep=case.get("keep_top", 12))
    search = TreeSearch(
        iterations=case.get("search_iterations", 150),
        depth=case.get("max_states_per_path", 4),
        prefixes=case.get("top_prefixes", 24),
        max_draft_tokens=case.get("max_draft_tokens", 64),
    )
    draft = Draft.from_paths(search.paths(table, tuple(case["context"][-2:])))
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
    for context in case["contexts_in_order"]:
        table.adapt(context[-case.get("window_tokens", 16) :], increment=case["increment"], cap=case["cap"])
    return {"table": {f"{pair >> 32},{pair & 0xFFFFFFFF}": _named(row) for pair, row in table.adapted.items()}}


def _puct(case: dict[str, Any]) -> dict[str, Any]:
    scores = [
        puct(c["visits"], c["total_reward"], c["prior"], case["parent_visits"], c1=case["c1"], c2=case["c2"])
        for c in case["children"]
    ]
    return {"scores": ["inf" if score == float("inf") else score for score in scores]}


def _verify(case: dict[str, Any]) -> dict[str, Any]:
    paths, argmax = case["candidates"], case["target_argmax_at_each_candidate_token"]
    draft = Draft.from_paths(path[1:] for path in paths)
    choices: dict[tuple[int, ...], int] = {}
    for path, row in zip(paths, argmax, strict=True):
        for depth, choice in enumerate(row):
            choices.setdefault(tuple(path[1 : depth + 1]), choice)
    nodes = draft.accept([choices[tuple(draft.path(node))] for node in range(-1, len(draft))])
    accepted = draft.path(nodes[-1]) if nodes else []
    emitted = [paths[0][0], *accepted]
    return {
        "best_path": next(i for i, path in enumerate(paths) if path[: len(emitted)] == emitted),
        "accepted_draft_tokens": len(accepted),
        "tokens_emitted": emitted,
        "next_token_from": choices[tuple(accepted)],
    }


def _named(row: Any) -> dict[str, float]:
    return {str(token): value for token, value in row.items()}


_FAMILIES = {
    "corpus_token_sequences": _draft,
    "sequences": _build,
    "contexts_in_order": _adapt,
    "children": _puct,
    "candidates": _verify,
}
