"""Try the stage: every way to read an embedding off a causal LM that needs no training, on every task.

Knows: the stage's baselines and Token Prepending, tasks. Papers that train have trials of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import Count, EmbedderTrial, clustering_task, duplicates_task, retrieval_task
from broadsheet.options import option
from broadsheet.trial.base import EvalTask, ModelArm, Outcome

NAMES = {"mean": "mean", "weighted-mean": "weighted mean", "last-token": "last token", "prompt-eol": "PromptEOL"}
TOKEN_PREPENDING = "PromptEOL + Token Prepending"
_ABOUT = {
    "mean": "all tokens of the last layer",
    "weighted-mean": "later tokens weigh more",
    "last-token": "of the last layer",
    "prompt-eol": "last token of “This sentence : … means in one word:”",
}
SURVEYS = ("embedding_overview", "embedding_meets_llm")  # they compare what others propose: every arm but the baseline


@dataclass
class EmbedTrial(EmbedderTrial):
    """Embeddings without training: which vector of a causal LM is worth taking, and what do prompts and masks change?

    Mean, weighted mean and last token of the last layer, and the last token of a prompt that asks for the text in one
    word, each with causal and with bidirectional attention; and Token Prepending around that prompt. All share one
    model and answer the same tasks. On `pydocs`: summaries of docstrings search their bodies, near-duplicate docstrings
    are told from unlike ones, passages are sorted by package. On a BEIR folder: its queries search its passages. With
    --sts, sentence similarity too. Embedders that a paper has trained join as --also.
    """

    stage: ClassVar[str] = "embed"
    title: ClassVar[str] = "Embed: texts to vectors with a causal LM"

    also: tuple[str, ...] = option(
        (),
        "Further embedders, each an arm named after its folder; any sentence-transformers model will do.",
        metavar="FOLDER,…",
    )
    queries: Count = option(60, "That search; `all` of a BEIR folder.", quick=12, least=1)
    passages: Count = option(300, "That are searched; `all` of a BEIR folder.", quick=50, least=1)
    duplicates: int = option(80, "Near-duplicates.", quick=16, least=1)
    packages: int = option(8, "Whose passages are sorted.", quick=4, least=2)
    documents: int = option(20, "Passages of each package.", quick=8, least=1)
    words: int = option(30, "Of a passage that is read; 0: all (a BEIR folder).", quick=20, least=0)

    def question(self) -> str:
        return (
            f"Which vector of {self.model_name} is worth taking without training, and what do prompts and masks change?"
        )

    def tasks(self) -> list[EvalTask]:
        alike = self.similarity()  # a file that is not there is told before documentation is read
        search = retrieval_task(self.retrieval())
        if not is_pydocs(self.data):
            return [search, *alike]
        near = tasks.duplicates(self.duplicates, words=self.words or 512, seed=self.seed, data=self.data)
        sorted_by = tasks.clustering(self.packages, self.documents, words=self.words, seed=self.seed, data=self.data)
        # Near-duplicates come first: theirs is the speed that is reported, of texts as long as passages.
        return [
            duplicates_task(near),
            search,
            clustering_task(sorted_by, seed=self.seed),
            *alike,
        ]

    def setting(self) -> Mapping[str, Any]:
        model = self.loaded.model
        return {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.base import baseline, embedder, load
        from broadsheet.embed.token_prepending import TokenPrepending

        made: list[ModelArm] = []
        survey = self.tried if self.tried in SURVEYS else ""
        for attention in ("causal", "bidirectional"):
            for name, label in NAMES.items():
                made.append(
                    ModelArm(
                        label if attention == "causal" else f"{label}, bidirectional",
                        partial(baseline, name, self.loaded, attention=attention),
                        None if made else "baseline",
                        f"{_ABOUT[name]}, {attention} attention",
                        survey,
                    )
                )
        made.append(
            ModelArm(
                TOKEN_PREPENDING,
                lambda: embedder(self.loaded, "last-token", encoder=TokenPrepending),
                description="the same, a placeholder before the text",
                paper=survey or TokenPrepending.paper,
            )
        )
        for folder in self.also:
            taken = [arm.name for arm in made]
            given = load(folder, device=self.device, dtype=self.dtype)  # now: a wrong folder is refused before the work
            made.append(
                ModelArm.of(
                    folder if Path(folder).name in taken else Path(folder).name,
                    given,
                    description=f"trained: {folder}",
                )
            )
        return made

    def also_compare(self) -> list[tuple[str, str]]:
        return [
            *((plain, f"{plain}, bidirectional") for plain in NAMES.values()),
            (NAMES["prompt-eol"], TOKEN_PREPENDING),
        ]

    def notes(self, outcome: Outcome) -> list[str]:
        """The best arm of each metric, and what was timed."""
        usable = list(outcome.usable.values())
        notes = [f"texts/s are those of {outcome.tasks[0].name}; other texts are encoded before the clock starts."]
        for metric in [metric.name for task in outcome.tasks for metric in task.metrics] if usable else []:
            best = max(usable, key=lambda arm: arm.values[metric].estimate)
            notes.append(f"Highest {metric}: {best.name}, {best.values[metric].estimate:.3f}.")
        return notes
