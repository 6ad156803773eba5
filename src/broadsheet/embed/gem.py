"""GEM (2025, arXiv:2506.04344): one model that embeds and generates, by new special tokens and a bottleneck mask.

Knows texts, the new tokens, the mask, the two views of a row and the two losses. Does not know how rows become padded
batches (`modules.bottleneck`), how tokens are added (`modules.new_tokens`), or how training runs (`fit`).

A row is `prefix | S_1 … S_k | suffix`. The suffix sees the special tokens and itself alone, so next-token prediction on
it forces the prefix into the special tokens' states, which are the embedding. There is no authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from broadsheet import models
from broadsheet.console import InputError, say
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.embed.modules.bottleneck import (
    PREFIX,
    SPECIAL,
    SUFFIX,
    BottleneckRow,
    cache_specials,
    check_encoder,
    collator_for,
    forward_pass,
    forward_states,
    special_states,
    suffix_logits,
)
from broadsheet.embed.modules.new_tokens import Init, add_tokens
from broadsheet.embed.modules.special_tokens import LastTokens, SpecialEncoder
from broadsheet.training.distributed import gather_rows, global_mean
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from broadsheet.embed.modules.encoder import CausalEncoder

MAX_LOG_SCALE = math.log(100)


def bottleneck(segments: Tensor) -> Tensor:
    """GEM's mask: which position is hidden from which, beyond causal attention.

    Args:
        segments: (batch, length) of `PADDING`, `PREFIX`, `SPECIAL`, `SUFFIX`. A row of prefix alone stays plain causal.

    Returns:
        Boolean (batch, length, length), [b, i, j] whether j is hidden from i.

    Source: arXiv:2506.04344, Sec. 3.1.
    """
    i, j = segments[:, :, None], segments[:, None, :]
    # Sec. 3.1: the suffix does not see the prefix; special tokens do not see each other.
    return ((i == SUFFIX) & (j == PREFIX)) | ((i == SPECIAL) & (j == SPECIAL))


def hide(allowed: Tensor, keys: Tensor) -> Tensor:
    """A second view: the same mask with some positions seen by themselves alone, as if dropped (Sec. 3.2, Fig. 1).

    Position ids stay, and so does the task: no token is replaced by another.

    Args:
        allowed: boolean (batch, 1, length, length).
        keys: boolean (batch, length), the positions to hide.
    """
    itself = torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device)
    return allowed & (~keys[:, None, None, :] | itself)


def gem_embedder(
    model: Any = "default",
    specials: int = 1,
    pooling: Literal["mean", "concat"] = "mean",
    *,
    init: Init = "mean",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = False,
    max_seq_length: int | None = 512,
    device: str | None = None,
    dtype: Any = None,
    seed: int = 0,
) -> Embedder:
    """A causal LM with new special tokens after each text, whose last states are the embedding. Not yet trained.

    Use when one set of weights shall embed and generate. Without the tokens in a row its logits are the plain model's,
    and it never generates them.

    Args:
        model: a name for `models.load`, what that returned, or a model with its tokenizer, which are changed.
        specials: k, the number of tokens. The paper: 1 to 10, 15-task MTEB mean 54.35 to 56.12 (Table 4, Llama-3.2-1B).
        pooling: the mean of several tokens' states, or their concatenation; which one the paper took is not known.
        init: of the new rows, see `new_tokens.add_tokens`. The paper does not say.
        prompts, normalize, max_seq_length, device, dtype: see `embedder`.
        seed: of the new rows.

    Raises:
        InputError: `specials` below 1, or the model has such tokens already (load its folder instead).

    Example:
        made = gem_embedder("default")
        fit(made, texts, GEM(made), "runs/gem", steps=200, merge=True)
    """
    if specials < 1:
        raise InputError(f"got {specials} special tokens; expected 1 or more")
    if pooling not in ("mean", "concat"):
        raise InputError(f"got pooling {pooling!r}; expected mean or concat")
    loaded = models.load(model, device=device, dtype=dtype) if isinstance(model, str) else model
    lm, tokenizer = loaded
    tokens = [f"<|gem_{i}|>" for i in range(1, specials + 1)]
    add_tokens(lm, tokenizer, tokens, init=init, seed=seed)
    width = int(lm.get_input_embeddings().weight.shape[1])
    return embedder(
        (lm, tokenizer),
        LastTokens(width, specials, pooling) if specials > 1 else "last-token",
        append=tokens,
        prompts=prompts,
        normalize=normalize,
        max_seq_length=max_seq_length,
        device=device,
        dtype=dtype,
        encoder=GEMEncoder,
        spec="",  # the model is no longer the one that its name loads
    )


class GEMEncoder(SpecialEncoder):
    """Embeds with the mask of training: special tokens at a row's end do not see each other."""

    def hidden(self, segments: Tensor) -> Tensor:
        """The mask of Sec. 3.1."""
        return bottleneck(segments)


