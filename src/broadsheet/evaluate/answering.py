"""How a long document reaches a model, and the model's answers to the questions on it.

Knows: questions and their prompts, tokens, key/value caches, greedy generation. Does not know: metrics, how a method
changes a model.

Questions on one document whose prompts begin with the same instruction are read together: the common prefix of these
prompts is read once, the rest in batches that continue from copies of that cache. Prompts that are too long are cut at
one place of the document.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from broadsheet.console import InputError, say
from broadsheet.evaluate.loogle import EncodedDocument, LooGLE, Question, Task
from broadsheet.models import halve_on_oom

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import Cache

# The authors' config/task2maxlen.json.
MAX_NEW_TOKENS: dict[Task, int] = {
    "shortdep_qa": 300,
    "longdep_qa": 500,
    "longdep_summarization": 500,
    "shortdep_cloze": 50,
}


class ContextMethod(Protocol):
    """What `broadsheet.attend` offers, or anything else that changes a model for the length of a `with`."""

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class Route:
    """How a document reaches the model: whole, its two ends, retrieved passages, or under a method.

    Args:
        name: as printed.
        max_length: tokens of the prompt; a longer one keeps its two ends (`LooGLE.encode_together`). None: as the
            `LooGLE` object says.
        passages: how many passages replace the document: those BM25 ranks first for the question, in the document's
            order; 0 for the document itself.
        passage_tokens: tokens of a passage.
        method: installed around the model while it answers: `with method(model): …`.

    Example:
        >>> Route("two ends", max_length=2048), Route("BM25", passages=8)  # doctest: +SKIP
        >>> Route("LM-Infinite", method=LMInfinite(n_local=2048))  # doctest: +SKIP
    """

    name: str
    max_length: int | None = None
    passages: int = 0
    passage_tokens: int = 256
    method: ContextMethod | None = None


WHOLE = Route("whole document")


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question.

    Attributes:
        text: the answer, stripped.
        log_likelihood: mean log-probability of the gold answer's tokens after the prompt, in nats.
        prompt_tokens: tokens that the model read.
        cut: tokens cut out of the prompt's middle.
    """

    text: str
    log_likelihood: float
    prompt_tokens: int
    cut: int


def answers(
    questions: Sequence[Question],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    route: Route = WHOLE,
    loogle: LooGLE | None = None,
    max_new_tokens: int | None = None,
    first_line: bool = False,
    repetition_penalty: float = 1.0,
    batch_size: int = 8,
) -> list[Answer]:
    """Answer questions greedily, and measure how likely their gold answers are.

    Questions on the same document should be consecutive: the document is then read once. A batch that does not fit
    into memory is halved. The number of cut prompts is reported.

    Args:
        questions: as from `LooGLE.read`.
        route: how the documents reach the model.
        loogle: the prompts and their length.
        max_new_tokens: of each answer; by default the paper's for the task (300, 500, 500 and 50).
        first_line: an answer ends after its first line that is not blank. Models not tuned to stop need it.
        repetition_penalty: the authors use 2.0 with open models.
        batch_size: questions answered at once.

    Raises:
        InputError: a prompt is too long under `truncate="error"`, or the model keeps no plain key/value cache.

    Example:
        >>> answers(questions, model, tokenizer, route=Route("two ends", max_length=4096))  # doctest: +SKIP
    """
    reader = DocumentReader(
        model, tokenizer, loogle or LooGLE(), max_new_tokens, first_line, repetition_penalty, batch_size
    )
    found = reader.answers(questions, route)
    if cut := [answer.cut for answer in found if answer.cut]:
        say(f"{route.name}: {len(cut)} of {len(found)} prompts lost their middle, {sum(cut):,} tokens in all")
    return found


