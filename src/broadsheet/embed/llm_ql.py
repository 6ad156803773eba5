"""LLM-QL (2025, arXiv:2504.05216): before contrastive training, the model learns to write a document's query.

Knows pairs of queries and documents, the prompts around them, the end token between, the attention stop and the
corruption. Does not know how rows become padded batches (`modules.bottleneck`) or how training runs (`fit`).

The query sees one token alone, the end token E after the document's prompt; so E must carry the document. E's state is
the embedding that the second, contrastive stage trains. Both stages tokenise through the same function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet import models
from broadsheet.console import InputError, say, within
from broadsheet.embed.base import Embedder, embedder, load
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.embed.modules.asymmetric import AsymmetricEncoder
from broadsheet.embed.modules.bottleneck import (
    IGNORED,
    SPECIAL,
    BottleneckRow,
    Segment,
    cache_specials,
    check_encoder,
    collator_for,
    forward_pass,
    suffix_logits,
)
from broadsheet.embed.modules.template import Template
from broadsheet.training.distributed import global_mean
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from broadsheet.embed.fitting import TrainOutput

QUERY = Template("Instruct: Find the passage that answers this query best.\nQuery: ", "\nThe most relevant passage:")
DOCUMENT = Template("Instruct: Say in few words what this passage is about.\nPassage: ", "\nSummary:")
_LABELS: dict[str, tuple[Segment, ...]] = {"live": ("prefix", "special", "suffix"), "query": ("suffix",)}
_WORD = re.compile(r"\S+")


def attention_stop(segments: Tensor) -> Tensor:
    """LLM-QL's mask M: which position is hidden from which, beyond causal attention.

    Args:
        segments: (batch, length); E is the row's one `SPECIAL` position.

    Returns:
        Boolean (batch, length, length), [b, i, j] whether j is hidden from i: i > I and j < I, with I the index of E.

    Source: arXiv:2504.05216, Sec. 3, attention stop (v3: attention block).
    """
    length = segments.shape[1]
    end = segments == SPECIAL
    index = torch.where(end.any(1), end.long().argmax(1), length)[:, None]  # I; without E nothing stands after it
    position = torch.arange(length, device=segments.device)
    return (position > index)[:, :, None] & (position < index)[:, None, :]  # M_ij: i > I and j < I


def corrupt(text: str, probability: float, generator: Random, word: str = "_") -> str:
    """Replace each word, a run without white space, by `word`, independently with a probability.

    White space stays as it is; probability 0 returns the text itself, 1 leaves no word of it.

    Raises:
        InputError: the probability is not within 0 and 1.

    Source: arXiv:2504.05216, Sec. 3, input corruption (v3: document corruption); 0.6 in the authors' command.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"got a corruption of {probability}; expected a share of words from 0 to 1")
    if not probability:
        return text
    return _WORD.sub(lambda found: word if generator.random() < probability else found[0], text)


