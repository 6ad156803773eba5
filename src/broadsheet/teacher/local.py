"""A teacher in this process: any causal LM of transformers, prompts batched by token budget.

Knows: token ids, the key/value cache, sampling. Does not know: where a model comes from, what was answered before.

Prompts are padded on the left and read once however many answers they get; each step decodes one token for every
unfinished answer, and a finished one leaves the batch. An answer spends one uniform number per token, from a generator
of its own, looked up in the cumulated probabilities: so in float32 it does not depend on what else is in the batch. (In
bfloat16 a batch's shape changes the last digits of the logits and with them, now and then, a token.)
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jinja2.exceptions import TemplateError
from transformers import DynamicCache

from broadsheet import models
from broadsheet.console import InputError, say
from broadsheet.teacher.base import Completion, Meter, Prompt, Sampling, Score, ScoreJob, TeacherJob, TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A position whose logits are kept takes about as much memory as this many whose keys and values are (SmolLM2-135M).
_LOGITS_WEIGHT = 8


def load(spec: str, device: str | None = None, dtype: Any = None, **options: Any) -> Local:
    """The model that `models.load(spec, device, dtype)` gives, as a backend; `options` as in `Local`."""
    model, tokenizer = models.load(spec, device=device, dtype=dtype)
    return Local(model, tokenizer, **options)


@dataclass(frozen=True)
class _Row:
    """One answer to be generated: the prompt's token ids, the answer's longest length and its generator's seed."""

    prompt: tuple[int, ...]
    limit: int
    seed: str
    stop: tuple[str, ...]
    transcript: bool


