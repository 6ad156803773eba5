"""Try the stage: every way to read an embedding off a causal LM that needs no training, on every task.

Knows: the stage's baselines and Token Prepending, tasks, the A/B engine. Papers that train have trials of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import EvalTask, ModelArm, clear, compare, workdir
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.results import ArmResult, TrialResult

if TYPE_CHECKING:
    from broadsheet.models import Loaded

NAMES = {"mean": "mean", "weighted-mean": "weighted mean", "last-token": "last token", "prompt-eol": "PromptEOL"}
TOKEN_PREPENDING = "PromptEOL + Token Prepending"
# Sizes of the tasks, and with --quick.
_QUERIES, _PASSAGES, _DUPLICATES, _PACKAGES, _DOCUMENTS, _PAIRS, _WORDS = 60, 300, 80, 8, 20, 300, 30
_QUICK = (12, 50, 16, 4, 8, 30, 20)


@dataclass
class EmbedTrial:
    """Embeddings without training: which vector of a causal LM is worth taking, and what do prompts and masks change?

    Mean, weighted mean and last token of the last layer, and the last token of a prompt that asks for the text in one
    word, each with causal and with bidirectional attention; and Token Prepending around that prompt. All share one
    model and answer the same tasks. On `pydocs`: summaries of docstrings search their bodies, near-duplicate docstrings
    are told from unlike ones, passages are sorted by package. On a BEIR folder: its queries search its passages. With
    --sts, sentence similarity too. Embedders that a paper has trained join as --also.

    Options:
        --sts FILE: sentence pairs with gold scores, such as STS-B's TSV, or `hf:org/name:split`.
        --also FOLDER,…: further embedders, each an arm named after its folder; any sentence-transformers model will do.
        --pairs N: sentence pairs of --sts (300; with --quick 30; 0: all).
        --queries N: that search (60; with --quick 12; 0: all of a BEIR folder).
        --passages N: that are searched (300; with --quick 50; 0: all).
        --duplicates N: near-duplicates (80; with --quick 16).
        --packages N: whose passages are sorted (8; with --quick 4).
        --documents N: passages of each package (20; with --quick 8).
        --words N: of a passage that is read (30; with --quick 20; 0: all, as far as a BEIR folder is searched).
        --split NAME: of the BEIR folder's qrels (test).
        --device NAME, --dtype NAME: as in models.load.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    sts: str = ""
    also: str = ""
    pairs: int = -1
    queries: int = -1
    passages: int = -1
    duplicates: int = 0
    packages: int = 0
    documents: int = 0
    words: int = -1
    split: str = "test"
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Make the tasks, run the arms, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        jobs = self._jobs()
        loaded = models.load(self.model, device=self.device or None, dtype=self.dtype or None)
        candidates = self._candidates(loaded)
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": loaded.fingerprint},
            "data": {"name": self.data, "fingerprint": {job.name: job.fingerprint for job in jobs}},
        }
        self.folder_ = workdir("embed", versions(), facts, asdict(self))
        names = [candidate.name for candidate in candidates]
        pairs = [(plain, f"{plain}, bidirectional") for plain in NAMES.values()]
        pairs.append((NAMES["prompt-eol"], TOKEN_PREPENDING))
        arms, comparisons = compare(
            candidates, jobs, self.folder_, pairs=[pair for pair in pairs if set(pair) <= set(names)], seed=self.seed
        )
        return TrialResult(
            paper="embed",
            title="Embed: texts to vectors with a causal LM",
            question=f"Which vector of {name} is worth taking without training, and what do prompts and masks change?",
            setting={
                "model": name,
                **{job.name: job.about for job in jobs},
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
                "device": str(loaded.model.device),
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            notes=_notes(arms, jobs),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _jobs(self) -> list[EvalTask]:
        sizes = _QUICK if self.quick else (_QUERIES, _PASSAGES, _DUPLICATES, _PACKAGES, _DOCUMENTS, _PAIRS, _WORDS)
        queries, passages, duplicates, packages, documents, pairs, words = sizes
        words = words if self.words == -1 else self.words
        if min(self.pairs, self.queries, self.passages, words) < -1 or words < 0:
            raise InputError(
                f"got --pairs {self.pairs} --queries {self.queries} --passages {self.passages} --words {words}; "
                "expected 0 (all) or more"
            )
        search = EvalTask.retrieval(
            tasks.retrieval(
                self.data,
                queries if self.queries == -1 else self.queries,
                passages if self.passages == -1 else self.passages,
                words=words,
                split=self.split,
                seed=self.seed,
            )
        )
        jobs = [search]
        if self.data == "pydocs":
            near = tasks.duplicates(self.duplicates or duplicates, words=words or 512, seed=self.seed)
            sorted_by = tasks.clustering(
                self.packages or packages, self.documents or documents, words=words, seed=self.seed
            )
            # Near-duplicates come first: theirs is the speed that is reported, of texts as long as passages.
            jobs = [EvalTask.duplicates(near), search, EvalTask.clustering(sorted_by, self.seed)]
        if self.sts:
            found = tasks.sts(self.sts, pairs if self.pairs == -1 else self.pairs, self.seed)
            jobs.append(EvalTask.sts(found, Path(self.sts).name))
        return jobs

    def _candidates(self, loaded: Loaded) -> list[ModelArm]:
        from broadsheet.embed.base import baseline, embedder, load
        from broadsheet.embed.token_prepending import TokenPrepending

        made: list[ModelArm] = []
        for attention in ("causal", "bidirectional"):
            for name, label in NAMES.items():
                made.append(
                    ModelArm(
                        label if attention == "causal" else f"{label}, bidirectional",
                        baseline(name, loaded, attention=attention),
                        "sibling" if made else "baseline",
                        f"{_ABOUT[name]}, {attention} attention",
                    )
                )
        prepending = embedder(loaded, "last-token", encoder=TokenPrepending)
        made.append(ModelArm(TOKEN_PREPENDING, prepending, "method", "the same, a placeholder before the text"))
        for folder in filter(None, self.also.split(",")):
            trained = load(folder, device=self.device or None, dtype=self.dtype or None)
            made.append(ModelArm(_free(folder, made), trained, "sibling", f"trained: {folder}"))
        return made


_ABOUT = {
    "mean": "all tokens of the last layer",
    "weighted-mean": "later tokens weigh more",
    "last-token": "of the last layer",
    "prompt-eol": "last token of “This sentence : … means in one word:”",
}


def _free(folder: str, taken: Sequence[ModelArm]) -> str:
    """A name for the embedder in `folder` that no other arm has."""
    name = Path(folder).name
    return folder if name in [candidate.name for candidate in taken] else name


def _notes(arms: Sequence[ArmResult], jobs: Sequence[EvalTask]) -> list[str]:
    """The best arm of each metric, and what was timed."""
    usable = [arm for arm in arms if arm.status == "ok"]
    notes = [f"texts/s are those of {jobs[0].name}; other texts are encoded before the clock starts."]
    for metric in [metric.name for job in jobs for metric in job.metrics] if usable else []:
        best = max(usable, key=lambda arm: arm.values[metric].estimate)
        notes.append(f"Highest {metric}: {best.name}, {best.values[metric].estimate:.3f}.")
    return notes
