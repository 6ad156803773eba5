"""What trials share that train rerankers: lists in a teacher's whole order, a rate for each loss, runs from seeds.

Knows: lists, an embedder as teacher, `rank.fit`. Does not know: which losses a paper compares, how models are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from broadsheet.cache import atomic_write, fingerprint, remove_folder
from broadsheet.console import InputError, say
from broadsheet.data import resources
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.options import option
from broadsheet.rank.list_source import ListSource
from broadsheet.rank.prompts.prompt import document_text
from broadsheet.rank.training.rows import training_rows
from broadsheet.rank.trials.base import RerankerTrial, training
from broadsheet.trial.base import ModelArm
from broadsheet.trial.trained.arms import TrainedTrial

if TYPE_CHECKING:
    from broadsheet.data.retrieval.lists import RankList
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.training.objective import ListLoss
    from broadsheet.training.trainer import TrainOutput

RATES = (3e-5, 1e-4)  # that each arm's learning rate is chosen from
_EASY, _DEEP, _EASY_RATE = "easy lists", 1000, {"full": 1e-4, "lora": 1e-3}
MOST_TRAINED = 300  # lists that are asked of each training run, where the claims decide how many
_DEV = 0.1  # of the training lists, to choose them on


@dataclass
class TrainedRerankerTrial(RerankerTrial, TrainedTrial):
    """Options and parts of trials that train rerankers, each on equal lists, for as many steps, at a rate of its own.

    A label says which passages are right; most are wrong alike. A teacher orders those, so that a whole ranking is
    learnt, as from the papers' GPT-4: the right ones first, then the others by how near an embedder finds them.

    A small model has to learn first that the answer is the name of a passage. So all arms go on from one model, which
    has read easy lists: a right passage and one to three of the first stage's first thousand.
    """

    reranker: str | None = option(
        None, "One that is trained (`broadsheet apply first`), to be tried as it is: none is trained here.",
        metavar="FOLDER",
    )  # fmt: skip
    easy: int = option(
        7000, "Easy lists that all arms begin with, for a small model; 0: the model as it came.", quick=8, least=0
    )
    lists: int = option(1000, "To train on, a tenth of them to choose learning rates on.", quick=20, least=10)
    steps: int = option(100, "Of training.", quick=2, least=1)
    batch: int = option(8, "Lists of a step.", quick=2, least=1)
    learning_rate: float | None = option(
        None, "By default the better of 3e-5 and 1e-4 for each arm, on lists that no test asks.", quick=5e-5, least=0
    )
    tune: Literal["lora", "full"] = option("full", "Train adapters (at rates such as 5e-4), or all weights.")
    brief: bool = option(
        True, "Few words around the passages in prompts, for a small model; without: the paper's prompt."
    )
    teacher: str = option(
        "resource:minilm",
        "An embedder of sentence-transformers that orders the passages which are wrong; none: they are alike.",
        quick="none",
        metavar="MODEL",
    )

    @property
    def _teacher(self) -> str | None:
        return None if self.teacher == "none" else self.teacher

    @cached_property
    def _source(self) -> ListSource:
        return ListSource(self.data, self.words, self.titles, self.first_stage or "", self.split, self.seed)

    @cached_property
    def _learnt(self) -> tuple[list[RankList], list[RankList]]:
        """Lists to train on, and those to choose learning rates on."""
        found = self._source.train(self.lists, self.candidates).lists
        held = max(1, int(_DEV * len(found)))
        if len(found) - held < self.batch:
            raise InputError(f"{self.data} gives {len(found)} training lists; expected {self.batch + held} at least")
        return found[held:], found[:held]

    def training_facts(self) -> dict[str, Any]:
        """What a training depends on besides the options."""
        return {"training data": fingerprint([each.id for part in self._learnt for each in part])}

    def training_setting(self) -> dict[str, str]:
        """How the arms were trained."""
        rates = ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
        first = {"first stage of training": training(str(self._begun)).get("training", "")} if self.easy else {}
        return first | {
            "training": f"{self.steps} steps of {self.batch} of {len(self._learnt[0]):,} lists, "
            f"{'all weights' if self.tune == 'full' else 'LoRA'}, learning rates {rates}; right passages first, the "
            + (f"others as {self._teacher} orders them" if self._teacher else "others alike")
        }

    @cached_property
    def _rates(self) -> dict[str, float]:
        return {}

    def learning(
        self,
        name: str,
        loss: ListLoss,
        role: Literal["baseline", "sibling", "peer"] | None = None,
        description: str = "",
        paper: str = "",
        train_on: int | None = None,
        **reading: Any,
    ) -> ModelArm:
        """An arm: the model trained with a loss, at the rate that orders the held lists best.

        Args:
            name, role, description, paper: as in `ModelArm`.
            train_on: so many passages of each list, drawn anew each time; all of them by default.
            reading: the reranker's settings, `decode="first_token"`, …
        """
        train = partial(self._fitted, loss, train_on, reading)
        self._rates[name] = self._rate(name, train, reading)

        def run(seed: int, out: Path) -> TrainOutput | None:
            tuned = self._tuning_folder(name, self._rates[name])
            if seed == self.seed and (tuned / "training.json").exists():
                tuned.replace(out)
                return None
            return train(self._rates[name], seed, out)

        return self.trained(name, run, partial(self._read, reading), role, description, paper)

    def reading(
        self, trained: ModelArm, name: str, role: Any = None, description: str = "", paper: str = "", **reading: Any
    ) -> ModelArm:
        """Another arm of the same training runs: what was trained is read under other settings."""

        def by_seed(seed: int) -> Any:
            def make() -> ListwiseReranker:
                assert trained.train is not None
                trained.train(seed)
                return self._read(reading, self.run_folder(trained.name, seed))

            return make

        return ModelArm(name, by_seed(self.seed), role, description, paper, by_seed, trained.train)

    def _read(self, reading: Mapping[str, Any], folder: Path) -> ListwiseReranker:
        return self.load(str(folder), **reading)

    def taught(self, name: str, **reading: Any) -> ListwiseReranker:
        """A model under these trials' prompts."""
        from broadsheet.rank.prompts.prompt import BRIEF

        return self.load(name, **reading, **({"prompt": BRIEF} if self.brief else {}))

    @cached_property
    def _begun(self) -> Path | str:
        """The model that all arms go on from."""
        from broadsheet.rank.first import FIRST
        from broadsheet.rank.training.fitting import fit

        if not self.easy:
            return self.model
        folder = self.folder(_EASY)
        if not (folder / "training.json").exists():
            say(f"training: {_EASY}")
            rows = training_rows(self._source.train(self.easy, self.candidates, _DEEP).lists, order="first_stage")
            for row in rows:
                del row["ranking"]  # its labels say all that is learnt
            done = fit(
                self.taught(self.model, decode="first_token"),
                rows,
                FIRST(kind="softmax", lm=False),
                folder,
                lists_per_step=self.batch,
                sizes=(2, min(4, self.candidates)),
                minutes=None,
                epochs=1,
                learning_rate=_EASY_RATE[self.tune],
                method=self.tune,
                seed=self.seed,
            )
            if not done.finished:
                raise KeyboardInterrupt
        return folder

    def _fitted(
        self, loss: ListLoss, train_on: int | None, reading: Mapping[str, Any], rate: float, seed: int, out: Path
    ) -> TrainOutput:
        from broadsheet.rank.training.fitting import fit

        sizes = None if train_on is None else (train_on, train_on)
        return fit(
            self.taught(str(self._begun), **reading),
            self._rows,
            loss,
            out,
            lists_per_step=self.batch,
            sizes=sizes,
            steps=self.steps,
            minutes=None,
            epochs=math.ceil(self.steps * self.batch / len(self._rows)),
            learning_rate=rate,
            method=self.tune,
            seed=seed,
        )

    def _tuning_folder(self, name: str, rate: float) -> Path:
        return self.folder(f"tuning of {name}, {rate:g}")

    def _rate(self, name: str, train: Any, reading: Mapping[str, Any]) -> float:
        """The rate given, or the one that orders the held lists best; the training run of the best one is kept."""
        if self.learning_rate is not None:
            return self.learning_rate
        held = self._learnt[1]

        def score(rate: float) -> float:
            out = self._tuning_folder(name, rate)
            if not (out / "training.json").exists() and not train(rate, self.seed, out).finished:
                raise KeyboardInterrupt
            ranked = self._read(reading, out).rank_batch(
                [each.query for each in held], [each.documents for each in held]
            )
            ids = [[each.ids[hit["corpus_id"]] for hit in hits] for each, hits in zip(held, ranked, strict=True)]
            return float(np.mean(evaluate_lists(held, ids)["nDCG@10"]))

        best = self.tuned(name, RATES, score, on=f"{len(held)} lists that are not trained on")
        for rate in set(RATES) - {best}:
            remove_folder(self._tuning_folder(name, rate))
        return best

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        """The training lists with a whole ranking each; made once, and kept with the trial."""
        lists = self._learnt[0]
        if self._teacher is None:
            return [{"query": each.query, "documents": list(each.documents), "labels": each.labels} for each in lists]
        path = self.folder("rankings").with_suffix(".json")
        if not path.exists():
            say(f"{self._teacher} orders {len(lists):,} training lists")
            with atomic_write(path) as file:
                json.dump(rankings(lists, self._teacher, self.device), file)
        kept: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        return [
            {"query": each.query, "documents": list(each.documents), "ranking": ranking}
            for each, ranking in zip(lists, kept, strict=True)
        ]


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
