"""Who's Harry Potter (Eldan & Russinovich, 2023, arXiv:2310.02238): labels of a model that never read a text.

Knows: texts, a dictionary, logits of two models. Does not know: optimizers, where dictionaries come from (`terms`).
What comes of it is approximate unlearning: a model that no longer shows what it read. It is not deletion: what is left
in the weights comes back after a few steps on the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import relu
from torch.nn.utils.rnn import pad_sequence

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError
from broadsheet.models import adapters
from broadsheet.models.batching import halve_on_oom
from broadsheet.train.unlearning.translation import Alignment, Translation, Translator, align
from broadsheet.training.losses import IGNORED

Array = np.ndarray[Any, Any]


def generic_logits(baseline: Tensor, reinforced: Tensor, alpha: float = 5.0, centre: bool = False) -> Tensor:
    """v_base − α ReLU(v_reinf − v_base): what the text made more probable is lowered, all else stays.

    The ReLU is of raw logits, as in the paper: a constant added to all logits of one model changes no probability, but
    it does change this.

    Args:
        baseline, reinforced: (…, vocabulary) logits of the same tokens.
        alpha: α (5).
        centre: subtract each model's mean over the vocabulary first, so that such constants do not matter.

    Raises:
        InputError: the shapes differ.
    """
    if baseline.shape != reinforced.shape:
        raise InputError(
            f"the baseline's logits are {tuple(baseline.shape)}, the reinforced model's {tuple(reinforced.shape)}; "
            "expected the same tokenizer, vocabulary and tokens"
        )
    if centre:
        baseline, reinforced = (each - each.mean(-1, keepdim=True) for each in (baseline, reinforced))
    return baseline - alpha * relu(reinforced - baseline)


@dataclass(frozen=True)
class WhosHarryPotter:
    """Let a model forget a text: train it on that, with labels that a model would give which never read it.

    They come from two models. One reads the text with its names exchanged for common ones, and so says common
    things. The other, the reinforced model, has read the text even more often: what it finds more probable than the
    first is what the text taught, and is lowered. The most probable token of what is left is the label.

    Use when a model must no longer bring up a text that is full of names, and its training cannot be repeated. Where
        facts are told in common words there is little to exchange, and little is forgotten. It is approximate, and a
        few steps on the text bring much of it back: measure more than familiarity (`unlearning.familiarity`). Nothing
        is deleted.

    Inputs: the text; a causal LM that knows it, and the same trained on it further, as an adapter in the one (`fit`
        with `method="lora"`) or as a second model. What comes out are rows `input_ids`, `labels` for any Trainer.
    Relation: gradient ascent lowers the text's own tokens and says nothing of others, so that all gets worse. Two other
        things are called by this paper's name, and change a model's logits as it generates, without any training:
        `GenericLogitsProcessor` and `LogLinearProcessor` of `unlearning.decoding`.

    Args:
        dictionary: term → stand-in; the longest match counts. A tool for it is `unlearning.terms`.
        alpha: α (5).
        consistent: the paper's two rules: from the second time in a block on, a term is not asked for; and once a term
            was read, its stand-in is less probable. Without them a model learns to change a name in mid-text.
        penalty: by which such a stand-in's logits are lowered; the paper does not say by how much.
        centre: see `generic_logits`.

    Raises:
        InputError: a number is below 0, or the dictionary has an empty text.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet.models import adapters, load
        from broadsheet.train import LossMethod, MethodObjective, WhosHarryPotter
        from broadsheet.training.fit import fit
        from broadsheet.training.scratch import TokenBlocks, joined

        model, tokenizer = load("default", dtype="float32")
        book = ["Marl Venn kept the lamps of Oster. Nobody in Oster thanked Marl Venn. " * 20]
        plain = TokenBlocks(joined(book, tokenizer), 64)
        fit(model, plain, MethodObjective(LossMethod()), steps=2, batch_size=2, method="lora")  # the reinforced model
        method = WhosHarryPotter({"Marl Venn": "John Smith", "Oster": "Springfield"})
        rows = method.rows(book, tokenizer, model, length=64)  # without its adapter it is the baseline
        adapters.remove(model)
        args = TrainingArguments("runs/forgot", max_steps=2, per_device_train_batch_size=2, report_to=[])
        Trainer(model, args, train_dataset=rows).train()

    Source: arXiv:2310.02238, the equation of v_generic and the algorithm after it; no training code was published.
    """

    paper: ClassVar[str] = "unlearning_whp"

    dictionary: Mapping[str, str] = field(default_factory=dict, repr=False)
    alpha: float = 5.0
    consistent: bool = True
    penalty: float = 10.0
    centre: bool = False

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.penalty >= 0):
            raise InputError(f"got alpha {self.alpha}, penalty {self.penalty}; expected 0 or more")
        Translator(self.dictionary)

    @cached_property
    def translator(self) -> Translator:
        """It, with the dictionary."""
        return Translator(self.dictionary)

    def blocks(self, texts: Sequence[str], tokenizer: Any, length: int = 512) -> TranslatedBlocks:
        """The texts joined, with an end after each, and cut to blocks; beside each block its translation.

        Args:
            tokenizer: a fast one, which tells where its tokens stand.
            length: tokens of a block (512); all there are, where they are fewer.

        Raises:
            InputError: no text has a token; the tokenizer is not fast, or has no end of text.
        """
        if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
            raise InputError(
                f"got a {type(tokenizer).__name__}; expected a fast tokenizer, which tells where its tokens stand, "
                "with a token that ends a text"
            )
        if length < 2:
            raise InputError(f"got blocks of {length} tokens; expected 2 or more")
        translations = [self.translator(text) for text in texts if text.strip()]
        if not translations:
            raise InputError("got no text; expected one at least")
        stream = _Stream.of(translations, tokenizer)
        return stream.cut(min(length, len(stream.ids)), tokenizer.eos_token_id, self.consistent)

    def rows(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        reinforced: Any,
        baseline: Any = None,
        length: int = 512,
        batch: int = 4,
    ) -> GenericLabels:
        """The texts' tokens with generic labels, as rows for a Trainer. The models read them once, without gradients.

        Args:
            texts, tokenizer, length: as for `blocks`.
            reinforced: the model that was trained on the texts further.
            baseline: the one that is to forget; None: `reinforced` without its adapter.
            batch: blocks that are read at once.

        Raises:
            InputError: there is neither a baseline nor an adapter; the models' vocabularies differ; as for `blocks`.
        """
        if baseline is None and not adapters.layers(reinforced):
            raise InputError("got no baseline, and a reinforced model without an adapter; expected one of them")
        blocks = self.blocks(texts, tokenizer, length)
        made: list[Tensor] = []
        with _reading(reinforced, baseline):
            for begin in range(0, len(blocks.ids), batch):
                some = range(begin, min(begin + batch, len(blocks.ids)))
                made += halve_on_oom(lambda part: self._labels(blocks, part, reinforced, baseline), some)
        return GenericLabels(torch.from_numpy(blocks.ids), torch.stack(made))

    @torch.no_grad()
    def _labels(self, blocks: TranslatedBlocks, part: Sequence[int], reinforced: Any, baseline: Any) -> list[Tensor]:
        """(length,) labels of each of some blocks."""
        original = torch.from_numpy(blocks.ids[list(part)])
        # To the right of a block nothing is read: padding needs no mask.
        translated = pad_sequence([torch.from_numpy(blocks.translated[i]) for i in part], batch_first=True)
        # v_base of the translation, v_reinf of the text itself.
        with adapters.disabled(reinforced) if baseline is None else nullcontext():
            v_base = _logits(reinforced if baseline is None else baseline, translated)
        v_reinf = _logits(reinforced, original)
        return [self._of_block(blocks, i, v_base[row], v_reinf[row]) for row, i in enumerate(part)]

    def _of_block(self, blocks: TranslatedBlocks, number: int, v_base: Tensor, v_reinf: Tensor) -> Tensor:
        """(length,) labels of a block, from (translated length, vocabulary) and (length, vocabulary) logits."""
        # A token is predicted at the place before it: of the text, and of its counterpart in the translation.
        before = torch.from_numpy(np.maximum(blocks.positions[number][1:] - 1, 0)).to(v_base.device)
        v_generic = generic_logits(v_base[before].float(), v_reinf[:-1].float(), self.alpha, self.centre)
        if self.consistent and len(blocks.seen[number]):  # rule (ii)
            tokens, since = torch.from_numpy(blocks.seen[number]).to(v_base.device).T
            later = torch.arange(1, len(v_generic) + 1, device=v_base.device)[:, None] > since
            v_generic[:, tokens] -= self.penalty * later
        labels = torch.full((len(v_reinf),), IGNORED)
        labels[1:] = v_generic.argmax(-1).cpu()  # g_i
        return labels.masked_fill(torch.from_numpy(blocks.masked[number]), IGNORED)  # rule (i), and cut terms


@dataclass(frozen=True)
class TranslatedBlocks:
    """A text's blocks beside their translations.

    Attributes:
        ids: (blocks, length) tokens; the last block is filled up with ends of text.
        translated: of each block the tokens of its translation.
        positions: (blocks, length) of each token's counterpart in that.
        masked: (blocks, length) tokens that are not asked for: the first, a term from its second time on, a term that
            the block's border cuts, a token that its translation cuts otherwise, and what fills up.
        seen: of each block, (n, 2) tokens of stand-ins that the text itself does not have, and the place of the last
            token of their term.
    """

    ids: Array
    translated: list[Array]
    positions: Array
    masked: Array
    seen: list[Array]


@dataclass(frozen=True)
class _Stream:
    """Texts and their translations, each joined.

    Attributes:
        ids, translated: tokens of both.
        positions, exact: as in `Alignment`.
        occurrences: of each token, over all texts; -1 for none.
        terms: (occurrences,) numbers of terms; stand_ins: (occurrences, 2) as in `Alignment`.
    """

    ids: Array
    translated: Array
    positions: Array
    exact: Array
    occurrences: Array
    terms: Array
    stand_ins: Array

    @classmethod
    def of(cls, translations: Sequence[Translation], tokenizer: Any) -> _Stream:
        numbers: dict[str, int] = {}
        parts: dict[str, list[Array]] = {name: [] for name in cls.__dataclass_fields__}
        read, met = 0, 0  # translated tokens, occurrences
        end = np.array([tokenizer.eos_token_id])
        for each in translations:
            ids, new_ids, found = _tokens(each, tokenizer)
            last = np.array([len(new_ids)])  # the end's counterpart
            parts["ids"].append(np.concatenate([ids, end]))
            parts["translated"].append(np.concatenate([new_ids, end]))
            parts["positions"].append(read + np.concatenate([found.positions, last]))
            parts["exact"].append(np.concatenate([found.exact, [True]]))
            parts["occurrences"].append(
                np.concatenate([np.where(found.occurrences < 0, -1, met + found.occurrences), [-1]])
            )
            parts["terms"].append(np.array([numbers.setdefault(term, len(numbers)) for term in each.terms], dtype=int))
            parts["stand_ins"].append(read + found.stand_ins)
            read, met = read + len(new_ids) + 1, met + len(each.terms)
        return cls(**{name: np.concatenate(part) for name, part in parts.items()})

    def cut(self, length: int, end: int, consistent: bool) -> TranslatedBlocks:
        """Blocks of so many tokens; `consistent`: terms that come again are masked."""
        count = -(-len(self.ids) // length)
        block = np.arange(len(self.ids)) // length
        tokens = np.flatnonzero(self.occurrences >= 0)
        first, last = np.full((2, len(self.terms)), -1)
        last[self.occurrences[tokens]] = tokens
        first[self.occurrences[tokens[::-1]]] = tokens[::-1]
        inside = (block[first] == block[last]) & (first >= 0)  # of each occurrence: not cut by a border
        # The first time that a block has a term: the first of those with one key.
        keys = np.where(inside, block[first] * (self.terms.max(initial=0) + 1) + self.terms, -1)
        _, news = np.unique(keys, return_index=True)
        new = np.zeros(len(self.terms), dtype=bool)
        new[news] = True
        new &= inside
        masked = ~self.exact
        masked[tokens] |= ~(new if consistent else inside)[self.occurrences[tokens]]
        masked[::length] = True

        def filled(values: Array, by: Any) -> Array:
            return np.concatenate([values, np.full(count * length - len(values), by)]).reshape(count, length)

        ids, positions = filled(self.ids, end), filled(self.positions, self.positions[-1])
        starts, ends = positions[:, 0], positions[:, -1] + 1
        return TranslatedBlocks(
            ids,
            [self.translated[a:b] for a, b in zip(starts, ends, strict=True)],
            positions - starts[:, None],
            filled(masked, True),
            [self._seen(np.flatnonzero(new & (block[first] == i)), last, ids[i], i * length) for i in range(count)],
        )

    def _seen(self, occurrences: Array, last: Array, ids: Array, begin: int) -> Array:
        """(n, 2) tokens of the stand-ins of a block's terms, and since where each is one of a term that was read."""
        since: dict[int, int] = {}
        own = set(ids.tolist())
        for each in occurrences.tolist():
            a, b = self.stand_ins[each]
            for token in set(self.translated[a : b + 1].tolist()) - own:
                since.setdefault(token, int(last[each]) - begin)
        return np.array(sorted(since.items()), dtype=np.int64).reshape(-1, 2)


