"""Language models from nothing: small Llamas, tokenizers of one's own, documents to train on and to be held out.

Knows: texts, tokens, sizes. Does not know: optimizers, losses of methods, trials. What a text costs a model is told in
nats a byte, which does not depend on the tokenizer.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.seeds import seeded
from broadsheet.training.losses import token_losses

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from broadsheet.data.corpora import Document

END = "<|endoftext|>"  # between documents; token 0
SHINGLE = 5  # words that stand together, by which documents are compared
NEAR = 0.5  # of the smaller one's shingles: two documents that share as many are near duplicates


@dataclass(frozen=True)
class Size:
    """Of a Llama: layers, width, heads; its MLP is 8/3 of the width, up to a multiple of 32.

    Attributes:
        layers, width, heads: as in its config; the head size is width / heads.
    """

    layers: int
    width: int
    heads: int

    def model(self, vocabulary: int, positions: int, seed: int) -> LlamaForCausalLM:
        """A new one, with tied embeddings; the same weights for the same seed.

        Args:
            vocabulary: tokens.
            positions: that it is made for.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            intermediate_size=-(-8 * self.width // 3 // 32) * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        with seeded(seed):
            return LlamaForCausalLM(config)


# By name; about so many weights with a vocabulary of 2,048.
SIZES = {
    "0.4M": Size(2, 96, 3),
    "1M": Size(4, 128, 4),
    "3M": Size(6, 192, 6),
    "4M": Size(6, 224, 7),
    "10M": Size(8, 320, 5),
}


def size(name: str) -> Size:
    """The size of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SIZES:
        raise InputError(f"got the size {name}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


def tokenizer(texts: Iterable[str], vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on texts; it reads any text. `END` is token 0.

    Args:
        vocabulary: tokens at most; 257 are the bytes and `END` alone.

    Raises:
        InputError: fewer than 257 tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + 1:
        raise InputError(f"got a vocabulary of {vocabulary}; expected {len(alphabet) + 1} or more")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


@dataclass(frozen=True)
class SplitTexts:
    """Documents apart: whole ones are held out, and none of the others is a near duplicate of them.

    Attributes:
        train: to learn from.
        tuning: to choose settings by, and to watch a training with.
        held_out: that are asked in the end.
        dropped: documents that were too like a held-out one to be learnt from.
    """

    train: tuple[str, ...]
    tuning: tuple[str, ...]
    held_out: tuple[str, ...]
    dropped: int = 0

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.train, self.tuning, self.held_out])


def apart(
    documents: Iterable[Document | str], held_out: int, tuning: int, seed: int, *, least: int = 500
) -> SplitTexts:
    """Documents to train on, to tune on and to hold out, drawn by a seed.

    Args:
        held_out, tuning: how many of each; fewer where there are few, but never more than a third together.
        least: characters that a held-out document has.

    Raises:
        InputError: too few documents are as long as that.
    """
    given = (each if isinstance(each, str) else each.text for each in documents)
    texts = list(dict.fromkeys(text for text in given if text.strip()))
    random.Random(seed).shuffle(texts)
    long = [text for text in texts if len(text) >= least][: len(texts) // 3]
    if len(long) < 3:
        raise InputError(
            f"got {len(texts)} documents, of which {len(long)} can be held out (a third at most, of {least} characters "
            "or more); expected 3 or more"
        )
    watched = min(tuning, max(1, len(long) // 3))
    chosen, asked = long[:watched], long[watched:][:held_out]
    away = set(chosen) | set(asked)
    rest = [text for text in texts if text not in away]
    like = near_duplicates(rest, [*chosen, *asked])
    train = tuple(text for i, text in enumerate(rest) if i not in like)
    return SplitTexts(train, tuple(chosen), tuple(asked), len(like))


def near_duplicates(texts: Sequence[str], of: Sequence[str]) -> set[int]:
    """Places of the texts of which one of the others holds half of the shingles, or the other way round.

    A shingle is five words in a row, whatever their case. Shingles are compared one by one, not by samples of them.
    """
    places: dict[int, list[int]] = defaultdict(list)
    sizes = []
    for number, text in enumerate(of):
        found = _shingles(text)
        sizes.append(len(found))
        for each in found:
            places[each].append(number)
    like = set()
    for i, text in enumerate(texts):
        own = _shingles(text)
        shared: dict[int, int] = defaultdict(int)
        for each in own:
            for number in places.get(each, ()):
                shared[number] += 1
        if any(count >= NEAR * min(len(own), sizes[number]) for number, count in shared.items()):
            like.add(i)
    return like


def _shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(max(1, len(words) - SHINGLE + 1))}


def joined(texts: Iterable[str], by: PreTrainedTokenizerFast) -> Tensor:
    """(tokens,) of texts one after another, with `END` after each."""
    return torch.tensor([token for row in tokens_of(texts, by) for token in row], dtype=torch.long)


def tokens_of(texts: Iterable[str], by: PreTrainedTokenizerFast) -> list[list[int]]:
    """The tokens of each text, with `END` after them."""
    given = list(texts)
    rows = by(given, add_special_tokens=False, return_attention_mask=False)["input_ids"] if given else []
    return [[*row, by.eos_token_id] for row in rows]


class TokenBlocks(Sequence[dict[str, Tensor]]):
    """Texts joined and cut to equal lengths: the plain way. What fills no block at the end is left out.

    A row is `{"input_ids": (length,), "labels": (length,)}`, as a `Trainer` takes it.

    Raises:
        InputError: there is no whole block.
    """

    def __init__(self, stream: Tensor, length: int) -> None:
        count = len(stream) // length
        if not count:
            raise InputError(f"got {len(stream):,} tokens; expected a block of {length:,} at least")
        self.ids = stream[: count * length].view(count, length)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        ids = self.ids[place]
        return {"input_ids": ids, "labels": ids}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [list(self.ids.shape), fingerprint(self.ids.flatten().tolist())]


@torch.no_grad()
def document_losses(model: Any, by: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> np.ndarray:
    """What each text costs a model, in nats a byte: (texts,), float64.

    A text begins after `END`, and is read in stretches of `length` tokens at most, each of which begins with the last
    token of the one before; so every token is asked once, and a text's own are all it is read with.

    Args:
        model: a causal LM; read in evaluation mode, and left as it was.
    """
    was, end = model.training, by.eos_token_id
    model.eval()
    rows = by(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    pieces = [
        (number, [end, *row][first : first + length + 1])
        for number, row in enumerate(rows)
        for first in range(0, len(row), length)
    ]
    pieces.sort(key=lambda piece: -len(piece[1]))
    total = np.zeros(len(texts))
    try:
        for begin in range(0, len(pieces), 16):
            some = pieces[begin : begin + 16]
            widest = len(some[0][1])
            ids = torch.tensor([piece + [end] * (widest - len(piece)) for _, piece in some], device=model.device)
            labels = ids.clone()
            for i, (_, piece) in enumerate(some):
                labels[i, len(piece) :] = -100
            losses, _ = token_losses(model(ids, use_cache=False).logits, labels)
            for (number, _), loss in zip(some, losses.double().sum(1).tolist(), strict=True):
                total[number] += loss
    finally:
        model.train(was)
    return total / np.array([max(1, len(text.encode())) for text in texts])
