"""What a trial asks of rerankers: lists of candidates to put in order, and what is reported of how they did.

Knows: lists, `ListwiseReranker`, `Trial`. Does not know: which arms a paper wants.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.retrieval.metrics import MEASURES, evaluate_lists
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.rank.list_source import ListSource
from broadsheet.rank.prompts.prompt import document_text
from broadsheet.rank.trials.bias import position_bias
from broadsheet.trial.base import EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.examples import first_found, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.sampling import PILOT

if TYPE_CHECKING:
    from broadsheet.data.retrieval.lists import RankList
    from broadsheet.rank.base import ListwiseReranker

FIRST_STAGE = "first stage"
MOST_LISTS = 1000  # that are asked, where the claims decide how many
METRICS = [Metric(name, bounds=(0, 1)) for name in MEASURES]
INVALID = "invalid outputs"  # the share of written orders that were completed, of a block
_COUNTS = ("calls", "passages", "prompt_tokens", "output_tokens", "invalid_outputs", "cut_passages", "shortened_words")


@dataclass
class RerankerTrial(Trial):
    """The options and the task that trials of rerankers share.

    The lists come from documentation: the summary line of a docstring has to find its body among what BM25 finds
    (`pydocs`); or from a BEIR folder.
    """

    shuffled: ClassVar[tuple[str, ...]] = ()  # arms that are given the candidates in random order

    reranker: str | None = option(
        None, "A trained reranker (`broadsheet apply first`); the model itself by default.", metavar="FOLDER"
    )
    also: tuple[str, ...] = option((), "Further rerankers, each an arm named after its folder.", metavar="FOLDER,…")
    queries: int | Literal["all"] | None = option(
        None, "Lists; `all` of a BEIR folder; by default as many as the claims need, after a pilot.", quick=12, least=1
    )
    unanswerable: bool = option(
        False,
        "Ask lists without a right passage among the candidates too: they count 0 whatever is done, as in published "
        "figures.",
    )
    candidates: int = option(20, "In a list, the best of the first stage.", least=1)
    words: int = option(40, "Of a passage that is searched and shown; 0: all.", least=0)
    titles: bool = option(False, "Passages of pydocs show the name of their function or class.")
    first_stage: str | None = option(
        None, "A TREC run over a BEIR folder, whose order is improved; by default BM25's.", metavar="FILE"
    )
    split: str = option("test", "Of the BEIR folder's qrels.", metavar="NAME")

    def ordering(self, block_size: int = 5, most: int = MOST_LISTS) -> EvalTask:
        """Lists to put in order; kept as `lists_`.

        Args:
            most: that are asked, where the claims decide how many.
        """
        wanted = most if self.queries is None else 0 if self.queries == "all" else int(self.queries)
        decided = self.queries is None
        items = self.lists_ = self._source.test(wanted, self.candidates, found=not self.unanswerable, at_most=decided)
        return EvalTask(
            "ordering",
            items.lists,
            METRICS,
            self.arm,
            item="list",
            about=f"{items.about}; {'at most ' * decided}{len(items.lists)} queries, at most {self.candidates} "
            f"candidates each by {self.first_stage or 'BM25'}, {self.words or 'all'} words a passage"
            + ", titles shown"
            * self.titles,
            fingerprint=items.fingerprint,
            block_size=block_size,
            pilot=PILOT if decided else 0,
            examples=examples,
        )

    def training_lists(self, lists: int, candidates: int, depth: int = 0) -> list[RankList]:
        """At most so many lists to train on, of queries that `ordering` does not ask: of other packages, or of the
        split `train`.

        Args:
            depth: how deep the first stage goes from which wrong passages are drawn.

        Raises:
            InputError: there are none; that split is the one that is asked.
        """
        if self.split == "train" and not is_pydocs(self.data):
            raise InputError("got --split train, on which the arms are trained; expected another split")
        asked = {each.query for each in self.lists_.lists}
        found = self._source.train(lists, candidates, depth, "train").lists
        return [each for each in found if each.query not in asked]

    @cached_property
    def _source(self) -> ListSource:
        return ListSource(self.data, self.words, self.titles, self.first_stage or "", self.split, self.seed)

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        """The first stage's order, or a reranker's."""
        if arm.name == FIRST_STAGE:
            return first_stage(arm, self.candidates)
        return reranking(arm, model, width=self.candidates, shuffle=self.seed if arm.name in self.shuffled else None)

    def unranked(self, role: Any = None) -> ModelArm:
        """The first stage's order as an arm."""
        return ModelArm(FIRST_STAGE, lambda: None, role, "the candidates as they came")

    @property
    def main(self) -> str:
        """The model that is tried: the trained reranker's folder, or the model."""
        return self.reranker or self.model

    @property
    def model_name(self) -> str:
        return self.reranker or models.title(self.model)

    def load(self, name: str, **changes: Any) -> ListwiseReranker:
        """A reranker with other settings than its own."""
        from broadsheet.rank.base import ListwiseReranker

        return ListwiseReranker.load(name, device=self.device, dtype=self.dtype, **changes)

    def ranking_setting(self, reranker: ListwiseReranker) -> dict[str, str]:
        """What every trial on lists reports of the model that ran."""
        return {
            **training(self.reranker or ""),
            "dtype": str(reranker.model.dtype).removeprefix("torch."),
            "device": str(reranker.model.device),
        }

    def figures(self, outcome: Outcome) -> list[Curve]:
        return [success(outcome.results, outcome.tasks[0].items, "Right passage among the first k")]

    def notes(self, outcome: Outcome) -> list[str]:
        lists = outcome.tasks[0].items
        looked_at = round(self.lists_.asked * len(lists) / len(self.lists_.lists))
        return [ceiling(lists, looked_at), *account(outcome.results, lists)]


