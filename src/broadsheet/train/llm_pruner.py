"""LLM-Pruner (Ma, Fang & Wang, 2023, arXiv:2305.11627): units of weights scored by gradients, removed, and repaired.

Knows: weights, their gradients on a few texts, the units that weights belong to. Does not know: files, training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from broadsheet.console import InputError, within
from broadsheet.models import surgery
from broadsheet.models.surgery import ATTENTION, MLP, Block, Part

Criterion = Literal["vectorize", "param_first", "param_second", "param_mix", "l1", "l2", "random"]
CRITERIA: tuple[str, ...] = ("vectorize", "param_first", "param_second", "param_mix", "l1", "l2", "random")
_PER_SAMPLE = ("param_second", "param_mix")
_NO_GRADIENT = ("l1", "l2", "random")
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(0),
    "prod": lambda scores: scores.prod(0),
    "max": lambda scores: scores.amax(0),
    "mean": lambda scores: scores.mean(0),
    "first": lambda scores: scores[0],
    "second": lambda scores: scores[1],
    "last": lambda scores: scores[-1],
}
_NAMES = {MLP: "MLP channels", ATTENTION: "key-value heads"}


def channel_scores(
    weight: Tensor, criterion: str, dim: int = 0, gradient: Tensor | None = None, squares: Tensor | None = None
) -> Tensor:
    """How much each row (dim 0) or column (1) of a matrix matters: (rows, columns) → (rows,) or (columns,).

    Args:
        criterion: `"vectorize"`, `"param_first"`, `"param_second"`, `"param_mix"`: of the loss, by Taylor expansion to
            the first order of the whole vector or of each weight, to the second order alone, or both; `"l1"`, `"l2"`:
            of the weights' sizes.
        gradient: g of the loss.
        squares: the mean over samples of each one's g², the diagonal of the Fisher matrix.

    Raises:
        InputError: another criterion, or what it needs is not given.
    """
    across = 1 - dim
    if criterion == "l1":
        return weight.abs().sum(across)
    if criterion == "l2":
        return weight.square().sum(across)
    first, second = criterion in ("vectorize", "param_first", "param_mix"), criterion in _PER_SAMPLE
    if not (first or second) or (first and gradient is None) or (second and squares is None):
        raise InputError(
            f"got criterion {criterion!r}; expected l1, l2; vectorize, param_first, param_mix with a gradient; or "
            "param_second, param_mix with mean squared gradients"
        )
    linear = weight * gradient if gradient is not None else weight.new_zeros(())
    curved = weight * squares * weight if squares is not None else weight.new_zeros(())
    if criterion == "vectorize":
        return linear.sum(across).abs()  # Eq. 3, with the first term alone
    salience = {"param_first": linear, "param_second": curved, "param_mix": linear - 0.5 * curved}  # Eq. 5
    return salience[criterion].abs().sum(across)


def group_scores(channels: Sequence[Tensor], units: int, width: int = 1, reduction: str = "sum") -> Tensor:
    """What the parts of a block say of its channels together: (units, width); a unit's score is the sum over them.

    Args:
        channels: of each part, in the block's order. A part with more channels than units × width, as queries are to
            keys, has those of a unit next to one another; they are added up.
        units, width: of the block.
        reduction: of the parts: sum, prod, max, mean; or the first, second or last part alone.

    Raises:
        InputError: another reduction.
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"got reduction {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    # Heads that read a key-value head stand next to one another, as attention repeats it for them.
    return REDUCTIONS[reduction](torch.stack([each.view(units, -1, width).sum(1) for each in channels]))


def removed(units: int, ratio: float, width: int = 1) -> int:
    """How many units a ratio removes: whole ones, of so many channels each."""
    channels = units * width
    return (channels - int(channels * (1 - ratio) + 1e-9)) // width  # n = C − int(C(1 − ratio)); 0.9 of 10 is 9


def lowest(scores: Tensor, count: int) -> list[int]:
    """The places of the lowest scores, in their order; of equals the earlier."""
    return sorted(scores.argsort(stable=True)[:count].tolist())


