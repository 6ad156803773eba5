"""BabelBERT (Green et al., 2022, arXiv:2208.01018): a language model turned into an encoder of single words.

Knows: word pairs with the set they belong to, their languages, a word's subwords, sentence-transformers' losses and
samplers. Does not know where word lists come from (`data.lexicon`), or the trainer (`fit`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.base.modules import Module
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say, within
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.data.lexicon import WordPair, check_words, without
from broadsheet.embed.fitting import TrainOutput, fit
from broadsheet.embed.losses.ntxent import cosines, nt_xent
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.embed.modules.template import Template
from broadsheet.training.distributed import gather_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    Floats = NDArray[np.float64]

Similarity = Literal["cos", "csls"]
_SEPARATOR = "<|endoftext|>"


class SubwordMean(Module):
    """A word's vector: the mean over its subwords, without the special tokens around every text.

    [CLS] and [SEP] of an encoder, or a decoder's beginning-of-text token, carry nothing of the word; a decoder's first
    token is also an attention sink with a large vector. Padding may stand on either side and changes nothing.

    Args:
        width: of the token embeddings.
        before, after: special tokens at both ends, which are left out; `SubwordMean.of` counts them.

    Raises:
        InputError: a row has no token between the two.

    Example:
        SubwordMean.of(tokenizer, width=768)

    Source: arXiv:2208.01018; authors' code umanlp/babelbert, whose pooling always drops one token at each end.
    """

    config_keys: ClassVar[list[str]] = ["width", "before", "after"]  # type: ignore[misc]

    def __init__(self, width: int, before: int = 0, after: int = 0) -> None:
        super().__init__()
        if before < 0 or after < 0:
            raise InputError(f"got {before} and {after} special tokens around a word; expected 0 or more")
        self.width = width
        self.before = before
        self.after = after

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, width: int, prefix: str = "", suffix: str = "") -> SubwordMean:
        """With the special tokens that this tokenizer puts around a text; `prefix` and `suffix` are a template's."""
        ids = tokenizer(f"{prefix}a{suffix}", verbose=False)["input_ids"]
        special = [i in set(tokenizer.all_special_ids) for i in ids]
        before = special.index(False) if False in special else len(special)
        return cls(width, before, special[::-1].index(False) if False in special else 0)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, (batch, width)."""
        states = features["token_embeddings"]
        mask = features.get("attention_mask")
        real = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        index = real.long().cumsum(1)  # (batch, length), from 1
        inside = real.bool() & (index > self.before) & (index <= index[:, -1:] - self.after)
        count = inside.sum(1, keepdim=True)
        if not bool(count.all()):
            raise InputError(
                f"a text has no subword besides {self.before + self.after} special tokens; leave empty words out"
            )
        wide = torch.float32 if states.dtype in (torch.float16, torch.bfloat16) else states.dtype
        # Not a product with the mask: padding may be NaN.
        total = torch.where(inside[..., None], states, 0).sum(1, dtype=wide)  # (batch, width)
        features["sentence_embedding"] = (total / count).to(states.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Width of a vector."""
        return self.width

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings."""
        self.save_config(output_path)


class LabelNTXentLoss(nn.Module):
    """NT-Xent over labelled sets: words of one set attract each other, words of other sets in the batch repel.

        ℓ(i, j) = −log( e^{s_ij/τ} / (e^{s_ij/τ} + Σ_{k: label_k ≠ label_i} e^{s_ik/τ}) ),   s the cosine

    over every ordered pair (i, j), i ≠ j, of one set, and the mean of them. Other words of the set are in no
    denominator: neither positives nor negatives of the pair.

    Inputs:

    | texts | labels |
    |---|---|
    | (word1, word2), or more columns | (batch,) whole numbers: the set that the row's words belong to |

    Use when … several rows of a batch may mean the same: they are then no negatives of each other. Prefer
    `MultipleNegativesRankingLoss` where every row has a meaning of its own.
    Relation: with different labels throughout, it is the mean of that loss in both directions, with the other words of
        a column as negatives too.

    Args:
        model: the embedder.
        temperature: τ; 0.07 in the paper.
        similarity: `"cos"`, or `"csls"`, which subtracts each word's mean similarity to all others; see `csls`.
        gather_across_devices: words of all processes are negatives, and positives where labels agree; gradients reach
            all of them.

    Example:
        from datasets import Dataset
        from broadsheet.embed import LabelNTXentLoss, embedder, fit

        rows = {"word1": ["big", "quick"], "word2": ["large", "fast"], "label": [0, 1]}
        model = embedder("default", "mean", layer=10)
        fit(model, Dataset.from_dict(rows), LabelNTXentLoss(model), "words", steps=4, batch_size=2)

    Source: arXiv:2208.01018; authors' code umanlp/babelbert.
    """

    paper: ClassVar[str] = "lexical_specialization"

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.07,
        similarity: Similarity = "cos",
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"got temperature {temperature}; expected a positive number")
        if similarity not in get_args(Similarity):
            raise InputError(f"got similarity {similarity!r}; expected one of {', '.join(get_args(Similarity))}")
        self.model = model
        self.temperature = temperature
        self.similarity: Similarity = similarity
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The batch's loss, a scalar."""
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The loss from the (batch, width) vectors of each column."""
        if labels is None or labels.shape != embeddings[0].shape[:1]:
            got = None if labels is None else tuple(labels.shape)
            raise InputError(f"got labels {got}; expected ({len(embeddings[0])},), one set a row")
        words, sets = torch.cat(embeddings), labels.repeat(len(embeddings))  # (columns · batch, width), and labels
        if self.gather_across_devices:
            # Every process computes the loss of the whole batch, so that averaging gradients changes nothing.
            words, sets = gather_rows(words)[0], gather_rows(sets)[0]
        similarity = cosines(words)  # s_ij
        if self.similarity == "csls":
            similarity = csls(similarity)
        return nt_xent(similarity / self.temperature, sets)  # the mean of ℓ(i, j)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for model cards and for `fit`."""
        return constructor_settings(self)


