"""`broadsheet apply megatron_530b`: how a training on texts can be laid out on a cluster, as a table and as files.

Knows: a corpus's size, a model's config, plans. Does not know: weights; nothing is trained.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.apply.base import Build
from broadsheet.apply.corpus import Summary
from broadsheet.cache import atomic_folder
from broadsheet.console import InputError, duration, say
from broadsheet.data.corpora import Corpus
from broadsheet.options import option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from broadsheet.train.megatron_530b import ParallelPlanner, Plan
    from broadsheet.training.layouts.shapes import Shape

_SAMPLED = 500  # documents whose tokens are counted; the others are as dense


@dataclass
class MegatronRecipe(Build):
    """Plan a training of a model on texts over many GPUs: OUT is a folder with the plans and what runs the fastest.

    `plan.txt` and `plan.json` hold the plans; `torchtitan.toml` the fastest one, and `accelerate.yaml` the fastest one
    that accelerate can run, which has no stages. Of the model only its config is read.
    """

    paper: ClassVar[str] = "megatron_530b"
    lacks: ClassVar[tuple[str, ...]] = ("seed", "device", "dtype", "method")

    model: str = option(
        "default", "`default`, a hub id, a folder, or llama-8b, llama-70b, gpt-175b, mt-nlg-530b.", metavar="MODEL"
    )
    gpus: int = option(8, "GPUs in all.", least=1)
    per_node: int = option(8, "GPUs of a machine.", least=1)
    memory: float = option(80.0, "Of a GPU, in GB.", least=1)
    tflops: float = option(312.0, "Peak of a GPU in half precision, in 10¹² operations a second; 989 of an H100.")
    network_rate: float = option(25.0, "GB a second that a GPU sends out of its machine.")
    node_rate: float = option(300.0, "GB a second that a GPU sends within its machine.")
    batch: int = option(512, "Sequences of a step, on all GPUs together.", least=1)
    micro_batch: int = option(1, "Sequences of a pass.", least=1)
    length: int = option(2048, "Tokens of a sequence.", least=1)
    epochs: int = option(1, "How often the texts are read.", least=1)
    recompute: str = option("full", "Of activations.", choices=("full", "none"))
    shard: str = option("optimizer", "What copies share out among them.", choices=("none", "optimizer", "all"))
    mesh: str | None = option(
        None, "One layout: stages, copies and parts of layers; by default the fastest.", metavar="PP,DP,TP"
    )

    def build(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        from broadsheet.train.plans.exports import accelerate_yaml, explain, record, to_torchtitan

        if out.exists() and not force:
            raise InputError(f"{out} exists; choose another --out, or --force to replace it")
        begun = time.perf_counter()
        planner = self._planner()
        plans = self._plans(planner)  # what cannot be is told before any text is read
        documents, tokens = self._size(corpus)
        told = f"{explain(plans)}\n\n{self._lasting(plans[0], tokens)}"
        files = {
            "plan.txt": told + "\n",
            "plan.json": json.dumps({"tokens": tokens, "plans": [record(plan) for plan in plans]}, indent=1) + "\n",
            "torchtitan.toml": to_torchtitan(plans[0]),
        }
        runnable, why = _first(plans, accelerate_yaml)
        if runnable:
            files["accelerate.yaml"] = runnable
        with atomic_folder(out) as folder:
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        print(told)
        say(f"{out}: {', '.join(files)}" + f"; no accelerate.yaml: {why}" * (not runnable))
        return Summary(out, documents, 0, time.perf_counter() - begun, True)

    def _planner(self) -> ParallelPlanner:
        from broadsheet import models
        from broadsheet.train.megatron_530b import Cluster, ParallelPlanner
        from broadsheet.training.layouts.shapes import SHAPES

        config: Shape | dict[str, Any] = SHAPES.get(self.model) or models.config(self.model)
        cluster = Cluster(
            self.gpus, min(self.per_node, self.gpus), self.memory, tflops=self.tflops, node_rate=self.node_rate,
            network_rate=self.network_rate,
        )  # fmt: skip
        settings: dict[str, Any] = {"recompute": self.recompute, "shard": self.shard}
        return ParallelPlanner(config, cluster, self.batch, self.micro_batch, self.length, **settings)

    def _plans(self, planner: ParallelPlanner) -> list[Plan]:
        from broadsheet.training.layouts.ranks import RankGrid

        if self.mesh is None:
            return planner.plans()
        axes = self.mesh.split(",")
        if len(axes) != 3 or not all(axis.strip().isdigit() for axis in axes):
            raise InputError(f"got --mesh {self.mesh}; expected three numbers, as in 4,2,8: stages, copies, parts")
        return [planner.plan(RankGrid(*map(int, axes)))]

    def _size(self, corpus: Corpus) -> tuple[int, float]:
        """Documents, and about how many tokens they have: of the first ones counted, of the others by their letters."""
        sample: list[str] = []
        documents = letters = 0
        for document in corpus:
            documents, letters = documents + 1, letters + len(document.text)
            if len(sample) < _SAMPLED:
                sample.append(document.text)
        if not letters:
            raise InputError(f"got {documents} documents without a letter; expected texts to train on")
        counted = sum(len(ids) for ids in self._tokenizer(sample, add_special_tokens=False)["input_ids"])
        return documents, counted * letters / sum(map(len, sample)) + documents

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own where its folder holds one; of others, no more is fetched for this: the default model's."""
        from broadsheet.models import embedded
        from broadsheet.models.tokens import read_tokenizer

        return read_tokenizer(self._own or embedded.folder())

    @property
    def _own(self) -> Path | None:
        folder = Path(self.model).expanduser()
        return folder if (folder / "tokenizer.json").is_file() else None

    def _lasting(self, plan: Plan, tokens: float) -> str:
        steps = max(1, round(tokens * self.epochs / (self.batch * self.length)))
        cuts = "this model" if self._own else "the default model"
        return fill(
            f"About {tokens:,.0f} tokens, as {cuts} cuts texts, read {self.epochs} "
            f"time{'s' * (self.epochs > 1)}: {steps:,} step{'s' * (steps > 1)} of {self.batch} × {self.length:,}, "
            f"{duration(steps * plan.seconds)}. Seconds are estimates, to compare layouts by.",
            80,
        )


def _first(plans: list[Plan], write: Any) -> tuple[str, str]:
    """What the fastest plan makes that can be written, or why none can."""
    why = ""
    for plan in plans:
        try:
            return write(plan), ""
        except InputError as error:
            why = why or str(error)
    return "", why