class QueryLikelihood(Objective):
    """Stage 1: generate the query from its document, seeing the document through the end token alone.

    A row is the document's prompt, the end token E, the query and the end token again. Query tokens see E and the query
    before them; E sees the document. Words of the document are replaced by "_", drawn anew each time it is read.

    Inputs: pairs, `{"query": …, "positive": …}` (or `"document"`), or tuples of the two.
    Use when … there are pairs and the contrastive budget is small: before contrastive training, on the same embedder.
    Relation: without block and corruption it is plain fine-tuning of a language model on document → query. GEM trains
    the same bottleneck on texts without queries.

    Args:
        embedder: from `LLMQL.embedder`, or any whose rows end with one appended token; its prompts `"document"` and
            `"query"` are used.
        corruption: chance of each word of a document. Authors' command: 0.6 (their code's default: 0.45).
        block: hide the document from the query. False is the ablation.
        labels: `"live"`: document, E and query are all targets, as in the authors' running code; `"query"`: the query
            alone, which their code has commented out. Which one the paper means is not known.
        reverse: share of pairs that train query → passage instead: uncorrupted, the passage alone is the target. The
            authors' command: 0; their other mode: 0.5.
        max_target: tokens generated, the end token included (authors: 200). Longer ones are cut (`cut_` counts them).
        gather_across_devices: average over the targets of all processes.
        seed: of corruption and direction, drawn from it and the pair's index in the order of training.

    Raises:
        InputError: a parameter out of range, or an embedder that appends no token, or several.

    Example:
        from broadsheet.embed import LLMQL, QueryLikelihood, fit

        pairs = [{"query": "sort a list", "positive": "Return a sorted list."},
                 {"query": "open a file", "positive": "Open a file and return it."}]
        made = LLMQL().embedder("default")
        fit(made, pairs, QueryLikelihood(made), "ql", steps=4, batch_size=2, merge=True)

    Source: arXiv:2504.05216, Sec. 3; authors' code Trustworthy-Information-Access/llm-ql, whose end token has a fixed
    index, after a document padded and cut to it: here each row has its own, and the cue before it is never cut.
    """

    paper: ClassVar[str] = "llm_ql"

    def __init__(
        self,
        embedder: Embedder,
        *,
        corruption: float = 0.6,
        block: bool = True,
        labels: Literal["live", "query"] = "live",
        reverse: float = 0.0,
        max_target: int = 200,
        gather_across_devices: bool = False,
        seed: int = 0,
    ) -> None:
        check_settings(corruption, reverse, labels, max_target)
        self.embedder = embedder
        self.corruption = corruption
        self.block = block
        self.labels = labels
        self.reverse = reverse
        self.max_target = max_target
        self.gather_across_devices = gather_across_devices
        self.seed = seed
        self.cut_ = 0
        end_of(embedder)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as a run records them."""
        return constructor_settings(self)

    def row(self, index: int, pair: Any) -> BottleneckRow:
        """The row that a pair becomes at its index in the order of training: `document | E | query`."""
        query, document = _pair(pair)
        generator = Random(f"{self.seed}/{index}")
        if generator.random() < self.reverse:  # query | E | document
            ids = rows_of(self.embedder, "query", [query])[0]
            return BottleneckRow(ids[:-1], ids[-1:], self._target(document), ("suffix",))
        ids = rows_of(self.embedder, "document", [corrupt(document, self.corruption, generator)])[0]
        return BottleneckRow(ids[:-1], ids[-1:], self._target(query), _LABELS[self.labels])

    def _target(self, text: str) -> list[int]:
        ids = target_ids(self.embedder, text)
        if len(ids) > self.max_target:
            if not self.cut_:
                say(f"targets are cut to {self.max_target:,} tokens (counted in cut_)")
            self.cut_ += 1
            ids = [*ids[: self.max_target - 1], ids[-1]]
        return ids

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Tensor]:
        """(index, pair) pairs to one batch, as `BottleneckCollator` makes it of their rows."""
        collate = collator_for(self.embedder.encoder, attention_stop if self.block else None)
        batch = collate([self.row(index, pair) for index, pair in items])
        return batch | {"tokens": (batch["segments"] > 0).sum()}

    def loss(self, embedder: Embedder, batch: Mapping[str, Tensor], generator: Any = None) -> dict[str, Tensor]:
        """`loss`: the mean cross-entropy over all targets of the batch."""
        output = forward_pass(embedder.encoder, batch)
        total, count = output.nll.sum(), output.scored.sum()  # Sec. 3, QL: −Σ log P(q_t | E, q_<t)
        return {"loss": global_mean(total, count) if self.gather_across_devices else total / count.clamp(min=1)}


def check_settings(corruption: float, reverse: float, labels: str, max_target: int) -> None:
    """Raises InputError for the first of `QueryLikelihood`'s parameters that is out of range."""
    for name, share in {"corruption": corruption, "reverse": reverse}.items():
        if not 0 <= share <= 1:
            raise InputError(f"got {name} {share}; expected 0 to 1")
    if labels not in _LABELS:
        raise InputError(f"got labels {labels!r}; expected one of {', '.join(_LABELS)}")
    if max_target < 2:
        raise InputError(f"got max_target {max_target}; expected room for one token and the end")


def end_of(embedder: Embedder) -> int:
    """The id of E, the one token that is appended to each row.

    Raises:
        InputError: none or several are appended; or the encoder is not causal to the last layer.
    """
    encoder = embedder.encoder
    check_encoder(encoder)
    if len(encoder.append) != 1:
        raise InputError(f"got an embedder that appends {list(encoder.append)}; LLM-QL needs one end token: use LLMQL")
    return encoder.token_id(encoder.append[0])


def rows_of(embedder: Embedder, side: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids exactly as `encode_query` or `encode_document` make them; the last one is E."""
    return embedder.encoder.rows(list(texts), embedder.prompts.get(side) or None)


def target_ids(embedder: Embedder, text: str) -> list[int]:
    """A text's tokens as they are generated after E, and the end token."""
    ids: list[int] = embedder.encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*ids, end_of(embedder)]


def _pair(pair: Any) -> tuple[str, str]:
    if isinstance(pair, Mapping):
        document = pair.get("positive", pair.get("document"))
        query = pair.get("query")
    else:
        query, document = pair
    if not (isinstance(query, str) and isinstance(document, str)):
        raise InputError(f"got {pair!r}; expected a 'query' and a 'positive' text")
    return query, document


