"""Answers that are decoded together, one token of each a step; they join and leave between steps.

Knows: token ids, the key/value cache, sampling. Does not know: texts to read, budgets, who is asking, drafts.

Prompts are padded on the left and read once however many answers they get, all at once or in parts, between which
others take their steps. An answer spends one uniform number per token, from a generator of its own, looked up in the
cumulated probabilities: so in float32 it does not depend on what else is in the batch. (In bfloat16 a batch's shape
changes the last digits of the logits and with them, now and then, a token.)
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from broadsheet.teacher.base import Completion, Sampling, TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import Cache


@dataclass(frozen=True)
class Row:
    """One answer to be generated.

    Attributes:
        prompt: token ids.
        limit: the answer's longest length, in tokens.
        seed: of its generator.
        sampling: how it is drawn; its `max_tokens` and `seed` are not read here.
        transcript: the model reads a transcript, in which the next turn of the user ends the answer.
        top: how many alternatives to each token are noted, where log-probabilities are asked for.
    """

    prompt: tuple[int, ...]
    limit: int
    seed: str
    sampling: Sampling
    transcript: bool = False
    top: int = 0

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end it."""
        return (*self.sampling.stop, "\nUser:") if self.transcript else self.sampling.stop


@dataclass(eq=False)
class GrowingAnswer:
    """One answer as it grows; `completion` is there once it has ended."""

    row: Row
    uniform: random.Random
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    completion: Completion | None = None


@dataclass(eq=False)
class _Lane:
    """Answers that share a cache: the mask (answers, read) is 0 at padding, logits (answers, vocabulary) come next."""

    answers: list[GrowingAnswer]
    cache: Cache
    mask: torch.Tensor
    logits: torch.Tensor

    @property
    def joins(self) -> bool:
        """Whether other answers' keys can be put beside its own."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def select(self, places: Sequence[int]) -> None:
        """Keep these answers."""
        kept = torch.tensor(places, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.answers = [self.answers[place] for place in places]
        self.mask, self.logits = self.mask[kept], self.logits[kept]
        if self.joins and (padding := int(self.mask.any(0).int().argmax())):
            self.mask = self.mask[:, padding:]  # what only those who have left had in front of them
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, padding:], layer.values[:, :, padding:]

    def take(self, other: _Lane) -> None:
        """Put another lane's answers beside its own; the shorter of the two is padded on the left."""
        longest = max(self.mask.shape[1], other.mask.shape[1])
        for one, two in zip(self.cache.layers, other.cache.layers, strict=True):
            one.keys = torch.cat([_padded(each.keys, longest) for each in (one, two)])
            one.values = torch.cat([_padded(each.values, longest) for each in (one, two)])
        self.mask = torch.cat([_padded(each.mask[..., None], longest)[..., 0] for each in (self, other)])
        self.logits = torch.cat([self.logits, other.logits])
        self.answers += other.answers


