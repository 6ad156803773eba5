"""Dataset decomposition's oracle cases: pieces, probabilities, lengths, batches, shards."""

from typing import Any

from broadsheet.train.dataset_decomposition import (
    average_lengths,
    bucket_probabilities,
    decompose,
    long_document_probabilities,
    sequences,
    shard_plan,
)


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "decompose":
            pieces, dropped = decompose(case["tokens"], case["min_log2"], case["max_log2"])
            rows = [[piece.start, piece.bucket, piece.length] for piece in pieces]
            return {"pieces_start_bucket_length": rows, "dropped_tokens": dropped}
        case "long_document_bucket_probabilities":
            found = long_document_probabilities(case["min_log2"], case["max_log2"])
            return {"bucket_to_probability": {str(bucket): chance for bucket, chance in found.items()}}
        case "training_plan":
            return _plan(case)
        case "average_lengths":
            held = {int(bucket): tokens for bucket, tokens in case["tokens_per_bucket"].items()}
            return dict(zip(("sequence_length", "context_length"), average_lengths(held), strict=True))
        case "bucket_probabilities":
            return {"probabilities": bucket_probabilities(case["odds"], case["sequences_left"])}
        case "batch_size":
            return {"sequences": sequences(case["tokens_per_step"], case["sequence_length"])}
    raise ValueError(case["fn"])


def _plan(case: dict[str, Any]) -> dict[str, Any]:
    asked, epochs = case["total_tokens"], case["epochs"]
    plan = shard_plan(
        asked,
        epochs,
        case["number_of_shards"],
        case["sequence_per_shard"],
        case["sequence_sizes"],
        case["curriculum"],
        case["num_gpus"] * case["num_workers"],
    )
    whole = plan.tokens * epochs
    told = f"Cannot match requested number of tokens of {asked:,}. Go with {whole:,} instead."
    return {
        "train_num_tokens_per_epoch": plan.tokens,
        "sequences_per_bucket_per_epoch": list(plan.sequences),
        "mix_weights": list(plan.weights),
        "note": [told] * (whole != asked),
    }
