"""One forward pass over each text, kept as the few numbers per token from which every detector computes its score.

Knows: causal LMs, token ids, windows over long texts, batches. Does not know: detectors. Nothing here is averaged over
tokens: a `TokenScores` holds sequences, and a detector's statistic is a function of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from broadsheet.console import InputError, say
from broadsheet.models import halve_on_oom, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Need = Literal["rank", "entropy", "moments", "samples"]

# Matrix products and attention change the order of their sums with the shape of the batch. On the CPU the shape of a
# text's batch therefore depends on its own length alone: the width is that length rounded up, and rows fill the token
# budget (with empty ones if necessary). So a text's scores are bit-equal to those it gets alone. Lastde needs that: its
# histogram turns a difference of 1e-6 into a jump. A CPU's throughput also peaks at about 512 tokens.
_WIDTH_MULTIPLE = 64
_CPU_TOKENS = 512
# On an accelerator: as many as keep float32 logits under 2 GiB.
_LOGITS = 2**29
# Tokens in a window, at most.
_CONTEXT = 4096


@dataclass
class TokenScores:
    """A model's scores of the tokens of one text of n + 1 tokens; every tensor is float64 on the model's device.

    Attributes:
        log_likelihood: (n,) log p(x_j | x_<j) of the scoring model, in nats. The first token is never scored.
        rank: (n,) 1-based rank of x_j by probability.
        entropy: (n,) entropy of p(· | x_<j), in nats.
        mean, variance: (n,) of log p(v) with v drawn from the reference model q: μ_j and σ²_j of Fast-DetectGPT.
        sampled: (n, K) ids of K tokens drawn independently at each position from q(· | x_<j).
        samples: (n, K) log p of those tokens. A larger K with the same seed begins with the same draws.
    """

    log_likelihood: Tensor
    rank: Tensor | None = None
    entropy: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    sampled: Tensor | None = None
    samples: Tensor | None = None

    def __len__(self) -> int:
        return len(self.log_likelihood)

    @staticmethod
    def join(parts: Sequence[TokenScores]) -> TokenScores:
        """The token scores of a text from those of its consecutive windows."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for name in TokenScores.__dataclass_fields__:
            values = [getattr(part, name) for part in parts]
            columns[name] = None if values[0] is None else torch.cat(values)
        return TokenScores(**columns)


def read_logits(
    logits: Tensor,
    labels: Tensor,
    reference_logits: Tensor | None = None,
    *,
    needs: Iterable[Need] = (),
    n_samples: int = 100,
    generator: torch.Generator | None = None,
    samples: Tensor | None = None,
) -> TokenScores:
    """The token scores of one text from its logits.

    Args:
        logits: (n, vocabulary) of the scoring model p, row j predicting `labels[j]`; upcast to float32 or better first.
        labels: (n,) token ids.
        reference_logits: (n, vocabulary') of the reference model q, by default p itself. Vocabularies of different
            sizes (padded embeddings) are cut to the smaller.
        needs: which sequences to compute beside the log-likelihood.
        n_samples: K, for `"samples"`.
        generator: draws the samples; required for `"samples"` unless `samples` are given.
        samples: (n, K) token ids to use instead of drawing.

    Raises:
        ValueError: shapes disagree, or samples are needed and there is neither a generator nor samples.
    """
    needs = set(needs)
    if logits.shape[:1] != labels.shape:
        raise ValueError(f"got logits for {logits.shape[0]} positions and {labels.shape[0]} labels; expected one each")
    if reference_logits is not None and reference_logits.shape[-1] != logits.shape[-1]:
        size = min(reference_logits.shape[-1], logits.shape[-1])
        logits, reference_logits = logits[..., :size], reference_logits[..., :size]
    log_p = _log_softmax(logits)
    log_likelihood = log_p.gather(-1, labels[:, None]).squeeze(-1)
    reading = TokenScores(log_likelihood.double())
    if "rank" in needs:
        reading.rank = (log_p > log_likelihood[:, None]).sum(-1, dtype=torch.int32).double() + 1
    if not needs & {"entropy", "moments", "samples"}:
        return reading

    p = log_p.exp()
    if "entropy" in needs:
        reading.entropy = -_expectation(p, log_p)
    if not needs & {"moments", "samples"}:
        return reading

    q = p if reference_logits is None else _log_softmax(reference_logits).exp()
    if "moments" in needs:
        reading.mean = _expectation(q, log_p)
        reading.variance = _expectation(q, log_p.square()) - reading.mean.square()
    if "samples" in needs:
        if samples is None:
            if generator is None:
                raise ValueError("samples are needed: give a seeded torch.Generator, or the samples")
            samples = _sample(q, n_samples, generator)
        reading.sampled = samples.int()
        reading.samples = log_p.gather(-1, samples).double()
    return reading


