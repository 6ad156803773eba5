"""`fit` and `write`: an embedder trained by `broadsheet.training.fit`, and written as a folder that `load` reads.

Knows: what a saved embedder looks like. Does not know: steps, checkpoints, losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.models import card, fingerprint
from broadsheet.training import fit as training
from broadsheet.training.objective import as_json
from broadsheet.training.trainer import TrainOutput


def fit(
    embedder: SentenceTransformer, rows: Any, objective: Any, out: str | Path | None = None, **settings: Any
) -> TrainOutput:
    """Train `embedder` in place, by default with LoRA.

    Args:
        rows, objective, out, settings: of `training.fit`. For a sentence-transformers loss, rows are a
            `datasets.Dataset`, a list of dicts, or a dict of either (one data set a batch).

    Raises:
        InputError: see `training.fit`.

    Example:
        fit(embedder, pairs, MultipleNegativesRankingLoss(embedder, scale=50), "runs/contrastive", steps=200)
    """
    settings = {"method": "lora", **settings}
    parts: list[Any] = list(embedder)
    made = [as_json(part.get_config_dict()) for part in parts if hasattr(part, "get_config_dict")]
    lm = embedder.transformers_model
    output = training.fit(
        embedder,
        rows,
        objective,
        out,
        save=partial(_save, embedder),
        finished="modules.json",
        kind="embedder",
        identity=None if out is None else ["" if lm is None else fingerprint(lm), made, as_json(embedder.prompts)],
        **settings,
    )
    if output.folder is not None and settings.get("merge") and isinstance(embedder[0], CausalEncoder):
        embedder[0].spec = str(output.folder.resolve())  # the base of a later adapter is what was written
    return output


def write(embedder: SentenceTransformer, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
    """Write an embedder as `folder`, whole or not at all, with `training.json` where a record is given.

    Raises:
        InputError: the folder cannot be written.
    """
    lm = embedder.transformers_model
    base = getattr(embedder[0], "spec", None) or (None if lm is None else lm.config.name_or_path)
    training.write(Path(folder), partial(_save, embedder), record, paper=card.paper_of(embedder), base=base)


def _save(embedder: SentenceTransformer, folder: Path) -> None:
    embedder.save(str(folder), create_model_card=False)
