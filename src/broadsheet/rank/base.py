"""`ListwiseReranker`: any causal LM ranks the documents of a query, several of them in one prompt.

Knows: queries and documents, and which strategy, prompt and decoding to use. Does not know: how those work (see
`order`, `prompt`, `decoding` and the papers' files), how a model is trained for it, how rankings are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, progress, say
from broadsheet.models.pushing import push_saved
from broadsheet.rank import fullrank, order, saving
from broadsheet.rank.first import first_token
from broadsheet.rank.order import Identifiers, Strategy
from broadsheet.rank.prompts import decoding
from broadsheet.rank.prompts.prompt import Document, Prompt, Prompter, document_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Run = dict[str, dict[str, float]]

DECODES = ("first_token", "permutation")
STRATEGIES: dict[str, Strategy] = {
    "sliding": order.sliding,
    "full": fullrank.full,
    "multipass": fullrank.multipass,
}


@dataclass
class RerankStats:
    """What one call of a reranker did.

    Attributes:
        queries: ranked, including those that needed no call.
        calls: windows that the model compared.
        prompt_tokens, output_tokens: read and written; a first-token call writes none.
        passages: read, counted once for every window they were in.
        invalid_outputs: written rankings that did not name every passage of their window exactly once.
        cut_passages, shortened_words: passages that were shortened to fit (counted like `passages`), and the words left
            out of them.
    """

    queries: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    passages: int = 0
    invalid_outputs: int = 0
    cut_passages: int = 0
    shortened_words: int = 0


class ListwiseReranker:
    """Rank documents with a language model that compares several of them in one prompt.

    Use it to reorder the first 20 to 100 documents of a search, with a model that was trained for it: an untrained
    small model ranks near chance. `decode="first_token"` sorts by the logits of one forward pass per window (FIRST) and
    gives each document a logit; `"permutation"` lets the model write the order, which takes longer and needs a model
    that follows the format. `strategy="sliding"` reads windows of `window` documents from the end of the list,
    `"full"` all of them at once (FullRank), `"multipass"` makes complete labels for training, with many calls.

    Args:
        model: a causal LM, or a PEFT model around one.
        tokenizer: its tokenizer.
        strategy: "sliding" (`order.sliding`), "full" or "multipass" (`fullrank.full`, `fullrank.multipass`).
        decode: "first_token" (`first.first_token`) or "permutation" (`decoding.permutation`).
        identifiers: "alpha" (letters, at most 26 documents in a call) or "numeric".
        window, step: documents in a call, and how far a window moves to the front after it. Paper: 20 and 10.
        max_words: of a document, its title included. FIRST: 300; FullRank: 100.
        prompt: the wording; by default `Prompt()`.
        max_length: tokens of prompt and answer together; by default the model's context.
        truncate: "shorten" documents that do not fit, reported once and counted in `stats_`; or "error".
        batch_tokens: padded tokens in one batch of windows; by default chosen for the device.
        spec: the name by which the model was loaded; a saved adapter refers to it.

    Attributes:
        stats_: what the latest call did.

    Raises:
        InputError: an unknown name, a window or step out of range, or a tokenizer that does not write each identifier
            as one token.

    Example:
        reranker = ListwiseReranker(*broadsheet.models.load("default"))
        for hit in reranker.rank("how to sort a list", ["Trees grow.", "list.sort() sorts in place."], top_k=1):
            print(hit["corpus_id"], hit["score"], hit["logit"])

    Source: arXiv:2406.15657 (FIRST), arXiv:2412.14574 (FullRank).
    """

    stats_: RerankStats

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        strategy: str = "sliding",
        decode: str = "first_token",
        identifiers: Identifiers = "alpha",
        window: int = 20,
        step: int = 10,
        max_words: int = 300,
        prompt: Prompt | None = None,
        max_length: int | None = None,
        truncate: str = "shorten",
        batch_tokens: int | None = None,
        spec: str | None = None,
    ) -> None:
        strategy_named(strategy)
        if decode not in DECODES:
            raise InputError(f"decode is {decode!r}; expected one of {', '.join(DECODES)}")
        order.check_window(window, step)
        if strategy == "multipass":
            fullrank.multipass_calls(window, window, step)  # refuses a step as long as the window
        self.model = model
        self.tokenizer = tokenizer
        self.strategy = strategy
        self.decode = decode
        self.window = window
        self.step = step
        self.batch_tokens = batch_tokens
        self.spec = spec
        self.prompter = Prompter(
            tokenizer,
            identifiers,
            prompt=prompt,
            max_words=max_words,
            max_length=context_length(model, tokenizer) if max_length is None else max_length,
            truncate=truncate,
        )
        self._reported = False
        self.stats_ = RerankStats()
        self._check_size(2 if strategy == "full" else window)

    @property
    def identifiers(self) -> Identifiers:
        return self.prompter.identifiers

    def settings(self) -> dict[str, Any]:
        """The arguments that rebuild this reranker, as JSON values."""
        return {
            "strategy": self.strategy,
            "decode": self.decode,
            "identifiers": self.identifiers,
            "window": self.window,
            "step": self.step,
            "max_words": self.prompter.max_words,
            "prompt": self.prompter.prompt.to_dict(),
            "max_length": self.prompter.max_length,
            "truncate": self.prompter.truncate,
        }

    def rank(
        self, query: str, documents: Sequence[Document], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """The documents from most to least relevant, as sentence-transformers' `CrossEncoder.rank` gives them.

        Args:
            query: the search query.
            documents: texts, or mappings with `text` and perhaps `title`, in first-stage order (best first).
            top_k: how many to return; all by default. The calls are the same.
            return_documents: give each document's text back as `text`.

        Returns:
            One dict per document: `corpus_id`, its index in `documents`; `score`, the number of documents ranked
            behind it, plus one: strictly decreasing, comparable within this list only; with first-token decoding
            `logit`, that of its identifier in the last window it was in, or None if it was in none.

        Raises:
            InputError: an empty query, no documents, more documents than one call has identifiers for, or NaN logits.
        """
        return self.rank_batch([query], [documents], top_k, return_documents)[0]

    def rank_batch(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[Document]],
        top_k: int | None = None,
        return_documents: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """`rank` for many queries together: their windows share batches.

        Raises:
            InputError: as `rank`; or the numbers of queries and of lists of documents differ.
        """
        if isinstance(queries, str) or len(queries) != len(documents):
            raise InputError(
                f"got {len(documents)} lists of documents for {len(queries)} queries; expected one list for each"
            )
        for number, (query, listed) in enumerate(zip(queries, documents, strict=True), start=1):
            self._check(number, query, listed)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; expected at least 1, or None for all")
        self.stats_ = RerankStats(queries=len(queries))
        strategy = strategy_named(self.strategy)
        sizes = [len(listed) for listed in documents]
        logits: list[dict[int, float]] = [{} for _ in queries]
        total = sum(order.calls(strategy, size, self.window, self.step) for size in sizes)
        training = self.model.training
        self.model.eval()
        try:
            with progress("windows", total) as bar:

                def compare(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
                    return self._compare(asked, queries, documents, logits, lambda n: bar.advance(bar.task_ids[0], n))

                orders = order.run_lockstep([strategy(size, self.window, self.step) for size in sizes], compare)
        finally:
            self.model.train(training)
        self._report_shortened()
        return [
            self._hits(found, listed, values, top_k, return_documents)
            for found, listed, values in zip(orders, documents, logits, strict=True)
        ]

    def rank_run(
        self,
        run: Mapping[str, Mapping[str, float]],
        queries: Mapping[str, str],
        corpus: Mapping[str, Document],
        depth: int = 100,
    ) -> Run:
        """Rerank the first `depth` documents of each query of a run; the others keep their places after them.

        Args:
            run: query id → document id → first-stage score. Equal scores keep their order.
            queries: query id → text.
            corpus: document id → document.

        Returns:
            A run with the same documents; scores are strictly decreasing, so that no tool breaks ties by name.

        Raises:
            InputError: as `rank`; or the run names a query or a document that is missing.
        """
        ranked = {query: sorted(scores, key=scores.__getitem__, reverse=True) for query, scores in run.items()}
        for query, names in ranked.items():
            if query not in queries:
                raise InputError(f"the run ranks for query {query!r}, which is not among the {len(queries)} queries")
            if missing := [name for name in names[:depth] if name not in corpus]:
                raise InputError(
                    f"the run's query {query!r} names {len(missing)} documents that the corpus lacks, such as"
                    f" {missing[0]!r}; use the corpus the run was made from"
                )
        asked = [query for query, names in ranked.items() if names]
        hits = self.rank_batch(
            [queries[query] for query in asked],
            [[corpus[name] for name in ranked[query][:depth]] for query in asked],
        )
        found: Run = {query: {} for query in ranked}
        for query, listed in zip(asked, hits, strict=True):
            names = [ranked[query][hit["corpus_id"]] for hit in listed] + ranked[query][depth:]
            found[query] = {name: float(len(names) - place) for place, name in enumerate(names)}
        return found

    def save(self, folder: str | Path) -> None:
        """Write the model (or adapter), its tokenizer and `reranker.json` as one folder; see `saving.save`."""
        saving.save(self, Path(folder))

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Save it to a repository of the hub, with its card; see `models.pushing.push`."""
        return push_saved(self.save, repository, private=private)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        **changes: Any,
    ) -> ListwiseReranker:
        """A saved reranker, or a reranker with default settings around any model that `models.load` takes.

        Args:
            source: a folder with `reranker.json`; or "default", a model folder, a GGUF file, a hub id.
            device, dtype, attn_implementation: as in `models.load`.
            changes: settings that differ from the saved ones, such as `strategy="full"`.

        Raises:
            InputError: nothing is found, it is damaged, or it has unknown settings.
        """
        return saving.load(cls, source, changes, device=device, dtype=dtype, attn_implementation=attn_implementation)

    def _check(self, number: int, query: str, documents: Sequence[Document]) -> None:
        place = f" (query {number})" if number > 1 else ""
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"the query is empty{place}; give it some text to rank by")
        if isinstance(documents, str) or not len(documents):
            raise InputError(f"there are no documents to rank{place}; give a list of one text at least")
        for document in documents:
            document_text(document)
        self._check_size(len(documents) if self.strategy == "full" else min(len(documents), self.window))

    def _check_size(self, size: int) -> None:
        """Refuse a call of more passages than there are identifiers for."""
        if self.decode == "first_token":
            self.prompter.identifier_ids(size)
        else:
            self.prompter.name(size - 1)

    def _compare(
        self,
        asked: list[tuple[int, list[int]]],
        queries: Sequence[str],
        documents: Sequence[Sequence[Document]],
        logits: list[dict[int, float]],
        done: Any,
    ) -> list[list[int]]:
        """Orders of the windows asked for, from one batch of calls; `stats_` and `logits` are updated."""
        opening = self.prompter.opening
        reserve = len(opening) if self.decode == "first_token" else None
        built = [
            self.prompter.build(queries[index], [documents[index][item] for item in items], reserve)
            for index, items in asked
        ]
        stats = self.stats_
        stats.calls += len(built)
        stats.prompt_tokens += sum(len(one.ids) + len(opening) for one in built)
        stats.passages += sum(one.n for one in built)
        stats.cut_passages += sum(one.cut for one in built)
        stats.shortened_words += sum(one.shortened_words for one in built)
        prompts = [one.ids for one in built]
        if self.decode == "first_token":
            names = [self.prompter.identifier_ids(one.n) for one in built]
            scores = first_token(self.model, prompts, opening, names, batch_tokens=self.batch_tokens, done=done)
            for (index, items), row in zip(asked, scores, strict=True):
                logits[index].update(zip(items, row, strict=True))
            return [order.by_score(row) for row in scores]
        lengths = [self.prompter.answer_length(one.n) - len(opening) for one in built]
        written = decoding.permutation(
            self.model,
            [prompt + opening for prompt in prompts],
            lengths,
            end=self.tokenizer.eos_token_id,
            batch_tokens=self.batch_tokens,
            done=done,
        )
        return [self._read(tokens, one.n) for tokens, one in zip(written, built, strict=True)]

    def _read(self, tokens: list[int], n: int) -> list[int]:
        """The order that a written answer gives, completed; its tokens and faults are counted in `stats_`."""
        text = f"[{self.tokenizer.decode(tokens)}"
        self.stats_.output_tokens += len(tokens)
        self.stats_.invalid_outputs += sorted(order.mentioned(text, self.identifiers)) != list(range(n))
        return order.complete(order.parse(text, n, self.identifiers), n)

    def _hits(
        self,
        found: list[int],
        documents: Sequence[Document],
        logits: dict[int, float],
        top_k: int | None,
        return_documents: bool,
    ) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = []
        for place, item in enumerate(found[:top_k]):
            hit: dict[str, Any] = {"corpus_id": item, "score": float(len(found) - place)}
            if self.decode == "first_token":
                hit["logit"] = logits.get(item)
            if return_documents:
                document = documents[item]
                hit["text"] = document if isinstance(document, str) else document["text"]
            hits.append(hit)
        return hits

    def _report_shortened(self) -> None:
        stats = self.stats_
        if stats.cut_passages and not self._reported:
            self._reported = True
            say(
                f"{stats.cut_passages:,} of {stats.passages:,} passages were read without their last"
                f" {stats.shortened_words:,} words: at most {self.prompter.max_words} each and"
                f" {self.prompter.max_length or 'any number of'} tokens in all (reported once; stats_ counts them)"
            )


def strategy_named(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        InputError: there is none.
    """
    if name not in STRATEGIES:
        raise InputError(f"strategy is {name!r}; expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that fit into the model's context, where its config or tokenizer says so."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context:
        return int(context)
    known = tokenizer.model_max_length  # 1e30 where it is not known
    return int(known) if known and known < 1e9 else None
