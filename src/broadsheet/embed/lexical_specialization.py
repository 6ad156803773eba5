"""BabelBERT (Green et al., 2022, arXiv:2208.01018): a language model turned into an encoder of single words.

Knows: word pairs with the set they belong to, sentence-transformers' losses, samplers and evaluators. Does not know
where word lists come from (`lexicon`), or the trainer (`fitting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn

from broadsheet.console import InputError, say
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.devices import gather_rows
from broadsheet.embed.fitting import Fitted, fit
from broadsheet.embed.language_pairs import LanguagePairSampler
from broadsheet.embed.lexicon import WordPair, check_words, without
from broadsheet.embed.ntxent import Similarity, label_ntxent
from broadsheet.embed.subwords import SubwordMean
from broadsheet.embed.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabelNTXentLoss(nn.Module):
    """Pull words of one set together and push them from all words of other sets in the batch: see `ntxent`.

    Inputs:

    | texts | labels |
    |---|---|
    | (word1, word2), or more columns | (batch,) whole numbers: the set that the row's words belong to |

    Use when … several rows of a batch may mean the same: they then push nothing apart. Prefer
    `MultipleNegativesRankingLoss` where every row means something of its own; with different labels throughout, this
    loss is the mean of that one in both directions, with the other words of a column as negatives too.

    Args:
        model: the embedder.
        temperature: τ; 0.07 in the paper.
        similarity: `"cos"`, or `"csls"`, which takes away what each word has with all others; see `ntxent.csls`.
        gather_across_devices: words of all processes are negatives, and positives where labels agree; gradients reach
            all of them.

    Example:
        rows = {"word1": ["big", "quick"], "word2": ["large", "fast"], "label": [0, 1]}
        fit(embedder, Dataset.from_dict(rows), LabelNTXentLoss(embedder))

    Source: arXiv:2208.01018; authors' code umanlp/babelbert.
    """

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
        words, sets = torch.cat(embeddings), labels.repeat(len(embeddings))
        if self.gather_across_devices:
            # Every process computes the whole batch's loss, so that averaging gradients leaves it as it is.
            words, sets = gather_rows(words)[0], gather_rows(sets)[0]
        return label_ntxent(words, sets, self.temperature, self.similarity)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for model cards and for `fit`."""
        names = ("temperature", "similarity", "gather_across_devices")
        return {name: getattr(self, name) for name in names}


@dataclass
class LexicalSpecialization:
    """A language model specialised to embed single words, in any languages, by sets of words that mean the same.

    Use when … words and terms are looked up by meaning: glossaries, dictionaries across languages, product names,
    ontologies. Prefer an encoder of sentences when … texts are longer than a phrase: specialising costs some of that.

    Args:
        temperature, similarity, gather_across_devices: see `LabelNTXentLoss`.
        alpha: of the language-pair sampler (0.5); −1 shuffles.

    Example:
        method = LexicalSpecialization()
        words = method.embedder("default")
        method.fit(words, lexicon.load("freedict:eng-fra"), "runs/words", held_out=test_words, steps=200)
        words.encode(["house", "maison"])

    Source: arXiv:2208.01018; authors' code umanlp/babelbert. The paper trains mBERT and XLM-R on BabelNet synsets: 256
    pairs a batch, learning rate 5e-6 held constant, all weights, 2 epochs.
    """

    temperature: float = 0.07
    similarity: Similarity = "cos"
    alpha: float = 0.5
    gather_across_devices: bool = False

    def embedder(self, model: Any = "default", *, space: bool = True, **settings: Any) -> Embedder:
        """A causal LM that embeds words by the mean of their subwords.

        A beginning-of-text token is put before each word, where the tokenizer has one, and is not pooled.

        Args:
            model: as in `embed.embedder`.
            space: give each word the space that it has inside a text, for tokenizers that write it into the token.
            settings: of `embed.embedder`: `attention`, `layer`, …
        """
        from broadsheet import models

        if isinstance(model, str | Path):
            model = models.load(model, device=settings.pop("device", None), dtype=settings.pop("dtype", None))
        lm, tokenizer = model
        before = settings.pop("template", None) or word_template(tokenizer, space)
        width = lm.get_input_embeddings().weight.shape[1]
        pooling = SubwordMean.of(tokenizer, width, before.prefix, before.suffix)
        return embedder(model, pooling, template=before, **{"max_seq_length": 64, **settings})

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
        **settings: Any,
    ) -> Fitted:
        """Train on word pairs; the defaults are the paper's.

        Args:
            model: as `embedder` or `adopt` gives it.
            pairs: see `lexicon.load`.
            held_out: words of a test: every pair that holds one is left out, and the number of them said.
            batch_size: pairs.
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
            LabelNTXentLoss(model, self.temperature, self.similarity, self.gather_across_devices),
            out,
            batch_size=min(batch_size, len(kept)),
            epochs=epochs,
            learning_rate=learning_rate,
            warmup=warmup,
            batch_sampler=LanguagePairSampler(tuple(pair.languages for pair in kept), self.alpha),
            **given,
        )


def word_template(tokenizer: PreTrainedTokenizerBase, space: bool = True) -> Template:
    """What stands before a word: a beginning-of-text token unless the tokenizer puts one there itself, and a space."""
    begin = tokenizer.bos_token
    own = begin is not None and tokenizer("a", verbose=False)["input_ids"][0] == tokenizer.bos_token_id
    return Template(prefix=("" if begin is None or own else begin) + " " * space)
