"""In-context pretraining's oracle cases: overlap of 3-grams, the rule on what comes after, both walks, and contexts."""

from typing import Any

import numpy as np

from broadsheet.curate import Contexts, NeighbourGraph
from broadsheet.curate.in_context_pretraining import (
    gram_overlap,
    greedy_path,
    released_walk,
    unlike_last,
    zero_weight_jumps,
)


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "char_ngram_jaccard":
            return {"similarity": gram_overlap(case["a"], case["b"], case["n"])}
        case "drop_adjacent_near_duplicates":
            return {"kept": unlike_last(case["docs"], case["threshold"], case["prefix_chars"])}
        case "released_code_greedy":
            given = np.array(case["knn_self_first"])[:, 1:]
            return {"clusters": released_walk(given, case["cluster_size"])}
        case "paper_path":
            edges = NeighbourGraph.of(np.array(case["similarity"]), case["k"]).undirected()
            path = greedy_path(edges)
            jumps = zero_weight_jumps(path, edges)
            return {"path": path.tolist(), "degree": edges.degrees.tolist(), "zero_weight_jumps": jumps}
        case "pack_path":
            documents = [[0] * length for length in case["doc_lengths"]]
            rows = Contexts(documents, case["path"], case["context"], seed=None, drop_last=case["drop_last"])
            return {"contexts_as_doc_spans": [[list(span) for span in rows.spans(i)] for i in range(len(rows))]}
    raise ValueError(case["fn"])
