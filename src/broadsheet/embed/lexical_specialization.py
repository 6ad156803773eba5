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
from broadsheet.embed.data.language_pairs import LanguagePairSampler
from broadsheet.embed.data.lexicon import WordPair, check_words, without
from broadsheet.embed.fitting import TrainOutput, fit
from broadsheet.embed.losses.ntxent import Similarity, label_ntxent
from broadsheet.embed.modules.subwords import SubwordMean
from broadsheet.embed.modules.template import Template
from broadsheet.training.distributed import gather_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabelNTXentLoss(nn.Module):
    """Pull words of one set together and push them from all words of other sets in the batch: see `ntxent`.

    Inputs:

    | texts | labels |
    |---|---|
    | (word1, word2), or more columns | (batch,) whole numbers: the set that the row's words belong to |

    Use when … several rows of a batch may mean the same: they then push nothing apart. Prefer
    `MultipleNegativesRankingLoss` where every row means something of its own.
    Relation: with different labels throughout, it is the mean of that loss in both directions, with the other words of
        a column as negatives too.

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

    Inputs: word pairs (`lexicon.WordPair`) with the set that both belong to.
    Use when … words and terms are looked up by meaning: glossaries, dictionaries across languages, product names,
    ontologies. Prefer an encoder of sentences when … texts are longer than a phrase: specialising costs some of that.
    Relation: contrastive training whose texts are words, whose pooling takes a word's own tokens alone, and whose loss
        (`LabelNTXentLoss`) knows that several rows may mean the same.

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

    def embedder(self, model: Any = "default", *, template: Template | None = None, **settings: Any) -> Embedder:
        """A causal LM that embeds words by the mean of their subwords.

        Args:
            model: as in `embed.embedder`.
            template: what stands around a word; its special tokens at the ends are not pooled. See `word_template`.
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
        **settings: Any,
    ) -> TrainOutput:
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


_SEPARATOR = "<|endoftext|>"


def word_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """What stands before a word: the token that texts began with in pre-training, and a space.

    A decoder's first token takes up attention that has nowhere else to go, and its state says nothing of the text: so
    it had better not be the word. Which token that is, the tokenizer says itself where it puts one before every text;
    otherwise `<|endoftext|>` where it has that, which separated the texts of GPT-2, SmolLM, Qwen and others, or else
    its beginning-of-text token. (A chat model may call the token that begins a turn so, after which a word is read as
    the name of a role.) Words inside a text have a space before them, which many tokenizers make part of the token.

    On the default model, 144 synonyms among 1,231 words, best layer from 1: MRR 0.47 so, 0.36 without the first token,
    0.31 with `<|im_start|>`, and 0.17 without the space.
    """
    begins = tokenizer("a", verbose=False)["input_ids"][0] in tokenizer.all_special_ids
    first = _SEPARATOR if _SEPARATOR in tokenizer.get_vocab() else tokenizer.bos_token or ""
    return Template(prefix=" " if begins else f"{first} ")
