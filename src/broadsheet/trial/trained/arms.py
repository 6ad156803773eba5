"""`TrainedTrial`: the base of trials whose arms are trained, each from several seeds.

Knows: `Trial`, folders of trained models, the record that `training.fit` leaves in them. Does not know: any stage, or
how anything is trained.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from broadsheet.console import duration, say
from broadsheet.options import option
from broadsheet.seeds import seeded
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.claims import MIN_RUNS, JudgedClaim
from broadsheet.trial.sampling import MOST_RUNS, seconds_of
from broadsheet.trial.stats import Floats
from broadsheet.trial.verdicts import Comparison, compare_seconds

TRAINING = "training steps/s"


@dataclass
class TrainedTrial(Trial):
    """The base of trials whose arms are trained.

    Each arm is trained from `--runs` seeds, by default as many as decide the claims, within bounds. Intervals cover
    training runs and items both. How fast arms were trained is compared too: the metric `TRAINING`, which claims may
    name.
    """

    of_training: ClassVar[tuple[str, ...]] = (TRAINING,)

    runs: int | None = option(
        None,
        f"Training runs of each trained arm, from as many seeds; by default {MIN_RUNS}, and up to {MOST_RUNS} where "
        "that decides a claim.",
        quick=1,
        least=1,
    )

    def trained(
        self,
        name: str,
        train: Callable[[int, Path], Any],
        load: Callable[[Path], Any],
        role: Literal["baseline", "sibling", "peer"] | None = None,
        description: str = "",
        paper: str = "",
        *,
        done: str = "training.json",
    ) -> ModelArm:
        """An arm that is trained from each seed on first use, and read back from its folder: a killed trial is resumed.

        Args:
            name, role, description, paper: as in `ModelArm`.
            train: from a seed, into the folder it is given, as `training.fit(…, out, seed=seed)` does. What it returns
                is released, so that its memory is free before anything is timed.
            load: reads the trained model back.
            done: the file that a finished folder holds.
        """

        failed: dict[int, Exception] = {}

        def ready(seed: int) -> None:
            folder = self.run_folder(name, seed)
            if seed in failed:
                raise failed[seed]
            if (folder / done).exists():
                return
            say(f"training: {name}" + f", seed {seed}" * (self._runs > 1))
            try:
                with seeded(seed):
                    made = train(seed, folder)
            except Exception as error:
                failed[seed] = error
                raise
            if getattr(made, "finished", True) is False:
                raise KeyboardInterrupt  # its checkpoint is kept, and the trial resumes there
            del made
            gc.collect()

        def by_seed(seed: int) -> Callable[[], Any]:
            def make() -> Any:
                ready(seed)
                return load(self.run_folder(name, seed))

            return make

        return ModelArm(name, by_seed(self.seed), role, description, paper, by_seed, ready)

    def best_run(
        self,
        name: str,
        settings: Sequence[float],
        train: Callable[[float, Path], Any],
        score: Callable[[Path], float],
        *,
        on: str,
        open_ended: bool = False,
        done: str = "training.json",
    ) -> float:
        """The setting, such as a learning rate, by which an arm comes out best, of whole training runs.

        They are from the trial's own seed. The best one is kept, for `take_best` to make the arm's own; the others are
        removed.

        Args:
            train: with a setting, into the folder it is given.
            score: of the folder of a trained model, higher is better, on data that the test does not use.
            name, on, open_ended, done: as in `tuned` and `trained`.
        """

        def run(setting: float) -> float:
            folder = self._tuning_run(name, setting)
            if not (folder / done).exists() and getattr(train(setting, folder), "finished", True) is False:
                raise KeyboardInterrupt
            gc.collect()
            return score(folder)

        best = self.tuned(name, settings, run, on=on, open_ended=open_ended)
        for setting in self.settings_tried(name):
            if setting != best:
                shutil.rmtree(self._tuning_run(name, setting), ignore_errors=True)
        return best

    def take_best(self, name: str, setting: float, seed: int, out: Path) -> bool:
        """Whether the run that `best_run` kept is that of this seed: then it now stands in `out`."""
        folder = self._tuning_run(name, setting)
        if seed != self.seed or not folder.exists():
            return False
        self._taken(name).touch()
        folder.replace(out)
        return True

    def _taken(self, name: str) -> Path:
        """The mark of an arm whose run from the trial's own seed is one of `best_run`'s."""
        return self.folder(f"tuning of {name}").with_suffix(".taken")

    def _tuning_run(self, name: str, setting: float) -> Path:
        return self.folder(f"tuning of {name}, {setting:g}")

    def _run(self, arms: Sequence[ModelArm], tasks: Sequence[EvalTask], claims: Sequence[Claim]) -> Outcome:
        """As any trial does, once all is trained: what takes its turns in memory is not there while others are trained.

        What an arm's training raises, it raises again where it is made, and fails alone.
        """
        for seed in self.seeds:
            for arm in arms:
                if arm.train is not None:
                    with suppress(Exception):
                        arm.train(seed)
        begin = time.monotonic()
        outcome = super()._run(arms, tasks, claims)
        self._asking.append(time.monotonic() - begin)
        return outcome

    @cached_property
    def _asking(self) -> list[float]:
        """Seconds in which all items were asked, each time."""
        return []

    def run_folder(self, name: str, seed: int) -> Path:
        """Where the training run of the arm `name` from that seed is kept; that of the trial's own seed is `folder`."""
        return self.folder(name if seed == self.seed else f"{name}, seed {seed}")

    @property
    def seeds(self) -> range:
        """Those of the training runs."""
        return range(self.seed, self.seed + self._runs)

    @property
    def _runs(self) -> int:
        return self.runs or self._decided

    @property
    def _extensible(self) -> bool:
        return self.runs is None

    _decided: ClassVar[int] = MIN_RUNS  # of an instance after `_extended`: what its claims need

    def _extended(self, judged: Sequence[JudgedClaim], spent: float) -> bool:
        """Whether an open claim would be decided by so many runs as are made by default; then they are made next.

        What is trained stays; the items are asked anew, since all arms take turns.
        """
        needed = [claim.needed_runs for claim in judged if claim.kind == "claim" and claim.verdict == "open"]
        reachable = [runs for runs in needed if runs is not None and self._runs < runs <= MOST_RUNS]
        budget = seconds_of(self.budget)
        if not self._extensible or not reachable:
            return False
        training = (spent - sum(self._asking)) / self._runs * (max(reachable) - self._runs)
        left = training + self._asking[-1] / self._runs * max(reachable)
        if budget is not None and spent + left > budget:
            return False
        say(
            f"{max(reachable)} training runs would decide an open claim: making {max(reachable) - self._runs} more of "
            f"each arm, about {duration(left)}"
        )
        self.__dict__["_decided"] = max(reachable)
        return True

    def _training(self, arms: Sequence[ModelArm]) -> list[Comparison]:
        """How fast arms were trained beside the baseline, and methods beside peers, from tenths of the runs, seed by
        seed.

        The noise floor is how far apart the seeds' own log ratios lie, the largest from the smallest: what slows both
        arms of a seed is none. With one run there is none, and nothing is compared, as in a trial that takes its times
        in turns (`of_training` is empty). A run that was one of `best_run`'s, made at another time than the others, is
        left out with all of its seed.
        """
        baseline = next((arm.name for arm in arms if arm.role == "baseline"), "")
        seeds = self.seeds[1:] if any(self._taken(arm.name).exists() for arm in arms) else self.seeds
        if len(seeds) < 2 or TRAINING not in self.of_training:
            return []
        paces = {arm.name: [self._pace(arm.name, seed) for seed in seeds] for arm in arms if arm.by_seed}
        whole = {name: np.stack(runs) for name, runs in paces.items() if all(len(run) for run in runs)}
        if len({runs.shape for runs in whole.values()}) > 1:
            return []
        named = [arm for arm in arms if arm.name in whole]
        methods = [arm.name for arm in named if self._role(arm) == "method"]
        pairs = [(baseline, arm.name) for arm in named if baseline in whole and arm.name != baseline]
        pairs += [(arm.name, method) for arm in named if arm.role == "peer" for method in methods]
        return [
            compare_seconds(
                whole[first].ravel(),
                whole[second].ravel(),
                baseline=first,
                arm=second,
                metric=TRAINING,
                noise_floor=float(np.ptp(np.log(whole[first] / whole[second]).mean(1))),
                margin=self._margins.get(TRAINING),
            )
            for first, second in pairs
        ]

    def _pace(self, name: str, seed: int) -> Floats:
        """(10,) seconds of each tenth of a training run's steps, without the first step; empty where none is kept."""
        path = self.run_folder(name, seed) / "training.json"
        seconds = json.loads(path.read_text(encoding="utf-8")).get("step_seconds", []) if path.exists() else []
        tenths = np.array_split(np.asarray(seconds[1:], dtype=np.float64), 10)
        return np.array([part.mean() for part in tenths]) if len(seconds) > 10 else np.array([])