class TokenReader:
    """A model that reads token ids, in padded batches."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._accepts = set(inspect.signature(model.forward).parameters)
        self.takes_positions = "position_ids" in self._accepts
        ends = model.generation_config.eos_token_id if model.generation_config else None
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, keep: int) -> torch.Tensor:
        """Float32 logits (rows, keep, vocabulary) of the last `keep` of `ids` (rows, new).

        `mask` (rows, cached + new) is 0 at padding.
        """
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "cache": cache, "use_cache": True}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = keep
        logits: torch.Tensor = self.model(**inputs).logits
        return logits[:, -keep:].float()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read prompts: the cache, the mask (prompts, longest), and the logits (prompts, vocabulary) that follow."""
        ids, mask = self.padded(prompts)
        cache = DynamicCache(config=self.model.config)
        return cache, mask, self.forward(ids, mask, cache, keep=1)[:, 0]

    def padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both (prompts, longest), with zeros in front of the shorter ones."""
        longest = max(map(len, prompts))
        missing = [longest - len(prompt) for prompt in prompts]
        ids = [[0] * short + list(prompt) for short, prompt in zip(missing, prompts, strict=True)]
        mask = [[0] * short + [1] * len(prompt) for short, prompt in zip(missing, prompts, strict=True)]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class ReadAhead(Protocol):
    """Reads the last token of an answer together with a guess at what follows, in one pass."""

    def __call__(self, answer: GrowingAnswer, cache: Cache, mask: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """The tokens that greedy decoding writes next, as far as they were guessed, and the logits that follow.

        Args:
            answer: its last token is not in the cache yet; no more is guessed than it has room for.
            cache: of this answer alone. Afterwards it holds the last token and those that are returned.
            mask: (1, read), 0 at padding.

        Returns:
            (tokens, logits (1, vocabulary)).
        """


class JoiningRows:
    """Answers that are to join a batch, while their prompts are read."""

    def __init__(self, reader: TokenReader, rows: Sequence[Row]) -> None:
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
        self.answers = [GrowingAnswer(row, random.Random(row.seed)) for row in rows]
        self._reader = reader
        self._ids, self._mask = reader.padded(list(prompts))
        self._owners = torch.tensor([prompts[row.prompt] for row in rows], device=self._ids.device)
        self._cache = DynamicCache(config=reader.model.config)
        self._logits = torch.empty(0)
        self._read = 0

    @property
    def done(self) -> bool:
        """Whether all of the prompts is read."""
        return self._read == self._ids.shape[1]

    @torch.inference_mode()
    def read(self, tokens: int | None = None) -> int:
        """Read on, at most about so many tokens of all prompts together; returns how many were read."""
        prompts, longest = self._ids.shape
        end = longest if tokens is None else min(longest, self._read + max(1, tokens // prompts))
        part, mask = self._ids[:, self._read : end], self._mask[:, :end]
        self._logits = self._reader.forward(part, mask, self._cache, keep=1)[:, 0]
        self._read = end
        return part.numel()

    def lane(self) -> _Lane:
        """The answers with what was read, a prompt's for each of its own."""
        self._cache.batch_select_indices(self._owners)
        return _Lane(list(self.answers), self._cache, self._mask[self._owners], self._logits[self._owners])


class LiveBatch:
    """Answers that grow together by `step`. Others `join` and `leave` between steps.

    Answers whose caches cannot be put side by side (those of a method that remembers in its own way, those of sliding
    windows) are stepped one group after another.

    Args:
        ahead: reads a greedy answer that is alone, several tokens a step.
    """

    def __init__(self, reader: TokenReader, ahead: ReadAhead | None = None) -> None:
        self.reader = reader
        self._ahead = ahead
        self._lanes: list[_Lane] = []

    def __len__(self) -> int:
        return sum(len(lane.answers) for lane in self._lanes)

    @property
    def held(self) -> int:
        """Positions that caches hold, padding included."""
        return sum(lane.mask.numel() for lane in self._lanes)

    def join(self, rows: Sequence[Row]) -> list[GrowingAnswer]:
        """Read the prompts of new answers; the next `step` gives them a token."""
        joining = JoiningRows(self.reader, rows)
        joining.read()
        self.add(joining)
        return joining.answers

    @torch.inference_mode()
    def add(self, joining: JoiningRows) -> None:
        """Let answers whose prompts are read take part in the next step."""
        lane = joining.lane()
        if lane.joins and (other := next((each for each in self._lanes if each.joins), None)):
            other.take(lane)
        else:
            self._lanes.append(lane)

    def leave(self, answers: Sequence[GrowingAnswer]) -> None:
        """Drop answers before they have ended."""
        self._keep({id(answer) for lane in self._lanes for answer in lane.answers} - {id(each) for each in answers})

    def clear(self) -> None:
        """Drop all answers."""
        self._lanes.clear()

    @torch.inference_mode()
    def step(self) -> list[GrowingAnswer]:
        """A token more for each answer, or several; those that have ended leave. Returns all that got a token."""
        grown = []
        for lane in list(self._lanes):
            chosen = _draw(lane.logits, lane.answers)
            grown += lane.answers
            for answer, token in zip(lane.answers, chosen.tolist(), strict=True):
                self._write(answer, [token])
            going = [place for place, answer in enumerate(lane.answers) if answer.completion is None]
            if len(going) < len(lane.answers):
                if not going:
                    self._lanes.remove(lane)
                    continue
                lane.select(going)
                chosen = chosen[torch.tensor(going, device=chosen.device)]
            if self._ahead and len(self) == 1 and _greedy(lane.answers[0]):
                self._read_ahead(lane, self._ahead)
                continue
            lane.mask = torch.cat([lane.mask, lane.mask.new_ones(len(going), 1)], dim=1)
            lane.logits = self.reader.forward(chosen[:, None], lane.mask, lane.cache, keep=1)[:, 0]
        return grown

    def _read_ahead(self, lane: _Lane, ahead: ReadAhead) -> None:
        [answer] = lane.answers
        tokens, lane.logits = ahead(answer, lane.cache, lane.mask)
        lane.mask = torch.cat([lane.mask, lane.mask.new_ones(1, 1 + len(tokens))], dim=1)
        self._write(answer, tokens)
        if answer.completion:
            self._lanes.remove(lane)

    def _write(self, answer: GrowingAnswer, tokens: Sequence[int]) -> None:
        """Append tokens, up to the one that ends the answer."""
        for token in tokens:
            if answer.completion is None:
                answer.tokens.append(token)
                answer.completion = self._ended(answer)

    def _keep(self, kept: set[int]) -> None:
        for lane in list(self._lanes):
            places = [place for place, answer in enumerate(lane.answers) if id(answer) in kept]
            if not places:
                self._lanes.remove(lane)
            elif len(places) < len(lane.answers):
                lane.select(places)

    def _ended(self, answer: GrowingAnswer) -> Completion | None:
        """The completion if `answer` has just ended, else None."""
        row, tokens, text_of = answer.row, answer.tokens, self.reader.text
        ended = tokens[-1] in self.reader.ends
        if not ended and len(tokens) < row.limit and not row.stop:
            return None
        kept = tokens[:-1] if ended else tokens
        text = text_of(kept)
        stops = [place for stop in row.stop if (place := text.find(stop)) >= 0]
        if not (ended or stops or len(tokens) == row.limit):
            return None
        logprobs = None
        if row.sampling.logprobs:
            if stops:  # only the tokens that have a part in the text before the stop
                kept = kept[: next(k for k in range(len(kept) + 1) if len(text_of(kept[:k])) >= min(stops))]
            logprobs = [TokenLogprob(text_of([t]), value) for t, value in zip(kept, answer.logprobs, strict=False)]
        text = text[: min(stops) if stops else None]
        return Completion(
            text=text.removeprefix(" ") if row.transcript else text,
            finish_reason="stop" if ended or stops else "length",
            tokens=len(tokens),
            prompt_tokens=len(row.prompt),
            logprobs=logprobs,
        )


