"""Try layouts over processes: the same training by one process and by two, laid out in each way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.train.layout_runs import Layout, Measures, ShortRun, alone, run_layout
from broadsheet.train.megatron_530b import ParallelPlanner
from broadsheet.training.layouts.crew import Crew
from broadsheet.training.layouts.pipeline import bubble
from broadsheet.training.scratch import TokenBlocks, joined, tokenizer
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import Curve, TrialResult
from broadsheet.trial.verdicts import Comparison

ONE, COPIES, ZERO, SHARDED, SPLIT = "one process", "copies", "optimizer sharded", "weights sharded", "layers split"
DEVIATION, MEMORY, WAITING, OFF, LOSS = "deviation", "memory", "bubble", "bubble off the formula", "loss"
STAGES = 2
MICRO_BATCHES = (1, 2, 4, 8)
SAME = 1e-4  # nats a token, over the steps of a training: the card of every mesh
NEAR = 0.05  # of a step
# Two stages are even: three layers, and two with the head, whose matrix is as large as those of a layer.
MODEL: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
VOCABULARY = 1024


def stages(micro_batches: int) -> str:
    """The arm of so many micro-batches."""
    return f"stages, m = {micro_batches}"


@dataclass
class MegatronTrial(Trial):
    """Does a training over two processes do what one does, in less memory, and wait as long as the formula says?

    Each item is a training from its own first weights on its own texts, of a few steps. Every arm makes all of them:
    one process; two, with copies of all; with the optimizer's state or all weights sharded; with layers split; with two
    stages of layers and several numbers of micro-batches. Two stages that work in turns need two cores.
    """

    paper: ClassVar[str] = "megatron_530b"
    title: ClassVar[str] = "Megatron-Turing NLG 530B: one training, laid out in several ways"
    lacks: ClassVar[tuple[str, ...]] = ("model", "device", "dtype", "method", "budget")

    trainings: int = option(12, "Each from its own weights, on its own texts.", quick=6, least=1)
    steps: int = option(20, "Of a training.", quick=3, least=2)
    batch: int = option(16, "Rows of a step; a multiple of 8.", quick=8, least=8)
    length: int = option(256, "Tokens of a row.", quick=64, least=8)
    lr: float = option(3e-3, "Learning rate of AdamW.", least=0)
    text_field: str = option("text", "The field of the data that holds the text.")

    def question(self) -> str:
        return (
            f"Trained on {self.data}, does a model over two processes learn what it does in one, in less memory, and "
            "do its stages wait as the formula says?"
        )

    def run(self) -> TrialResult:
        if self.batch % max(MICRO_BATCHES):
            raise InputError(f"got --batch {self.batch}; expected a multiple of {max(MICRO_BATCHES)}")
        with Crew(STAGES) as self._crew:
            return super().run()

    def facts(self) -> dict[str, Any]:
        return {}  # no model is loaded

    @property
    def model_name(self) -> str:
        model = ShortRun(self._config, torch.zeros(1, 1, 1), self.lr).model(0)
        return f"a Llama of {model.num_parameters():,} weights, from nothing"

    def tasks(self) -> list[EvalTask]:
        wanted = self.trainings * self.steps * self.batch * self.length
        corpus = corpora.load(self.data, text_field=self.text_field)
        texts = [document.text for document in corpus.take(max(500, wanted // 100), self.seed)]
        by = tokenizer(texts, VOCABULARY)
        blocks = TokenBlocks(joined(texts, by), self.length).ids
        shape = (self.trainings, self.steps, self.batch, self.length)
        places = torch.arange(self.trainings * self.steps * self.batch) % len(blocks)
        self._rows, self._described = blocks[places].view(shape), corpus.describe()
        self._reference: dict[int, list[float]] = {}
        items = list(range(self.trainings))
        metrics = [
            Metric(DEVIATION, higher_is_better=False, unit="nats"),
            Metric(MEMORY, higher_is_better=False, unit="MB", scale="ratio"),
            Metric(WAITING, higher_is_better=False),
            Metric(OFF, higher_is_better=False),
            Metric(LOSS, higher_is_better=False, unit="nats/token"),
        ]
        about = (
            f"{self.trainings} of {self.steps} steps of {self.batch} × {self.length} tokens, each from other weights"
        )
        mark = fingerprint(self._rows.flatten().tolist())
        return [
            EvalTask(
                "trainings", items, metrics, self._arm, item="training", about=about, fingerprint=mark, block_size=1
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        return {
            "data": self._described,
            "optimizer": f"AdamW, learning rate {self.lr:g}, betas 0.9 and 0.95, weight decay 0.1, as the paper's",
            "processes": f"{STAGES} of a gloo group, a thread each, on {_cores()} cores",
        }

    def arms(self) -> list[ModelArm]:
        ours = ParallelPlanner.paper
        arms = {
            ONE: (Layout("one"), "baseline", "all of it", ""),
            SPLIT: (Layout("split"), None, "each layer in two parts (TP)", ours),
            SHARDED: (Layout("sharded"), None, "weights, gradients and optimizer in two shares (ZeRO-3: FSDP2)", ours),
            stages(MICRO_BATCHES[1]): (Layout("stages", MICRO_BATCHES[1]), None, "1F1B, as few as fill them", ours),
            stages(MICRO_BATCHES[-1]): (Layout("stages", MICRO_BATCHES[-1]), None, "1F1B", ours),
        }
        if not self.quick:
            arms |= {
                COPIES: (Layout("copies"), "sibling", "each reads half of the rows (DDP)", ""),
                ZERO: (Layout("zero"), None, "copies, whose optimizer is in two shares (ZeRO-1)", ours),
                stages(1): (Layout("stages", 1), "sibling", "one after the other: the plain way", ""),
                stages(4): (Layout("stages", 4), None, "1F1B", ours),
            }
        return [
            ModelArm(name, lambda layout=layout: layout, role, about, paper)  # type: ignore[misc, arg-type]
            for name, (layout, role, about, paper) in arms.items()
        ]

    def claims(self) -> list[Claim]:
        few, many = MICRO_BATCHES[1], MICRO_BATCHES[-1]
        laid_out = [SPLIT, SHARDED, stages(many)] + [ZERO] * (not self.quick)
        least = {SPLIT: 1.5, SHARDED: 1.5, stages(many): 1.5, ZERO: 1.2}
        claims = [
            Claim(MEMORY, ONE, name, "a GPU holds a part of the model (section 2)", least=least[name])
            for name in laid_out
        ]
        claims += [
            Claim(DEVIATION, ONE, name, "a layout changes where a training computes, and not what", margin=SAME)
            for name in laid_out
        ]
        saved = bubble(STAGES, few) - bubble(STAGES, many)
        return [
            *claims,
            Claim(WAITING, stages(few), stages(many), "more micro-batches wait less", effect=saved),
            Claim(OFF, ONE, stages(many), "stages wait for (p − 1) / (m + p − 1) of a step", margin=NEAR),
        ]

    def figures(self, outcome: Outcome) -> list[Curve]:
        done = [m for m in MICRO_BATCHES if stages(m) in outcome.usable]
        measured = [outcome.usable[stages(m)].values[WAITING] for m in done]
        name = "two stages"
        lines: dict[str, list[float | None]] = {
            name: [each.estimate for each in measured],
            "(p − 1) / (m + p − 1)": [bubble(STAGES, m) for m in done],
        }
        low: dict[str, list[float | None]] = {name: [each.low for each in measured]}
        high: dict[str, list[float | None]] = {name: [each.high for each in measured]}
        x = [float(m) for m in done]
        return [Curve("How long stages wait", "micro-batches", "share of a step", x, lines, low, high, log_x=True)]

    def notes(self, outcome: Outcome) -> list[str]:
        told = ["Memory is counted: bytes of weights, gradients and AdamW's two moments in the fullest process."]
        if _cores() < STAGES:
            told.append(
                f"This ran on {_cores()} core: two stages cannot work at once, and how long they wait says nothing."
            )
        return told

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if claim.metric in (WAITING, OFF):
            return (
                "Two processes share a processor, its caches and whatever else runs on it, and a micro-batch takes "
                "milliseconds, of which Python's own part cannot be told apart; the paper's takes seconds on GPUs of "
                "their own."
            )
        return ""

    # An arm

    @property
    def _config(self) -> dict[str, Any]:
        return {**MODEL, "vocab_size": VOCABULARY, "max_position_embeddings": self.length}

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[int]) -> Measured:
            return self._measured(lazy(), block)

        return Arm(arm.name, run, description=arm.description)

    def _measured(self, layout: Layout, block: Sequence[int]) -> Measured:
        """Trainings by a layout, the time of their steps alone."""
        outputs: dict[str, list[float]] = {name: [] for name in (DEVIATION, MEMORY, WAITING, OFF, LOSS)}
        seconds, most = 0.0, 0
        for item in block:
            run = ShortRun(self._config, self._rows[item], self.lr)
            if item not in self._reference:
                self._reference[item] = alone(run, self.seed + item)
            found: list[Measures] = [each for each in self._crew.ask(run_layout, run, layout, self.seed + item) if each]
            [losses, *_] = [each.losses for each in found if each.losses]
            idle = sum(each.idle for each in found) / len(found)
            size = max(each.bytes for each in found)
            apart = [abs(a - b) for a, b in zip(losses, self._reference[item], strict=True)]
            expected = bubble(STAGES, layout.micro_batches) if layout.kind == "stages" else 0.0
            for name, value in {
                DEVIATION: max(apart), MEMORY: size / 1e6, WAITING: idle, OFF: abs(idle - expected), LOSS: losses[-1],
            }.items():  # fmt: skip
                outputs[name].append(value)
            seconds += max(each.seconds for each in found)
            most = max(most, size)
        return Measured(outputs, seconds, most)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
