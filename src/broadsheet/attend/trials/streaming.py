"""Reading a long text with a model: the loss of every token, and on the way the time, the bytes held and what is known.

Knows: causal LMs, their caches, clocks, running out of memory. Does not know: methods, documents, trials. A method that
is installed on the model does its work unseen.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from broadsheet.attend.layout import find_decoder
from broadsheet.attend.memory import Bytes, MemoryLayer, cache_bytes
from broadsheet.clock import cuda_in_use
from broadsheet.console import say
from broadsheet.models.batching import _out_of_memory, _release

_COPIES = 2**30  # bytes of cache that the copies made for questions may take at once


@dataclass(frozen=True)
class Stop:
    """Where reading paused.

    Attributes:
        length: tokens read before it.
        seconds: that reading them in chunks took, in the decoder alone (the head, which a prefill needs once, is left
            out, and so are tokens that were read one by one after earlier stops, and those that followed a prompt).
        decode_seconds: of one token read on its own here, head included; the median of a few.
        held: bytes of the cache.
        visit: what the visitor gave.
    """

    length: int
    seconds: float
    decode_seconds: float
    held: Bytes
    visit: Any


@dataclass(frozen=True)
class StreamRecord:
    """A text as it was read.

    Attributes:
        losses: (tokens,) float32 on CPU, -log p of each token in nats; NaN for the first one and those not scored.
        stops: in order.
        chunk: tokens read at once, after halving.
    """

    losses: Tensor
    stops: list[Stop]
    chunk: int


def read(
    model: PreTrainedModel,
    ids: Sequence[int],
    stops: Sequence[int],
    *,
    chunk: int | None = 512,
    tail: int | None = None,
    following: int | None = None,
    decode: int = 8,
    visitor: Callable[[Cache, int], Any] | None = None,
) -> StreamRecord:
    """Read one text from its start, chunk by chunk through one cache.

    After each stop the next tokens of the text are read one by one and timed; so nothing is read twice, and the losses
    are those of reading without stops. Where memory runs out, reading starts again with chunks of half the size.

    Args:
        ids: the text; at least `decode` tokens follow the last stop.
        stops: ascending numbers of tokens, more than `decode` apart.
        chunk: tokens read at once, ending at multiples of it and at stops; None reads up to each stop in one piece, and
            is not tried again in smaller ones.
        tail: only this many tokens before each stop are scored, and those read one by one; None scores all.
        following: a prompt ends in front of the tail, so that each scored token is predicted behind it; what follows is
            read so many tokens at once. None reads the tail as it reads what is in front.
        decode: tokens read one by one.
        visitor: called with the cache and the stop; it may read a `branch` of the cache, not the cache itself.

    Raises:
        ValueError: the stops do not suit the text.
        MemoryError, torch.OutOfMemoryError, RuntimeError: out of memory, even token by token or in one piece.

    Example:
        >>> record = read(model, ids, [1024, 2048])  # doctest: +SKIP
        >>> record.stops[-1].seconds, record.losses[1024:2048].mean()  # doctest: +SKIP
    """
    if following is not None and tail is None:
        raise ValueError("got following without tail; expected the tokens that follow a prompt to be counted")
    ends = [*stops[1:], len(ids) + 1]
    if not stops or stops[0] < 1 or any(end <= stop + decode for stop, end in zip(stops, ends, strict=True)):
        raise ValueError(
            f"got stops {list(stops)} in {len(ids)} tokens; expected them ascending, more than {decode} apart"
        )
    size = chunk or stops[-1]
    while True:
        try:
            return _read(model, ids, stops, size, tail, following, decode, visitor)
        except (MemoryError, RuntimeError) as error:
            if chunk is None or size == 1 or not _out_of_memory(error):
                raise
        # Outside the handler, so that the tensors held by the traceback are freed first.
        _release()
        size //= 2
        say(f"out of memory: reading the text again in chunks of {size} tokens")


def branch(cache: Cache, rows: int) -> Cache:
    """`rows` copies of a cache of one row, as one batch; reading on with them leaves the cache as it was."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in copied.layers:
        layer.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=layer.device))
    return copied


