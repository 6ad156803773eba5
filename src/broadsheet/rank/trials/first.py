"""Try FIRST: the first stage's order, a written permutation, and the logits of the first identifier, on equal lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet import models
from broadsheet.options import option
from broadsheet.rank.trials.base import FIRST_STAGE, RerankerTrial, bias, changed, orders_of, reranking
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome
from broadsheet.trial.engine import Arm

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

PERMUTATION, MAIN, SHUFFLED = "permutation", "first token", "first token, shuffled input"
UNTRAINED = "untrained, first token"


@dataclass
class FirstTrial(RerankerTrial):
    """Candidates of a first stage, reordered by a language model: are they better ordered, and what does it cost?

    The same windows are ranked by writing out the permutation and by the logits of the first identifier (FIRST). An
    untrained small model ranks near chance: give one that `broadsheet apply first` has trained as --reranker, and the
    model it was before takes part too. First-token ranking runs once more on shuffled candidates, which shows how much
    of its order is the order it was given.
    """

    paper: ClassVar[str] = "first"
    stage: ClassVar[str] = "rank"
    title: ClassVar[str] = "Rank: the right passages first"

    window: int | None = option(None, "Passages in a call; by default the reranker's own (20).", least=2)
    step: int | None = option(None, "How far the window moves on; by default the reranker's own (10).", least=1)

    def question(self) -> str:
        return (
            f"Does {self.model_name} order candidates better than the first stage, and what does a written order cost?"
        )

    def tasks(self) -> list[EvalTask]:
        return [self.ordering()]

    @cached_property
    def tried_reranker(self) -> ListwiseReranker:
        """The reranker that is tried, with first-token decoding."""
        return self.windowed(self.main)

    def windowed(self, name: str) -> ListwiseReranker:
        """A reranker with the windows asked for."""
        given = {key: value for key, value in (("window", self.window), ("step", self.step)) if value}
        return self.load(name, decode="first_token", **given)

    def facts(self) -> dict[str, Any]:
        main = self.tried_reranker
        return {
            "model": {"name": self.main, "fingerprint": models.fingerprint(main.model)},
            "settings": main.settings(),
            "also": {name: models.fingerprint(self.windowed(name).model) for name in self.also},
        }

    def setting(self) -> Mapping[str, Any]:
        main = self.tried_reranker
        return {**self.ranking_setting(main), "windows": f"{main.window} passages, step {main.step}"}

    def arms(self) -> list[ModelArm]:
        from broadsheet.rank.first import FIRST

        main = self.tried_reranker
        first, second = "the model writes the order", "logits of the first identifier, nothing written"
        arms = [
            self.unranked("baseline"),
            ModelArm(PERMUTATION, lambda: changed(main, decode="permutation"), description=first),
            ModelArm(MAIN, lambda: main, None, second, FIRST.paper),
            ModelArm(SHUFFLED, lambda: main, "sibling", "the same, its candidates shuffled", FIRST.paper),
        ]
        if self.reranker:
            settings = {**main.settings(), "decode": "first_token"}
            arms.append(
                ModelArm(
                    UNTRAINED,
                    lambda: changed(self.load(self.model), **settings),
                    description="before training, the same prompts",
                )
            )
        return arms + [
            ModelArm(Path(name).name, partial(self.windowed, name), description="first token") for name in self.also
        ]

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if arm.name == SHUFFLED:
            return reranking(arm, model, width=self.candidates, shuffle=self.seed)
        return super().arm(arm, model, kept)

    def claims(self) -> list[Claim]:
        return [
            Claim("nDCG@10", FIRST_STAGE, MAIN, "it orders candidates better than the first stage (BEIR, top 100)"),
            # Abstract: inference takes half the time (a reproduction, arXiv:2411.05508, saved 21 to 42 %).
            Claim("lists/s", PERMUTATION, MAIN, "the first token alone is faster than the written order", effect=2.0),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        others = [UNTRAINED] * bool(self.reranker) + [Path(name).name for name in self.also]
        return [(MAIN, SHUFFLED), *((name, MAIN) for name in others)]

    def notes(self, outcome: Outcome) -> list[str]:
        usable, notes = outcome.usable, super().notes(outcome)
        if {MAIN, SHUFFLED} <= usable.keys():
            notes.append(bias(usable[MAIN], usable[SHUFFLED], outcome.tasks[0].items, self.seed))
        if {MAIN, PERMUTATION} <= usable.keys():
            both = zip(orders_of(usable[MAIN]), orders_of(usable[PERMUTATION]), strict=True)
            same = [one[:1] == other[:1] for one, other in both]
            notes.append(
                f"First token and permutation put the same passage first for {sum(same)} of {len(same)} queries."
            )
        if not self.reranker:
            notes.append(
                "The model was not trained to rank: `broadsheet apply first DATA --out FOLDER` trains it, and "
                "--reranker FOLDER tries it."
            )
        return notes
