"""Try mixtures of experts: a dense model trained further, or upcycled first, with and without a balance loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from broadsheet.options import option
from broadsheet.train.base import LossMethod
from broadsheet.train.experts.routers import active_weights, loads
from broadsheet.train.experts.routing import entropy
from broadsheet.train.moe_survey import ExpertBalance, Upcycling, expert_distances
from broadsheet.train.trials.lab import LabTrial
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.engine import Metric
from broadsheet.trial.trained.laboratory import LEAST, LOSS, LOSS_METRIC, LabArm
from broadsheet.trial.verdicts import Comparison

DENSE, OURS, WIDER = "dense", "upcycled", "wider dense"
FREE, TIMED = "upcycled, no balance loss", "upcycled, in the dense run's time"
USED = "experts in use"
FIRST_RATE = 3e-3  # of the first training
LEAST_USED = 0.1  # of an expert: less would not matter


@dataclass
class MoESurveyTrial(LabTrial):
    """Does a dense model learn more from the same text once its feed-forward networks are experts?

    A dense model is trained from nothing, at a rate that does not fall; each arm goes on from there, on as many tokens
    again, at a rate of its own that falls to 0. One stays dense. One becomes a mixture of experts that computes the
    same at its first step, trained with a balance loss; beside it the same without one, and the same for as long as the
    dense arm takes. A dense model whose feed-forward networks are k times as wide, and compute the same at first too,
    is a control: it spends as much on each token as k experts do. Measured are the loss of held-out documents, and how
    many experts the held-out tokens use. The survey makes no experiments: the claims are of works that it sorts.
    """

    paper: ClassVar[str] = "moe_survey"
    title: ClassVar[str] = "Mixtures of experts: a dense model upcycled, beside the same model trained further"

    experts: int = option(4, "Of each layer.", least=2)
    top_k: int = option(2, "Experts of a token.", least=1)

    def question(self) -> str:
        return (
            f"Trained further on {self.data}, does a model whose feed-forward networks became {self.experts} experts, "
            f"{self.top_k} for a token, learn more than it does as it is?"
        )

    def lab(self) -> Sequence[LabArm]:
        balance = self.fields(ExpertBalance)

        def balanced(seed: int) -> LossMethod:
            return ExpertBalance(**balance)

        def free(seed: int) -> LossMethod:
            return ExpertBalance(**{**balance, "balance": 0.0, "importance": 0.0})

        ours = Upcycling.paper
        few = f"{self.experts} experts, {self.top_k} for a token"
        arms = [
            LabArm(DENSE, about="as it is", start=self.begun),
            LabArm(OURS, balanced, few, ours, start=self._mixture),
            LabArm(FREE, free, "but for the balance loss the same", "", "sibling", rate_of=OURS, start=self._mixture),
        ]
        if not self.quick:
            arms += [
                LabArm(WIDER, about=f"{self.top_k} times as wide", role="sibling", start=self._widened),
                LabArm(
                    TIMED, balanced, "as many steps as fit", ours, rate_of=OURS, start=self._mixture, in_time_of=DENSE
                ),
            ]
        return arms

    def claims(self) -> list[Claim]:
        claims = [
            Claim(LOSS, DENSE, OURS, "at equal tokens more is learnt (sparse upcycling)", least=LEAST),
            Claim(USED, FREE, OURS, "the balance loss keeps experts in use (Switch, GShard)", least=LEAST_USED),
        ]
        if not self.quick:
            claims += [
                Claim(LOSS, DENSE, TIMED, "and in equal time (sparse upcycling)", least=LEAST),
                Claim(LOSS, WIDER, OURS, "as much spent on each token does not explain it", kind="control"),
            ]
        return claims

    # What arms begin with

    def begun(self, seed: int) -> Any:
        """The dense model of that seed, trained once."""
        folder: Path = self.folder(f"first, {seed}")
        if not (folder / "training.json").exists():
            rate = self.lr or FIRST_RATE
            done = self.fitted(
                self.new(seed), self.plain_rows, LossMethod(), folder, self.steps, rate, seed, "constant"
            )
            if not done.finished:
                raise KeyboardInterrupt
        return self._load(folder).train()

    def _mixture(self, seed: int) -> Any:
        return self._upcycling(seed).model(self.begun(seed))

    def _widened(self, seed: int) -> Any:
        return widened(self.begun(seed), self.top_k, seed)

    def _upcycling(self, seed: int) -> Upcycling:
        given = {"experts": self.experts, "top_k": self.top_k}
        return self.configured(Upcycling, **given, seed=seed)

    def check(self) -> None:
        super().check()
        self._upcycling(self.seed)

    def paced(self, arm: LabArm) -> Any:
        dense = self.new(self.seed)
        if arm.name in (OURS, FREE, TIMED):
            return self._upcycling(self.seed).model(dense)
        return widened(dense, self.top_k, self.seed) if arm.name == WIDER else dense

    # What is measured

    def measured(self) -> list[Metric]:
        bounds = (1.0, float(self.experts))
        layers = self.new(0).config.num_hidden_layers
        used = Metric(USED, of="load", statistic=experts_in_use(layers), bounds=bounds, unit="experts")
        return [LOSS_METRIC, used]

    def losses(self, model: Any, asked: Sequence[str]) -> dict[str, np.ndarray]:
        return {**super().losses(model, asked), "load": self._load_of(model, asked)}

    def _load_of(self, model: Any, texts: Sequence[str]) -> np.ndarray:
        """(texts, layers · E) the first tokens of each text, a row's at most, by the experts they chose; a dense layer
        is one expert."""
        layers = model.config.num_hidden_layers
        given = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=True, max_length=self.length, padding=True,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        if not hasattr(model.config, "num_experts_per_tok"):
            whole = np.zeros((len(texts), layers, self.experts))
            whole[..., 0] = given["attention_mask"].sum(1, keepdim=True).numpy()
            return whole.reshape(len(texts), -1)
        rows = [{name: given[name][i] for name in ("input_ids", "attention_mask")} for i in range(len(texts))]
        return loads(model, rows).flatten(1).double().numpy()

    def setting(self) -> Mapping[str, Any]:
        active, total = active_weights(self._upcycling(self.seed).model(self.new(0)))
        dense = sum(p.numel() for p in self.new(0).parameters())
        return {
            **super().setting(),
            "before": f"{self.steps} steps of the dense model, at a constant rate of {self.lr or FIRST_RATE:g}; then "
            "the arms' own steps",
            "experts": f"{self.experts}, {self.top_k} for a token, in every layer: {total:,} weights, {active:,} of "
            f"them for a token; dense: {dense:,}",
        }

    def notes(self, outcome: Outcome) -> list[str]:
        told = []
        for name in (OURS, FREE):
            folder = self.folder(name)
            if name in outcome.usable and (folder / "training.json").exists():
                model = self._load(folder)
                apart = expert_distances(model)
                apart = apart.sum((1, 2)) / (self.experts * (self.experts - 1))
                load = self._load_of(model, self.held.held_out).sum(0).reshape(len(apart), -1)
                share = entropy(torch.from_numpy(load)) / np.log(self.experts)
                told.append(
                    f"{name}: by layer, the load on held-out texts has {_each(share, '.0%')} of the entropy of an even "
                    f"one, and experts are {_each(apart, '.2f')} of their norm apart."
                )
        return told

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Sparse upcycling shows its gains on models of 248M weights and more with 32 experts, for about half of "
            f"what the first training cost. Here {self.experts} experts read "
            f"{self.steps * self.batch * self.length:,} tokens, most of them not for the first time."
        )


def widened(dense: Any, times: int, seed: int) -> Any:
    """A Llama whose feed-forward networks are so many times as wide and compute the same: each unit that often, its
    down projection shared out by random shares, so that the copies learn different things.

    Args:
        dense: a Llama; stays as it is.
    """
    from transformers import LlamaForCausalLM

    config = type(dense.config).from_dict(
        {**dense.config.to_dict(), "intermediate_size": times * dense.config.intermediate_size}
    )
    config._attn_implementation = dense.config._attn_implementation
    with torch.random.fork_rng():
        made = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    for name, value in dense.state_dict().items():
        if name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")):
            state[name] = value.repeat(times, 1)
        elif name.endswith("mlp.down_proj.weight"):
            shares = torch.rand(times, value.shape[1], generator=generator) + 0.5
            shares = (shares / shares.sum(0)).to(value)
            state[name] = torch.cat([value * each for each in shares], 1)
    made.load_state_dict(state)
    return made.to(dense.device).train(dense.training)


def experts_in_use(layers: int) -> Any:
    """A metric's statistic: e to the entropy of the load of all items together, from 1 to E; the mean over layers.

    Its values are (n, layers · E) counts.
    """

    def statistic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        load = (weights @ values).reshape(len(weights), layers, -1)
        found: np.ndarray = entropy(torch.from_numpy(load)).exp().mean(-1).numpy()
        return found

    return statistic


def _each(values: torch.Tensor, form: str) -> str:
    return ", ".join(format(float(value), form).replace("%", " %") for value in values)
