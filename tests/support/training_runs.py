"""What is asked of every trial whose arms are trained: each run comes from a seed of its own."""

from __future__ import annotations

from pathlib import Path

from broadsheet.trial.trained.arms import TrainedTrial


def weights(folder: Path) -> list[bytes]:
    """The weights that are saved in a folder and those below it."""
    return [file.read_bytes() for file in sorted(folder.rglob("*.safetensors")) if "checkpoint" not in str(file)]


def differ(trial: TrainedTrial, *names: str) -> bool:
    """Whether all training runs of each arm left weights, no two of them the same."""
    for name in names:
        runs = [weights(trial.run_folder(name, seed)) for seed in trial.seeds]
        if len(runs) < 2 or not all(runs) or any(one == other for i, one in enumerate(runs) for other in runs[:i]):
            return False
    return True