def changed(reranker: ListwiseReranker, **settings: Any) -> ListwiseReranker:
    """The same model and tokenizer under other settings."""
    from broadsheet.rank.prompts.prompt import Prompt

    given = {**reranker.settings(), **settings}
    if isinstance(given["prompt"], Mapping):
        given["prompt"] = Prompt.from_dict(given["prompt"])
    return type(reranker)(
        reranker.model, reranker.tokenizer, batch_tokens=reranker.batch_tokens, spec=reranker.spec, **given
    )


def training_record(folder: str) -> dict[str, Any]:
    """What is kept of the last training of the reranker in `folder`; nothing where there is no record."""
    path = Path(folder).expanduser() / "training.json"
    return dict(read_json(path)) if folder and path.is_file() else {}


def training(folder: str) -> dict[str, str]:
    """How the reranker in `folder` was trained last, for a trial's setting; nothing where no record is kept."""
    kept = training_record(folder)
    if not kept:
        return {}
    settings, objective = kept["settings"], kept["settings"]["objective"]
    how = ", ".join(
        f"{key} {value}" for key, value in objective.items() if key not in ("name", "lists") and value is not None
    )
    return {
        "training": f"{objective['name']} ({how}), {kept['examples']:,} lists in {kept['steps']:,} steps and "
        f"{kept['seconds'] / 60:.0f} minutes, {settings['method']}, learning rate {settings['learning_rate']:g}"
    }


def first_stage(arm: ModelArm, width: int) -> Arm:
    """The order that the lists come in. Its speed is that of copying them: the search was done before."""

    def run(block: Sequence[RankList]) -> Measured:
        return _outputs(block, [list(range(len(each.ids))) for each in block], {}, width)

    return Arm(arm.name, run, description=arm.description)


def reranking(arm: ModelArm, model: LazyModel, *, width: int, shuffle: int | None = None) -> Arm:
    """A reranker as an arm over blocks of lists.

    Its outputs are nDCG@10 and RR@10, the order it gave (padded with −1 to `width`), and for each query the block's
    mean of what `stats_` counts and its share of invalid outputs.

    Args:
        shuffle: the seed by which the candidates are shuffled before they are ranked; as they came by default. Orders
            are told in terms of the candidates as they came.
    """

    def run(block: Sequence[RankList]) -> Measured:
        reranker: ListwiseReranker = model()
        order = [list(range(len(each.ids))) if shuffle is None else each.shuffled(shuffle)[1] for each in block]
        given = [each.reordered(places) for each, places in zip(block, order, strict=True)]
        begin = time.perf_counter()
        ranked = reranker.rank_batch([each.query for each in given], [each.documents for each in given])
        seconds = time.perf_counter() - begin
        orders = [[places[hit["corpus_id"]] for hit in hits] for places, hits in zip(order, ranked, strict=True)]
        counts = {name: getattr(reranker.stats_, name) / len(block) for name in _COUNTS}
        return _outputs(block, orders, counts, width, seconds)

    return Arm(arm.name, run, description=arm.description, prepare=model.prepare)


def _outputs(
    block: Sequence[RankList],
    orders: Sequence[Sequence[int]],
    counts: Mapping[str, float],
    width: int,
    seconds: float | None = None,
) -> Measured:
    rankings = [[each.ids[i] for i in order] for each, order in zip(block, orders, strict=True)]
    outputs: dict[str, list[Any]] = dict(evaluate_lists(block, rankings))
    outputs["order"] = [[*order, *[-1] * (width - len(order))] for order in orders]
    outputs |= {name: [value] * len(block) for name, value in counts.items()}
    outputs[INVALID] = [counts.get("invalid_outputs", 0.0) / (counts.get("calls") or 1.0)] * len(block)
    return Measured(outputs, seconds)


def orders_of(arm: ArmResult) -> list[list[int]]:
    """The orders an arm gave, as indices into each list's candidates."""
    return [[i for i in row if i >= 0] for row in arm.samples["order"]]


