"""Try FIRST: the first stage's order, a written permutation, and the logits of the first identifier, on the same lists.

Knows: the stage's reranker, lists, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import say
from broadsheet.page.evidence import provenance, versions
from broadsheet.rank.trials import arms as parts
from broadsheet.rank.trials.arms import FIRST_STAGE, METRICS, changed, first_stage, reranking
from broadsheet.rank.trials.items import Lists, ListSource
from broadsheet.trial.engine import Arm, run_arms
from broadsheet.trial.results import ArmResult, TrialResult

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

PERMUTATION, MAIN, SHUFFLED, UNTRAINED = (
    "permutation",
    "first token",
    "first token, shuffled input",
    "untrained, first token",
)
_BLOCK = 5  # queries that share batches


@dataclass
class RankTrial:
    """Candidates of a first stage, reordered by a language model: are they better ordered, and what does it cost?

    The lists come from documentation: the summary line of a docstring has to find its body among what BM25 finds
    (`pydocs`); or from a BEIR folder. The same windows are ranked by writing out the permutation and by the logits of
    the first identifier (FIRST). An untrained small model ranks near chance: give one that `broadsheet apply first` has
    trained as --reranker, and the model it was before takes part too. First-token ranking runs once more on shuffled
    candidates, which shows how much of its order is the order it was given.

    Options:
        --reranker FOLDER: a trained reranker; the model itself by default.
        --also FOLDER,…: further rerankers, first-token decoding alone, each an arm named after its folder.
        --queries N: lists (100; with --quick 12; 0 takes all of a BEIR folder).
        --candidates N: in a list, the best of the first stage (20).
        --words N: of a passage that is searched and shown (40; 0: all).
        --titles: passages of pydocs show the name of their function or class.
        --window N, --step N: passages in a call, and how far the window moves on (20, 10); a reranker's own by default.
        --first-stage FILE: a TREC run over a BEIR folder, whose order is improved; BM25's by default.
        --split NAME: of the BEIR folder's qrels (test).
        --device NAME, --dtype NAME: as in models.load.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    reranker: str = ""
    also: str = ""
    queries: int = -1
    candidates: int = 20
    words: int = 40
    titles: bool = False
    window: int = 0
    step: int = 0
    first_stage: str = ""
    split: str = "test"
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Make the lists, run the arms, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        source = ListSource(self.data, self.words, self.titles, self.first_stage, self.split, self.seed)
        items = source.test(self.queries if self.queries != -1 else (12 if self.quick else 100), self.candidates)
        main = self._load(self.reranker or self.model)
        rerankers = {MAIN: main}
        if self.reranker:
            untrained = self._load(self.model)
            settings = main.settings() | {"decode": "first_token"}
            rerankers[UNTRAINED] = changed(untrained, **settings)
        rerankers |= {Path(name).name: self._load(name) for name in filter(None, self.also.split(","))}
        facts = {
            "seed": self.seed,
            "model": {"name": self.reranker or self.model, "fingerprint": models.fingerprint(main.model)},
            "data": {"name": self.data, "fingerprint": items.data_fingerprint},
            "lists": items.fingerprint,
        }
        key = [versions(), facts, asdict(self)]
        key += [[name, one.settings(), models.fingerprint(one.model)] for name, one in rerankers.items()]
        self.journal_ = home() / "trials" / f"rank-{fingerprint(key)}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        say(f"ranking {len(items.lists)} lists of at most {self.candidates} candidates")
        pairs = [(PERMUTATION, MAIN), (MAIN, SHUFFLED)]
        pairs += [(name, MAIN) for name in rerankers if name != MAIN]
        arms, comparisons = run_arms(
            self._arms(rerankers),
            items.lists,
            METRICS,
            block_size=_BLOCK,
            pairs=pairs,
            item="list",
            seed=self.seed,
            journal=self.journal_,
        )
        name = self.reranker or ("the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model)
        return TrialResult(
            paper="first",
            title="Rank: the right passages first",
            question=f"Does {name} order candidates better than the first stage, and what does a written order cost?",
            setting={
                "model": name,
                **parts.training(self.reranker),
                **parts.setting(
                    items,
                    main.model,
                    candidates=self.candidates,
                    words=self.words,
                    titles=self.titles,
                    first_stage=self.first_stage,
                ),
                "windows": f"{main.window} passages, step {main.step}",
            },
            arms=arms,
            comparisons=comparisons,
            item="list",
            claims=[("nDCG@10", FIRST_STAGE, MAIN), ("lists/s", PERMUTATION, MAIN)],
            figures=[parts.success(arms, items.lists, "Right passage among the first k")],
            notes=self._notes(arms, items),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _load(self, name: str) -> ListwiseReranker:
        from broadsheet.rank.base import ListwiseReranker

        changes: dict[str, Any] = {"decode": "first_token"}
        changes |= {key: value for key, value in (("window", self.window), ("step", self.step)) if value}
        return ListwiseReranker.load(name, device=self.device or None, dtype=self.dtype or None, **changes)

    def _arms(self, rerankers: dict[str, ListwiseReranker]) -> list[Arm]:
        main, width = rerankers[MAIN], self.candidates
        arms = [
            first_stage("baseline", width),
            reranking(
                PERMUTATION, changed(main, decode="permutation"), "sibling", "the model writes the order", width=width
            ),
            reranking(MAIN, main, "method", "logits of the first identifier, nothing written", width=width),
            reranking(SHUFFLED, main, "sibling", "the same, its candidates shuffled", width=width, shuffle=self.seed),
        ]
        for name, reranker in rerankers.items():
            if name != MAIN:
                about = "before training, the same prompts" if name == UNTRAINED else "first token"
                arms.append(reranking(name, reranker, "sibling", about, width=width))
        return arms

    def _notes(self, arms: Sequence[ArmResult], items: Lists) -> list[str]:
        usable = {arm.name: arm for arm in arms if arm.status == "ok"}
        notes = [parts.ceiling(items.lists), *parts.account(arms, items.lists)]
        if {MAIN, SHUFFLED} <= usable.keys():
            notes.append(parts.bias(usable[MAIN], usable[SHUFFLED], items.lists, self.seed))
        if {MAIN, PERMUTATION} <= usable.keys():
            pairs = zip(parts.orders_of(usable[MAIN]), parts.orders_of(usable[PERMUTATION]), strict=True)
            same = [one[:1] == other[:1] for one, other in pairs]
            notes.append(
                f"First token and permutation put the same passage first for {sum(same)} of {len(same)} queries."
            )
        if not self.reranker:
            notes.append(
                "The model was not trained to rank: `broadsheet apply first DATA --train --out FOLDER` trains it, and "
                "--reranker FOLDER tries it."
            )
        return notes