@dataclass(frozen=True)
class Scored:
    """A block and the score of each of its units, (units,): how much is lost without it."""

    block: Block
    scores: Tensor


@dataclass(frozen=True)
class Pruned:
    """What was removed.

    Attributes:
        before, after: weights of the model.
        cuts: of each kind, how many units of how many were removed, in the layers that were pruned.
        plain: whether `from_pretrained` reads the model, once it is saved: its layers are as wide as one another, and
            its class allows as many heads (Llama's divide the hidden size). Else the saved config holds each layer's
            widths, and `broadsheet.models.load` reads it.
    """

    before: int
    after: int
    cuts: Mapping[str, tuple[int, int]]
    plain: bool

    def __str__(self) -> str:
        told = [f"{cut:,} of {units:,} {_NAMES[kind]}" for kind, (cut, units) in self.cuts.items()]
        return (
            f"{self.before:,} → {self.after:,} weights ({1 - self.after / self.before:.1%} less): without "
            f"{' and '.join(told)}"
        ).replace("%", " %")


@dataclass
class LLMPruner:
    """Make a causal LM smaller and faster by what matters least to its loss, with little text and no training.

    An MLP's channel, and a key-value head with its query heads, are rows of some matrices and columns of another. They
    go as a whole. The score of such a unit is how much the loss on ten short texts would change without it, to the
    first order; the gradient is not 0 there, since the model was not trained on them to the end. A short LoRA training
    repairs much of the damage. The model is an ordinary one afterwards.

    Use when a model must be a little smaller or faster, some 10 to 25 %, and there is text to repair it on. Prefer
    quantization where memory alone is short, and a smaller model where one was trained on as much.

    Inputs: a model of the Llama family (Llama, Mistral, Qwen, Gemma) without adapters, and 10 × 128 tokens of text.
    Relation: what repairs it is a plain LoRA training (`training.fit`, or any `Trainer`); a model is then compared with
        a dense one that was trained as long.

    Args:
        ratio: share of the units of each layer that goes; heads are whole, so that few heads may stay as they are.
        criterion: one of `CRITERIA`: `"param_first"` (Element¹), `"param_mix"` (Element²), `"vectorize"` (Vector),
            `"param_second"`; without gradients `"l1"`, `"l2"`, `"random"`.
        reduction: of a block's matrices, one of `REDUCTIONS`.
        kinds: `"mlp"`, `"attention"`.
        layers: the first, and the one after the last, that are pruned; None: all, so that they stay as wide as one
            another. The paper leaves out the first 4 and the last 2.
        scope: units compete in their `"layer"`, or over the whole `"model"`, where no layer loses all.
        seed: of `"random"`.

    Example:
        from broadsheet import models
        from broadsheet.train import LLMPruner
        from broadsheet.train.llm_pruner import calibration

        model, tokenizer = models.load("default", dtype="float32")
        rows = calibration(["Some text of yours, as long as a page. " * 40], tokenizer, samples=1)
        print(LLMPruner(ratio=0.25, kinds=("mlp",)).prune(model, rows))
        model.save_pretrained("runs/pruned")

    Source: arXiv:2305.11627, Sec. 3; criteria and the count of what goes as in the authors' code, but that a query head
        counts for the key-value head that it reads.
    """

    paper: ClassVar[str] = "llm_pruner"

    ratio: float = 0.25
    criterion: Criterion = "param_first"
    reduction: str = "sum"
    kinds: tuple[str, ...] = (MLP, ATTENTION)
    layers: tuple[int, int] | None = None
    scope: Literal["layer", "model"] = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, seed=(0, None))
        if not 0 <= self.ratio < 1:
            raise InputError(f"got ratio {self.ratio}; expected a share from 0 to below 1")
        if self.criterion not in CRITERIA or self.scope not in ("layer", "model"):
            raise InputError(
                f"got criterion {self.criterion!r}, scope {self.scope!r}; expected one of {', '.join(CRITERIA)}; and "
                "layer or model"
            )
        if self.reduction not in REDUCTIONS:
            raise InputError(f"got reduction {self.reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        if not self.kinds or not set(self.kinds) <= {MLP, ATTENTION}:
            raise InputError(f"got kinds {self.kinds}; expected {MLP!r}, {ATTENTION!r}, or both")

    def prune(self, model: Any, rows: Tensor | None = None) -> Pruned:
        """Remove what matters least; the model is changed in place.

        Args:
            rows: (samples, length) tokens, as `calibration` makes them; needed where the criterion has gradients.

        Raises:
            InputError: as `scores` and `plan` do; the model is untouched then.
        """
        before = sum(each.numel() for each in model.parameters())
        planned = self.plan(self.scores(model, rows))
        cuts: Counter[str] = Counter()
        units: Counter[str] = Counter()
        for block, away in planned:
            block.remove(away)
            cuts[block.kind] += len(away)
            units[block.kind] += block.units
        plain = surgery.conform(model)
        after = sum(each.numel() for each in model.parameters())
        return Pruned(before, after, {kind: (cuts[kind], units[kind]) for kind in units}, plain)

    def scores(self, model: Any, rows: Tensor | None = None) -> list[Scored]:
        """How much each unit matters, for each block that may be pruned; the model is left as it was.

        A matrix's gradient is let go of as soon as its channels are scored, so that memory holds one of them at a time;
        `"param_mix"` also keeps mean squares of all.

        Raises:
            InputError: no rows where they are needed; a loss that is not finite; layers that are not there, or not of
                the Llama family.
        """
        blocks = [each for each in surgery.blocks(model) if each.kind in self.kinds]
        first, end = self.layers or (0, blocks[-1].layer + 1)
        if not 0 <= first < end <= blocks[-1].layer + 1:
            raise InputError(f"got layers {self.layers}; expected a part of 0 to {blocks[-1].layer + 1}")
        blocks = [each for each in blocks if first <= each.layer < end]
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return [Scored(each, torch.rand(each.units, generator=generator)) for each in blocks]
        found = self._channels(model, blocks, rows)
        return [
            Scored(
                block,
                group_scores([found[part] for part in block.parts], block.units, block.width, self.reduction).sum(1),
            )
            for block in blocks
        ]

    def plan(self, scored: Sequence[Scored]) -> list[tuple[Block, list[int]]]:
        """The units of each block that go.

        Raises:
            InputError: the ratio leaves nothing of a block.
        """
        if self.scope == "layer":
            found = [
                (each.block, lowest(each.scores, removed(each.block.units, self.ratio, each.block.width)))
                for each in scored
            ]
        else:
            found = [
                pair for kind in self.kinds for pair in self._over_all([s for s in scored if s.block.kind == kind])
            ]
        for block, away in found:
            if len(away) >= block.units:
                raise InputError(
                    f"a ratio of {self.ratio:g} leaves nothing of layer {block.layer}'s {block.kind}, which has "
                    f"{block.units} units; give a smaller one"
                )
        return found

    def _over_all(self, scored: Sequence[Scored]) -> Iterator[tuple[Block, list[int]]]:
        """The lowest of all blocks of a kind, of which each keeps its highest."""
        free = [each.scores.clone() for each in scored]
        for scores in free:
            scores[scores.argmax()] = torch.inf
        together = torch.cat(free)
        away = set(lowest(together, min(removed(len(together), self.ratio), int(together.isfinite().sum()))))
        begin = 0
        for each in scored:
            yield each.block, [unit for unit in range(each.block.units) if begin + unit in away]
            begin += each.block.units

    # Gradients

    def _channels(self, model: Any, blocks: Sequence[Block], rows: Tensor | None) -> dict[Part, Tensor]:
        """The channel scores of each part."""
        parts = [part for block in blocks for part in block.parts]
        if self.criterion in _NO_GRADIENT:
            return {part: channel_scores(_weight(part), self.criterion, part.dim) for part in parts}
        if rows is None or rows.ndim != 2 or not rows.numel() or rows.shape[1] < 2:
            raise InputError(f"{self.criterion} needs rows of tokens, (samples, length); `calibration` makes them")
        found: dict[Part, Tensor] = {}
        squares: dict[Part, Tensor] = {}

        def add_squares(part: Part, gradient: Tensor) -> None:
            # (1/N) Σ g², each sample's own gradient squared
            squares[part] = squares.get(part, 0) + gradient.square() / len(rows)

        def add_scores(part: Part, gradient: Tensor) -> None:  # what is linear in g² is added up as scores
            share = channel_scores(_weight(part), self.criterion, part.dim, squares=gradient.square()) / len(rows)
            found[part] = found.get(part, 0) + share

        def score(part: Part, gradient: Tensor) -> None:
            given = squares.pop(part, None)
            found[part] = channel_scores(_weight(part), self.criterion, part.dim, gradient, given)

        with _gradients_of(model, parts):
            if self.criterion in _PER_SAMPLE:
                take = add_squares if self.criterion == "param_mix" else add_scores
                for row in rows:
                    _backward(model, row[None], parts, take)
            if self.criterion != "param_second":
                _backward(model, rows, parts, score)
        return found


def calibration(texts: Iterable[str], tokenizer: Any, samples: int = 10, length: int = 128, seed: int = 0) -> Tensor:
    """Windows of texts at random, one a text: (samples, length) tokens.

    Args:
        texts: read until there are enough windows, in a random order; shorter ones are passed over.

    Raises:
        InputError: too few texts have so many tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    given = list(texts)
    rows: list[list[int]] = []
    for place in torch.randperm(len(given), generator=generator).tolist():
        if len(rows) == samples:
            break
        ids = tokenizer(given[place], add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            begin = int(torch.randint(len(ids) - length + 1, (), generator=generator))
            rows.append(ids[begin : begin + length])
    if len(rows) < samples or not samples:
        raise InputError(
            f"{len(rows)} of {len(given)} texts have {length} tokens or more; expected {max(1, samples)}: give more or "
            "longer ones, or ask for fewer or shorter windows"
        )
    return torch.tensor(rows)


def multiply_adds(model: Any, length: int) -> int:
    """Multiplications with additions of a forward pass over so many tokens: of all matrices, and of attention."""
    linear = sum(
        each.weight.numel() * length for each in model.modules() if isinstance(each, torch.nn.Linear)
    )  # an output that shares the embeddings' weights is a matrix too
    heads = [block.parts[-1].linear.in_features for block in surgery.blocks(model) if block.kind == ATTENTION]
    return linear + sum(2 * length**2 * each for each in heads)


def _weight(part: Part) -> Tensor:
    weight = part.linear.weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


@contextmanager
def _gradients_of(model: Any, parts: Sequence[Part]) -> Iterator[None]:
    """Inside, these matrices alone have gradients, and the model does not draw."""
    before = [(each, each.requires_grad) for each in model.parameters()]
    training = model.training
    model.eval().requires_grad_(False)
    for part in parts:
        part.linear.weight.requires_grad_(True)
    try:
        yield
    finally:
        model.train(training)
        for each, needed in before:
            each.requires_grad_(needed)


def _backward(model: Any, rows: Tensor, parts: Sequence[Part], use: Callable[[Part, Tensor], None]) -> None:
    """Give each matrix's gradient of the rows' loss to `use`, and let go of it.

    Raises:
        InputError: the loss is not finite.
    """

    def taker(part: Part) -> Callable[[Tensor], None]:
        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            use(part, weight.grad.to(_weight(part).dtype))
            weight.grad = None

        return take

    rows = rows.to(model.device)
    with torch.enable_grad(), ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.linear.weight.register_post_accumulate_grad_hook(taker(part)).remove)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        if not loss.isfinite():
            raise InputError(
                f"the loss of the calibration text is {float(loss.detach())}; give other text, or --dtype float32"
            )
        loss.backward()
