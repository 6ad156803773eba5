"""Two files of per-item results that other tools wrote, given the same verdict as a trial: behind `broadsheet compare`.

Knows: lm-eval-harness sample logs, TREC runs with qrels, and JSONL, CSV or TSV with an id and scores; how items pair
up, and which way a metric is better. Does not know: models, timings, or what was run. The statistics are in `stats`.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.console import InputError, say
from broadsheet.data.retrieval import trec
from broadsheet.data.sources import MAX_LINE, FileSource, HubSource, InvalidRow, RowSource

if TYPE_CHECKING:
    from broadsheet.trial.stats import Floats, Statistic
    from broadsheet.trial.verdicts import Comparison

Score = float | tuple[float, float]
Format = Literal["json", "csv", "tsv", "parquet", "trec"]

ID_FIELDS = (
    "id",
    "doc_id",
    "query_id",
    "qid",
    "item_id",
    "question_id",
    "example_id",
    "sample_id",
    "task_id",
    "uid",
    "_id",
)
# A word in a metric's name that says lower is better.
_LOWER_WORD = re.compile(
    r"(?<![a-z])(perplexity|ppl|loss|nll|bits|bpb|wer|cer|ter|errors?|err|mae|r?mse|brier|latency|seconds|time|cost)(?![a-z])"
)
# What a line of an lm-eval sample log holds besides its metrics; "bypass" is its metric that measures nothing.
_LM_EVAL_FRAME = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "bypass",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
# lm-eval logs these as [log-likelihood, words or bytes], and `perplexity` as a bare log-likelihood; each becomes a
# number only over the whole corpus.
_LM_EVAL_CORPUS_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass
class Results:
    """What one file says about each item.

    Args:
        path: the file.
        scores: metric to item id to score; (log-likelihood, length) for a metric that exists only over a whole corpus.
        hashes: item id to a fingerprint of the item itself, where the file has one.
    """

    path: Path
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


def compare_files(
    a: str | Path,
    b: str | Path,
    *,
    qrels: str | Path | None = None,
    measures: Sequence[str] = ("nDCG@10",),
    id_field: str | None = None,
    score_field: str | None = None,
    lower_is_better: Collection[str] = (),
    higher_is_better: Collection[str] = (),
    margins: Mapping[str, float] | None = None,
    names: tuple[str, str] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compare `b` with the baseline `a`, metric by metric, on the items that both files hold.

    Metrics of 0 and 1 get an exact McNemar test, others a paired bootstrap. What was left out, and which metrics count
    as lower-is-better by their name, is reported on stderr. Many metrics: read them with `stats.multiplicity_warning`.

    Args:
        a, b: the two files, in any of the formats of `read_results`.
        qrels, measures, id_field, score_field: as for `read_results`, for both files.
        lower_is_better, higher_is_better: metrics whose direction their name does not tell.
        margins: metric to how much worse counts as no worse, in its unit.
        names: what the two are called; by default the files' names, as far as these tell them apart.
        seed: of the bootstrap.

    Returns:
        One comparison per metric that both files hold, in the order of `a`.

    Raises:
        InputError: a file that cannot be read or paired, naming file, line and remedy.

    Example:
        for comparison in compare_files("base.jsonl", "tuned.jsonl"):
            print(sentence(comparison))
    """
    from broadsheet.trial.stats import mean
    from broadsheet.trial.verdicts import compare_samples

    first, second = (
        read_results(path, qrels=qrels, measures=measures, id_field=id_field, score_field=score_field)
        for path in (a, b)
    )
    metrics = _shared_metrics(first, second)
    if unknown := [name for name in margins or () if name not in metrics]:
        raise InputError(f"got --margin {unknown[0]}=…; expected one of the metrics {', '.join(metrics)}")
    lower = _lower_is_better(metrics, lower_is_better, higher_is_better)
    pairs = {metric: _paired_ids(first, second, metric) for metric in metrics}
    _say_unpaired(first, second, pairs)
    _check_hashes(first, second, list(dict.fromkeys(item for ids in pairs.values() for item in ids)))
    baseline, arm = names or _names(first.path, second.path)
    comparisons = []
    for metric, ids in pairs.items():
        left, right = ([results.scores[metric][item] for item in ids] for results in (first, second))
        corpus_metric = isinstance(left[0], tuple)
        comparisons.append(
            compare_samples(
                left,
                right,
                metric=metric,
                baseline=baseline,
                arm=arm,
                statistic=_corpus_statistic(metric) if corpus_metric else mean,
                binary=not corpus_metric and all(score in (0, 1) for score in left + right),
                higher_is_better=metric not in lower,
                margin=margins.get(metric) if margins else None,
                seed=seed,
            )
        )
    return comparisons