def query_log_likelihood(
    embedder: Embedder, queries: Sequence[str], documents: Sequence[str], *, end: bool = False, batch_size: int = 32
) -> Tensor:
    """log P(query | E of the document), summed over the query's tokens, for every pair: ranking by query likelihood.

    Each document is read once; a query then sees the keys and values of E, and nothing else.

    Args:
        end: count the end token after the query too.
        batch_size: documents, and pairs, in a forward pass.

    Returns:
        (queries, documents) in nats, float32.

    Source: arXiv:2504.05216; the classical query-likelihood score with E in the place of the document.
    """
    encoder = embedder.encoder
    targets = [target_ids(embedder, query)[: None if end else -1] for query in queries]
    scores = torch.zeros(len(queries), len(documents))
    words = torch.full((len(targets), max(map(len, targets), default=0)), IGNORED)  # (queries, tokens)
    for i, target in enumerate(targets):
        words[i, : len(target)] = torch.tensor(target)
    words = words.to(encoder.device)
    for start in range(0, len(documents), batch_size):
        ids = rows_of(embedder, "document", documents[start : start + batch_size])
        cached = cache_specials(encoder, [BottleneckRow(row[:-1], row[-1:]) for row in ids])
        pairs = torch.cartesian_prod(torch.arange(len(ids)), torch.arange(len(targets))).to(encoder.device)
        for rows, which in zip(pairs[:, 0].split(batch_size), pairs[:, 1].split(batch_size), strict=True):
            wanted = words[which]
            logits = suffix_logits(encoder, cached, rows, wanted[:, :-1].clamp(min=0)).float()
            nll = cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
            scores[which.cpu(), start + rows.cpu()] = -nll.sum(1).cpu()
    return scores


