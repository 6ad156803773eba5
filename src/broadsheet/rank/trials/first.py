"""Try FIRST: an order that is written, and one read off the logits of the first identifier, each trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.options import option
from broadsheet.rank.trials.base import FIRST_STAGE, INVALID, bias, changed, orders_of
from broadsheet.rank.trials.teaching import NDCG, Lesson, TrainedRerankerTrial
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

WRITTEN, PERMUTATION, MAIN = "written order", "permutation", "first token"
NO_RANKING, RANKING_ALONE = "first token, no ranking loss", "first token, ranking loss alone"
SHUFFLED, WRITTEN_SHUFFLED = "first token, shuffled input", "written order, shuffled input"
UNTRAINED = "untrained, first token"
BEGUN = "after the easy lists, first token"


@dataclass
class FirstTrial(TrainedRerankerTrial):
    """Candidates of a first stage, reordered by a language model: is the first token enough, and what does it save?

    The same model is trained on the same lists three times: to write the whole ranking; by FIRST, whose logits of the
    first identifier are the ranking; and by FIRST's ranking loss without learning to write. The first writes its order,
    the others are read by their first token. A model that learnt to write alone is read by its first token too: that
    shows what the ranking loss adds.

    A written order that is broken is completed by the order of the candidates as they came, which helps it where they
    came well ordered. So FIRST's reranker and the one that writes are tried on shuffled candidates too: that shows how
    much of an order is the one that was given.

    With --reranker, nothing is trained: a reranker of `broadsheet apply first` is tried, with its written order and
    with the first token, beside the model it was before.
    """

    paper: ClassVar[str] = "first"
    stage: ClassVar[str] = "rank"
    trained_on: ClassVar[str] = "a model of 7 billion parameters on 40,000 lists of 20, three times"
    title: ClassVar[str] = "Rank: the right passages first"
    shuffled: ClassVar[tuple[str, ...]] = (SHUFFLED, WRITTEN_SHUFFLED)

    candidates: int = option(10, "In a list, the best of the first stage.", quick=5, least=2)
    window: int | None = option(None, "Passages in a call; by default the reranker's own (20).", least=2)
    step: int | None = option(None, "How far the window moves on; by default the reranker's own (10).", least=1)

    def check(self) -> None:
        letters = len(ascii_uppercase)
        if self.window and self.window > letters:
            raise InputError(f"got --window {self.window}; expected {letters} at most: a letter for each passage")

    def question(self) -> str:
        if self.reranker:
            return (
                f"Does {self.model_name} order candidates better than the first stage, and what does a written order "
                "cost?"
            )
        return f"Is the first token of {self.model_name}'s ranking as good an order as the whole of it, and faster?"

    def tasks(self) -> list[EvalTask]:
        return [self.asked()]

    @cached_property
    def tried_reranker(self) -> ListwiseReranker:
        """The reranker that is given, or the model as it came, with first-token decoding."""
        return (
            self.windowed(self.main)
            if self.reranker
            else self.taught(self.model, decode="first_token", **self._windows)
        )

    @property
    def _windows(self) -> dict[str, int]:
        return {key: value for key, value in (("window", self.window), ("step", self.step)) if value}

    def windowed(self, name: str) -> ListwiseReranker:
        """A reranker with the windows asked for."""
        return self.load(name, decode="first_token", **self._windows)

    def facts(self) -> dict[str, Any]:
        main = self.tried_reranker
        return {
            "model": {"name": self.main, "fingerprint": models.fingerprint(main.model)},
            "settings": main.settings(),
            "also": {name: models.fingerprint(self.windowed(name).model) for name in self.also},
            **({} if self.reranker else self.training_facts()),
        }

    def setting(self) -> Mapping[str, Any]:
        main = self.tried_reranker
        return {
            **self.ranking_setting(main),
            **({} if self.reranker else self.training_setting()),
            "windows": f"{main.window} passages, step {main.step}",
        }

    def arms(self) -> list[ModelArm]:
        others = [
            ModelArm(Path(name).name, partial(self.windowed, name), description="first token") for name in self.also
        ]
        return (self._given() if self.reranker else self._trained()) + others

    def _trained(self) -> list[ModelArm]:
        from broadsheet.rank.first import FIRST

        fields = self.fields(FIRST)
        if "lm" in fields:
            raise InputError("got --method first(lm=…); this trial trains with the ranking to be written and without")
        token: dict[str, Any] = {"decode": "first_token", **self._windows}
        size = self.tried_reranker.window
        passages = size if size < self.candidates else None

        def taught(loss: FIRST, **reading: Any) -> Lesson:
            return Lesson(loss, {**token, **reading}, passages)

        writing = FIRST(weight=0)
        ours, no_writing = FIRST(**fields), FIRST(lm=False, **{k: v for k, v in fields.items() if k != "importance"})
        writes = {**token, "decode": "permutation"}
        main = self.learning(MAIN, taught(ours), None, "L_LM + λ·L_rank; nothing written", FIRST.paper)
        written = self.learning(
            WRITTEN, taught(writing, **writes), "baseline", "taught to write the ranking, and writes it"
        )
        again = "the first training run, its candidates shuffled"
        arms = [
            written,
            self.learning(NO_RANKING, taught(writing), None, "taught to write the ranking; nothing written"),
            self.learning(RANKING_ALONE, taught(no_writing), "sibling", "L_rank alone; nothing written", FIRST.paper),
            main,
            self.reading(main, SHUFFLED, "sibling", again, FIRST.paper, **token),
            self.reading(written, WRITTEN_SHUFFLED, "sibling", again, **writes),
            ModelArm(UNTRAINED, lambda: self.tried_reranker, description="the model as it came, the same prompts"),
            self.unranked(),
        ]
        if self.easy:
            arms.insert(-2, ModelArm(BEGUN, lambda: self.begun(**token), description="what all of these go on from"))
        return arms

    def _given(self) -> list[ModelArm]:
        from broadsheet.rank.first import FIRST

        main = self.tried_reranker
        settings = {**main.settings(), "decode": "first_token"}
        return [
            self.unranked("baseline"),
            ModelArm(
                PERMUTATION, lambda: changed(main, decode="permutation"), description="the model writes the order"
            ),
            ModelArm(MAIN, lambda: main, None, "logits of the first identifier, nothing written", FIRST.paper),
            ModelArm(SHUFFLED, lambda: main, "sibling", "the same, its candidates shuffled", FIRST.paper),
            ModelArm(
                UNTRAINED,
                lambda: changed(self.load(self.model), **settings),
                description="before training, the same prompts",
            ),
        ]

    def claims(self) -> list[Claim]:
        faster = "the first token alone is faster than the written order"
        if self.reranker:
            better = "it orders candidates better than the first stage (BEIR, top 100)"
            return [
                Claim(NDCG, FIRST_STAGE, MAIN, better),
                # Abstract: inference takes half the time (a reproduction, arXiv:2411.05508, saved 21 to 42 %).
                Claim("lists/s", PERMUTATION, MAIN, faster, effect=2.0),
            ]
        return [
            # BEIR, mean nDCG@10: FIRST .543, RankZephyr, which writes, .537; taught to write alone .523, L_rank .517.
            Claim(
                self.quality,
                WRITTEN,
                MAIN,
                "the first token orders no worse than the written order (BEIR)",
                margin=0.01,
            ),
            Claim(
                self.quality, NO_RANKING, MAIN, "the ranking loss makes the first token's logits an order", effect=0.02
            ),
            Claim(self.quality, RANKING_ALONE, MAIN, "learning to write helps the ranking (ablation)", effect=0.026),
            Claim("lists/s", WRITTEN, MAIN, faster, effect=2.0),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        first = [] if self.reranker else [FIRST_STAGE, *[BEGUN] * bool(self.easy)]
        others = [UNTRAINED, *first, *(Path(name).name for name in self.also)]
        shuffled = [] if self.reranker else [(WRITTEN, WRITTEN_SHUFFLED), (WRITTEN_SHUFFLED, SHUFFLED)]
        return [(MAIN, SHUFFLED), *shuffled, *((name, MAIN) for name in others)]

    def notes(self, outcome: Outcome) -> list[str]:
        usable, notes = outcome.usable, super().notes(outcome)
        if {MAIN, SHUFFLED} <= usable.keys():
            notes.append(bias(usable[MAIN], usable[SHUFFLED], outcome.tasks[0].items, self.seed))
        if WRITTEN in usable:
            share = usable[WRITTEN].values[INVALID].estimate
            notes.append(
                f"{share:.0%} of the orders that {WRITTEN} wrote, over all its training runs, were broken and "
                f"completed by the order of the candidates as they came; {WRITTEN_SHUFFLED} has no such help."
            )
        writes = PERMUTATION if self.reranker else WRITTEN
        if {MAIN, writes} <= usable.keys():
            both = zip(orders_of(usable[MAIN]), orders_of(usable[writes]), strict=True)
            same = [one[:1] == other[:1] for one, other in both]
            run = "" if self.reranker else " (in the first training runs)"
            notes.append(f"{MAIN} and {writes} put the same passage first for {sum(same)} of {len(same)} queries{run}.")
        return notes
