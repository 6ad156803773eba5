"""Try LLM-QL: does learning to write queries through the end token help the contrastive training that follows?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import Count, EmbedderTrial, retrieval_task, training_note
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from broadsheet.training.trainer import TrainOutput

UNTRAINED, PLAIN, LONGER = "untrained", "contrastive", "contrastive, as long"
RATES = (3e-4, 1e-3, 3e-3)  # of the contrastive stage, that each arm's is chosen from
OPEN, MAIN = "QL without block, contrastive", "LLM-QL"
LEAST = 0.02  # of nDCG@10
# Fields of stage 1 (None: there is none), and what the arm is.
ARMS: dict[str, tuple[dict[str, Any] | None, str]] = {
    PLAIN: (None, "contrastive training alone"),
    OPEN: (
        {"block": False, "corruption": 0.0},
        "first plain language modelling of document → query, the document in sight",
    ),
    MAIN: ({"block": True}, "first the query through the end token alone, from a corrupted document"),
    LONGER: (None, "contrastive training alone, for the time that LLM-QL's two stages took"),
}


@dataclass
class LLMQLTrial(EmbedderTrial, TrainedTrial):
    """Is a causal LM a better retriever after contrastive training if it has learnt to write queries before?

    All arms have the same prompts, pool the same end token and take the same contrastive steps on the same pairs, from
    packages that no test asks about, each at its own best learning rate. Two learn query likelihood first, on those
    pairs: one with the document in sight, one through the end token alone, from a corrupted document. Another spends
    the time that this takes on contrastive training instead.
    """

    paper: ClassVar[str] = "llm_ql"
    title: ClassVar[str] = "LLM-QL: query likelihood before contrast"

    steps: int = option(40, "Contrastive steps.", quick=3, least=1)
    ql_steps: int = option(40, "Steps of query likelihood.", quick=3, least=1)
    batch: int = option(16, "Pairs a step, in both stages.", quick=4, least=2)
    learning_rate: float | None = option(
        None,
        f"Of the contrastive stage's adapters; by default {best_of(RATES)} for each arm, on documentation that no test "
        "asks about.",
        quick=1e-3,
        least=0,
    )
    ql_learning_rate: float = option(5e-4, "Of query likelihood's adapters.", least=0)
    length: int = option(128, "Tokens of a row.", least=1)
    queries: Count = option(200, "That search; `all` of a BEIR folder.", quick=10, least=1)
    passages: Count = option(500, "That are searched; `all` of a BEIR folder.", quick=40, least=1)
    words: int = option(30, "Of a passage.", quick=15, least=1)

    def question(self) -> str:
        return f"Does {self.model_name} retrieve better if it learns to write queries before it is trained to contrast?"

    def tasks(self) -> list[EvalTask]:
        from broadsheet.embed.llm_ql import LLMQL

        self._fields = self.fields(LLMQL)
        alike = self.similarity()
        self._pairs = self._training_pairs()
        return [retrieval_task(self.retrieval()), *alike]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "training data": fingerprint(self._pairs)}

    def setting(self) -> Mapping[str, Any]:
        method = self._made(None)
        return {
            "contrastive": f"{self.steps} steps of {self.batch} pairs, LoRA, scale {method.scale:g}, no hard "
            "negatives, learning rate " + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
            "query likelihood": f"{self.ql_steps} steps of {self.batch} pairs, LoRA merged before the next stage, "
            f"learning rate {self.ql_learning_rate:g}, corruption {method.corruption:g}, labels {method.labels}",
            "training pairs": f"{len(self._pairs):,} "
            + (f"of {self.data}" if is_pydocs(self.data) else f"of {self.data}, split train"),
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.llm_ql import LLMQL

        self._rates = {name: self._rate(name) for name in (PLAIN, OPEN, MAIN)}
        self._rates[LONGER] = self._rates[PLAIN]
        made = [ModelArm(UNTRAINED, lambda: self._start(self.dtype), description="the same prompts and end token")]
        for name, (_, about) in ARMS.items():
            role: Any = {PLAIN: "baseline", LONGER: "sibling"}.get(name)
            paper = LLMQL.paper if name == MAIN else ""
            made.append(self.trained(name, partial(self._train, name), self.load, role, about, paper))
        return made

    def claims(self) -> list[Claim]:
        through = "because the query sees a corrupted document, and through the end token alone (Sec. 3)"
        return [
            Claim("nDCG@10", PLAIN, MAIN, "learning query likelihood first improves retrieval (abstract)", least=LEAST),
            Claim("nDCG@10", OPEN, MAIN, through, least=LEAST),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(LONGER, MAIN), (PLAIN, OPEN)]

    def notes(self, outcome: Outcome) -> list[str]:
        usable = [name for name in ARMS if name in outcome.usable]
        notes = []
        for name in usable:
            *first, last = self._parts(name, self.seed)
            notes += [training_note(f"{name}, query likelihood", part) for part in first]
            notes.append(training_note(f"{name}, contrast", last))
        if MAIN in usable and PLAIN in usable:
            one, other = (sum(self._seconds(name, seed) for seed in self.seeds) for name in (PLAIN, MAIN))
            notes.append(
                f"Contrastive steps are equal, time is not: with query likelihood before them LLM-QL trained "
                f"{other:,.0f} s and contrast alone {one:,.0f} s, {other / one:.1f} times as long; the arm "
                f"{LONGER!r} had that time."
            )
        return notes

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its model has 7 billion parameters, and its first stage reads two epochs of MS MARCO with all weights; "
            f"here it is {self.ql_steps * self.batch:,} pairs."
        )

    def _training_pairs(self) -> list[dict[str, str]]:
        """As many pairs as the longer stage reads, so that none comes twice if there are enough."""
        wanted = min(max(self.steps, self.ql_steps) * self.batch, 8000)
        if is_pydocs(self.data):
            return tasks.training_pairs(wanted, words=self.words, seed=self.seed, data=self.data)
        from broadsheet.data.retrieval.beir import Beir, searched

        beir = Beir(local(self.data), self.words)
        found = [
            {"query": beir.queries[query], "positive": searched(beir.documents[name])}
            for query, judged in beir.qrels("train").items()
            for name, relevance in judged.items()
            if relevance > 0 and name in beir.documents
        ]
        found.sort(key=lambda pair: fingerprint([self.seed, pair]))
        if len(found) < self.batch:
            raise InputError(f"{self.data} has {len(found)} training pairs; expected {self.batch} at least")
        return found[:wanted]

    def _made(self, stage: Mapping[str, Any] | None, seed: int | None = None) -> Any:
        from broadsheet.embed.llm_ql import LLMQL

        return LLMQL(**{"seed": self.seed if seed is None else seed, **self._fields, **(stage or {})})

    def _start(self, dtype: str | None = None) -> Any:
        return self._made(None).embedder(self.model, max_seq_length=self.length, device=self.device, dtype=dtype)

    def _rate(self, name: str) -> float:
        """The contrastive learning rate given, or the one by which the arm finds most."""
        if self.learning_rate is not None:
            return self.learning_rate
        task = self.tuning([pair["positive"] for pair in self._pairs])

        def train(rate: float, out: Path) -> TrainOutput:
            return self._contrast(name, rate, self.seed, out)

        def score(out: Path) -> float:
            return self.found(task, self.load(out))

        return self.best_run(name, RATES, train, score, on=task.about, open_ended=True)

    def _train(self, name: str, seed: int, out: Path) -> TrainOutput | None:
        if self.take_best(name, self._rates[name], seed, out):
            return None
        return self._contrast(name, self._rates[name], seed, out)

    def _contrast(self, name: str, rate: float, seed: int, out: Path) -> TrainOutput:
        """The second stage, after the arm's first one if it has one."""
        from broadsheet.embed.base import load

        budget: dict[str, Any] = {"steps": self.steps}
        if name == LONGER:
            budget = {"epochs": 1000, "minutes": self._seconds(MAIN, seed) / 60}
        start = self._start() if ARMS[name][0] is None else load(self._first(name, seed), device=self.device)
        done: TrainOutput
        _, done = self._made(None, seed).fit(
            start, self._pairs, out, ql_steps=0, learning_rate=rate, batch_size=self.batch, seed=seed, **budget
        )
        return done

    def _first(self, name: str, seed: int) -> Path:
        """Query likelihood as an arm learns it, trained once for all contrastive rates."""
        from broadsheet.embed import fit

        folder = self._first_folder(name, seed)
        if not (folder / "training.json").exists():
            say(f"training: {name}, query likelihood" + f", seed {seed}" * (self._runs > 1))
            made, stage = self._start(), ARMS[name][0]
            done = fit(
                made,
                self._pairs,
                self._made(stage, seed).likelihood(made),
                folder,
                steps=self.ql_steps,
                learning_rate=self.ql_learning_rate,
                batch_size=self.batch,
                merge=True,
                seed=seed,
            )
            if not done.finished:
                raise KeyboardInterrupt
        return folder

    def _first_folder(self, name: str, seed: int) -> Path:
        return self.run_folder(f"{name}, query likelihood", seed)

    def _parts(self, name: str, seed: int) -> list[Path]:
        """Where the stages of an arm's training run stand, first to last."""
        parts = (self._first_folder(name, seed), self.run_folder(name, seed))
        return [part for part in parts if (part / "training.json").exists()]

    def _seconds(self, name: str, seed: int) -> float:
        return sum(float(read_json(part / "training.json")["seconds"]) for part in self._parts(name, seed))
