"""Mixtures of experts (Cai et al., 2024, arXiv:2407.06204, a survey): dense models upcycled, experts kept in use.

Knows: dense models of transformers', router logits of a pass, several processes. Does not know: data, optimizers.

The survey makes no experiments. What is here are methods that it classifies, by their own equations: sparse upcycling
(Komatsuzaki et al., 2023), the balance losses of Switch, GShard and Shazeer et al., and ST-MoE's z-loss; and later
ones: Drop-Upcycling (Nakamura et al., 2025), DeepSeek-V3's selection bias, and balance over the global batch (Qiu et
al., 2025). What a trial claims are those works' claims. The survey's map is `broadsheet map moe_survey`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from broadsheet.console import InputError, within
from broadsheet.seeds import seeded
from broadsheet.train.base import LossMethod
from broadsheet.train.experts import layouts, routing
from broadsheet.train.experts.routers import BIAS, Watch, experts, in_float32, install
from broadsheet.train.experts.routing import Routed
from broadsheet.training.distributed import summed
from broadsheet.training.losses import token_losses

SAVABLE = ("mixtral", "switch", "sigmoid")
ROUTER_STD = 0.02


@dataclass(frozen=True)
class Upcycling:
    """A dense model as a mixture of experts: each feed-forward network E times, with a new router before it.

    With gates that sum to 1 it computes what the dense model does, up to rounding, and goes on from there. Experts come
    apart by the tokens that they get, faster with `noise` or `drop`.

    Use when a dense model is there and its training is to go on with more weights, of which a token uses a few. Train
        all weights: with adapters alone, or a very low rate, experts stay alike (`expert_distances` tells). Where
        memory is short prefer a dense model trained further; a mixture holds all experts.

    Inputs: a Llama, Mistral, Qwen2 or Qwen3 of transformers'. What comes out is a model of transformers' too, saved and
        read as any other: a Mixtral, where all layers get experts and gates sum to 1; for the last `layers` alone, or
        with gates as they are, a Qwen2-MoE whose shared expert has no units (Mixtral has experts in every layer); for a
        sigmoid with a bias a GLM-4-MoE. Of a Qwen3 it is a Qwen3-MoE.
    Relation: `ExpertBalance` is the loss to train it with. `install` puts other routers in.

    Args:
        experts: E (8 in Mixtral 8x7B).
        top_k: k, experts of a token (2).
        router: `"mixtral"`: softmax, the k best, renormalised; `"switch"`: not renormalised, where the down projections
            are multiplied by E / k, which is exact for a router that prefers none; `"sigmoid"`: with a bias that
            `ExpertBalance` moves.
        layers: how many of the last layers get experts; None: all.
        noise: added to each expert, as a share of its weights' standard deviation; 0: step 0 is exact.
        drop: share of each expert's units that begin anew, normal with the mean and deviation of what they replace
            (Drop-Upcycling, 0.5); 0: step 0 is exact.
        seed: of routers, noise and dropped units.

    Raises:
        InputError: k is not 1 to E, a share is none, or the router is none of these.

    Example:
        from broadsheet import models
        from broadsheet.train import Upcycling

        model, tokenizer = models.load("default", dtype="float32")
        mixture = Upcycling(experts=4, top_k=2, layers=2).model(model)
        mixture.save_pretrained("runs/upcycled")  # AutoModelForCausalLM.from_pretrained("runs/upcycled") reads it

    Source: arXiv:2407.06204, dense to sparse; Komatsuzaki et al., arXiv:2212.05055; Nakamura et al., arXiv:2502.19261.
    """

    paper: ClassVar[str] = "moe_survey"

    experts: int = 4
    top_k: int = 2
    router: str = "mixtral"
    layers: int | None = None
    noise: float = 0.0
    drop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, layers=(1, None), noise=(0, None), drop=(0, 1), seed=(0, None))
        if not 1 <= self.top_k <= self.experts or self.experts < 2:
            raise InputError(
                f"got experts {self.experts}, top_k {self.top_k}; expected 2 experts or more, and a top_k of 1 to all"
            )
        if self.router not in SAVABLE:
            raise InputError(f"got the router {self.router!r}; expected one of {', '.join(SAVABLE)}")

    @property
    def exact(self) -> bool:
        """Whether what comes out computes what the dense model does."""
        return self.router != "switch" and not self.noise and not self.drop

    def model(self, dense: Any) -> Any:
        """The mixture, on the dense model's device and in its type; the dense model stays as it is.

        Raises:
            InputError: a model of another kind, one with biases that the mixture has no place for, or of fewer layers.
        """
        from transformers import AutoModelForCausalLM

        config, count = dense.config, getattr(dense.config, "num_hidden_layers", 0)
        first = 0 if self.layers is None else count - self.layers
        of = layouts.layout(config, self.router, whole=not first)
        if first < 0:
            raise InputError(f"got layers {self.layers}; expected at most {count}, which the model has")
        given = layouts.config_of(config, of, self.experts, self.top_k, first, self.router != "switch")
        with seeded(self.seed), warnings.catch_warnings():  # the shared expert's gate stays as it is drawn
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # a shared expert without units
            mixture = AutoModelForCausalLM.from_config(
                given, attn_implementation=config._attn_implementation or "sdpa", dtype=dense.dtype
            )
        if dense.dtype == torch.float64:
            mixture.set_experts_implementation("eager")  # grouped products know no float64
        generator = torch.Generator().manual_seed(self.seed)
        tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
        held = {name: value for name, value in dense.state_dict().items() if name not in tied}
        wanted = {name: value for name, value in mixture.state_dict().items() if name not in tied}
        found = layouts.placed(held, wanted, self.experts)
        for name, value in found.items():
            if name.endswith("mlp.gate.weight"):
                value.copy_(torch.empty(value.shape).normal_(0, ROUTER_STD, generator=generator))
        mixture.load_state_dict(found, strict=not tied)
        self._part(mixture, generator)
        mixture.generation_config = dense.generation_config
        return mixture.to(dense.device).train(dense.training)

    @torch.no_grad()
    def _part(self, mixture: nn.Module, generator: torch.Generator) -> None:
        """What makes experts differ, and the scale of gates that do not sum to 1."""
        for layer in experts(mixture):
            if self.router == "switch":
                layer.down_proj.mul_(self.experts / self.top_k)  # the sum of k gates is k / E at uniform routing
            for e in range(self.experts):
                up, down = layer.gate_up_proj[e], layer.down_proj[e]
                if self.drop:
                    drop_units(up, down, self.drop, generator)
                if self.noise:
                    for each in (up, down):
                        drawn = torch.empty(each.shape).normal_(generator=generator)
                        each.add_(self.noise * each.float().std() * drawn.to(each))


@torch.no_grad()
def drop_units(gate_up: Tensor, down: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Begin a share of an expert's units anew: their rows of the gate and up projections and columns of the down one.

    Each of the three is drawn from a normal distribution with the mean and deviation of what it replaces.

    Args:
        gate_up: (2F, d), the gate's rows first; changed in place, as is down: (d, F).
        share: of the F units, rounded down.

    Returns:
        their places, sorted.
    """
    width = down.shape[1]
    places = torch.randperm(width, generator=generator)[: int(share * width)].sort().values
    at = places.to(down.device)
    if not len(places):
        return places
    for old, put in (
        (gate_up[at], lambda new: gate_up.index_copy_(0, at, new)),
        (gate_up[width + at], lambda new: gate_up.index_copy_(0, width + at, new)),
        (down[:, at], lambda new: down.index_copy_(1, at, new)),
    ):
        drawn = torch.empty(old.shape).normal_(generator=generator).to(old)
        put(old.float().mean().to(old) + old.float().std(correction=0).to(old) * drawn)
    return places


