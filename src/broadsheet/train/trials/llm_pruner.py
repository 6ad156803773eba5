"""Try LLM-Pruner: a model without what matters least to it, beside those that lose as much by other rules."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.models import adapters, surgery
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.train.base import LossMethod, MethodObjective
from broadsheet.train.llm_pruner import LLMPruner, Pruned, calibration, multiply_adds, removed
from broadsheet.training.fit import fit
from broadsheet.training.scratch import SplitTexts, TokenBlocks, apart, document_losses, joined
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Example
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.trained.laboratory import LOSS, LOSS_METRIC
from broadsheet.trial.verdicts import Comparison

DENSE, TUNED = "dense", "dense, tuned"
CUT, OURS = "Taylor", "Taylor, recovered"
RANDOM, RANDOM_TUNED, SIZE = "random", "random, recovered", "L2"
VECTOR, BOTH_ORDERS, PEER = "Vector", "Element²", "Torch-Pruning"
SECONDS = Metric("seconds a token", higher_is_better=False, scale="ratio", unit="s")
RATES = (1e-4, 3e-4, 1e-3)  # of AdamW, that each recovery's is chosen from
_TUNING = 16  # documents
_READ = 800  # characters of a document that are asked
_PROMPT = 16  # tokens


@dataclass
class LLMPrunerTrial(TrainedTrial):
    """What does a model lose that loses a quarter of its MLP channels, by which rule, and how much comes back?

    All are pruned alike in each layer, so that they have as many weights: by the loss's gradients on ten short texts,
    by the weights' sizes, and at random. The dense model, the one that is pruned by gradients, and the one pruned at
    random are then trained as long by the same small LoRA, each at its own best rate. Measured are the loss of held-out
    documents, and the time to read and to write. With few key-value heads a quarter of them is none: then only MLPs are
    smaller.
    """

    paper: ClassVar[str] = "llm_pruner"
    title: ClassVar[str] = "LLM-Pruner: channels and heads that matter least are removed, and the model is repaired"
    of_training: ClassVar[tuple[str, ...]] = ()

    texts: int = option(100, "Held-out documents, of which the first 800 characters are asked.", quick=12, least=3)
    ratio: float = option(0.25, "Share of each layer's units that is removed.", least=0, most=0.95)
    samples: int = option(10, "Texts that gradients are taken of.", quick=4, least=1)
    window: int = option(128, "Tokens of each of them.", quick=64, least=2)
    steps: int = option(100, "Of the LoRA training that repairs a model.", quick=4, least=3)
    batch: int = option(8, "Rows of a step.", quick=2, least=1)
    length: int = option(128, "Tokens of a row.", quick=64, least=8)
    prompts: int = option(20, "Prompts that are gone on with, for the time it takes.", quick=4, least=2)
    lr: float | None = option(
        None,
        f"The highest learning rate; by default {best_of(RATES)} after a third of the steps, for each arm that is "
        "trained.",
        quick=3e-4,
    )
    text_field: str = option("text", "The field of the data that holds the text.")

    def check(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"got --lr {self.lr:g}; expected more than 0")

    def question(self) -> str:
        return (
            f"Of {self.model_name} {self.ratio:.0%} of each layer's units are removed: which rule costs the least, and "
            f"how much does a short training on {self.data} bring back?"
        ).replace("%", " %")

    # What is asked

    def tasks(self) -> list[EvalTask]:
        wanted = max(1_000, 4 * self.texts)
        self._corpus = corpora.load(self.data, text_field=self.text_field)
        self.held: SplitTexts = apart(self._corpus.take(wanted, self.seed), self.texts, _TUNING, self.seed)
        self._tokenizer = self.loaded.tokenizer
        self._blocks = TokenBlocks(joined(self.held.train, self._tokenizer), self.length)
        self._sizes = self._measure()
        texts = [text[:_READ] for text in self.held.held_out]
        prompts = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            EvalTask(
                "held out",
                texts,
                [LOSS_METRIC],
                self._reader,
                item="text",
                about=f"{len(texts)} documents, {_READ} characters of each; {self.held.dropped} like them are not "
                "learnt from",
                fingerprint=self.held.fingerprint,
                block_size=max(1, len(texts) // 10),
                examples=self._examples,
            ),
            EvalTask(
                "writing",
                [row[:_PROMPT] for row in prompts if len(row) >= _PROMPT][: self.prompts],
                [SECONDS],
                self._writer,
                item="prompt",
                about=f"32 tokens after each of {self.prompts} prompts, all arms in turns",
                fingerprint=fingerprint(prompts),
                block_size=max(1, self.prompts // 10),
            ),
        ]

    def setting(self) -> Mapping[str, Any]:
        done, work = self._sizes
        return {
            "pruned": str(done),
            "work": f"{work[0] / 1e9:.1f} → {work[1] / 1e9:.1f} billion multiply-adds for {self.length} tokens",
            "recovery": f"{self.steps} steps of {self.batch} × {self.length} tokens, LoRA of rank 8 on all linear "
            "layers, learning rate " + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
            "data": self._corpus.describe(),
        }

    # Arms

    def arms(self) -> list[ModelArm]:
        own = self.method_of().criterion  # the paper's, whatever --method says of it
        ways: dict[str, str | None] = {TUNED: None, OURS: own}
        if not self.quick:
            ways[RANDOM_TUNED] = "random"
        self._rates = {name: self._rate(name, criterion) for name, criterion in ways.items()}
        ours = LLMPruner.paper
        arms = [
            self._recovered(TUNED, None, "baseline", "the same training, of the whole model"),
            self._recovered(OURS, own, None, "without what matters least to the loss, trained", ours),
            self._pruned(CUT, own, None, "as it is, not trained", ours, seeds=True),
            self._pruned(RANDOM, "random", "sibling", "as many units, drawn", seeds=True),
            self._pruned(SIZE, "l2", "sibling", "those of small weights"),
        ]
        if not self.quick:
            arms += [
                self._recovered(RANDOM_TUNED, "random", "sibling", "drawn, trained"),
                ModelArm(DENSE, self._model, "sibling", "the model as it is"),
                self._pruned(VECTOR, "vectorize", None, "whole vectors are scored", ours),
                self._pruned(BOTH_ORDERS, "param_mix", None, "to the second order", ours),
                ModelArm(PEER, self._by_peer, "peer", "its graph and Taylor score, MLPs alone"),
            ]
        return arms

    def claims(self) -> list[Claim]:
        claims = [
            Claim(LOSS, SIZE, CUT, "gradients tell what matters, sizes do not (perplexity 19.09 against 582.41)"),
            Claim(LOSS, RANDOM, CUT, "and better than chance (19.09 against 27.51)", least=0.02),
            Claim(LOSS, CUT, OURS, "a short LoRA training repairs (19.09 to 17.58)", least=0.02),
        ]
        if not self.quick:
            faster = "it is faster (69.3 s become 58.6 s with 20 % fewer weights)"
            claims += [
                Claim(LOSS, RANDOM_TUNED, OURS, "and the better rule stays better when repaired", least=0.02),
                Claim("texts/s", TUNED, OURS, faster, effect=1.18),
                Claim(SECONDS.name, TUNED, OURS, faster, effect=1.18),
                # From perplexity 12.62 to 17.37: 0.32 nats a token, about 0.1 a byte.
                Claim(LOSS, TUNED, OURS, "and comes close to the whole (12.62 against 17.37)", margin=0.1),
            ]
        return claims

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 7B weights, of which 20 % go, and are repaired with 50,000 instructions in three hours; "
            f"here {self.steps * self.batch * self.length:,} tokens repair "
            f"{1 - self._sizes[0].after / self._sizes[0].before:.0%} of a small one.".replace("%", " %")
        )

    def method_of(self, **given: Any) -> LLMPruner:
        """The method, as `--method` and the options say."""
        return self.configured(LLMPruner, **{"ratio": self.ratio, "kinds": ("mlp", "attention"), **given})

    def _pruner(self, criterion: str, seed: int) -> LLMPruner:
        return replace(self.method_of(), criterion=criterion, seed=seed)  # type: ignore[arg-type]

    def _pruned(
        self, name: str, criterion: str, role: Any, about: str, paper: str = "", *, seeds: bool = False
    ) -> ModelArm:
        def by_seed(seed: int) -> Callable[[], Any]:
            return partial(self._cut, criterion, seed)

        return ModelArm(name, by_seed(self.seed), role, about, paper, by_seed if seeds else None)

    def _recovered(self, name: str, criterion: str | None, role: Any, about: str, paper: str = "") -> ModelArm:
        def train(seed: int, out: Path) -> TrainOutput:
            return self._train(criterion, seed, self.steps, self._rates[name], out)

        def load(folder: Path) -> Any:
            model = self._cut(criterion, int(read_json(folder / "training.json")["settings"]["seed"]))
            adapters.attach(model, folder, name)
            adapters.merge(model)
            return model.eval()

        return self.trained(name, train, load, role, about, paper)

    def _model(self) -> Any:
        from broadsheet import models

        return models.load(self.model, device=self.device, dtype=self.dtype).model

    def _cut(self, criterion: str | None, seed: int) -> Any:
        """The model without the units that a rule removes; with None the whole one."""
        model = self._model()
        if criterion is not None:
            rows = calibration(self.held.train, self._tokenizer, self.samples, self.window, seed)
            self._pruner(criterion, seed).prune(model, rows)
        return model

    def _train(self, criterion: str | None, seed: int, steps: int, rate: float, out: Path | None, **more: Any) -> Any:
        model = self._cut(criterion, seed)
        done = fit(
            model, self._blocks, MethodObjective(LossMethod()), out, steps=steps, batch_size=self.batch, method="lora",
            lora_rank=8,  # and α = 16, as the authors set them
            learning_rate=rate, seed=seed, save=lambda folder: adapters.save(model, folder, str(self.model)), **more,
        )  # fmt: skip
        return done if out else model

    def _rate(self, name: str, criterion: str | None) -> float:
        """The learning rate given, or the one that leaves the lowest loss on the tuning documents."""
        if self.lr is not None:
            return self.lr

        def score(rate: float) -> float:
            model = self._train(criterion, self.seed, max(3, self.steps // 3), rate, None)
            return -float(self._losses(model, [text[:_READ] for text in self.held.tuning]).mean())

        on = f"{len(self.held.tuning)} other documents, after a third of it"
        return self.tuned(name, RATES, score, on=on, open_ended=True)

    def _by_peer(self) -> Any:
        """The model as Torch-Pruning makes it: its graph finds the MLPs' groups, its Taylor score the units."""
        try:
            import torch_pruning as tp
        except ImportError:
            raise InputError("Torch-Pruning is not installed: pip install 'broadsheet[train]'") from None

        model = self._model()
        rows = calibration(self.held.train, self._tokenizer, self.samples, self.window, self.seed).to(model.device)
        model.requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of norms, which no MLP's group has
            graph = tp.DependencyGraph().build_dependency(model, rows[:1], output_transform=lambda out: out.logits)
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        for layer in model.model.layers:
            channels = list(range(layer.mlp.gate_proj.out_features))
            group = graph.get_pruning_group(layer.mlp.gate_proj, tp.prune_linear_out_channels, channels)
            scores: Tensor = tp.importance.GroupTaylorImportance()(group)
            away = scores.argsort()[: removed(len(channels), self.ratio)].tolist()
            graph.get_pruning_group(layer.mlp.gate_proj, tp.prune_linear_out_channels, away).prune()
        model.zero_grad(set_to_none=True)
        surgery.conform(model)
        return model.requires_grad_(False)

    # Measuring

    def _measure(self) -> tuple[Pruned, tuple[int, int]]:
        """What a removal leaves, and the work of reading before and after."""
        model = self.loaded.model
        before = multiply_adds(model, self.length)
        done = self._pruner("l2", self.seed).prune(model)
        after = multiply_adds(model, self.length)
        self.release()
        return done, (before, after)

    def _losses(self, model: Any, texts: Sequence[str]) -> np.ndarray:
        return document_losses(model, self._tokenizer, texts, self.length)

    def _reader(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[str]) -> dict[str, Any]:
            return {LOSS: self._losses(lazy(), block)}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _writer(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """One prompt at a time, as a reader at a keyboard waits for it."""

        @torch.no_grad()
        def run(block: Sequence[list[int]]) -> dict[str, Any]:
            model, seconds = lazy(), []
            for row in block:
                ids = torch.tensor([row], device=model.device)
                begin = time.perf_counter()
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, min_new_tokens=32, do_sample=False
                )
                seconds.append((time.perf_counter() - begin) / 32)
            return {SECONDS.name: np.array(seconds)}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _examples(self, texts: Sequence[str], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Beginnings of held-out documents, and what each arm makes of them."""
        losses = [{name: float(arm.samples[LOSS][i]) for name, arm in arms.items()} for i in range(len(texts))]
        return [
            Example(excerpt(texts[i]), {name: f"{loss:.3f} nats a byte" for name, loss in losses[i].items()})
            for i in most_apart(losses, 3)
        ]
