"""A period's model reads texts: bits a character, bits of each word, and the probability of words that do not stand.

Knows: causal LMs, fast tokenizers, characters. Does not know: how models were made, periods.

Models of periods have tokenizers of their own, so that nothing is compared by token: characters and words are the same
for all. A token belongs to the word in which its last character stands; the space before a word belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broadsheet.curate.periods.counts import LETTERS, Floats
from broadsheet.training.losses import token_losses

BATCH = 16  # stretches of text
ROWS = 1024  # words after their contexts


@dataclass
class PeriodModel:
    """A causal LM with its tokenizer.

    Args:
        model: is left in the mode that it was in.
        tokenizer: a fast one: places of tokens in the text are asked for.
        length: tokens that are read at once; a longer text is read in stretches, each from the last token before it.

    Example:
        >>> from broadsheet.curate.periods.models import new_model, period_tokenizer
        >>> tokenizer = period_tokenizer(["some text of the period " * 9], 300)
        >>> model = PeriodModel(new_model("0.4M", len(tokenizer), 64, seed=0), tokenizer, 64)
        >>> model.bits(["some text"]).shape
        (1,)
    """

    model: Any
    tokenizer: Any
    length: int = 128

    @property
    def start(self) -> int:
        """The token that stands before a text."""
        for each in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if each is not None:
                return int(each)
        raise ValueError("the tokenizer has neither a bos_token nor an eos_token; expected one to begin texts with")

    def bits(self, texts: Sequence[str]) -> Floats:
        """(texts,) bits a character: what a text costs, whatever its tokens."""
        found, _ = self._read(texts)
        return np.array([bits.sum() / max(1, len(text)) for bits, text in zip(found, texts, strict=True)])

    def word_bits(self, texts: Sequence[str]) -> list[tuple[list[str], Floats]]:
        """The words of each text, in small letters, and the bits of each in its place."""
        found, ends = self._read(texts)
        return [_of_words(text, bits, end) for text, bits, end in zip(texts, found, ends, strict=True)]

    @torch.no_grad()
    def probability(self, contexts: Sequence[str], words: Sequence[str]) -> Floats:
        """(contexts, words) the probability that a context goes on with a space and the word, and that it ends there.

        Args:
            contexts: texts that end before a space; of a long one the last `length` tokens are read, less the word's.
            words: as they would stand.
        """
        was = self.model.training
        self.model.eval()
        try:
            parts = list(self._parts(contexts, words))
        finally:
            self.model.train(was)
        return np.concatenate(parts) if parts else np.zeros((0, len(words)))

    def _parts(self, contexts: Sequence[str], words: Sequence[str]) -> Iterator[Floats]:
        pad, device = self.start, self.model.device
        spelled = self._ids([f" {word}" for word in words])
        longest = max(map(len, spelled))
        rows = torch.tensor([each + [pad] * (longest - len(each)) for each in spelled], device=device)
        sizes = torch.tensor([len(each) for each in spelled], device=device)
        before = [[pad, *ids][-max(1, self.length - longest) :] for ids in self._ids(contexts)]
        step = max(1, ROWS // len(words))
        for first in range(0, len(before), step):
            some = before[first : first + step]
            widest = max(map(len, some))
            ids = torch.tensor([[pad] * (widest - len(each)) + each for each in some], device=device)
            mask = torch.tensor([[0] * (widest - len(each)) + [1] * len(each) for each in some], device=device)
            yield self._continued(ids, mask, rows, sizes)

    def _continued(self, ids: Tensor, mask: Tensor, rows: Tensor, sizes: Tensor) -> Floats:
        """(contexts, words), of contexts that are padded on the left, and words on the right."""
        from transformers import DynamicCache

        contexts, (words, longest) = len(ids), rows.shape
        places = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        read = self.model(ids, attention_mask=mask, position_ids=places, cache=cache, use_cache=True)
        cache.batch_repeat_interleave(words)
        tokens = rows.repeat(contexts, 1)
        after = torch.cat([mask.repeat_interleave(words, 0), torch.ones_like(tokens)], 1)
        places = places[:, -1:].repeat_interleave(words, 0) + 1 + torch.arange(longest, device=ids.device)
        said = self.model(tokens, attention_mask=after, position_ids=places, cache=cache, use_cache=True).logits.float()
        first = read.logits[:, -1:].float().repeat_interleave(words, 0)
        log_probs = torch.cat([first, said], 1).log_softmax(-1)
        own = log_probs[:, :-1].gather(-1, tokens[..., None])[..., 0]
        counts = sizes.repeat(contexts)
        inside = torch.arange(longest, device=ids.device) < counts[:, None]
        last = log_probs[torch.arange(len(tokens), device=ids.device), counts]  # what follows the word
        ended = 1 - last.exp()[:, self._continues].sum(-1)
        found = (own * inside).sum(1).exp() * ended.clamp(min=0)
        return found.view(contexts, words).double().cpu().numpy()

    @cached_property
    def _continues(self) -> Tensor:
        """Which tokens go on with a word: they begin with a letter, or with a part of one."""
        tokens = self.tokenizer.convert_ids_to_tokens(range(self.model.config.vocab_size))
        begins = [
            token is not None
            and not token.startswith(("Ġ", "▁"))
            and ((text := self.tokenizer.decode([i]))[:1].isalpha() or text.startswith("\ufffd"))
            for i, token in enumerate(tokens)
        ]
        return torch.tensor(begins, device=self.model.device)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> tuple[list[Floats], list[NDArray[np.int64]]]:
        """The bits of each token of each text, and where it ends in the text."""
        if not texts:
            return [], []
        read = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        pieces = [
            (number, first, [self.start, *row][first : first + self.length + 1])
            for number, row in enumerate(read["input_ids"])
            for first in range(0, len(row), self.length)
        ]
        pieces.sort(key=lambda piece: -len(piece[2]))
        bits = [np.zeros(len(row)) for row in read["input_ids"]]
        was = self.model.training
        self.model.eval()
        try:
            for begin in range(0, len(pieces), BATCH):
                self._add(pieces[begin : begin + BATCH], bits)
        finally:
            self.model.train(was)
        ends = [np.array([end for _, end in row], np.int64) for row in read["offset_mapping"]]
        return bits, ends

    def _add(self, pieces: Sequence[tuple[int, int, list[int]]], bits: list[Floats]) -> None:
        widest = len(pieces[0][2])
        rows = [piece + [self.start] * (widest - len(piece)) for _, _, piece in pieces]
        ids = torch.tensor(rows, device=self.model.device)
        losses, _ = token_losses(self.model(ids, use_cache=False).logits, ids)
        found = losses.double().cpu().numpy() / np.log(2)
        for (number, first, piece), row in zip(pieces, found, strict=True):
            bits[number][first : first + len(piece) - 1] = row[: len(piece) - 1]


def _of_words(text: str, bits: Floats, ends: NDArray[np.int64]) -> tuple[list[str], Floats]:
    spans = [match.span() for match in LETTERS.finditer(text)]
    if not spans:
        return [], np.zeros(0)
    starts, stops = np.array([(start - (text[start - 1 : start] == " "), stop) for start, stop in spans]).T
    # The last word that begins where the token's last character stands, or before.
    owner = np.searchsorted(starts, ends - 1, side="right") - 1
    inside = (owner >= 0) & (ends <= stops[owner])
    total = np.bincount(owner[inside], bits[inside], minlength=len(spans)).astype(np.float64)  # ints where none is
    return [text[start:stop].lower() for start, stop in spans], total
