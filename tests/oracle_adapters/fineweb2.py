"""FineWeb2's oracle cases: thresholds, word lists, repetition by cluster size, MinHash, criteria for tests."""

from typing import Any

from broadsheet.curate.languages import tasks
from broadsheet.curate.languages.rehydration import copies, weights
from broadsheet.curate.languages.thresholds import ValueCounts, adapt, confidence
from broadsheet.curate.languages.wordlists import affinity_words
from broadsheet.curate.minhash import match_probability


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "rehydration_weights":
            sizes = case["sizes"]
            found = weights(
                sizes, case["removal_rates_percent"], case["global_rate_percent"], case["max_reps"], case["window"]
            )
            kept = zip(sizes, case["kept_docs"], strict=True)
            return {
                "weights": {str(size): times for size, times in found.items()},
                "resulting_docs": sum(count * copies(size, found) for size, count in kept),
            }
        case "copies_for_cluster_size":
            by_size = {int(size): times for size, times in case["weights"].items()}
            return {"copies": [copies(size, by_size) for size in case["sizes"]]}
        case "lid_threshold":
            return {"threshold": confidence(ValueCounts.of(case["scores"]))}
        case "affinity_wordlist":
            return {
                "words": affinity_words(
                    case["language_counts"], case["total_counts"], case["percentile"], case["min_affinity"]
                )
            }
        case "minhash_match_probability":
            return {"probability": match_probability(case["jaccard"], case["buckets"], case["hashes_per_bucket"])}
        case "adapt_threshold":
            english, target = (ValueCounts.of(case[f"{name}_values"]) for name in ("english", "target"))
            return {"threshold": adapt(case["method"], english, target, case["english_threshold"])}
        case "monotonicity":
            return {"value": tasks.monotonicity(case["steps"], case["scores_per_model"])}
        case "snr" | "signal_to_noise":
            return {"value": tasks.signal_to_noise(case["scores_per_seed"])}
        case "non_randomness":
            return {
                "value": tasks.non_randomness(
                    case["final_scores"], case["random_baseline"], case["scores_per_seed"], case["last_steps"]
                )
            }
        case "ordering_consistency":
            return {"value": tasks.ordering_consistency(case["scores_per_model"])}
    raise ValueError(case["fn"])