def csls(cosines: Tensor) -> Tensor:
    """Cosines of rows with each other, less each row's mean: 2 s_ij − mean_i − mean_j, against hubs.

    A row's mean is over all others (authors' code), not over its k nearest, as CSLS was introduced.

    Args:
        cosines: (rows, rows), at least 2.
    """
    count = len(cosines)
    mean = cosines.masked_fill(torch.eye(count, dtype=torch.bool, device=cosines.device), 0).sum(1) / (count - 1)
    return 2 * cosines - mean[:, None] - mean


def pair_weights(languages: Sequence[Sequence[str]], alpha: float = 0.5) -> Floats:
    """The probability with which each row is drawn: language pairs by the power α of their share.

        p_l = share of rows of the unordered language pair l,  q_l = p_l^α / Σ p^α,  weight = q_l / count_l

    α = 1 draws all rows with one probability, α = 0 all language pairs. In between, small pairs are drawn more often
    than their share, and large ones still most often (0.5 in the paper).

    Args:
        languages: (rows, 2) language names; the order of the two does not matter.

    Returns:
        (rows,), sum 1.
    """
    kinds = [tuple(sorted(pair)) for pair in languages]
    counts = Counter(kinds)
    powers = {kind: (count / len(kinds)) ** alpha for kind, count in counts.items()}  # p_l^α
    total = sum(powers.values())
    return np.array([powers[kind] / total / counts[kind] for kind in kinds])  # q_l / count_l