def gold_tokens(gold: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a gold answer after a prompt; all prompts end in a colon."""
    before, behind = tokenizer([":", f": {gold}"], add_special_tokens=False)["input_ids"]
    return list(behind[len(before) :])


class Passages:
    """A document in pieces of equal length, and the BM25 index over them.

    Raises:
        InputError: bm25s is not installed.
    """

    def __init__(self, document: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
        try:
            import bm25s
        except ImportError:
            raise InputError("retrieval needs bm25s: pip install -e '.[evaluate]'") from None
        self._tokenize = partial(bm25s.tokenize, show_progress=False)
        spans = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [0, *(start for start, _ in spans["offset_mapping"][tokens::tokens])]
        self.texts = [document[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        words = self._tokenize(self.texts)
        self._index = bm25s.BM25() if words.vocab else None  # numbers and single letters are no words
        if self._index:
            self._index.index(words, show_progress=False)

    def nearest(self, question: Question, k: int) -> str:
        """The k passages nearest to a question, in the document's order, separated by dots.

        The first k passages if there is no question, as for a summary, or the document has no words.
        """
        if k >= len(self.texts):
            return "".join(self.texts)
        chosen = list(range(k))
        if self._index and question.question:
            found, _ = self._index.retrieve(self._tokenize([question.question]), k=k, show_progress=False)
            chosen = sorted(int(i) for i in found[0])
        return " … ".join(self.texts[i].strip() for i in chosen)


class _Prompt(NamedTuple):
    """One question as tokens."""

    encoded: EncodedDocument
    gold: list[int]
    limit: int

    @property
    def ids(self) -> list[int]:
        return self.encoded.ids


@dataclass(frozen=True)
class DocumentReader:
    """A model that answers questions; what `answers` makes of its arguments, for use with several routes.

    Raises:
        InputError: the model keeps a recurrent state instead of a key/value cache.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loogle: LooGLE = field(default_factory=LooGLE)
    max_new_tokens: int | None = None
    first_line: bool = False
    repetition_penalty: float = 1.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.model._is_stateful:
            name = type(self.model).__name__
            raise InputError(f"{name} keeps a recurrent state; expected a model with a key/value cache, to share it")
        self.model.eval()

    def answers(self, questions: Sequence[Question], route: Route = WHOLE) -> list[Answer]:
        """As the function `answers`, without a word on what was cut."""
        found: dict[int, Answer] = {}
        with (route.method or nullcontext)(self.model):
            for _, group in groupby(range(len(questions)), key=lambda i: questions[i].document):
                together: dict[str, list[int]] = {}
                for i in group:
                    together.setdefault(self.loogle.instruction(questions[i]), []).append(i)
                for numbers in together.values():
                    prompts = self._prompts([questions[i] for i in numbers], route)
                    found |= zip(numbers, self._answer_together(prompts), strict=True)
        return [found[i] for i in range(len(questions))]

    def _prompts(self, questions: list[Question], route: Route) -> list[_Prompt]:
        """The prompts of questions on one document."""
        loogle = replace(self.loogle, max_length=route.max_length or self.loogle.max_length)
        golds = [gold_tokens(question.gold, self.tokenizer) for question in questions]
        limits = [self.max_new_tokens or MAX_NEW_TOKENS[question.task] for question in questions]
        if route.passages:
            passages = Passages(questions[0].document, self.tokenizer, route.passage_tokens)
            questions = [replace(each, document=passages.nearest(each, route.passages)) for each in questions]
            encoded = [loogle.encode(question, self.tokenizer) for question in questions]
        else:
            encoded = loogle.encode_together(questions, self.tokenizer)
        return [_Prompt(*row) for row in zip(encoded, golds, limits, strict=True)]

    def _answer_together(self, prompts: list[_Prompt]) -> list[Answer]:
        """Answers to prompts that have their beginning in common, in their order."""
        import torch

        # The last token of a prompt gives the first one of its answer, so it is left to be read on its own.
        bodies = [prompt.ids[:-1] for prompt in prompts]
        differ = (i for i, column in enumerate(zip(*bodies, strict=False)) if len(set(column)) > 1)
        shared = next(differ, min(map(len, bodies)))
        by_limit = sorted(range(len(prompts)), key=lambda i: prompts[i].limit)
        found: dict[int, Answer] = {}
        with torch.no_grad():
            trunk = self._read(bodies[0][:shared])
            for start in range(0, len(prompts), self.batch_size):
                batch = by_limit[start : start + self.batch_size]
                made = halve_on_oom(lambda rows: self._answer([prompts[i] for i in rows], trunk, shared), batch)
                found |= zip(batch, made, strict=True)
        return [found[i] for i in range(len(prompts))]

    def _answer(self, prompts: Sequence[_Prompt], trunk: Cache, shared: int) -> list[Answer]:
        """Answers of one batch, whose first `shared` tokens are in `trunk` already."""
        import torch

        device, rows = self.model.device, len(prompts)
        rest = [prompt.ids[shared:-1] for prompt in prompts]
        width = max(map(len, rest))
        # Padding goes between the shared prefix and the rest. Nothing attends to it, so any token will do, and one of
        # the prompt's own does not affect the repetition penalty.
        padded = [[prompts[0].ids[0]] * (width - len(ids)) + ids for ids in rest]
        mask = torch.ones(rows, shared + width + 1, dtype=torch.long, device=device)
        for row, ids in enumerate(rest):
            mask[row, shared : shared + width - len(ids)] = 0
        cache = _branch(trunk, torch.zeros(rows, dtype=torch.long, device=device))
        if width:
            self._feed(torch.tensor(padded, device=device), mask[:, :-1], cache)
        likelihoods = self._log_likelihoods(prompts, mask, _branch(cache, torch.arange(rows, device=device)))
        whole = [prompt.ids[:shared] + body + prompt.ids[-1:] for prompt, body in zip(prompts, padded, strict=True)]
        texts = self._generate(torch.tensor(whole, device=device), mask, cache, [prompt.limit for prompt in prompts])
        return [
            Answer(text, likelihood, len(prompt.ids), prompt.encoded.cut)
            for prompt, text, likelihood in zip(prompts, texts, likelihoods, strict=True)
        ]

    def _read(self, ids: list[int]) -> Cache:
        """A cache that holds these tokens."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if ids:
            tokens = torch.tensor([ids], device=self.model.device)
            self._feed(tokens, torch.ones_like(tokens), cache)
        return cache

    def _feed(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, keep: int = 1) -> torch.Tensor:
        """Logits of the last `keep` of the new tokens (rows, new); `mask` covers the cached ones too."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits

    def _log_likelihoods(self, prompts: Sequence[_Prompt], mask: torch.Tensor, cache: Cache) -> list[float]:
        """Mean log-probability of the tokens of each gold answer; `cache` lacks the last token of the prompts."""
        import torch

        length = max(len(prompt.gold) for prompt in prompts)
        given, wanted = (
            [ids + [0] * (length - len(ids)) for ids in each]
            for each in (
                [prompt.ids[-1:] + prompt.gold[:-1] for prompt in prompts],
                [prompt.gold for prompt in prompts],
            )
        )
        device = mask.device
        ahead = torch.ones(len(prompts), length - 1, dtype=mask.dtype, device=device)
        logits = self._feed(torch.tensor(given, device=device), torch.cat([mask, ahead], dim=1), cache, keep=length)
        target = torch.tensor(wanted, device=device)[..., None]
        scores = logits.float().log_softmax(-1).gather(-1, target)[..., 0]
        return [float(row[: len(prompt.gold)].mean()) for row, prompt in zip(scores, prompts, strict=True)]

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, limits: list[int]) -> list[str]:
        """Greedy answers, each of at most its own number of tokens."""
        start = ids.shape[1]
        written = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            cache=cache,
            max_new_tokens=max(limits),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=self.repetition_penalty,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=[self._line_is_full(start)] if self.first_line else None,
        )[:, start:]
        texts = [self._decode(row[:limit]).strip() for row, limit in zip(written.tolist(), limits, strict=True)]
        return [text.partition("\n")[0].rstrip() if self.first_line else text for text in texts]

    def _line_is_full(self, start: int) -> Any:
        """A stopping criterion: which rows hold a line that is not blank, and its end."""
        import torch

        def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            done = ["\n" in self._decode(row).lstrip() for row in ids[:, start:].tolist()]
            return torch.tensor(done, device=ids.device)

        return stop

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _branch(cache: Cache, rows: torch.Tensor) -> Cache:
    """A cache of these rows of `cache`, rows may repeat; what is read on it does not show in `cache`.

    Selecting rows makes new tensors, so the copy of the layers themselves can be shallow.
    """
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.batch_select_indices(rows)
    return branch
