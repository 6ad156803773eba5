"""What a language model says of a candidate: how likely it makes the wanted output with the candidate in its prompt.

Knows: causal language models, prompts, log-probabilities. Does not know embedders: `llm_embedder` trains them on this.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from broadsheet import models
from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.console import InputError, say
from broadsheet.data import rows
from broadsheet.data.rows import OnError, Rows, column
from broadsheet.data.schemas import POSITIVE, QUERY
from broadsheet.models import halve_on_oom, token_budget_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FeedbackPrompt:
    """The text around a candidate, a query and the output; the candidate's paragraph is left out where there is none.

    Args:
        before_key, after_key: around the candidate.
        before_query, after_query: around the query; the output follows.
    """

    before_key: str
    after_key: str
    before_query: str
    after_query: str

    def head(self, key: str | None, query: str) -> str:
        """All that stands before the output."""
        shown = "" if key is None else self.before_key + key + self.after_key
        return shown + self.before_query + query + self.after_query


_ASKED = FeedbackPrompt("Knowledge: ", "\n\n", "Question: ", "\n\nAnswer: ")
PROMPTS = {
    "qa": _ASKED,
    "convsearch": _ASKED,
    "icl": FeedbackPrompt("", "\n", "", "\n"),
    "chat": FeedbackPrompt("", "\n", "Speaker 1: ", "\nSpeaker 2: "),
    "lrlm": FeedbackPrompt("", "", "", ""),  # running text: candidate, context and continuation follow each other
}


@dataclass(frozen=True)
class ScoreRequest:
    """A query whose candidates are to be scored.

    Args:
        query: what the model is given beside the candidate; for `lrlm` the text right before the output.
        output: what it should say.
        keys: the candidates; None stands for no candidate at all.
        task: a name in `PROMPTS`.
    """

    query: str
    output: str
    keys: Sequence[str | None]
    task: str = "qa"


class _Row(NamedTuple):
    ids: list[int]
    answer: list[int]  # positions of the output's tokens


class LikelihoodScorer:
    """Scores a candidate by the mean log-probability of the output's tokens in a prompt that holds the candidate.

        score(k) = (1 / |o|) Σ_t log p(o_t | prompt(k, q), o_<t)

    in nats per token; at most 0. It equals minus the loss that transformers reports with labels on the output's tokens
    alone: the prompt does not count, and neither does the output's length. A token counts when it holds a character of
    the output, so nothing is off by one where a tokenizer joins the output with the space before it.

    Use when … a retriever is to learn what helps a language model and nobody has labelled that.
    Prefer hard labels when … they exist and one candidate is plainly right: likelihoods then say the same with noise
    (the maintainers of the authors' code trained a reranker in between for MS MARCO and NQ).

    Args:
        model, tokenizer: a causal language model. Its dtype is kept; log-probabilities are computed in float32.
        max_key: tokens of a candidate that are shown; longer ones are cut at the end (512: the authors' code).
        max_length: tokens of a prompt with its output; by default what the model has positions for. The candidate is
            cut further where that is not enough.
        batch_tokens: of a forward pass, padding included. Results do not depend on it.
        spec: the name the model was loaded by, for messages and files.

    Attributes:
        rows_, tokens_, cut_keys_: prompts scored, tokens read, and candidates cut, since the scorer was made.

    Example:
        scorer = LikelihoodScorer.load("default")
        scorer.score("Who wrote Faust?", "Goethe", ["Goethe wrote Faust.", "Bees make honey."], task="qa")

    Source: arXiv:2310.07554; authors' code FlagOpen/FlagEmbedding, research/llm_embedder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_key: int = 512,
        max_length: int | None = None,
        batch_tokens: int = 4096,
        spec: str = "",
    ) -> None:
        if max_key < 1 or batch_tokens < 1 or (max_length is not None and max_length < 2):
            raise InputError(
                f"got max_key {max_key}, max_length {max_length}, batch_tokens {batch_tokens}; expected more than 0"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_key = max_key
        known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(limit for limit in (max_length, known, 1 << 30) if limit)
        self.batch_tokens = batch_tokens
        self.spec = spec
        self.rows_ = self.tokens_ = self.cut_keys_ = 0
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    @classmethod
    def load(
        cls, spec: str | Path = "default", *, device: str | None = None, dtype: str | None = None, **settings: Any
    ) -> LikelihoodScorer:
        """A scorer over a model by name, as in `models.load`."""
        loaded = models.load(spec, device=device, dtype=dtype)
        return cls(loaded.model, loaded.tokenizer, spec=str(spec), **settings)

    def score(self, query: str, output: str, keys: Sequence[str | None], task: str = "qa") -> list[float]:
        """The score of each candidate, in their order."""
        return self.score_batch([ScoreRequest(query, output, keys, task)])[0]

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """The scores of the candidates of several queries; rows of like length share forward passes.

        Raises:
            InputError: an unknown task, an output without a token, or a query and output that exceed `max_length`.
        """
        rows = [self._row(request, key) for request in requests for key in request.keys]
        scores = [0.0] * len(rows)
        self.rows_ += len(rows)
        self.tokens_ += sum(len(row.ids) for row in rows)
        for batch in token_budget_batches([len(row.ids) for row in rows], self.batch_tokens):
            found = halve_on_oom(self._scores, [rows[i] for i in batch])
            for i, score in zip(batch, found, strict=True):
                scores[i] = score
        given = iter(scores)
        return [[next(given) for _ in request.keys] for request in requests]

    def settings(self) -> dict[str, Any]:
        """What scores depend on besides the texts, as JSON values."""
        return {
            "model": self.spec,
            "fingerprint": models.fingerprint(self.model),
            "max_key": self.max_key,
            "max_length": self.max_length,
        }

    # Prompts

    def _row(self, request: ScoreRequest, key: str | None) -> _Row:
        if request.task not in PROMPTS:
            raise InputError(f"got task {request.task!r}; expected one of {', '.join(PROMPTS)}")
        if not request.output.strip():
            raise InputError(f"the output wanted for {request.query[:60]!r} is empty; leave such queries out")
        shown = None if key is None else self._first_tokens(key, self.max_key)
        cut = shown != key
        row = self._encode(request, shown)
        while (excess := len(row.ids) - self.max_length) > 0:
            if not shown:
                raise InputError(
                    f"query and output take {len(row.ids):,} tokens, the limit is {self.max_length:,}; shorten "
                    f"{request.query[:60]!r}"
                )
            # What is left may be tokenized to more than it was cut to, hence the loop.
            shown = self._first_tokens(shown, max(0, len(self._ids(shown)) - excess))
            cut = True
            row = self._encode(request, shown)
        self.cut_keys_ += cut
        return row

    def _encode(self, request: ScoreRequest, key: str | None) -> _Row:
        head = PROMPTS[request.task].head(key, request.query)
        text = head + request.output
        start = len(text) - len(request.output.lstrip())
        encoded = self.tokenizer(text, return_offsets_mapping=self.tokenizer.is_fast, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if self.tokenizer.is_fast:
            answer = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > start]
        else:  # the output begins where the prompt alone would have been tokenized otherwise
            alone = self.tokenizer(head, verbose=False)["input_ids"]
            same = [a == b for a, b in zip(alone, ids, strict=False)]
            answer = list(range(same.index(False) if False in same else len(same), len(ids)))
        answer = [i for i in answer if i > 0]  # nothing predicts the first token
        if not answer:
            raise InputError(f"the output {request.output[:60]!r} has no token to score")
        return _Row(ids, answer)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _first_tokens(self, text: str, count: int) -> str:
        """`text` up to the end of its first `count` tokens."""
        if len(self._ids(text)) <= count:
            return text
        if not self.tokenizer.is_fast:
            return str(self.tokenizer.decode(self._ids(text)[:count], clean_up_tokenization_spaces=False))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        # The start of the next token: a character is never split.
        return text[: encoded["offset_mapping"][count][0]]

    # The model

    @torch.inference_mode()
    def _scores(self, rows: Sequence[_Row]) -> list[float]:
        """Padding is on the right, where causal attention does not look, so that no mask is needed."""
        length = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        wanted = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            wanted[i, row.answer] = True
        ids, wanted = ids.to(self.model.device), wanted.to(self.model.device)
        first = min(row.answer[0] for row in rows)
        chances = self._log_probabilities(ids, first)
        inside = wanted[:, first:]
        sums = torch.where(inside, chances, 0).sum(1, dtype=torch.float64)
        found: list[float] = (sums / inside.sum(1)).tolist()
        return found

    def _log_probabilities(self, ids: Tensor, first: int) -> Tensor:
        """(batch, length − first): log p of each token from position `first` on, given those before it."""
        if self._keeps:
            places = torch.arange(first - 1, ids.shape[1] - 1, device=ids.device)
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=places).logits
        else:
            logits = self.model(input_ids=ids, use_cache=False).logits[:, first - 1 : -1]
        found = []
        for row, targets in zip(logits, ids[:, first:], strict=True):  # a row at a time: float32 logits are large
            wide = row if row.dtype == torch.float64 else row.float()
            found.append(wide.gather(-1, targets[:, None])[:, 0] - wide.logsumexp(-1))
        return torch.stack(found)


# A file of requests


@dataclass(frozen=True)
class Candidates:
    """A query with candidates: the lists `pos` and `neg`, or `history`, whose entries are all alike until a teacher
    picks; `answers`, what a model should say; or `teacher_scores`, made already, for `pos` and then `neg`.

    A `Pair` is such a row too.
    """

    query: str = column(*QUERY, "text")
    task: str = column(default="")
    pos: tuple[str, ...] = column("pos", *POSITIVE, default=())
    neg: tuple[str, ...] = column("neg", "negatives", "negative", prefix="negative_", default=())
    history: tuple[str, ...] = column(default=())
    answers: tuple[str, ...] = column(default=())
    teacher_scores: tuple[float, ...] = column(default=())
    id: str = column(kind="id")

    def __post_init__(self) -> None:
        if not (self.history or self.pos or self.neg):
            raise ValueError("no candidates; expected the lists 'pos' and 'neg', or 'history'")

    def example(self, task: str = "qa") -> dict[str, Any]:
        """As `LLMEmbedder.fit` takes it; `task` where the row names none."""
        lists = {name: list(getattr(self, name)) for name in ("pos", "neg", "history", "answers", "teacher_scores")}
        return {"query": self.query, "task": self.task or task} | {name: row for name, row in lists.items() if row}


def read_examples(requests: Rows[Candidates]) -> list[dict[str, Any]]:
    """Every row of a file of queries and candidates, scored or not, as `LLMEmbedder.fit` takes them.

    Raises:
        InputError: a row cannot be used.

    Example:
        rows = read_examples(open_requests("scored.jsonl"))
    """
    return [row.example() for row in requests]


def candidates(example: Mapping[str, Any]) -> list[str]:
    """The candidates that `teacher_scores` are given for, in its order: the history, or positives and negatives."""
    return list(example.get("history") or [*(example.get("pos") or []), *(example.get("neg") or [])])


def open_requests(spec: str, on_error: OnError = "stop") -> Rows[Candidates]:
    """Rows of queries and candidates by the name of their file, as `rows.read` takes it."""
    return rows.read(spec, Candidates, on_error)


def score_corpus(
    corpus: Rows[Candidates],
    out: Path,
    scorer: LikelihoodScorer,
    *,
    seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
) -> Summary:
    """Add `teacher_scores` to every row of a corpus of requests; a call that was cut off can be resumed.

    The rows written hold all that was read, so that `LLMEmbedder.fit` trains on the file as it is.

    Args:
        corpus: as `open_requests` gives it. `answers` holds the wanted outputs; of several, one is drawn.
        out: the JSONL file.
        seed: of the choice among several answers, with the row's id.
        batch_size: rows between two stops.

    Raises:
        InputError: a row lacks candidates or answers, or `out` cannot be written.
    """

    def score(batch: list[Candidates]) -> list[dict[str, Any]]:
        examples = [row.example() for row in batch]
        requests = []
        for row, example in zip(batch, examples, strict=True):
            if not row.answers:
                raise InputError(f"{corpus.spec}, row {row.id}: no 'answers'; expected what the model should say")
            chosen = random.Random(f"{seed}/{row.id}").choice(row.answers)
            requests.append(ScoreRequest(row.query, chosen, candidates(example), example["task"]))
        scores = scorer.score_batch(requests)
        return [example | {"teacher_scores": row} for example, row in zip(examples, scores, strict=True)]

    settings = {"method": "llm_embedder", "seed": seed, **scorer.settings()}
    summary = map_corpus(corpus, out, score, batch_size=batch_size, settings=settings, force=force)
    if scorer.cut_keys_:
        say(f"{scorer.cut_keys_:,} of {scorer.rows_:,} candidates were longer than {scorer.max_key} tokens and cut")
    return summary