def _greedy(answer: GrowingAnswer) -> bool:
    """Whether its tokens are the likeliest ones, and no more is asked of them."""
    return answer.row.sampling.temperature == 0 and not answer.row.sampling.logprobs


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """(…, n, d) with zeros in front, (…, length, d)."""
    missing = length - values.shape[-2]
    return torch.nn.functional.pad(values, (0, 0, missing, 0)) if missing else values


def _draw(logits: torch.Tensor, answers: Sequence[GrowingAnswer]) -> torch.Tensor:
    """The next token of each answer, (answers,); its log-probability is noted where it was asked for."""
    chosen = logits.argmax(-1)
    ways: dict[tuple[float, float], list[int]] = {}
    for place, answer in enumerate(answers):
        if answer.row.sampling.temperature > 0:
            ways.setdefault((answer.row.sampling.temperature, answer.row.sampling.top_p), []).append(place)
    for (temperature, top_p), places in ways.items():
        among = torch.tensor(places, device=logits.device)
        rows = logits if len(places) == len(answers) else logits[among]
        exact = rows.cpu() if rows.device.type == "mps" else rows  # MPS has no float64
        shares = (exact.double() / temperature).softmax(-1)
        if top_p < 1:
            descending, order = shares.sort(dim=-1, descending=True, stable=True)
            outside = descending.cumsum(-1) - descending >= top_p
            shares = shares.scatter(-1, order, descending.masked_fill(outside, 0.0))
        cumulated = shares.cumsum(-1)
        uniform = torch.tensor([[answers[place].uniform.random()] for place in places], dtype=torch.float64)
        target = uniform.to(cumulated.device) * cumulated[:, -1:]
        chosen[among] = torch.searchsorted(cumulated, target, right=True)[:, 0].to(chosen.device)
    if noted := [place for place, answer in enumerate(answers) if answer.row.sampling.logprobs]:
        among = torch.tensor(noted, device=logits.device)
        logprobs = logits[among].log_softmax(-1)
        drawn = logprobs.gather(-1, chosen[among][:, None])[:, 0]
        most = max(answers[place].row.top for place in noted)
        values, tokens = (each.tolist() for each in logprobs.topk(most))
        for i, (place, logprob) in enumerate(zip(noted, drawn.tolist(), strict=True)):
            answers[place].logprobs.append(logprob)
            if top := answers[place].row.top:
                answers[place].top.append(list(zip(tokens[i][:top], values[i][:top], strict=True)))
    return chosen