class GEM(Objective, nn.Module):
    """GEM's two losses on plain texts: next tokens through a bottleneck, then contrast between two views of a row.

    A share 1 − p of the texts becomes compression rows `prefix | special tokens | suffix`: a text cut at a random
    place, or a text and the same text again. The others stay plain rows of a language model, which keeps generation.
    The contrastive loss pulls a compression row's special states to those of the same row with part of its prefix
    hidden, and pushes them from the other rows'.

        L = (1 − α) · L_ntp + α · L_cl,   α = 0 at first, then `alpha_max`
        L_cl = −log( exp(λ s(q, d⁺)) / (exp(λ s(q, d⁺)) + Σ exp(λ s(q, d⁻))) ),   s the cosine

    Inputs: texts.
    Use when … there are texts but no pairs, and one set of weights shall embed and generate. Prefer a contrastive loss
        where there are pairs and generation does not matter.
    Relation: with `raw_share=1` language modelling; with α = 1 SimCSE with hidden tokens in the place of dropout.

    Args:
        embedder: from `gem_embedder`.
        raw_share: p, the share of texts that stay plain. The paper: 0.8 (Table 2; Sec. 3.1 once calls p what is 1 − p
            here).
        reconstruction: share of the compression rows that repeat the text; the others are cut. Not in the paper: 0.5.
        hidden_share: share of the prefix's tokens that the second view hides. Not in the paper: 0.3.
        ntp_rows: texts read before α rises: 3,200 in the paper (100 steps of 32). Counted in texts, so that a resumed
            run and one on several devices know where they are.
        ramp_rows: texts in which α rises from 0 to `alpha_max`. "Quickly" in the paper: 320.
        alpha_max: the paper: 1, which leaves next-token prediction out for the rest. Below 1 forgets less.
        contrast: rows that are contrasted: `"compression"` rows alone, as in the paper, or `"all"`: small batches have
            few of those, hence few negatives; plain rows are then contrasted with special tokens at their end.
        max_length: tokens of a row, special ones and the repeated text included; the embedder's by default. Texts are
            cut to it (`cut_` counts them).
        gather_across_devices: contrast with the rows of all processes, and average over all targets.
        seed: of kinds, cuts and hidden tokens, each drawn from it and the text's index in the order of training.

    Attributes:
        log_scale: learnable; similarities are multiplied by exp of it, clamped to [0, log 100]. It begins as log 20
            (read literally the paper multiplies by the logarithm itself; it cites CLIP, which means the exponential).

    Raises:
        InputError: a parameter out of range, or an embedder without special tokens.

    Example:
        from broadsheet.data import corpora
        from broadsheet.embed import GEM, fit, gem_embedder

        texts = [document.text for document in corpora.load("pydocs:stdlib").take(2000)]
        made = gem_embedder("default", max_seq_length=128)
        fit(made, texts, GEM(made), "gem", steps=60, merge=True)
        made.encode(["Return a sorted list."])

    Source: arXiv:2506.04344, Sec. 3. No authors' code. Learning rate 1e-4 in the first phase, 1e-5 in the second: call
    `fit` twice for that, first with `alpha_max=0`, then with `ntp_rows=0`.
    """

    paper: ClassVar[str] = "gem"

    def __init__(
        self,
        embedder: Embedder,
        *,
        raw_share: float = 0.8,
        reconstruction: float = 0.5,
        hidden_share: float = 0.3,
        ntp_rows: int = 3200,
        ramp_rows: int = 320,
        alpha_max: float = 1.0,
        contrast: Literal["compression", "all"] = "compression",
        max_length: int | None = None,
        gather_across_devices: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_settings(raw_share, reconstruction, hidden_share, alpha_max, ntp_rows, ramp_rows, contrast)
        encoder = embedder.encoder
        if not encoder.append:
            raise InputError("the embedder has no special tokens to append; make one with gem_embedder")
        check_encoder(encoder)
        self.special = [encoder.token_id(token) for token in encoder.append]
        self.max_length = max_length or encoder.max_seq_length
        if self.max_length is not None and self.max_length < len(self.special) + 2:
            raise InputError(
                f"got max_length {self.max_length}; {len(self.special)} special tokens leave no room in it"
            )
        self.raw_share = raw_share
        self.reconstruction = reconstruction
        self.hidden_share = hidden_share
        self.ntp_rows = ntp_rows
        self.ramp_rows = ramp_rows
        self.alpha_max = alpha_max
        self.contrast = contrast
        self.gather_across_devices = gather_across_devices
        self.seed = seed
        self.cut_ = 0
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self._embedder = (embedder,)  # in a tuple, so that it is no submodule

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as a run records them."""
        return constructor_settings(self)

    @property
    def encoder(self) -> CausalEncoder:
        """The embedder's first module."""
        return self._embedder[0].encoder

    def alpha(self, index: int) -> float:
        """α for the text at an index in the order of training."""
        since = index - self.ntp_rows
        if since < 0:
            return 0.0
        return self.alpha_max * (min(1.0, since / self.ramp_rows) if self.ramp_rows else 1.0)

    # Texts to rows

    def row(self, index: int, text: str) -> BottleneckRow:
        """The row that a text becomes at its index in the order of training (Sec. 3.1)."""
        generator = Random(f"{self.seed}/{index}")
        raw, repeat = generator.random() < self.raw_share, generator.random() < self.reconstruction
        ids = self._ids(text)
        if raw or len(ids) < 2:
            return BottleneckRow(self._cut(ids, self.max_length))
        room = self._room()
        if repeat:  # prefix = text, suffix = the text again
            ids = self._cut(ids, None if room is None else room // 2)
            first = int(bool(ids) and ids[0] == self.encoder.tokenizer.bos_token_id)
            return BottleneckRow(ids, self.special, ids[first:])
        ids = self._cut(ids, room)
        at = generator.randint(1, len(ids) - 1)  # neither prefix nor suffix is empty
        return BottleneckRow(ids[:at], self.special, ids[at:])

    def _room(self) -> int | None:
        """Tokens of a row besides the special ones."""
        return None if self.max_length is None else self.max_length - len(self.special)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.encoder.tokenizer(text, verbose=False)["input_ids"]
        return ids or [int(self.encoder.tokenizer.eos_token_id)]

    def _cut(self, ids: list[int], limit: int | None) -> list[int]:
        if limit is None or len(ids) <= limit:
            return ids
        if not self.cut_:
            say(f"texts are cut so that a row has at most {self.max_length:,} tokens (counted in cut_)")
        self.cut_ += 1
        return ids[:limit]

    def collate(self, items: Sequence[tuple[int, str]]) -> dict[str, Tensor]:
        """(index, text) pairs to one batch.

        Returns:
            As `BottleneckCollator` for the rows; the same under `view_…` for those that are contrasted, prefix and
            special tokens alone, with `view_hidden`, the positions that the second view hides; `texts`, the indices.
        """
        rows = [self.row(index, text) for index, text in items]
        collate = collator_for(self.encoder, bottleneck)
        batch = collate(rows)
        batch["texts"] = torch.tensor([index for index, _ in items])
        batch["tokens"] = (batch["segments"] > 0).sum()
        views = {
            index: row for (index, _), row in zip(items, rows, strict=True) if row.special or self.contrast == "all"
        }
        if not views:
            return batch
        view = collate([BottleneckRow(row.prefix[: self._room()], self.special) for row in views.values()])
        hidden = torch.zeros_like(view["segments"], dtype=torch.bool)
        for i, index in enumerate(views):
            prefix = (view["segments"][i] == PREFIX).nonzero()[:, 0].tolist()
            hidden[i, self._hidden(index, prefix)] = True
        return batch | {f"view_{name}": value for name, value in view.items()} | {"view_hidden": hidden}

    def _hidden(self, index: int, prefix: list[int]) -> list[int]:
        """Positions of the prefix that the second view hides: each with the same chance, but never all (Sec. 3.2)."""
        generator = Random(f"{self.seed}/{index}/view")
        hidden = [position for position in prefix if generator.random() < self.hidden_share]
        if len(hidden) == len(prefix):
            hidden.remove(generator.choice(hidden))
        return hidden

    # Rows to a loss

    def loss(self, embedder: Embedder, batch: Mapping[str, Tensor], generator: Any = None) -> dict[str, Tensor]:
        """`loss`, and its terms: `ntp` while α < 1, `contrastive` and `scale` while α > 0; `alpha`."""
        indices = batch["texts"]
        if self.gather_across_devices:
            indices = gather_rows(indices)[0]  # all processes compute the same terms
        alpha = self.alpha(int(indices.min()))
        loss = torch.zeros((), device=embedder.encoder.device)
        terms: dict[str, Tensor] = {}
        special: Tensor | None = None
        if alpha < 1:
            output = forward_pass(embedder.encoder, batch)
            # Sec. 3.1, mixed NTP: the mean over all targets; special tokens are inputs, never targets.
            terms["ntp"] = self._mean(output.nll.sum(), output.scored.sum())
            special = special_states(output.states, batch["segments"])
            loss = loss + (1 - alpha) * terms["ntp"]  # L = (1 − α) L_ntp + α L_cl
        if alpha > 0:
            anchors, positives = self._views(embedder, batch, special)  # q, d⁺
            terms["contrastive"] = contrastive_loss(
                anchors, positives, self.log_scale, gather=self.gather_across_devices
            )
            terms["scale"] = scale_of(self.log_scale)
            loss = loss + alpha * terms["contrastive"]
        logged = {name: value.detach() for name, value in terms.items()}
        return {"loss": loss, **logged, "alpha": torch.tensor(alpha)}

    def _mean(self, total: Tensor, count: Tensor) -> Tensor:
        return global_mean(total, count) if self.gather_across_devices else total / count.clamp(min=1)

    def _views(self, embedder: Embedder, batch: Mapping[str, Tensor], special: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and d⁺: embeddings of the contrasted rows and of their second views, (rows, dimensions) each.

        Args:
            special: (rows, k, hidden) special states of the compression rows, where next-token prediction made them.
                What follows a special token does not change its state, so they serve as the first view.
        """
        encoder = embedder.encoder
        pool = embedder[1].pool if isinstance(embedder[1], LastTokens) else lambda states: states[:, 0]
        if "view_hidden" not in batch:  # no such row: empty, but with a gradient of zero
            table = encoder.model.get_input_embeddings().weight
            empty = (
                pool(table[:0, None].expand(0, len(self.special), -1)) + 0 * getattr(encoder, "learned", table).sum()
            )
            return empty, empty
        view = {name.removeprefix("view_"): value for name, value in batch.items() if name.startswith("view_")}
        shown = view["attention_mask"]
        masked = hide(shown, view["hidden"])
        if special is not None and self.contrast == "compression":
            states = forward_states(encoder, view | {"attention_mask": masked})
            return pool(special), pool(special_states(states, view["segments"]))
        both = {name: torch.cat([view[name], view[name]]) for name in ("input_ids", "position_ids", "segments")}
        states = forward_states(encoder, both | {"attention_mask": torch.cat([shown, masked])})
        first, second = pool(special_states(states, both["segments"])).chunk(2)
        return first, second


def check_settings(
    raw_share: float,
    reconstruction: float,
    hidden_share: float,
    alpha_max: float,
    ntp_rows: int = 0,
    ramp_rows: int = 0,
    contrast: str = "all",
) -> None:
    """Raises InputError for the first of `GEM`'s parameters that is out of range."""
    for name, share in {"raw_share": raw_share, "reconstruction": reconstruction, "alpha_max": alpha_max}.items():
        if not 0 <= share <= 1:
            raise InputError(f"got {name} {share}; expected 0 to 1")
    if not 0 <= hidden_share < 1:
        raise InputError(f"got hidden_share {hidden_share}; expected 0 to below 1")
    if ntp_rows < 0 or ramp_rows < 0:
        raise InputError(f"got ntp_rows {ntp_rows} and ramp_rows {ramp_rows}; expected 0 or more")
    if contrast not in ("compression", "all"):
        raise InputError(f"got contrast {contrast!r}; expected compression or all")


def scale_of(log_scale: Tensor) -> Tensor:
    """exp(λ), the factor of similarities, with λ clamped to [0, log 100]."""
    return log_scale.clamp(0.0, MAX_LOG_SCALE).exp()


def contrastive_loss(anchors: Tensor, positives: Tensor, log_scale: Tensor, *, gather: bool = False) -> Tensor:
    """L_cl: −log softmax of each anchor's own positive among all positives, by scaled cosine; the mean over anchors.

    Args:
        anchors, positives: q and d⁺, (rows, dimensions); the positives of other rows are the d⁻.
        log_scale: λ, a scalar.
        gather: also against the positives of the other processes.

    Source: arXiv:2506.04344, Sec. 3.2 (where the −log is missing). In one direction, anchors to positives.
    """
    if anchors.dtype in (torch.float16, torch.bfloat16):
        anchors, positives = anchors.float(), positives.float()
    anchors, positives = normalize(anchors, dim=-1), normalize(positives, dim=-1)  # so that products are cosines
    everything, first = gather_rows(positives) if gather else (positives, 0)
    if not len(everything):
        return anchors.sum() * log_scale * 0
    scores = scale_of(log_scale) * anchors @ everything.T  # exp(λ) s(q, d), (rows, all rows)
    own = torch.arange(first, first + len(anchors), device=anchors.device)
    total = cross_entropy(scores, own, reduction="sum")
    return global_mean(total, len(anchors)) if gather else total / max(1, len(anchors))


def reconstruct(embedder: Embedder, texts: Sequence[str], max_new_tokens: int = 32) -> list[str]:
    """Each text decoded greedily from its special tokens alone: the keys and values of the prefix are dropped.

    The paper recovers texts of up to about 30 tokens from one token (Sec. 5), after training with reconstruction rows.

    Raises:
        InputError: an embedder without special tokens.

    Example:
        reconstruct(trained, ["The cat sat on the mat."])
    """
    encoder = embedder.encoder
    tokenizer = encoder.tokenizer
    k = len(encoder.append)
    if not k:
        raise InputError("the embedder has no special tokens to append; make one with gem_embedder")
    ids = encoder.rows(list(texts))
    cached = cache_specials(encoder, [BottleneckRow(row[:-k], row[-k:]) for row in ids], bottleneck)
    rows = torch.arange(len(ids), device=encoder.device)
    written = torch.empty(len(ids), 0, dtype=torch.long, device=encoder.device)  # (texts, tokens so far)
    suppressed = encoder.model.generation_config.suppress_tokens or []
    for _ in range(max_new_tokens):
        logits = suffix_logits(encoder, cached, rows, written)[:, -1]
        logits[:, suppressed] = -torch.inf
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
        if bool((written == tokenizer.eos_token_id).any(1).all()):
            break
    kept = [
        row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row for row in written.tolist()
    ]
    return list(tokenizer.batch_decode(kept))
