"""A teacher in this process: any causal LM of transformers, prompts batched by token budget.

Knows: templates, the context's length, budgets. Does not know: where a model comes from, what was answered before, how
answers are decoded together (`live`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from broadsheet import models
from broadsheet.console import InputError, say
from broadsheet.models.tokens import rendered
from broadsheet.teacher.base import Completion, Meter, Prompt, Sampling, Score, ScoreJob, TeacherJob
from broadsheet.teacher.live import LiveBatch, Row, TokenReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A position whose logits are kept takes about as much memory as this many whose keys and values are (SmolLM2-135M).
_LOGITS_WEIGHT = 8


def score_cost(prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> int:
    """Positions that the choices of a prompt take in a batch, all read after it side by side."""
    return len(choices) * (len(prompt) + _LOGITS_WEIGHT * max(map(len, choices)))


def load(spec: str, device: str | None = None, dtype: Any = None, **options: Any) -> Local:
    """The model that `models.load(spec, device, dtype)` gives, as a backend; `options` as in `Local`."""
    model, tokenizer = models.load(spec, device=device, dtype=dtype)
    return Local(model, tokenizer, **options)


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
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.reader = TokenReader(model, tokenizer)
        self.has_template = tokenizer.chat_template is not None
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
        transcript = [not (self.has_template or isinstance(prompt, str)) for prompt in prompts]
        if any(transcript) and not self._told:
            say(f"{self._name} has no chat template; conversations become a transcript (User: … Assistant:)")
            self._told = True
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        if isinstance(reserve, int):
            self._fit(ids, needed=1, wanted=reserve)
        else:
            space = " " if any(transcript) else ""
            longest = max((len(self.encode(space + answer)) for answer in reserve), default=0)
            self._fit(ids, needed=longest, wanted=longest)
        return [{"ids": row, "transcript": flag} for row, flag in zip(ids, transcript, strict=True)]

    def generate(
        self, jobs: Sequence[TeacherJob], sampling: Sampling, meter: Meter
    ) -> Iterator[list[tuple[int, int, Completion]]]:
        """Yield a batch's answers when the longest of them is done."""
        rows, places = [], []
        for position, job in enumerate(jobs):
            prompt, transcript = tuple(job.reading["ids"]), job.reading["transcript"]
            limit = min(sampling.max_tokens, self.context - len(prompt)) if self.context else sampling.max_tokens
            rows += [Row(prompt, limit, f"{job.draw}/{sample}", sampling, transcript) for sample in job.samples]
            places += [(position, sample) for sample in job.samples]

        for batch in models.token_budget_batches([len(row.prompt) + row.limit for row in rows], self.batch_tokens):
            granted = batch[: meter.start(len(batch))]
            completions = models.halve_on_oom(self._decode, [rows[i] for i in granted])
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
            choices = [self.encode(space + choice) for choice in job.choices]
            if empty := [choice for choice, ids in zip(job.choices, choices, strict=True) if not ids]:
                raise InputError(f"choice {empty[0]!r} has no tokens in {self._name}'s vocabulary; give another")
            pairs.append((tuple(job.reading["ids"]), choices))

        lengths = [score_cost(*pair) for pair in pairs]
        for batch in models.token_budget_batches(lengths, self.batch_tokens):
            granted = batch[: meter.start(len(batch))]
            scores = models.halve_on_oom(self.score_ids, [pairs[i] for i in granted])
            read = (len(prompt) + sum(map(len, choices)) for prompt, choices in (pairs[i] for i in granted))
            meter.spend(sum(read), 0)
            yield list(zip(granted, scores, strict=True))
            if len(granted) < len(batch):
                meter.start()

    @property
    def _name(self) -> str:
        return str(self.model.config.name_or_path or type(self.model).__name__)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, with the tokenizer's special tokens or without."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a text, or of a conversation by the chat template or as a transcript.

        Raises:
            InputError: the template refuses it, or it is empty and there is no token to begin with.
        """
        if isinstance(prompt, str):
            ids = self.encode(prompt, special=True)
        elif self.has_template:
            ids = self.encode(rendered(self.tokenizer, prompt))  # the template has written the special tokens
        else:
            turns = [f"{message['role'].capitalize()}: {message['content']}\n" for message in prompt]
            ids = self.encode("".join(turns) + "Assistant:", special=True)
        if ids:
            return ids
        if self.tokenizer.bos_token_id is None:
            raise InputError(f"an empty prompt, and {self._name} has no token to begin a text with; give some text")
        return [self.tokenizer.bos_token_id]

    def _fit(self, ids: list[list[int]], needed: int, wanted: int) -> None:
        """Check `ids` against the context, or cut them in place; an answer needs `needed` tokens, at best `wanted`."""
        if self.context is None:
            return
        if self.truncate == "error":
            longest = max(map(len, ids), default=0)
            if longest + needed > self.context:
                raise InputError(
                    f"a prompt of {longest:,} tokens with {needed:,} for the answer exceeds the {self.context:,} "
                    f"of {self._name}; shorten it or pass truncate='left'"
                )
            return
        room = self.context - wanted
        if room < 1:
            raise InputError(
                f"{wanted:,} tokens for the answer leave no room for a prompt in the {self.context:,} of {self._name}"
            )
        long = [i for i, row in enumerate(ids) if len(row) > room]
        for i in long:
            ids[i] = ids[i][-room:]
        if long:
            say(f"cut {len(long):,} of {len(ids):,} prompts from the left to {room:,} tokens")

    def _decode(self, rows: Sequence[Row]) -> list[Completion]:
        """Answers, all decoded together to their ends."""
        live = LiveBatch(self.reader)
        answers = live.join(rows)
        while live:
            live.step()
        return [answer.completion for answer in answers if answer.completion]

    @torch.inference_mode()
    def score_ids(self, pairs: Sequence[tuple[tuple[int, ...], list[list[int]]]]) -> list[list[Score]]:
        """Scores of the choices (token ids) of each prompt (token ids)."""
        cache, mask, logits = self.reader.prefill([prompt for prompt, _ in pairs])
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
            following = self.reader.forward(ids[:, :-1], seen, cache, keep=longest - 1)
            logprobs = torch.cat([logprobs, following.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]], dim=1)
        totals = iter((logprobs.cpu().double() * real.cpu()).sum(-1).tolist())
        return [[(next(totals), len(choice)) for choice in own] for _, own in pairs]
