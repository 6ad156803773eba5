"""What trials share that train rerankers: lists in a teacher's whole order, a rate for each loss, runs from seeds.

Knows: lists, an embedder as teacher and judge, `rank.fit`. Does not know: which losses a paper compares.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import resources
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.options import best_of, option
from broadsheet.rank.prompts.prompt import document_text
from broadsheet.rank.training.rows import training_rows
from broadsheet.rank.trials.base import INVALID, RerankerTrial, changed, training, training_record
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from broadsheet.data.retrieval.lists import RankList
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.training.objective import ListLoss
    from broadsheet.training.trainer import TrainOutput

# Learning rates that each arm's is chosen from.
RATES = {"full": (2e-5, 5e-5, 1.2e-4), "lora": (2e-4, 5e-4, 1.2e-3)}
MOST_TRAINED = 300  # lists that are asked of each training run, where the claims decide how many
NDCG, GRADED = "nDCG@10", "graded nDCG@10"
# Grades, as in TREC's judgements: of right passages, and of the others in the teacher's order; 0 of those behind them.
RIGHT, OTHERS = 3, (2, 2, 1, 1, 1)
_EASY, _DEEP, _EASY_RATE = "easy lists", 1000, {"full": 1e-4, "lora": 1e-3}
_EASY_SIZES = (2, 4)  # passages of an easy list
_DEV = 0.1  # of the training lists, to choose rates on


@dataclass(frozen=True)
class Lesson:
    """What an arm is trained by, and how it is then read.

    Args:
        loss: on lists.
        reading: the reranker's settings, `decode="first_token"`, …
        passages: of each list so many, drawn anew each time, and so many more lists a step; by default all.
    """

    loss: ListLoss
    reading: Mapping[str, Any] = field(default_factory=dict)
    passages: int | None = None

    @property
    def training(self) -> str:
        """What the trained weights hang on, in a line: arms that are read otherwise alone share it."""
        return f"{self.loss!r}, {self.passages or 'all'} passages"


@dataclass
class TrainedRerankerTrial(RerankerTrial, TrainedTrial):
    """Options and parts of trials that train rerankers, each on equal lists, for as many steps, at a rate of its own.

    A label says which passages are right; most are wrong alike. A teacher orders those, so that a whole ranking is
    learnt, as from the papers' GPT-4: the right ones first, then the others by how near an embedder finds them.

    The papers are judged by grades of many passages a query (TREC DL, BEIR), and one right passage a query says little
    of an order. So the same teacher, by which the arms are trained, also judges them, on held-out queries: right
    passages have grade 3, the next two in its order 2, the next three 1, the others 0. Without a teacher, and where a
    reranker is given, the labels alone judge.

    A small model has to learn first that the answer is the name of a passage. So all arms go on from one model, which
    has read easy lists, a right passage and one to three of the first stage's first thousand, and has learnt on them
    both to write the order and to have it in the first identifier's logits.
    """

    trained_on: ClassVar[str] = ""  # of the paper: a model, and on what

    reranker: str | None = option(
        None, "One that is trained, to be tried as it is: nothing is trained here.", metavar="FOLDER"
    )
    queries: int | Literal["all"] | None = option(
        None,
        f"Lists; `all` of a BEIR folder; by default as many as the claims need, after a pilot, and {MOST_TRAINED} at "
        "most where arms are trained.",
        quick=12,
        least=1,
    )
    words: int = option(12, "Of a passage that is searched and shown; 0: all.", least=0)
    easy: int = option(3000, "Easy lists that all arms begin with, at most; 0: the model as it came.", quick=8, least=0)
    lists: int = option(1000, "To train on, at most, a tenth of them to choose learning rates on.", quick=20, least=10)
    steps: int = option(80, "Of training.", quick=2, least=1)
    batch: int = option(4, "Lists of a step.", quick=2, least=1)
    learning_rate: float | None = option(
        None,
        f"By default {best_of(RATES['full'])} for each arm (of adapters ten times that), after a third of the steps, "
        "on lists that no arm learns.",
        quick=5e-5,
        least=0,
    )
    tune: Literal["lora", "full"] = option("full", "Train adapters, or all weights.")
    brief: bool = option(True, "Without: the paper's prompt, in place of few words around the passages.")
    teacher: str = option(
        "resource:minilm",
        "An embedder of sentence-transformers that orders the passages which are wrong, to be learnt and judged by; "
        "none: they are alike.",
        quick="none",
        metavar="MODEL",
    )

    # Lists

    @cached_property
    def _learnt(self) -> tuple[list[RankList], list[RankList]]:
        """Lists to train on, and those to choose learning rates on."""
        found = self.training_lists(self.lists, self.candidates)
        held = max(1, int(_DEV * len(found)))
        if len(found) - held < self.batch:
            raise InputError(f"{self.data} gives {len(found)} training lists; expected {self.batch + held} at least")
        return found[held:], found[:held]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        """The training lists with a whole ranking each; made once, and kept with the trial."""
        lists = self._learnt[0]
        if self._teacher is None:
            return [{"query": each.query, "documents": list(each.documents), "labels": each.labels} for each in lists]
        return [
            {"query": each.query, "documents": list(each.documents), "ranking": ranking}
            for each, ranking in zip(lists, self._ordered("training lists", lists, self._teacher), strict=True)
        ]

    def _ordered(self, name: str, lists: Sequence[RankList], teacher: str) -> list[list[int]]:
        """The teacher's whole rankings of lists; made once, and kept with the trial under that name."""
        path = self.folder(name).with_suffix(".json")
        if not path.exists():
            say(f"{teacher} orders {len(lists):,} {name}")
            with atomic_write(path) as file:
                json.dump(rankings(lists, teacher, self.device), file)
        return list(json.loads(path.read_text(encoding="utf-8")))

    @property
    def _teacher(self) -> str | None:
        return None if self.teacher == "none" else self.teacher

    def training_facts(self) -> dict[str, Any]:
        """What a training depends on besides the options."""
        return {"training data": fingerprint([each.id for part in self._learnt for each in part])}

    def training_setting(self) -> dict[str, str]:
        """How the arms were trained."""
        rates = ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
        first = {_EASY: training(str(self._begun)).get("training", "")} if self.easy else {}
        if self.graded:
            first["grades"] = f"of right passages {RIGHT}, of the others as {self._teacher} orders them " + ", ".join(
                map(str, (*OTHERS, 0))
            )
        return first | {
            "training": f"{self.steps} steps of {self.batch} of {len(self._learnt[0]):,} lists, "
            f"{'all weights' if self.tune == 'full' else 'LoRA'}, learning rates {rates}; right passages first, the "
            + (f"others as {self._teacher} orders them" if self._teacher else "others alike")
        }

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if self.reranker or claim.metric != self.quality:
            return ""
        easy = f", after {training_record(str(self._begun))['examples']:,} easy ones" if self.easy else ""
        read = f"{self.steps * self.batch:,} lists of {self.candidates}"
        return f"It tunes {self.trained_on}; here one reads {read}{easy}."

    # Quality

    @property
    def graded(self) -> bool:
        """Whether the teacher's grades judge, besides the labels."""
        return bool(self._teacher) and not self.reranker

    @property
    def quality(self) -> str:
        """The metric that claims of quality are about."""
        return GRADED if self.graded else NDCG

    def asked(self, block_size: int = 5) -> EvalTask:
        """`ordering`, with few enough lists for arms of several training runs, and with what is measured of those."""
        task = self.ordering(block_size) if self.reranker else self.ordering(block_size, MOST_TRAINED)
        block = {each.id: place // block_size for place, each in enumerate(task.items)}
        invalid = Metric(
            INVALID,
            higher_is_better=False,
            bounds=(0, 1),
            cluster=lambda each: block[each.id],  # is counted of a whole block
            counted="blocks",
        )
        grades = [Metric(GRADED, bounds=(0, 1))] if self.graded else []
        return replace(task, metrics=[*grades, *task.metrics, invalid])

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        made = super().arm(arm, model, kept)
        return replace(made, run=partial(self._with_grades, made.run)) if self.graded else made

    def _with_grades(self, run: Callable[[Any], Any], block: Sequence[RankList]) -> Measured:
        """What an arm makes of a block, and how that does by the teacher's grades."""
        found: Measured = run(block)
        rankings = [
            [each.ids[i] for i in order if i >= 0] for each, order in zip(block, found.outputs["order"], strict=True)
        ]
        return replace(found, outputs={**found.outputs, GRADED: self._judged(block, rankings)})

    def _judged(self, lists: Sequence[RankList], rankings: Sequence[Sequence[str]]) -> list[float]:
        """nDCG@10 of each ranking: by the teacher's grades, or else by the labels."""
        if self.graded:
            lists = [replace(each, judged=self._grades[each.id]) for each in lists]
        return evaluate_lists(lists, rankings, (NDCG,))[NDCG]

    @cached_property
    def _grades(self) -> dict[str, dict[str, int]]:
        """By its id, the grades of each list that is tested or chosen by."""
        lists = [*self.lists_.lists, *self._learnt[1]]
        orders = self._ordered("lists to judge by", lists, self.teacher)
        return {each.id: grades(each, order) for each, order in zip(lists, orders, strict=True)}

    # Arms

    def learning(
        self,
        name: str,
        lesson: Lesson,
        role: Literal["baseline", "sibling", "peer"] | None = None,
        description: str = "",
        paper: str = "",
    ) -> ModelArm:
        """An arm that is trained by a lesson, at the rate by which it orders the held lists best.

        Arms whose lessons differ in their reading alone share what they have in common of their runs.
        """
        self._lessons[name] = lesson

        def run(seed: int, out: Path) -> TrainOutput | None:
            rate = self._rates[name] = self._rate(name, lesson)
            folder, done = self._fitted(lesson, rate, seed, self.steps)
            if done is not None and not done.finished:
                return done
            out.symlink_to(folder.name, target_is_directory=True)  # other arms may have the same
            return None

        def load(folder: Path) -> ListwiseReranker:
            self._rates[name] = self._rate(name, lesson)  # also where another process has trained it
            return changed(self._model(folder), **lesson.reading)

        return self.trained(name, run, load, role, description, paper)

    def reading(
        self, trained: ModelArm, name: str, role: Any = None, description: str = "", paper: str = "", **reading: Any
    ) -> ModelArm:
        """Another arm of an arm's first training run: what was trained is read under other settings."""

        def make() -> ListwiseReranker:
            return changed(trained.make(), **reading)

        return ModelArm(name, make, role, description, paper)

    def begun(self, **reading: Any) -> ListwiseReranker:
        """The model that all arms go on from."""
        return changed(self._model(self._begun), **reading) if self.easy else self.taught(self.model, **reading)

    def taught(self, name: str, **reading: Any) -> ListwiseReranker:
        """A model under these trials' prompts."""
        from broadsheet.rank.prompts.prompt import BRIEF

        return self.load(name, **reading, **({"prompt": BRIEF} if self.brief else {}))

    def _model(self, folder: Path) -> ListwiseReranker:
        """What was trained into a folder, in memory once for all arms that read it."""
        folder = folder.resolve()
        if folder not in self._models:
            self._models[folder] = self.load(str(folder))
        return self._models[folder]

    @cached_property
    def _models(self) -> dict[Path, ListwiseReranker]:
        return {}

    # Training

    @cached_property
    def _rates(self) -> dict[str, float]:
        return {}

    @cached_property
    def _lessons(self) -> dict[str, Lesson]:
        """Of the arms that learn, by name."""
        return {}

    @cached_property
    def _begun(self) -> Path:
        """The folder of the model that all arms go on from, trained on easy lists."""
        from broadsheet.rank.first import FIRST
        from broadsheet.rank.training.fitting import fit

        folder = self.folder(_EASY)
        if not (folder / "training.json").exists():
            say(f"training: {_EASY}")
            held = {each.id for each in self._learnt[1]}
            lists = [each for each in self.training_lists(self.easy, _EASY_SIZES[1], _DEEP) if each.id not in held]
            rows = training_rows(lists, order="first_stage")
            for row in rows:
                del row["ranking"]  # its labels say all that is learnt
            done = fit(
                self.taught(self.model, decode="first_token"),
                rows,
                FIRST(kind="softmax"),
                folder,
                lists_per_step=self.batch,
                sizes=_EASY_SIZES,
                minutes=None,
                epochs=1,
                learning_rate=_EASY_RATE[self.tune],
                method=self.tune,
                seed=self.seed,
            )
            if not done.finished:
                raise KeyboardInterrupt
        return folder

    def _run_of(self, lesson: Lesson, rate: float, seed: int, steps: int) -> Path:
        return self.folder(f"{lesson.training}, rate {rate:g}, seed {seed}, {steps} steps")

    def _fitted(self, lesson: Lesson, rate: float, seed: int, steps: int) -> tuple[Path, TrainOutput | None]:
        """The folder of a training run, which is trained where it is not there, and then what came of it."""
        from broadsheet.rank.training.fitting import fit

        out = self._run_of(lesson, rate, seed, steps)
        if (out / "training.json").exists():
            return out, None
        start = self.load(str(self._begun), **lesson.reading) if self.easy else self.begun(**lesson.reading)
        # Of parts of the lists so many more a step that as many passages are read.
        each = round(self.batch * self.candidates / (lesson.passages or self.candidates))
        return out, fit(
            start,
            self._rows,
            lesson.loss,
            out,
            lists_per_step=each,
            sizes=None if lesson.passages is None else (lesson.passages, lesson.passages),
            steps=steps,
            minutes=None,
            epochs=math.ceil(steps * each / len(self._rows)),
            learning_rate=rate,
            method=self.tune,
            seed=seed,
        )

    def _rate(self, name: str, lesson: Lesson) -> float:
        """The rate given, or the one by which a run of the trial's own seed orders the held lists best.

        That is a run of a third of the steps. It goes when the arms that share its lesson have chosen.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        held, rates, steps = self._learnt[1], RATES[self.tune], max(1, self.steps // 3)

        def score(rate: float) -> float:
            folder, done = self._fitted(lesson, rate, self.seed, steps)
            if done is not None and not done.finished:
                raise KeyboardInterrupt
            reader = self.load(str(folder), **lesson.reading)
            ranked = reader.rank_batch([each.query for each in held], [each.documents for each in held])
            ids = [[each.ids[hit["corpus_id"]] for hit in hits] for each, hits in zip(held, ranked, strict=True)]
            return float(np.mean(self._judged(held, ids)))

        on = f"the {self.quality} of {len(held)} lists that no arm learns, after a third of the steps"
        best = self.tuned(name, rates, score, on=on, open_ended=True)
        sharing = [other for other, each in self._lessons.items() if each.training == lesson.training]
        if steps < self.steps and all(other in self._tuning for other in sharing):
            for rate in {rate for other in sharing for rate in self.settings_tried(other)}:
                shutil.rmtree(self._run_of(lesson, rate, self.seed, steps), ignore_errors=True)
        return best


def grades(each: RankList, ranking: Sequence[int]) -> dict[str, int]:
    """The grades of a list's passages by a whole ranking, `RIGHT` and `OTHERS`; of right ones also outside the list.

    Args:
        ranking: indices of all candidates, best first.

    Example:
        >>> grades(RankList("q", "?", ("a", "b", "c"), ("", "", ""), judged={"c": 1}), [2, 0, 1])
        {'c': 3, 'a': 2, 'b': 2}
    """
    right = {name: RIGHT for name, label in each.judged.items() if label > 0}
    others = [each.ids[i] for i in ranking if each.ids[i] not in right]
    return right | dict(zip(others, OTHERS, strict=False))


def rankings(lists: Sequence[RankList], teacher: str, device: str | None = None) -> list[list[int]]:
    """Whole rankings of lists: by label, and those of equal labels by a teacher's cosine of query and passage.

    Args:
        teacher: an embedder of sentence-transformers, by its folder or as `resource:minilm`.

    Returns:
        for each list indices of its candidates, best first.

    Raises:
        InputError: there is no such embedder.
    """
    from sentence_transformers import SentenceTransformer

    from broadsheet.models.sentences import load_sentences

    model = load_sentences(resources.local(teacher), SentenceTransformer, device=device)
    texts = list(dict.fromkeys(t for each in lists for t in (each.query, *map(document_text, each.documents))))
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    place = {text: i for i, text in enumerate(texts)}
    found = []
    for each in lists:
        cosines = vectors[[place[document_text(document)] for document in each.documents]] @ vectors[place[each.query]]
        found.append(sorted(range(len(cosines)), key=lambda i: (-each.labels[i], -cosines[i])))
    return found