def ask(
    model: PreTrainedModel, cache: Cache, questions: Sequence[Sequence[int]], told: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """What a model that has read a text expects after each question, each put to it on its own.

    Args:
        cache: of one row, filled; it is left as it was.
        questions: token ids.
        told: for each question the number of the token that tells its answer.

    Returns:
        (questions, vocabulary) float32 logits of the next token, on CPU; and (questions,) with what share of layers and
        heads the question's last token attended to the one that tells: NaN where nothing is looked up.
    """
    rows = max(1, _COPIES // max(1, sum(cache_bytes(cache))))
    found: dict[int, Tensor] = {}
    attended = torch.full((len(questions),), torch.nan)
    for length in sorted({len(question) for question in questions}):
        alike = [i for i, question in enumerate(questions) if len(question) == length]
        for start in range(0, len(alike), rows):
            group = alike[start : start + rows]
            ids = torch.tensor([list(questions[i]) for i in group], device=model.device)
            read = branch(cache, len(group))
            with torch.no_grad():
                output = model(input_ids=ids, cache=read, use_cache=True, logits_to_keep=1)
            found.update(zip(group, output.logits[:, -1].float().cpu(), strict=True))
            if told is not None:
                attended[group] = _attended(read, torch.tensor([told[i] for i in group]))
    return torch.stack([found[i] for i in range(len(questions))]), attended


def _attended(cache: Cache, tokens: Tensor) -> Tensor:
    """The mean over the layers that look up of `MemoryLayer.attended`, (rows,); NaN without such layers."""
    layers = [layer.attended(tokens) for layer in cache.layers if isinstance(layer, MemoryLayer)]
    known = [each for each in layers if each is not None]
    return torch.stack(known).mean(0) if known else torch.full(tokens.shape, torch.nan)


def _read(
    model: PreTrainedModel,
    ids: Sequence[int],
    stops: Sequence[int],
    chunk: int,
    tail: int | None,
    following: int | None,
    decode: int,
    visitor: Callable[[Cache, int], Any] | None,
) -> StreamRecord:
    text = torch.tensor([list(ids)], device=model.device)
    losses = torch.full((len(ids),), torch.nan)
    cache = DynamicCache(config=model.config)
    made: list[Stop] = []

    def forward(start: int, end: int, keep: int) -> Tensor:
        """Read tokens start … end-1; the logits that the last `keep` of them give, (keep, vocabulary)."""
        tokens = text[:, start:end]
        logits: Tensor = model(input_ids=tokens, cache=cache, use_cache=True, logits_to_keep=max(1, keep)).logits[0]
        return logits[len(logits) - keep :]

    def score(logits: Tensor, end: int) -> None:
        """Note the losses of the tokens that the predictions up to the one of token end-1 are about."""
        last = min(end + 1, len(ids))  # what the text's last token predicts is not known
        first = end + 1 - len(logits)
        targets = text[0, first:last]
        losses[first:last] = cross_entropy(logits[: len(targets)].float(), targets, reduction="none").cpu()

    position, seconds = 0, 0.0
    with torch.no_grad(), _decoder_seconds(model) as spent:
        for stop in stops:
            scored = 0 if tail is None else stop - tail - 1  # the first token whose prediction is scored
            spent.clear()
            # The prompt leaves out the token whose prediction is the first one scored.
            prompt = stop if following is None else max(position, scored)
            while position < prompt:
                end = min((position // chunk + 1) * chunk, prompt)
                score(forward(position, end, max(0, end - max(position, scored))), end)
                position = end
            seconds += sum(spent)
            while position < stop:
                end = min(position + (following or chunk), stop)
                score(forward(position, end, end - position), end)
                position = end
            held = cache_bytes(cache)
            singles = []
            for place in range(stop, stop + decode):
                begun = _now()
                logits = forward(place, place + 1, 1)
                singles.append(_now() - begun)
                score(logits, place + 1)
            position = stop + decode
            visit = visitor(cache, stop) if visitor else None
            made.append(Stop(stop, seconds, median(singles), held, visit))
    return StreamRecord(losses, made, chunk)


@contextmanager
def _decoder_seconds(model: PreTrainedModel) -> Iterator[list[float]]:
    """A list that gets the seconds of each run of the model's decoder."""
    decoder = find_decoder(model)
    begun: list[float] = []
    spent: list[float] = []
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: begun.append(_now())),
        decoder.register_forward_hook(lambda *_: spent.append(_now() - begun.pop())),
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _now() -> float:
    if cuda := cuda_in_use():
        cuda.synchronize()
    return time.perf_counter()