def _log_softmax(logits: Tensor) -> Tensor:
    # bf16 log-probabilities shift the statistics by several per cent, so logits are upcast before the softmax.
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _expectation(q: Tensor, values: Tensor) -> Tensor:
    """Σ_v q(v) values(v) in each row; where q is 0 nothing counts, even log p = −inf."""
    sums = (q * values).sum(-1)
    if sums.isnan().any():
        sums = (q * values).masked_fill_(q == 0, 0.0).sum(-1)
    return sums.double()


_BLOCK = 64


def _sample(q: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    """(n, K) independent draws from each row of `q` (n, vocabulary), by inverting its cumulative distribution.

    First the block of 64 tokens that a uniform number falls into, then the token in it: cumulative sums need float64
    (in float32 the tail of a large vocabulary would never be drawn), and this way few are made.
    """
    n, vocabulary = q.shape
    if rest := vocabulary % _BLOCK:
        q = torch.nn.functional.pad(q, (0, _BLOCK - rest))
    blocks = q.view(n, q.shape[1] // _BLOCK, _BLOCK)
    upper = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    # Drawn sample by sample: the generator's next numbers are the next sample's, so the first k do not depend on K.
    uniform = torch.rand(n_samples, n, generator=generator, dtype=torch.float64).T.to(q.device).contiguous()
    target = uniform * upper[:, -1:]
    block = torch.searchsorted(upper, target, right=True).clamp_(max=upper.shape[1] - 1)
    below = torch.cat([torch.zeros_like(upper[:, :1]), upper], dim=1).gather(1, block)
    within = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK)).cumsum(-1, dtype=torch.float64)
    place = (within <= (target - below)[..., None]).sum(-1).clamp_(max=_BLOCK - 1)
    return (block * _BLOCK + place).clamp_(max=vocabulary - 1)


@dataclass
class ForwardPass:
    """Logits of one text, or of one window of a long one: row j of `logits` (n, vocabulary) predicts `labels[j]`."""

    text: int  # index of the text
    start: int  # the window's first token
    labels: Tensor
    logits: Tensor
    reference_logits: Tensor | None