class _WeightedBatchSampler(DefaultBatchSampler):
    """Rows drawn with replacement, an epoch being as many draws as rows; a function of (seed, epoch) alone."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, weights: Floats | None, seed: int) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed)
        self.weights = weights
        self.count = len(dataset)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = generator.permutation(self.count)
        else:
            order = generator.choice(self.count, self.count, p=self.weights)
        for start in range(0, self.count, self.batch_size):
            batch = order[start : start + self.batch_size].tolist()
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + bool(rest and not self.drop_last)


@dataclass(frozen=True)
class LanguagePairSampler:
    """A `batch_sampler` for the trainer that weights rows by their language pair; see `pair_weights`.

    Args:
        languages: of each row of the data set, in its order.
        alpha: α; −1 shuffles, each row once an epoch.

    Example:
        fit(embedder, rows, loss, batch_sampler=LanguagePairSampler(languages, alpha=0.5))
    """

    languages: tuple[tuple[str, str], ...]
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and (self.alpha >= 0 or self.alpha == -1)):
            raise InputError(f"got alpha {self.alpha}; expected 0 or more, or -1 for plain shuffling")

    def __call__(self, dataset: Any, batch_size: int, drop_last: bool, **others: Any) -> DefaultBatchSampler:
        """The sampler of a data set, as sentence-transformers asks for it."""
        if len(dataset) != len(self.languages):
            raise InputError(f"got {len(dataset)} rows for {len(self.languages)} language pairs; expected one each")
        weights = None if self.alpha == -1 else pair_weights(self.languages, self.alpha)
        return _WeightedBatchSampler(dataset, batch_size, drop_last, weights, others.get("seed") or 0)

    def __repr__(self) -> str:  # by content: a run's config holds it
        return f"LanguagePairSampler({fingerprint(self.languages)}, alpha={self.alpha})"


@dataclass
class LexicalSpecialization:
    """A language model specialised to embed single words, in any languages, by sets of words that mean the same.

    Inputs: word pairs (`lexicon.WordPair`) with the set that both belong to.
    Use when … words and terms are looked up by meaning: glossaries, dictionaries across languages, product names,
    ontologies. Prefer an encoder of sentences when … texts are longer than a phrase: specialising costs some quality
    on those.
    Relation: contrastive training whose texts are words, whose pooling takes a word's own tokens alone, and whose loss
        (`LabelNTXentLoss`) knows that several rows may mean the same.

    Args:
        temperature, similarity, gather_across_devices: see `LabelNTXentLoss`.
        alpha: α of `LanguagePairSampler` (0.5); −1 shuffles.

    Example:
        method = LexicalSpecialization()
        words = method.embedder("default")
        method.fit(words, lexicon.load("freedict:eng-fra"), "runs/words", held_out=test_words, steps=200)
        words.encode(["house", "maison"])

    Source: arXiv:2208.01018; authors' code umanlp/babelbert. The paper trains mBERT and XLM-R on BabelNet synsets: 256
    pairs a batch, learning rate 5e-6 held constant, all weights, 2 epochs.
    """

    paper: ClassVar[str] = "lexical_specialization"
    temperature: float = 0.07
    similarity: Similarity = "cos"
    alpha: float = 0.5
    gather_across_devices: bool = False

    def __post_init__(self) -> None:
        within(self, temperature=(1e-6, None), alpha=(-1, None))

    def embedder(self, model: Any = "default", *, template: Template | None = None, **settings: Any) -> Embedder:
        """A causal LM that embeds words by the mean of their subwords.

        Args:
            model: as in `embed.embedder`.
            template: around a word; its special tokens at the ends are not pooled. See `word_template`.
            settings: of `embed.embedder`: `attention`, `layer`, …
        """
        from broadsheet import models

        if isinstance(model, str | Path):
            model = models.load(model, device=settings.pop("device", None), dtype=settings.pop("dtype", None))
        lm, tokenizer = model
        around = template or word_template(tokenizer)
        width = lm.get_input_embeddings().weight.shape[1]
        pooling = SubwordMean.of(tokenizer, width, around.prefix, around.suffix)
        return embedder(model, pooling, template=around, **{"max_seq_length": 64, **settings})

    def adopt(self, model: SentenceTransformer) -> SentenceTransformer:
        """A sentence-transformers model of another kind (BERT, XLM-R, …) with its pooling replaced by subword means.

        The transformer is shared with `model`.
        """
        first: Any = model[0]
        width = first.get_embedding_dimension()
        return SentenceTransformer(modules=[first, SubwordMean.of(model.tokenizer, width)], device=str(model.device))

    def fit(
        self,
        model: SentenceTransformer,
        pairs: Sequence[WordPair],
        out: str | Path | None = None,
        *,
        held_out: Iterable[str] = (),
        batch_size: int = 256,
        epochs: int = 2,
        method: str = "full",
        learning_rate: float = 5e-6,
        schedule: str = "constant",
        warmup: float = 0.0,
        loss: Any = None,
        **settings: Any,
    ) -> TrainOutput:
        """Train on word pairs; the defaults are the paper's.

        Args:
            model: from `embedder` or `adopt`.
            pairs: see `lexicon.load`.
            held_out: words of a test: every pair that holds one is left out, and their number is reported.
            batch_size: pairs.
            loss: of sentence-transformers, of two words a row, to compare with; by default `LabelNTXentLoss`.
            settings: of `fitting.fit`.

        Raises:
            InputError: no pair is left, or a word has no token.
        """
        from datasets import Dataset

        kept, taken = without(pairs, held_out)
        if taken:
            say(f"{taken:,} of {len(pairs):,} pairs hold a word of the test and are left out")
        if not kept:
            raise InputError("no word pair is left to train on; give more, or a smaller test")
        check_words((word for pair in kept for word in (pair.first, pair.second)), model.tokenizer)
        numbers = {label: i for i, label in enumerate(dict.fromkeys(pair.label for pair in kept))}
        rows = Dataset.from_dict(
            {
                "word1": [pair.first for pair in kept],
                "word2": [pair.second for pair in kept],
                "label": [numbers[pair.label] for pair in kept],
            }
        )
        given: dict[str, Any] = {"method": method, "schedule": schedule, **settings}
        return fit(
            model,
            rows,
            loss or LabelNTXentLoss(model, self.temperature, self.similarity, self.gather_across_devices),
            out,
            batch_size=min(batch_size, len(kept)),
            epochs=epochs,
            learning_rate=learning_rate,
            warmup=warmup,
            batch_sampler=LanguagePairSampler(tuple(pair.languages for pair in kept), self.alpha),
            **given,
        )


def word_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The token that texts began with in pre-training, and a space, in front of a word.

    A decoder's first token is an attention sink, and its state carries nothing of the text: so it should not be the
    word. Where the tokenizer puts a token before every text, it is that one; otherwise `<|endoftext|>` where the
    vocabulary has it, which separated the texts of GPT-2, SmolLM, Qwen and others, or else the beginning-of-text token.
    (A chat model's may be the token that begins a turn, after which a word is read as the name of a role.) Words inside
    a text have a space before them, which many tokenizers make part of the token.

    On the default model, 144 synonyms among 1,231 words, best layer from 1: MRR 0.47 so, 0.36 without the first token,
    0.31 with `<|im_start|>`, and 0.17 without the space.
    """
    begins = tokenizer("a", verbose=False)["input_ids"][0] in tokenizer.all_special_ids
    first = _SEPARATOR if _SEPARATOR in tokenizer.get_vocab() else tokenizer.bos_token or ""
    return Template(prefix=" " if begins else f"{first} ")