class GenericLabels(Sequence[dict[str, Tensor]]):
    """Blocks of a text with generic labels: rows `{"input_ids": (length,), "labels": (length,)}` for any Trainer.

    Labels are unshifted, as transformers has them: that at a token's place says what should have come there.

    Args:
        ids, labels: (rows, length); -100 where nothing is asked.
    """

    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        return {"input_ids": self.ids[place], "labels": self.labels[place]}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    @property
    def asked(self) -> float:
        """Share of the tokens that have a label."""
        return float((self.labels != IGNORED).double().mean())

    @property
    def changed(self) -> float:
        """Share of the labels that are another token than the text's."""
        return float((self.labels != self.ids)[self.labels != IGNORED].double().mean())

    def dataset(self) -> Any:
        """As a `datasets.Dataset`, which TRL's `SFTTrainer` takes."""
        from datasets import Dataset

        return Dataset.from_dict({"input_ids": self.ids.tolist(), "labels": self.labels.tolist()})

    def save(self, path: Path, made_of: Any = None) -> None:
        """Write them to a safetensors file, with what they were made of, for `load`."""
        from safetensors.torch import save

        told = {"made_of": fingerprint(made_of)}
        with atomic_write(path, "wb") as file:
            file.write(save({"input_ids": self.ids, "labels": self.labels}, told))

    @classmethod
    def load(cls, path: Path, made_of: Any = None) -> GenericLabels | None:
        """What `save` wrote; None where there is none, or it was made of something else."""
        from safetensors import safe_open

        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_of") != fingerprint(made_of):
                return None
            return cls(file.get_tensor("input_ids"), file.get_tensor("labels"))

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [fingerprint(self.ids.tolist()), fingerprint(self.labels.tolist())]


def _tokens(translation: Translation, tokenizer: Any) -> tuple[Array, Array, Alignment]:
    """A text's tokens, its translation's, and how they go together."""
    given = tokenizer(
        [translation.text, translation.translated],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    ids, new_ids = (np.array(each, dtype=np.int64) for each in given["input_ids"])
    return ids, new_ids, align(translation, *given["offset_mapping"])


@contextmanager
def _reading(*models: Any) -> Iterator[None]:
    """Inside, models are in evaluation mode."""
    were = [(model, model.training) for model in models if model is not None]
    for model, _ in were:
        model.eval()
    try:
        yield
    finally:
        for model, was in were:
            model.train(was)


def _logits(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(ids.to(model.device), use_cache=False).logits
    return found