@dataclass
class LLMQL:
    """Both stages with the same prompts: query likelihood, then contrastive training of the same end token.

    Inputs: rows of `query`, `positive` and, for the second stage, any columns of negatives.
    Use when … there are pairs of queries and documents, and few steps to train on them. Prefer contrastive training
        alone where pairs and steps abound: the first stage costs as much as the second.
    Relation: with `ql_steps=0` it is contrastive training of an end token. The first stage is `QueryLikelihood`.

    Args:
        query, document: the template of each side's texts. No space at the end: E follows directly.
        corruption, block, labels, reverse, max_target: of stage 1, see `QueryLikelihood`.
        scale: of the contrastive loss's cosines, 1 / τ. The authors: 100.
        mini_batch_size: GradCache: texts in a forward pass, the same loss for less memory; 0 for all at once.
        gather_across_devices: of both losses.
        seed: of stage 1's draws.

    Example:
        method = LLMQL()
        made = method.embedder("default")
        method.fit(made, pairs, "runs/llm_ql", ql_steps=60, steps=60)
        embed.load("runs/llm_ql").encode_query("what is a monad")

    Source: arXiv:2504.05216. The authors: Llama-2-7B, stage 1 full fine-tuning at 1e-5 for two epochs of MS MARCO,
    stage 2 LoRA of rank 32 at 1e-4 for one epoch, 15 hard negatives a query.
    """

    paper: ClassVar[str] = "llm_ql"

    query: Template = field(default=QUERY)
    document: Template = field(default=DOCUMENT)
    corruption: float = 0.6
    block: bool = True
    labels: Literal["live", "query"] = "live"
    reverse: float = 0.0
    max_target: int = 200
    scale: float = 100.0
    mini_batch_size: int = 0
    gather_across_devices: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, mini_batch_size=(0, None), seed=(0, None))
        check_settings(self.corruption, self.reverse, self.labels, self.max_target)
        if not self.scale > 0 or self.mini_batch_size < 0:
            raise InputError(
                f"got scale {self.scale:g} and mini_batch_size {self.mini_batch_size}; expected above 0, and 0 or more"
            )

    def embedder(self, model: Any = "default", *, end: str = "", **settings: Any) -> Embedder:
        """The embedder that both stages train: prompts by side, E at the end, its state of unit length.

        Args:
            model: a name for `models.load`, what that returned, or a model with its tokenizer.
            end: E; by default the tokenizer's end-of-text token.
            settings: `max_seq_length`, `device`, `dtype`: see `broadsheet.embed.embedder`.

        Raises:
            InputError: the tokenizer has no end-of-text token and none is given.
        """
        options = {name: settings.get(name) for name in ("device", "dtype")}
        lm, tokenizer = models.load(model, **options) if isinstance(model, str | Path) else model
        end = end or tokenizer.eos_token or ""
        if not end:
            raise InputError("the tokenizer has no end-of-text token; name the token that ends a document with end=")
        sides = {"query": self.query, "document": self.document}
        return embedder(
            (lm, tokenizer),
            "last-token",
            append=(end,),
            prompts={name: side.prefix for name, side in sides.items()},
            normalize=True,
            encoder=AsymmetricEncoder,
            sides=sides,
            **settings,
        )

    def likelihood(self, embedder: Embedder) -> QueryLikelihood:
        """Stage 1's objective."""
        return QueryLikelihood(
            embedder,
            corruption=self.corruption,
            block=self.block,
            labels=self.labels,
            reverse=self.reverse,
            max_target=self.max_target,
            gather_across_devices=self.gather_across_devices,
            seed=self.seed,
        )

    def contrastive(self, embedder: Embedder) -> Any:
        """Stage 2's loss on (query, positive, negatives…): sentence-transformers', cached with `mini_batch_size`.

        −log softmax over all passages of the batch of cos(q, p) · `scale`, each row's positive being right.
        """
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
            MultipleNegativesRankingLoss,
        )

        given: dict[str, Any] = {"scale": self.scale, "gather_across_devices": self.gather_across_devices}
        if self.mini_batch_size:
            return CachedMultipleNegativesRankingLoss(embedder, mini_batch_size=self.mini_batch_size, **given)
        return MultipleNegativesRankingLoss(embedder, **given)

    def fit(
        self,
        embedder: Embedder,
        pairs: Sequence[Mapping[str, str]],
        out: str | Path | None = None,
        *,
        ql_steps: int | None = None,
        steps: int | None = None,
        ql_learning_rate: float | None = None,
        learning_rate: float | None = None,
        **settings: Any,
    ) -> tuple[TrainOutput | None, TrainOutput]:
        """Stage 1, then stage 2, in place; what each did. With LoRA the first adapter is merged before the second.

        Args:
            pairs: rows of `query`, `positive` and, for stage 2, any further columns of negatives.
            out: where the embedder will stand. `<out>.ql` holds stage 1 and stays; a call that was cut off resumes
                where it was, also after stage 1.
            ql_steps: of stage 1; 0 leaves it out (the plain baseline).
            steps, learning_rate: of stage 2.
            settings: of `fit`, for both stages. With `merge=False` stage 2 is saved as an adapter on `<out>.ql`.

        Returns:
            What stage 1 did (None where it was left out or done before), and stage 2; twice stage 1 if Ctrl-C ended it.

        Raises:
            InputError: as `fit`; or `<out>.ql` was made otherwise.
        """
        first: TrainOutput | None = None
        settings = {"merge": settings.get("method", "lora") == "lora", **settings}
        if ql_steps != 0:
            one = {**settings, "merge": settings.get("method", "lora") == "lora"}
            first = self._first(embedder, pairs, out, {**one, "steps": ql_steps, "learning_rate": ql_learning_rate})
            if first is not None and not first.finished:
                return first, first
        second = contrast(
            embedder, pairs, self.contrastive(embedder), out, steps=steps, learning_rate=learning_rate, **settings
        )
        return first, second

    def _first(
        self, embedder: Embedder, pairs: Sequence[Mapping[str, str]], out: str | Path | None, settings: dict[str, Any]
    ) -> TrainOutput | None:
        """Stage 1, or what an earlier call has made of it (None)."""
        from broadsheet.embed.fitting import fit

        objective = self.likelihood(embedder)
        if out is None:
            embedder.encoder.spec = ""  # no name loads what it becomes
            return fit(embedder, list(pairs), objective, **settings)
        target, force = Path(out), settings.get("force", False)
        if (target / "modules.json").exists() and not (force or target.with_name(f"{target.name}.partial").exists()):
            raise InputError(f"{target} is finished; choose another out, or force=True to replace it")
        place = target.with_name(f"{target.name}.ql")
        first = fit(embedder, list(pairs), objective, place, reuse=True, **settings)
        done_before = first.resumed_from == first.steps
        if done_before:
            say(f"{place}: stage 1 is done, resuming after it")
            made = load(place, dtype=embedder.encoder.model.dtype)
            embedder.encoder.model.load_state_dict(made.encoder.model.state_dict())
        embedder.encoder.spec = str(place)
        return None if done_before else first


def contrast(
    embedder: Embedder, pairs: Sequence[Mapping[str, str]], loss: Any, out: str | Path | None = None, **settings: Any
) -> TrainOutput:
    """Contrastive training with each side's prompt: `query` has the query's, every other column the document's."""
    from broadsheet.embed.fitting import fit

    columns = list(pairs[0])
    if "query" not in columns or len(columns) < 2:
        raise InputError(f"got rows of {columns}; expected 'query', 'positive' and, if any, columns of negatives")
    ordered = ["query", *(name for name in columns if name != "query")]
    rows = [{name: row[name] for name in ordered} for row in pairs]
    prompts = {name: embedder.prompts["query" if name == "query" else "document"] for name in ordered}
    return fit(embedder, rows, loss, out, prompts=prompts, **settings)