def success(arms: Sequence[ArmResult], lists: Sequence[RankList], title: str) -> Curve:
    """For each arm, the share of queries with a right passage among the first k, over k."""
    usable = [arm for arm in arms if arm.status == "ok"]
    width = max(len(each.ids) for each in lists)
    lines: dict[str, list[float | None]] = {}
    for arm in usable:
        first = [
            next((place for place, i in enumerate(order) if each.labels[i] > 0), width)
            for each, order in zip(lists, orders_of(arm), strict=True)
        ]
        lines[arm.name] = [float(np.mean([place < k for place in first])) for k in range(1, width + 1)]
    return Curve(title, "first k", "share of queries", [float(k) for k in range(1, width + 1)], lines)


def examples(lists: Sequence[RankList], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Queries with the passage that each arm puts first."""
    orders = {name: orders_of(arm) for name, arm in arms.items()}
    firsts = [{name: order[place][0] for name, order in orders.items() if order[place]} for place in range(len(lists))]
    found = []
    for place in most_apart([{name: str(i) for name, i in row.items()} for row in firsts]):
        each = lists[place]
        texts = [document_text(document) for document in each.documents]
        right = next((text for text, label in zip(texts, each.labels, strict=True) if label > 0), None)
        made = {name: (each.labels[i] > 0, texts[i]) for name, i in firsts[place].items()}
        found.append(first_found(each.query, made, right))
    return found


def ceiling(lists: Sequence[RankList], looked_at: int) -> str:
    """What the first stage leaves to gain, in lists that `looked_at` queries gave."""
    best = [sorted(range(len(each.ids)), key=lambda i, each=each: -each.labels[i]) for each in lists]  # type: ignore[misc]
    values = evaluate_lists(lists, [[each.ids[i] for i in order] for each, order in zip(lists, best, strict=True)])
    found = sum(each.found for each in lists)
    others = "count 0 whatever is done" if found < len(lists) else "are not asked: no order changes what they count"
    return (
        f"The first stage found a right passage for {found} of {looked_at} queries. The others {others}. The best "
        f"order of the candidates has an nDCG@10 of {np.mean(values['nDCG@10']):.3f}."
    )


def account(arms: Sequence[ArmResult], lists: Sequence[RankList]) -> list[str]:
    """What each reranker read and wrote, and how it did where there was something to find."""
    notes = []
    found = [i for i, each in enumerate(lists) if each.found]
    for arm in arms:
        if arm.status != "ok":
            continue
        said = f"{arm.name}: nothing to find among the candidates"
        if found:
            among = float(np.mean([arm.samples["nDCG@10"][i] for i in found]))
            run = " in its first training run" if arm.runs > 1 else ""
            said = f"{arm.name}: nDCG@10 {among:.3f}{run} over the {len(found)} queries whose right passage was found"
        if "calls" in arm.samples and arm.items_per_second:
            mean = {name: float(np.mean(arm.samples[name])) for name in _COUNTS}
            said += (
                f"; a query took {1 / arm.items_per_second.estimate:.2f} s, {mean['calls']:.1f} calls, "
                f"{mean['passages']:.1f} passages read, {mean['prompt_tokens']:,.0f} prompt tokens and "
                f"{mean['output_tokens']:,.1f} output tokens"
            )
            if mean["output_tokens"]:
                said += f", {mean['invalid_outputs'] / max(mean['calls'], 1e-9):.0%} of the outputs invalid (completed)"
            if mean["cut_passages"]:
                said += f"; {mean['cut_passages']:.1f} passages a query shortened"
        notes.append(f"{said}.")
    return notes


def bias(given: ArmResult, shuffled: ArmResult, lists: Sequence[RankList], seed: int) -> str:
    """Position bias: what shuffling the candidates did to the order that came out."""
    found = []
    for each, order, again in zip(lists, orders_of(given), orders_of(shuffled), strict=True):
        shuffle = each.shuffled(seed)[1]
        place = {item: i for i, item in enumerate(shuffle)}
        found.append(position_bias(order, shuffle, [place[item] for item in again]))
    mean = {name: float(np.mean([getattr(one, name) for one in found])) for name in vars(found[0])}
    change = float(np.mean(shuffled.samples["nDCG@10"])) - float(np.mean(given.samples["nDCG@10"]))
    return (
        f"Position bias of {given.name}, by shuffled candidates. Kendall's τ between the orders made of both inputs: "
        f"{mean['agreement']:.2f} (1: the input's order does not matter); the same passage first for "
        f"{mean['same_first']:.0%}. τ between the shuffled input and the order made of it: {mean['follows']:.2f} (0: "
        f"places are ignored); what came first stood at {mean['first_from']:.2f} of the input on average (0.50 without "
        f"a bias). nDCG@10 changes by {change:+.3f}."
    ).replace("-", "−")