@torch.no_grad()
def expert_distances(model: nn.Module) -> Tensor:
    """(layers, E, E) ‖W_i − W_j‖ over the mean ‖W‖ of the layer's experts: 0 as they are made, √2 for unrelated."""
    found = []
    for layer in experts(model):
        parts = [each.detach().flatten(1).float() for each in (layer.gate_up_proj, layer.down_proj)]
        flat = torch.cat(parts, 1)
        apart = torch.stack(
            [(flat - one).norm(dim=1) for one in flat]
        )  # a pair's own difference: nearly equal ones too
        found.append(apart / flat.norm(dim=1).mean())
    return torch.stack(found).cpu()


@dataclass
class ExpertBalance(LossMethod):
    """The loss of a mixture of experts: that of tokens, and what keeps all experts in use.

    Without it a router that prefers an expert a little trains that one more, and prefers it more. The balance term is
    taken layer by layer, over the tokens that are none of padding, with the load f of the whole step: of all processes,
    and of the batches that are accumulated so far.

    Use when a mixture of experts is trained, from nothing or upcycled. Prefer the `"sigmoid"` router, whose bias moves
        without a gradient, and a small `balance`, where the term costs loss.

    Inputs: any batch, with an `attention_mask` where there is padding; a model of transformers' whose routers give
        logits (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, GLM-4-MoE), or `install`'s. The model's own auxiliary loss is not
        added beside: it comes with labels alone, which a `compute_loss_func` takes away.
    Relation: transformers' own auxiliary loss pools the tokens of all layers before f and P are multiplied, so that
        layers may make up for one another; `hf_compat` does so too. `Upcycling` makes the model.

    Args:
        balance: weight of E Σ f P (0.01 in Switch and ST-MoE, 0.001 in Mixtral). Where all experts are chosen alike the
            term is k, not 1: an auxiliary loss of 2 is perfect for k = 2.
        z: weight of the mean of logsumexp² (0.001 in ST-MoE).
        importance: weight of CV² of the gates' sums, of this process's batch (0.1 in Shazeer et al.).
        speed: by which the bias of sigmoid routers moves after each step (0.001 in DeepSeek-V3).
        hf_compat: one term for all layers together, as transformers compute it.
        step_load: f of all processes and batches of the step; else of the batch at hand alone.

    Attributes:
        load: (layers, E) how many tokens of the last step chose each expert.
        terms: values of the last batch, by name: `balance`, `z`, `importance`.

    Raises:
        InputError: a weight is below 0; the model has no routers.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet.train import ExpertBalance, Upcycling
        from broadsheet.training.scratch import TokenBlocks, joined, size, tokenizer

        texts = ["Some text of yours. " * 500]
        by = tokenizer(texts, 300)
        rows = TokenBlocks(joined(texts, by), 64)
        mixture = Upcycling(experts=4, top_k=2).model(size("0.4M").model(len(by), 64, seed=0))
        args = TrainingArguments("runs/mixture", max_steps=4, per_device_train_batch_size=8, report_to=[])
        method = ExpertBalance(balance=0.01)
        Trainer(mixture, args, train_dataset=rows, compute_loss_func=method, callbacks=[method]).train()
        print(method.entropy)

    Source: arXiv:2407.06204, gating and auxiliary losses; Switch, arXiv:2101.03961, Eq. 4 to 6; ST-MoE,
        arXiv:2202.08906; DeepSeek-V3, arXiv:2412.19437; f over the global batch, arXiv:2501.11873.
    """

    paper: ClassVar[str] = "moe_survey"

    balance: float = 0.01
    z: float = 0.001
    importance: float = 0.0
    speed: float = routing.SPEED
    hf_compat: bool = False
    step_load: bool = True

    load: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    terms: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _seen: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # (layers, E + 1), of this step
    _watch: Watch | None = field(default=None, init=False, repr=False, compare=False)
    _undo: ExitStack = field(default_factory=ExitStack, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        within(self, balance=(0, None), z=(0, None), importance=(0, None), speed=(0, None))

    @property
    def entropy(self) -> float:
        """Of the last step's load, as a share of what it is where all experts have as much; the mean over layers."""
        if self.load is None:
            return float("nan")
        return float(routing.entropy(self.load).mean() / torch.tensor(float(self.load.shape[1])).log())

    def attach(self, model: Any) -> None:
        self.detach()
        self._watch = Watch(model)
        self._undo.callback(self._watch.remove)
        self._undo.enter_context(in_float32(self._watch.routers))
        self._seen = None

    def detach(self) -> None:
        self._undo.close()
        self._watch = None

    def loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
        losses, counts = token_losses(logits, labels)
        count = int(counts.sum())
        # A mean over the batch, counted as its tokens are: batches of a step weigh by their tokens in both parts.
        return losses.sum() + self.extra() * count, count

    def extra(self) -> Tensor:
        """What is added to the mean loss of tokens, for the pass that was last.

        Raises:
            InputError: no pass was seen, or its logits lead to no gradient.
        """
        passes = [] if self._watch is None else self._watch.passes
        if self._watch is None or not passes:
            raise InputError(
                "no router was seen in this pass; put the method among the callbacks too, and call train()"
            )
        asked = self._watch.asked
        if not any(each.logits.requires_grad for each in passes):
            raise InputError(
                "router logits have no gradient: with activation checkpointing, use "
                "activation_checkpointing_kwargs={'use_reentrant': False}"
            )
        fractions = self._fractions(passes, asked)
        probs = torch.stack([routing.mean_probs(each.probs, asked) for each in passes])
        found = {"balance": balance_over_layers(fractions, probs, self.hf_compat)}
        found["z"] = torch.stack([routing.z_loss(each.logits, asked) for each in passes]).mean()
        if self.importance:
            gates = [routing.spread(each, asked) for each in passes]
            found["importance"] = torch.stack([routing.importance_loss(each) for each in gates]).mean()
        self.terms = {name: float(value.detach()) for name, value in found.items()}
        return torch.stack([getattr(self, name) * value for name, value in found.items()]).sum()

    def after_step(self) -> None:
        """Move the biases that select by the load of the step, and begin to count anew."""
        if self._seen is None or self._watch is None:
            return
        self.load, self._seen = self._seen[:, :-1], None
        for each, load in zip(self._watch.routers, self.load, strict=True):
            if (bias := getattr(each, BIAS, None)) is not None and self.speed:
                with torch.no_grad():
                    bias.copy_(routing.moved(bias, load.to(bias), self.speed))

    def _fractions(self, passes: list[Routed], asked: Tensor | None) -> Tensor:
        """(layers, E) f; the tokens that chose each, and in the last place all tokens, are summed over the step."""
        own = torch.stack([routing.counts(each.indices, each.probs.shape[1], asked) for each in passes])
        tokens = float(len(passes[0].indices)) if asked is None else asked.sum().float()
        batch = torch.cat([own, own.new_ones(len(own), 1) * tokens], 1)
        everywhere = summed(batch)
        self._seen = everywhere if self._seen is None else self._seen + everywhere
        used = self._seen if self.step_load else batch
        return used[:, :-1] / used[:, -1:].clamp(min=1)


def balance_over_layers(fractions: Tensor, probs: Tensor, hf_compat: bool = False) -> Tensor:
    """The mean over layers of E Σ f P; with `hf_compat`, of f and P pooled over layers first.

    Args:
        fractions, probs: (layers, E).
    """
    if hf_compat:
        return routing.balance_loss(fractions.mean(0), probs.mean(0))
    return torch.stack([routing.balance_loss(f, p) for f, p in zip(fractions, probs, strict=True)]).mean()


def pooled_and_by_layer(logits: list[Tensor], k: int, asked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The balance loss as transformers pool it, and (layers,) that of each layer, from logits (T, E) a layer."""
    passes = [routing.switch(each, k) for each in logits]
    count = len(passes[0].indices) if asked is None else asked.sum()
    fractions = torch.stack([routing.counts(p.indices, p.probs.shape[1], asked) / count for p in passes])
    probs = torch.stack([routing.mean_probs(p.probs, asked) for p in passes])
    by_layer = torch.stack([routing.balance_loss(f, p) for f, p in zip(fractions, probs, strict=True)])
    return balance_over_layers(fractions, probs, hf_compat=True), by_layer


__all__ = ["ExpertBalance", "Upcycling", "drop_units", "expert_distances", "install"]
