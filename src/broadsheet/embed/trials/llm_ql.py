"""Try LLM-QL: does learning to write queries through the end token help the contrastive training that follows?

Knows: both stages, tasks, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, at_least, say
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import EvalTask, ModelArm, clear, compare, trained, training_note, workdir
from broadsheet.models.safefiles import read_json
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.results import ArmResult, Role, TrialResult
from broadsheet.trial.stats import Comparison

if TYPE_CHECKING:
    from broadsheet.embed.fitting import TrainOutput

UNTRAINED, PLAIN, OPEN, MAIN, LONGER = (
    "untrained",
    "contrastive",
    "QL without block, contrastive",
    "LLM-QL",
    "contrastive, as long",
)
# Stage 1 of each arm; None: there is none.
ARMS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    OPEN: {"block": False, "corruption": 0.0},
    MAIN: {"block": True},
    LONGER: None,
}
_ABOUT = {
    PLAIN: "contrastive training alone",
    OPEN: "first plain language modelling of document → query, the document in sight",
    MAIN: "first the query through the end token alone, from a corrupted document",
    LONGER: "contrastive training alone, for the time that LLM-QL's two stages took",
}


@dataclass
class LLMQLTrial:
    """Is a causal LM a better retriever after contrastive training if it has learnt to write queries before?

    All arms have the same prompts, pool the same end token and take the same contrastive steps on the same pairs, from
    packages that no test asks about. Two learn query likelihood first, on those pairs: one with the document in sight,
    one through the end token alone, from a corrupted document. What these steps cost is said; --longer adds an arm
    that spends as much time on contrastive training instead.

    Options:
        --steps N: contrastive (32; with --quick 3).
        --ql-steps N: of query likelihood (24; with --quick 3).
        --batch N: pairs a step, in both stages (16; with --quick 4).
        --learning-rate X, --ql-learning-rate X: of the two stages' adapters (0.0005 both).
        --corruption X: words of a document that are hidden (0.6).
        --labels NAME: targets of query likelihood: live (document and query) or query (live).
        --reverse X: share of the pairs that train query → passage (0).
        --scale X: of the contrastive loss's cosines (100).
        --mini-batch N: texts a forward pass of the contrastive stage, by GradCache (0: all).
        --longer: also contrastive training for as long as LLM-QL's stages took.
        --length N: tokens of a row (128).
        --queries N, --passages N: of the retrieval task (100 and 300; with --quick 10 and 40; 0: all).
        --words N: of a passage (30; with --quick 15).
        --split NAME: of a BEIR folder's qrels that is tried; its split `train` is trained on (test).
        --device NAME: as in models.load.
        --dtype NAME: that the embedders are tried in.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    steps: int = 0
    ql_steps: int = 0
    batch: int = 0
    learning_rate: float = 5e-4
    ql_learning_rate: float = 5e-4
    corruption: float = 0.6
    labels: str = "live"
    reverse: float = 0.0
    scale: float = 100.0
    mini_batch: int = 0
    longer: bool = False
    length: int = 128
    queries: int = -1
    passages: int = -1
    words: int = 0
    split: str = "test"
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Train the arms, run them, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        self._settle()
        quick = self.quick
        search = tasks.retrieval(
            self.data,
            (10 if quick else 100) if self.queries == -1 else self.queries,
            (40 if quick else 300) if self.passages == -1 else self.passages,
            words=self.words_,
            split=self.split,
            seed=self.seed,
        )
        pairs = self._pairs()
        loaded = models.load(self.model, device=self.device or None)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": loaded.fingerprint},
            "data": {"name": self.data, "fingerprint": search.fingerprint()},
            "training data": fingerprint(pairs),
        }
        self.folder_ = workdir("llm_ql", versions(), facts, asdict(self))
        del loaded
        arms, comparisons = compare(
            self._candidates(pairs),
            [EvalTask.retrieval(search)],
            self.folder_,
            pairs=[(OPEN, MAIN), (LONGER, MAIN)] if self.longer else [(OPEN, MAIN)],
            seed=self.seed,
        )
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="llm_ql",
            title="LLM-QL: query likelihood before contrast",
            question=f"Does {name} retrieve better if it learns to write queries before it is trained to contrast?",
            setting={
                "model": name,
                "retrieval": search.about,
                "contrastive": f"{self.steps_} steps of {self.batch_} pairs, LoRA, learning rate "
                f"{self.learning_rate:g}, scale {self.scale:g}, no hard negatives",
                "query likelihood": f"{self.ql_steps_} steps of {self.batch_} pairs, LoRA merged before the next stage,"
                f" learning rate {self.ql_learning_rate:g}, corruption {self.corruption:g}, labels {self.labels}",
                "pairs": f"{len(pairs):,} "
                + ("of pydocs" if self.data == "pydocs" else f"of {self.data}, split train"),
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("nDCG@10", PLAIN, MAIN)],
            notes=self._notes(arms, comparisons),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _settle(self) -> None:
        """Sizes where none are given, and what cannot be."""
        self._method(None)
        quick = self.quick
        self.steps_, self.ql_steps_ = self.steps or (3 if quick else 32), self.ql_steps or (3 if quick else 24)
        self.batch_, self.words_ = self.batch or (4 if quick else 16), self.words or (15 if quick else 30)
        at_least(1, self, "steps_", "ql_steps_", "words_")
        at_least(2, self, "batch_")

    def _pairs(self) -> list[dict[str, str]]:
        """What is trained on: as many pairs as the longer stage reads, so that none comes twice if there are enough."""
        wanted = min(max(self.steps_, self.ql_steps_) * self.batch_, 8000)
        if self.data == "pydocs":
            return tasks.training_pairs(wanted, words=self.words_, seed=self.seed)
        from broadsheet.data.retrieval.beir import Beir, searched

        beir = Beir(Path(self.data).expanduser(), self.words_)
        found = [
            {"query": beir.queries[query], "positive": searched(beir.documents[name])}
            for query, judged in beir.qrels("train").items()
            for name, relevance in judged.items()
            if relevance > 0 and name in beir.documents
        ]
        found.sort(key=lambda pair: fingerprint([self.seed, pair]))
        if len(found) < self.batch_:
            raise InputError(f"{self.data} has {len(found)} training pairs; expected {self.batch_} at least")
        return found[:wanted]

    def _method(self, stage: Mapping[str, Any] | None) -> Any:
        from broadsheet.embed.llm_ql import LLMQL

        labels: Any = self.labels
        given: dict[str, Any] = {"corruption": self.corruption, "reverse": self.reverse, **(stage or {})}
        return LLMQL(labels=labels, scale=self.scale, mini_batch_size=self.mini_batch, seed=self.seed, **given)

    def _start(self, dtype: str | None = None) -> Any:
        return self._method(None).embedder(
            self.model, max_seq_length=self.length, device=self.device or None, dtype=dtype
        )

    def _candidates(self, pairs: Sequence[Mapping[str, str]]) -> list[ModelArm]:
        untrained = ModelArm(
            UNTRAINED, lambda: self._start(self.dtype or None), "sibling", "the same prompts and end token"
        )
        made = [untrained]
        for name in ARMS:
            if name == LONGER and not self.longer:
                continue
            role: Role = "baseline" if name == PLAIN else "method" if name == MAIN else "sibling"
            source = trained(
                self._folder(name),
                lambda out, name=name: self._train(name, pairs, out),  # type: ignore[misc]
                dtype=self.dtype or None,
            )
            made.append(ModelArm(name, source, role, _ABOUT[name]))
        return made

    def _train(self, name: str, pairs: Sequence[Mapping[str, str]], out: Path) -> TrainOutput:
        say(f"training: {name}")
        stage = ARMS[name]
        budget: dict[str, Any] = {"steps": self.steps_}
        if name == LONGER:
            seconds = sum(_seconds(part) for part in self._parts(MAIN))
            budget = {"epochs": 1000, "minutes": seconds / 60}
        first, second = self._method(stage).fit(
            self._start(),
            pairs,
            out,
            ql_steps=0 if stage is None else self.ql_steps_,
            ql_learning_rate=self.ql_learning_rate,
            learning_rate=self.learning_rate,
            batch_size=self.batch_,
            seed=self.seed,
            **budget,
        )
        fitted: TrainOutput = first if first is not None and not first.finished else second
        return fitted

    def _folder(self, name: str) -> Path:
        return self.folder_ / fingerprint(name)

    def _parts(self, name: str) -> list[Path]:
        """Where an arm's stages stand, first to last."""
        folder = self._folder(name)
        return [part for part in (folder.with_name(f"{folder.name}.ql"), folder) if (part / "training.json").exists()]

    def _notes(self, arms: Sequence[ArmResult], comparisons: Sequence[Comparison]) -> list[str]:
        usable = [arm.name for arm in arms if arm.status == "ok" and arm.name in ARMS]
        notes = []
        for name in usable:
            *first, last = self._parts(name)
            notes += [training_note(f"{name}, query likelihood", part) for part in first]
            notes.append(training_note(f"{name}, contrast", last))
        if MAIN in usable and PLAIN in usable:
            one, other = (sum(_seconds(part) for part in self._parts(name)) for name in (PLAIN, MAIN))
            notes.append(
                f"Contrastive steps are equal, time is not: with query likelihood before them LLM-QL trained "
                f"{other:,.0f} s and contrast alone {one:,.0f} s, {other / one:.1f} times as long."
                + ("" if self.longer else " --longer tries contrast alone for that time.")
            )
        found = [c for c in comparisons if (c.metric, c.baseline, c.arm) == ("nDCG@10", PLAIN, MAIN)]
        if found and found[0].verdict != "helps":
            notes.append(
                "The gain that the paper reports is absent here. Its model has 7 billion parameters, and its first "
                f"stage reads two epochs of MS MARCO with all weights; here it is {self.ql_steps_ * self.batch_:,} "
                "pairs."
            )
        return notes


def _seconds(folder: Path) -> float:
    return float(read_json(folder / "training.json")["seconds"])
