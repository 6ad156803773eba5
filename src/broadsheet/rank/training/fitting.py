"""`fit`: a reranker trained on lists by `broadsheet.training.fit`, and saved.

Knows: which parts make up a training of a reranker. Does not know: the losses (`objective`), how lists become prompts
(`training`), steps, checkpoints, time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.console import InputError
from broadsheet.models import fingerprint
from broadsheet.rank import saving
from broadsheet.rank.first import FIRST
from broadsheet.rank.training.lists import ListObjective
from broadsheet.rank.training.rows import ListDataset, Row
from broadsheet.training import fit as training
from broadsheet.training.trainer import TrainOutput

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.training.objective import ListLoss

_LEARNING_RATES = {"full": 5e-5, "lora": 5e-4}
_DEFAULTS: dict[str, Any] = {"minutes": 30.0, "epochs": 3, "warmup": 0.05, "schedule": "cosine", "drop_last": False}


def fit(
    reranker: ListwiseReranker,
    rows: Sequence[Row],
    objective: ListLoss | None = None,
    out: str | Path | None = None,
    *,
    lists_per_step: int = 8,
    lists_per_pass: int = 1,
    sizes: tuple[int, int] | None = None,
    shuffle: float = 1.0,
    negatives: Literal["random", "first"] = "random",
    neftune: float | None = None,
    **settings: Any,
) -> TrainOutput:
    """Train `reranker` in place on lists, with its own prompts; save it as a folder that `ListwiseReranker.load` reads.

    Args:
        reranker: trained in place.
        rows: `query`, `documents`, and `ranking` or `labels`: see `rows.check_row`.
        objective: `FIRST()` by default; `FIRST(lm=False)` trains the ranking loss alone and reads each prompt without
            an answer, which suits a small model on a CPU; `FullRank()`, `PGRank()`.
        lists_per_step: lists whose gradients make one step of AdamW.
        lists_per_pass: lists read at once. 1 suits a CPU: no padding; raise it on a GPU.
        sizes, shuffle, negatives: of each list when it comes: see `rows.ListDataset`.
        neftune: noise α on embeddings, by HF `Trainer`. The paper: 5.
        settings: of `training.fit`; here all weights are trained for 3 epochs or 30 minutes, a twentieth of it warm-up,
            then a cosine, at 5e-5 (LoRA: 5e-4). FIRST's authors: 5e-6 for 7B parameters.

    Raises:
        InputError: see `training.fit`; a list that cannot be trained on.

    Source: arXiv:2406.15657 and arXiv:2412.14574: cosine, warm-up, NEFTune 5, full fine-tuning.
    """
    if lists_per_pass < 1 or lists_per_step % lists_per_pass or lists_per_step < 1:
        raise InputError(
            f"got lists_per_step {lists_per_step} and lists_per_pass {lists_per_pass}; expected a multiple of the other"
        )
    own: dict[str, Any] = {name: settings.pop(name) for name in ("force", "clock") if name in settings}
    own |= {} if neftune is None else {"neftune_noise_alpha": neftune}
    config = training.FitConfig(checkpoint_minutes=5.0).with_settings(**_DEFAULTS | settings)
    if config.learning_rate is None:
        config = config.with_settings(learning_rate=_LEARNING_RATES.get(config.method))
    if out is not None and config.method == "lora" and not saving.base_name(reranker):
        raise InputError("an adapter is saved beside its base's name, which is not known; set the reranker's spec")
    shape: dict[str, Any] = {"sizes": sizes, "shuffle": shuffle, "negatives": negatives}
    return training.fit(
        reranker.model,
        ListDataset(rows, epochs=config.epochs, seed=config.seed, **shape),
        ListObjective(objective or FIRST(), reranker.prompter, shape),
        out,
        config,
        batch_size=lists_per_pass,
        accumulate=lists_per_step // lists_per_pass,
        save=partial(saving.write, reranker),
        finished=saving.SETTINGS,
        kind="reranker",
        identity=None if out is None else [fingerprint(reranker.model), reranker.settings()],
        **own,
    )