@dataclass(eq=False)
class _Answer:
    """One answer as it grows."""

    row: _Row
    uniform: random.Random
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Local:
    """A backend over a model and its tokenizer, which need not come from `models.load`.

    A conversation goes through the tokenizer's chat template. A model without one reads a transcript instead:

        System: <content>
        User: <content>
        Assistant: <content>
        User: <content>
        Assistant:

    There, an answer ends where the model begins the user's next turn, and the space that opens it is dropped; a scored
    choice gets that space.

    Parameters:
        batch_tokens: the most tokens in a batch, prompts and answers at full length; by default 8,192 on the CPU and
            65,536 elsewhere. A batch that does not fit the device's memory is halved and retried.
        truncate: what happens to a prompt longer than the context: "error" raises; "left" drops its first tokens to
            leave room for the answer, and says for how many prompts. An answer that meets the end of the context ends
            there with finish_reason "length".

    Raises:
        InputError: a model with a recurrent state (Mamba and its like), which padded batches would spoil.

    Example:
        teacher = Teacher(Local(model, tokenizer), cache=False)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int | None = None,
        truncate: Literal["error", "left"] = "error",
    ) -> None:
        if model._is_stateful:
            raise InputError(
                f"{type(model).__name__} keeps a recurrent state, which padding spoils; use an attention model"
            )
        if truncate not in ("error", "left"):
            raise InputError(f"truncate={truncate!r}: expected 'error' or 'left'")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens or (8192 if model.device.type == "cpu" else 65_536)
        self.truncate = truncate
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._accepts = set(inspect.signature(model.forward).parameters)
        ends = model.generation_config.eos_token_id if model.generation_config else None
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._has_template = tokenizer.chat_template is not None
        self._told = False

    def identity(self) -> dict[str, Any]:
        """The model's fingerprint, taken on each call: a model that was trained meanwhile is another one.

        Tokenizer and template show in the token ids of each request.
        """
        return {"local": models.fingerprint(self.model)}

    def read(self, prompts: Sequence[Prompt], reserve: int | Sequence[str]) -> list[dict[str, Any]]:
        """Token ids per prompt, and whether they are a transcript.

        Raises:
            InputError: a prompt longer than the context under truncate="error", an empty one for a model without a
                token to begin with, a conversation that the chat template refuses.
        """
        transcript = [not (self._has_template or isinstance(prompt, str)) for prompt in prompts]
        if any(transcript) and not self._told:
            say(f"{self._name} has no chat template; conversations become a transcript (User: … Assistant:)")
            self._told = True
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        if isinstance(reserve, int):
            self._fit(ids, needed=1, wanted=reserve)
        else:
            space = " " if any(transcript) else ""
            longest = max((len(self._encode(space + answer)) for answer in reserve), default=0)
            self._fit(ids, needed=longest, wanted=longest)
        return [{"ids": row, "transcript": flag} for row, flag in zip(ids, transcript, strict=True)]

    def generate(
        self, jobs: Sequence[TeacherJob], sampling: Sampling, meter: Meter
    ) -> Iterator[list[tuple[int, int, Completion]]]:
        """Yield a batch's answers when the longest of them is done."""
        rows, places = [], []
        for position, job in enumerate(jobs):
            prompt, transcript = tuple(job.reading["ids"]), job.reading["transcript"]
            limit = min(sampling.max_tokens, self._context - len(prompt)) if self._context else sampling.max_tokens
            stop = (*sampling.stop, "\nUser:") if transcript else sampling.stop
            rows += [_Row(prompt, limit, f"{job.draw}/{sample}", stop, transcript) for sample in job.samples]
            places += [(position, sample) for sample in job.samples]

        for batch in models.token_budget_batches([len(row.prompt) + row.limit for row in rows], self.batch_tokens):
            granted = batch[: meter.start(len(batch))]
            completions = models.halve_on_oom(lambda part: self._decode(part, sampling), [rows[i] for i in granted])
            prompts = {rows[i].prompt for i in granted}
            meter.spend(sum(map(len, prompts)), sum(completion.tokens or 0 for completion in completions))
            yield [(*places[i], completion) for i, completion in zip(granted, completions, strict=True)]
            if len(granted) < len(batch):
                meter.start()

    def score(self, jobs: Sequence[ScoreJob], meter: Meter) -> Iterator[list[tuple[int, list[Score]]]]:
        """Read each prompt once and each of its choices after it; one choice counts as one request."""
        pairs = []
        for job in jobs:
            space = " " if job.reading["transcript"] else ""
            choices = [self._encode(space + choice) for choice in job.choices]
            if empty := [choice for choice, ids in zip(job.choices, choices, strict=True) if not ids]:
                raise InputError(f"choice {empty[0]!r} has no tokens in {self._name}'s vocabulary; give another")
            pairs.append((tuple(job.reading["ids"]), choices))

        lengths = [len(choices) * (len(prompt) + _LOGITS_WEIGHT * max(map(len, choices))) for prompt, choices in pairs]
        for batch in models.token_budget_batches(lengths, self.batch_tokens):
            granted = batch[: meter.start(len(batch))]
            scores = models.halve_on_oom(self._score, [pairs[i] for i in granted])
            read = (len(prompt) + sum(map(len, choices)) for prompt, choices in (pairs[i] for i in granted))
            meter.spend(sum(read), 0)
            yield list(zip(granted, scores, strict=True))
            if len(granted) < len(batch):
                meter.start()

    @property
    def _name(self) -> str:
        return str(self.model.config.name_or_path or type(self.model).__name__)

    def _encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self._encode(prompt, special=True)
        elif self._has_template:
            try:
                text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            except TemplateError as error:
                raise InputError(f"the chat template of {self._name} refuses the conversation: {error}") from None
            ids = self._encode(text)  # the template has written the special tokens
        else:
            turns = [f"{message['role'].capitalize()}: {message['content']}\n" for message in prompt]
            ids = self._encode("".join(turns) + "Assistant:", special=True)
        if ids:
            return ids
        if self.tokenizer.bos_token_id is None:
            raise InputError(f"an empty prompt, and {self._name} has no token to begin a text with; give some text")
        return [self.tokenizer.bos_token_id]

    def _fit(self, ids: list[list[int]], needed: int, wanted: int) -> None:
        """Check `ids` against the context, or cut them in place; an answer needs `needed` tokens, at best `wanted`."""
        if self._context is None:
            return
        if self.truncate == "error":
            longest = max(map(len, ids), default=0)
            if longest + needed > self._context:
                raise InputError(
                    f"a prompt of {longest:,} tokens with {needed:,} for the answer exceeds the {self._context:,} "
                    f"of {self._name}; shorten it or pass truncate='left'"
                )
            return
        room = self._context - wanted
        if room < 1:
            raise InputError(
                f"{wanted:,} tokens for the answer leave no room for a prompt in the {self._context:,} of {self._name}"
            )
        long = [i for i, row in enumerate(ids) if len(row) > room]
        for i in long:
            ids[i] = ids[i][-room:]
        if long:
            say(f"cut {len(long):,} of {len(ids):,} prompts from the left to {room:,} tokens")

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, keep: int) -> torch.Tensor:
        """Float32 logits (rows, keep, vocabulary) of the last `keep` of `ids` (rows, new).

        `mask` (rows, cached + new) is 0 at padding.
        """
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "cache": cache, "use_cache": True}
        if "position_ids" in self._accepts:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = keep
        return self.model(**inputs).logits[:, -keep:].float()

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read prompts: the cache, the mask (prompts, longest), and the logits (prompts, vocabulary) that follow."""
        longest = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        cache = DynamicCache(config=self.model.config)
        return cache, mask, self._forward(ids, mask, cache, keep=1)[:, 0]

    @torch.inference_mode()
    def _decode(self, rows: Sequence[_Row], sampling: Sampling) -> list[Completion]:
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
        cache, mask, logits = self._prefill(list(prompts))
        answers = [_Answer(row, random.Random(row.seed)) for row in rows]
        completions: dict[int, Completion] = {}
        live = list(range(len(rows)))
        keep = torch.tensor([prompts[row.prompt] for row in rows], device=mask.device)
        cache.batch_select_indices(keep)
        mask, logits = mask[keep], logits[keep]
        while True:
            chosen = self._draw(logits, [answers[i] for i in live], sampling)
            going = []
            for place, (i, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
                answers[i].tokens.append(token)
                completion = self._ended(answers[i], sampling)
                if completion is None:
                    going.append(place)
                else:
                    completions[i] = completion
            if not going:
                return [completions[i] for i in range(len(rows))]
            if len(going) < len(live):
                live = [live[place] for place in going]
                keep = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(keep)
                mask, chosen = mask[keep], chosen[keep]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            logits = self._forward(chosen[:, None], mask, cache, keep=1)[:, 0]

    def _draw(self, logits: torch.Tensor, answers: Sequence[_Answer], sampling: Sampling) -> torch.Tensor:
        """The next token of each answer, (rows,); its log-probability is noted where it was asked for."""
        if sampling.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            exact = logits.cpu() if logits.device.type == "mps" else logits  # MPS has no float64
            shares = (exact.double() / sampling.temperature).softmax(-1)
            if sampling.top_p < 1:
                descending, order = shares.sort(dim=-1, descending=True, stable=True)
                outside = descending.cumsum(-1) - descending >= sampling.top_p
                shares = shares.scatter(-1, order, descending.masked_fill(outside, 0.0))
            cumulated = shares.cumsum(-1)
            uniform = torch.tensor([[answer.uniform.random()] for answer in answers], dtype=torch.float64)
            target = uniform.to(cumulated.device) * cumulated[:, -1:]
            chosen = torch.searchsorted(cumulated, target, right=True)[:, 0].to(logits.device)
        if sampling.logprobs:
            drawn = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            for answer, logprob in zip(answers, drawn.tolist(), strict=True):
                answer.logprobs.append(logprob)
        return chosen

    def _ended(self, answer: _Answer, sampling: Sampling) -> Completion | None:
        """The completion if `answer` has just ended, else None."""
        row, tokens = answer.row, answer.tokens
        ended = tokens[-1] in self._ends
        if not ended and len(tokens) < row.limit and not row.stop:
            return None
        kept = tokens[:-1] if ended else tokens
        text = self._text(kept)
        stops = [place for stop in row.stop if (place := text.find(stop)) >= 0]
        if not (ended or stops or len(tokens) == row.limit):
            return None
        logprobs = None
        if sampling.logprobs:
            if stops:  # only the tokens that have a part in the text before the stop
                kept = kept[: next(k for k in range(len(kept) + 1) if len(self._text(kept[:k])) >= min(stops))]
            logprobs = [
                TokenLogprob(self._text([token]), value) for token, value in zip(kept, answer.logprobs, strict=False)
            ]
        text = text[: min(stops) if stops else None]
        return Completion(
            text=text.removeprefix(" ") if row.transcript else text,
            finish_reason="stop" if ended or stops else "length",
            tokens=len(tokens),
            prompt_tokens=len(row.prompt),
            logprobs=logprobs,
        )

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[tuple[int, ...], list[list[int]]]]) -> list[list[Score]]:
        """Scores of the choices (token ids) of each prompt (token ids)."""
        cache, mask, logits = self._prefill([prompt for prompt, _ in pairs])
        device = mask.device
        owner = torch.tensor([i for i, (_, choices) in enumerate(pairs) for _ in choices], device=device)
        choices = [choice for _, own in pairs for choice in own]
        longest = max(map(len, choices))
        ids = torch.tensor([choice + [0] * (longest - len(choice)) for choice in choices], device=device)
        real = torch.tensor([[1] * len(choice) + [0] * (longest - len(choice)) for choice in choices], device=device)
        logprobs = logits.log_softmax(-1)[owner].gather(-1, ids[:, :1])
        if longest > 1:
            cache.batch_select_indices(owner)
            # A choice's padding lies to its right, where none of its tokens looks.
            seen = torch.cat([mask[owner], torch.ones_like(ids[:, :-1])], dim=1)
            following = self._forward(ids[:, :-1], seen, cache, keep=longest - 1)
            logprobs = torch.cat([logprobs, following.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]], dim=1)
        totals = iter((logprobs.cpu().double() * real.cpu()).sum(-1).tolist())
        return [[(next(totals), len(choice)) for choice in own] for _, own in pairs]