def read_results(
    path: str | Path,
    *,
    qrels: str | Path | None = None,
    measures: Sequence[str] = ("nDCG@10",),
    id_field: str | None = None,
    score_field: str | None = None,
) -> Results:
    """Read one file of per-item results; its first line tells the format.

    - lm-eval-harness `--log_samples` JSONL: items by `doc_id`, one metric per logged metric and filter
      (`exact_match,strict-match`; the filter `none` is not named).
    - A TREC run, `query Q0 document rank score tag`: items are the queries of `qrels`, scored by `measures`. Documents
      rank by score, as trec_eval does. A query without documents counts 0.
    - Other JSONL (one object per line), Parquet, CSV or TSV (with a header line), or `hf:org/name:split`: an id and one
      or more numbers; true is 1.

    Args:
        path: the file, UTF-8, or the hub data set.
        qrels: relevance judgements, `query iteration document relevance`; for TREC runs only.
        measures: names that `ir-measures` knows. `nDCG` is linear-gain.
        id_field: the field or column of the item's id; by default the first of `ID_FIELDS` that is there. Given for an
            lm-eval log, the log is read as plain JSONL.
        score_field: the only field or column, or lm-eval metric, to read; by default all that hold numbers.

    Raises:
        InputError: a missing, empty or undecodable file, a malformed line, a duplicate id, no numbers.
    """
    name = str(path)
    path = Path(path)
    form: Format = "json" if name.startswith("hf:") else _detect(path)
    if qrels is not None and form != "trec":
        raise InputError(
            f"{path}: not a TREC run (query Q0 document rank score tag); leave out the qrels for other formats"
        )
    if form == "trec":
        return _read_run(path, qrels, measures)
    source = HubSource(name) if name.startswith("hf:") else FileSource(name, form="jsonl" if form == "json" else form)
    _, row = next(_rows(source), ("", {}))
    if form == "json" and id_field is None and "doc_id" in row and ("doc_hash" in row or "metrics" in row):
        return _read_lm_eval(path, source, score_field)
    return _read_rows(path, source, _number_in_text if form in ("csv", "tsv") else _number, id_field, score_field)


def _detect(path: Path) -> Format:
    """The format, from the first line that is not blank."""
    try:
        with path.open("rb") as file:
            lines = (file.readline(MAX_LINE) for _ in iter(int, 1))
            head = next((line for line in takewhile(bool, lines) if line.removeprefix(BOM_UTF8).strip()), b"")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of per-item results") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-8-sig", "replace")
    columns = text.split()
    if not columns:
        raise InputError(f"{path}: empty; expected one line per item")
    if text.lstrip().startswith("{"):
        return "json"
    if len(columns) == 6 and columns[3].isdecimal() and _number_in_text(columns[4]) is not None:
        return "trec"
    if "\t" in text:
        return "tsv"
    if "," in text and not text.lstrip().startswith("["):
        return "csv"
    raise InputError(
        f"{path}: got {text.strip()[:40]!r}; expected JSONL (an object per line), a CSV or TSV table, Parquet, or a "
        "TREC run"
    )