class Reader:
    """Reads texts with a causal LM, and with a reference model that shares its tokenizer, in batches.

    Texts longer than the context are read in windows that overlap by half, each token scored once with at least half a
    context before it (except in the first window); the number of such texts is reported once per call. Batches are
    padded on the right, where causal attention never looks, so a text's scores do not depend on its neighbours: on the
    CPU in float32 they are bit-equal.

    Args:
        model: what `models.load` takes, or a loaded `(model, tokenizer)`.
        reference: the same, for the model the samples and moments are drawn from; by default `model` itself.
        device, dtype: as in `models.load`. The default dtype is float32 on every device: statistics of differences
            between log-probabilities need it.
        token_budget: padded tokens in one forward pass; by default 512 on the CPU, else as many as fit 2 GiB of logits.
        context: tokens in one window; by default the models' own `max_position_embeddings`, at most 4,096.

    Raises:
        InputError: the two models' tokenizers differ.
    """

    def __init__(
        self,
        model: Any = "default",
        reference: Any = None,
        *,
        device: str | None = None,
        dtype: str = "float32",
        token_budget: int | None = None,
        context: int | None = None,
    ):
        self.model, self.tokenizer = _loaded(model, device, dtype)
        self.reference: PreTrainedModel | None = None
        if reference is not None:
            self.reference, reference_tokenizer = _loaded(reference, device, dtype)
            _check_same_tokenizer(self.tokenizer, reference_tokenizer)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.token_budget = token_budget or (_CPU_TOKENS if self.model.device.type == "cpu" else _LOGITS // vocabulary)
        configs = [m.config.get_text_config() for m in (self.model, self.reference) if m]
        # Models without learnt or rotary positions (BLOOM, Mamba) state no limit.
        limits = [getattr(config, "max_position_embeddings", None) or _CONTEXT for config in configs]
        self.context = context or min(*limits, _CONTEXT)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds and no chat template."""
        return self.tokenizer(text, verbose=False).input_ids

    def read(
        self,
        texts: Sequence[str | list[int]],
        needs: Iterable[Need] = (),
        *,
        n_samples: int = 100,
        seed: int = 0,
        passes: Iterable[ForwardPass] | None = None,
    ) -> list[TokenScores]:
        """Token scores of `texts` (strings or token ids), in their order.

        Args:
            needs: see `read_logits`.
            n_samples, seed: of the samples; those of a text depend on the seed and on the text alone.
            passes: the texts' forward passes, if they were computed before.

        Raises:
            InputError: the model's predictions are NaN; or as `passes`.
        """
        parts: list[list[tuple[int, TokenScores]]] = [[] for _ in texts]
        for one in self.passes(texts) if passes is None else passes:
            generator = torch.Generator().manual_seed(seed_of(seed, texts[one.text], one.start))
            reading = read_logits(
                one.logits, one.labels, one.reference_logits, needs=needs, n_samples=n_samples, generator=generator
            )
            if reading.log_likelihood.isnan().any():
                raise InputError(
                    "the model's predictions are not numbers (NaN): its weights are damaged, or they overflow in half "
                    "precision: use dtype float32"
                )
            parts[one.text].append((one.start, reading))
        return [TokenScores.join([reading for _, reading in sorted(p, key=lambda part: part[0])]) for p in parts]

    def passes(self, texts: Sequence[str | list[int]]) -> Iterator[ForwardPass]:
        """The forward passes over `texts`, batch by batch in order of length; a batch's logits are free after it.

        Raises:
            InputError: the tokenizer gives a token that a model does not know.
        """
        ids = [self.encode(text) if isinstance(text, str) else text for text in texts]
        self._check_known(max((token for tokens in ids for token in tokens), default=0))
        windows = [window for index, tokens in enumerate(ids) for window in self._windows(index, tokens)]
        long = len({window.text for window in windows if window.start > 0})
        if long:
            say(f"{long} of {len(texts)} texts are longer than the context ({self.context:,} tokens): read in windows")
        for batch in self._batches(windows):
            logits = self._logits(self.model, batch)
            reference = [None] * len(batch) if self.reference is None else self._logits(self.reference, batch)
            for window, p, q in zip(batch, logits, reference, strict=True):
                labels = torch.tensor(window.tokens[1:], dtype=torch.long, device=p.device)
                keep = slice(window.skip, len(labels))
                yield ForwardPass(window.text, window.start, labels[keep], p[keep], None if q is None else q[keep])

    def _check_known(self, largest: int) -> None:
        for model in filter(None, (self.model, self.reference)):
            size = model.get_input_embeddings().weight.shape[0]
            if largest >= size:
                raise InputError(
                    f"the tokenizer gives token {largest:,}, and the model knows {size:,}: they do not belong together"
                )

    def _windows(self, index: int, tokens: list[int]) -> Iterator[_Window]:
        """Cut one text so that every token but the first is scored once."""
        if len(tokens) <= self.context:
            yield _Window(index, tokens, 0, 0)
            return
        stride = self.context // 2
        for start in range(0, len(tokens) - self.context + stride, stride):
            part = tokens[start : start + self.context]
            # A later window repeats `context − stride` tokens of the one before; those were scored there.
            yield _Window(index, part, start, self.context - stride - 1 if start else 0)

    def _batches(self, windows: list[_Window]) -> Iterator[list[_Window]]:
        """Windows of one width each, at most as many as fill the token budget."""
        for width, group in groupby(sorted(windows, key=lambda window: window.width), key=lambda window: window.width):
            rows = max(1, self.token_budget // width)
            while batch := list(islice(group, rows)):
                yield batch

    def _logits(self, model: PreTrainedModel, windows: Sequence[_Window]) -> list[Tensor]:
        """Logits (n, vocabulary) of each window's next-token predictions; the windows have one width."""
        width = windows[0].width
        n_rows = max(1, self.token_budget // width) if model.device.type == "cpu" else 0

        def forward(part: Sequence[_Window]) -> list[Tensor]:
            ids = torch.zeros(max(len(part), n_rows), width, dtype=torch.long)
            for row, window in zip(ids, part, strict=False):
                row[: len(window.tokens)] = torch.tensor(window.tokens, dtype=torch.long)
            with torch.inference_mode():
                logits = model(ids.to(model.device), use_cache=False).logits
            return [row[: max(0, len(window.tokens) - 1)] for row, window in zip(logits, part, strict=False)]

        return halve_on_oom(forward, windows)


@dataclass
class _Window:
    text: int  # index of the text
    tokens: list[int]
    start: int  # where in the text the window starts
    skip: int  # predictions at its head that an earlier window has scored

    @property
    def width(self) -> int:
        """The padded length."""
        return max(1, -(-len(self.tokens) // _WIDTH_MULTIPLE)) * _WIDTH_MULTIPLE


def _loaded(model: Any, device: str | None, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str):
        model = load(model, device=device, dtype=dtype)
    network, tokenizer = model
    return network, tokenizer


def _check_same_tokenizer(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> None:
    if ours.get_vocab() != theirs.get_vocab():
        raise InputError(
            f"the model's tokenizer ({len(ours):,} tokens) and the reference's ({len(theirs):,} tokens) differ: "
            "token probabilities cannot be compared; give a reference of the same family"
        )


def seed_of(seed: int, text: str | list[int], start: int = 0) -> int:
    """A 63-bit seed that depends on the given seed, the text and the place in it, and on nothing else in the batch."""
    digest = hashlib.sha256(f"{seed}\0{start}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