def _rows(source: RowSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows, each with the file and line that messages name."""
    for place, row in source.rows():
        if isinstance(row, InvalidRow):
            raise InputError(row.at(place))
        if not isinstance(row, dict):
            raise InputError(f"{place.shown}: got a JSON {type(row).__name__}; expected one object per line")
        yield place.shown, row


def _number(value: Any) -> float | None:
    """A JSON number, true or false as a float, infinite where none is so large; None for anything else."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number_in_text(text: str) -> float | None:
    """A table's cell as a float, true and false included; None where it is neither."""
    text = text.strip().lower()
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _add(scores: dict[str, Score], item: str, score: Score, place: str) -> None:
    """File `score` under `item`, once, and only a finite one."""
    if item in scores:
        raise InputError(f"{place}: id {item!r} was there before; every item needs one line")
    if not all(map(math.isfinite, score if isinstance(score, tuple) else (score,))):
        raise InputError(f"{place}: the score of {item!r} is not finite; leave the item out, or mend its metric")
    scores[item] = score


def _read_rows(
    path: Path,
    source: RowSource,
    as_number: Callable[[Any], float | None],
    id_field: str | None,
    score_field: str | None,
) -> Results:
    """Rows with an id and numbers; the first row tells which fields hold what, and every other must follow."""
    results = Results(path)
    names: list[str] = []
    for place, row in _rows(source):
        if not names:
            id_field = id_field or next((name for name in row if name.lower() in ID_FIELDS), None)
            if id_field is None:
                raise InputError(f"{path}: no id among {', '.join(row)}; name one of them with --id-field")
            names = (
                [score_field] if score_field else [n for n in row if n != id_field and as_number(row[n]) is not None]
            )
            if not names:
                raise InputError(f"{place}: no number among {', '.join(row)}; a score is a number per item")
        item = row.get(id_field or "")
        if not isinstance(item, str | int) or isinstance(item, bool) or item == "":
            raise InputError(f"{place}: the id {id_field!r} is {item!r}; expected text or a whole number")
        for name in names:
            score = as_number(row[name]) if name in row else None
            if score is None:
                raise InputError(
                    f"{place}: {name!r} is {row.get(name)!r}; expected a number in every line "
                    "(to read another field alone, name it with --score-field)"
                )
            _add(results.scores.setdefault(name, {}), str(item), score, place)
    if not names:
        raise InputError(f"{path}: a header and no rows; expected one line per item")
    return results


def _read_lm_eval(path: Path, source: RowSource, score_field: str | None) -> Results:
    """A sample log of lm-eval-harness; older logs name neither the filter nor the metrics."""
    results = Results(path)
    skipped: dict[str, None] = {}
    for place, row in _rows(source):
        if "doc_id" not in row:
            raise InputError(f"{place}: no 'doc_id'; expected an lm-eval sample in every line")
        item = str(row["doc_id"])
        suffix = "" if row.get("filter", "none") == "none" else f",{row['filter']}"
        for name in row.get("metrics") or row:
            if name in _LM_EVAL_FRAME or name not in row:
                continue
            metric = name + suffix
            score = _lm_eval_score(name, row[name])
            if score_field not in (None, name, metric):
                continue
            if score is None:
                skipped[metric] = None
                continue
            _add(results.scores.setdefault(metric, {}), item, score, place)
        if "doc_hash" in row:
            results.hashes[item] = row["doc_hash"]
    if skipped:
        say(f"{path}: left out {', '.join(skipped)}: not one number per item")
    if not results.scores:
        raise InputError(
            f"{path}: no metric with one number per item; expected an lm-eval sample log with such a metric"
        )
    return results


def _lm_eval_score(name: str, value: Any) -> Score | None:
    if name in _LM_EVAL_CORPUS_METRICS and isinstance(value, list) and len(value) == 2:
        log_likelihood, length = map(_number, value)
        return None if log_likelihood is None or length is None else (log_likelihood, length)
    score = _number(value)
    return (score, 1.0) if name == "perplexity" and score is not None else score


def _corpus_statistic(metric: str) -> Statistic:
    """Perplexity, or bits, of the whole corpus from (n, 2) log-likelihoods in nats and lengths."""

    def nats(values: Floats, weights: Floats) -> Floats:
        return -(weights @ values[:, 0]) / (weights @ values[:, 1])

    def perplexity(values: Floats, weights: Floats) -> Floats:
        import numpy as np

        return np.exp(nats(values, weights))

    def bits(values: Floats, weights: Floats) -> Floats:
        return nats(values, weights) / math.log(2)

    return bits if metric.startswith("bits") else perplexity


def _read_run(path: Path, qrels: str | Path | None, measures: Sequence[str]) -> Results:
    """A TREC run scored by ir-measures, one score per judged query."""
    if qrels is None:
        raise InputError(f"{path}: a TREC run has no scores of its own; give the relevance judgements with --qrels")
    try:
        import ir_measures
    except ImportError as error:
        raise InputError("TREC runs are scored by ir-measures, which is missing: pip install -e '.[trec]'") from error
    judged, run = trec.read_qrels(Path(qrels)), trec.read_run(path)
    if not judged:
        raise InputError(f"{qrels}: empty; expected lines of query 0 document relevance")
    if absent := judged.keys() - run.keys():
        say(f"{path}: {len(absent)} of {len(judged)} judged queries have no documents and count 0")
    if unjudged := run.keys() - judged.keys():
        say(f"{path}: {len(unjudged)} queries are not in {qrels} and are left out")
    if len(absent) == len(judged):
        raise InputError(f"{path}: none of its queries is in {qrels}; give the qrels of this run's queries")
    results = Results(path)
    for name in measures:
        try:
            measure = ir_measures.parse_measure(name)
            scored = list(
                ir_measures.iter_calc([measure], judged, {query: run[query] for query in judged.keys() & run.keys()})
            )
        except (NameError, ValueError, SyntaxError, TypeError, RuntimeError) as error:
            raise InputError(
                f"measure {name!r}: ir-measures does not know it or cannot compute it; try nDCG@10 or AP"
            ) from error
        by_query = {metric.query_id: float(metric.value) for metric in scored}
        results.scores[str(measure)] = {query: by_query[query] for query in judged}
    return results


def _shared_metrics(first: Results, second: Results) -> list[str]:
    """The metrics of both files, in the order of the first; what only one has is reported."""
    for one, other in ((first, second), (second, first)):
        if alone := [metric for metric in one.scores if metric not in other.scores]:
            say(f"{one.path}: {', '.join(alone)} not in {other.path}, left out")
    shared = [metric for metric in first.scores if metric in second.scores]
    if not shared:
        raise InputError(
            f"{first.path} has {', '.join(first.scores)} and {second.path} has {', '.join(second.scores)}; "
            "a comparison needs a metric that is in both"
        )
    return shared


def _lower_is_better(metrics: list[str], lower: Collection[str], higher: Collection[str]) -> set[str]:
    """The metrics whose name, or the caller, says that lower is better."""
    if unknown := [metric for metric in (*lower, *higher) if metric not in metrics]:
        raise InputError(f"no metric {unknown[0]!r}; the files share {', '.join(metrics)}")
    by_name = {metric for metric in metrics if _LOWER_WORD.search(metric.lower())}
    chosen = (by_name | set(lower)) - set(higher)
    if guessed := [metric for metric in metrics if metric in chosen and metric not in lower]:
        say(f"lower is better, by its name: {', '.join(guessed)}")
    return chosen


def _paired_ids(first: Results, second: Results, metric: str) -> list[str]:
    left, right = first.scores[metric], second.scores[metric]
    paired = [item for item in left if item in right]
    if not paired:
        raise InputError(
            f"{metric}: no id is in both files ({first.path} has {next(iter(left))!r}, {second.path} has "
            f"{next(iter(right))!r}); compare two results on the same items"
        )
    return paired


def _say_unpaired(first: Results, second: Results, pairs: Mapping[str, Sequence[str]]) -> None:
    for metric, ids in pairs.items():
        for one, other in ((first, second), (second, first)):
            total = len(one.scores[metric])
            if alone := total - len(ids):
                say(f"{metric}: {alone} of {total} items of {one.path} are not in {other.path}, left out")


def _check_hashes(first: Results, second: Results, ids: Sequence[str]) -> None:
    """Equal ids should be equal items: none the same is two tasks, a few that differ are reported."""
    both = [item for item in ids if item in first.hashes and item in second.hashes]
    differ = sum(first.hashes[item] != second.hashes[item] for item in both)
    if both and differ == len(both):
        raise InputError(
            f"{first.path} and {second.path} share ids, but no doc_hash: two tasks, or other versions of one; "
            "compare logs of the same task, or pair by number alone with --id-field doc_id"
        )
    if differ:
        say(f"{differ} of {len(both)} paired items have another doc_hash in the other file: is it the same task?")


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Short names of the arms: the file names where they differ, else the whole paths."""
    return (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
