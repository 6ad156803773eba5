"""LooGLE (Li et al., 2023, arXiv:2311.04939): questions on documents of ten thousand words and more, and their scores.

Knows: the benchmark's rows, prompts, lengths, and the metrics of each task. Does not know: models; how a document
reaches one is in `answering`, the metrics themselves are in `loogle_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from broadsheet.console import InputError
from broadsheet.data import rows
from broadsheet.data.rows import OnError, column
from broadsheet.evaluate import loogle_metrics as metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Task = Literal["shortdep_qa", "shortdep_cloze", "longdep_qa", "longdep_summarization"]
TASKS: tuple[Task, ...] = get_args(Task)
# One number per question, or hits and possible hits, whose sums give the score of a test set.
Score = float | tuple[int, int]

# The order of parts is the paper's (instruction, document, question), the words are ours.
_QA = "Read the text, then answer the question about it.\n{document}\nQuestion: {question}\nAnswer:"
_PROMPTS: dict[Task, str] = {
    "shortdep_qa": _QA,
    "longdep_qa": _QA,
    "longdep_summarization": "Read the text, then summarize it.\n{document}\nSummary:",
    "shortdep_cloze": "Read the text, then fill the gaps of the question. A gap <mask-n> stands for the name of a "
    "person, place or organization, and the same gap for the same name. Answer in JSON, for example: "
    '{{"<mask-0>": "Anna Berg", "<mask-1>": "Lisbon"}}\n{document}\n'
    "Question: {question} Which names are missing?\nAnswer:",
}


@dataclass(frozen=True)
class Question:
    """One question on one document.

    Attributes:
        task: which of the four tasks it belongs to.
        document, title: the text asked about, and its title, which no model sees.
        question: empty for a summary.
        answer: the gold answer; for cloze the masks and their entities.
        evidence: the annotators' evidence for the answer, often not verbatim in the document.
        kind: of a longdep_qa question: comprehension_and_reasoning, multiple_information_retrieval, computation or
            timeline_reorder; else empty.
    """

    task: Task
    document: str
    question: str
    answer: str | dict[str, str]
    title: str = ""
    evidence: tuple[str, ...] = ()
    kind: str = ""

    @property
    def gold(self) -> str:
        """The answer as a model would write it: for cloze, JSON."""
        if isinstance(self.answer, str):
            return self.answer
        import json

        return json.dumps(self.answer, ensure_ascii=False)


class EncodedDocument(NamedTuple):
    """A prompt's tokens, and how many were cut out of its middle."""

    ids: list[int]
    cut: int


@dataclass
class LooGLE:
    """Ask a model about long documents, and score its answers against the gold answers, without a judge.

    Use when a long-context model or method should show that it uses a text, not only that it can process it. Prefer a
    passkey test if the model is too small to answer questions: below some billion parameters most scores are near 0.

    Inputs: rows of LooGLE (a file of `rows.read`, a folder, or `hf:bigainlco/LooGLE/shortdep_qa:test`): `input`, the
    document; `qa_pairs`, a list of {Q, A, S[, type]} or a string that holds one, "none" for summaries; `output`, the
    reference summary, else "none". The task follows from the row.

    Relation: the metrics are in `loogle_metrics`, the ways a document reaches a model (whole, its two ends, retrieved
    passages, a method of `broadsheet.attend`) in `answering`, and the same four tasks for lm-evaluation-harness in
    `lm_eval_path()`.

    Args:
        max_length: tokens of a prompt. A longer one keeps its first and last halves, so that the instruction and the
            question survive (the paper takes each model's own limit, up to 32,000); None cuts nothing.
        truncate: "middle" as above; "error" refuses a longer prompt.
        judge: called as judge(question, gold, answer) on each QA answer; returns True, False or None (cannot tell). The
            paper's judge is GPT-4; any callable will do, for instance one that asks a `broadsheet.teacher.Teacher`.
        meteor: adds METEOR, which needs WordNet.

    Where paper and code disagree, the plain names follow the definition, and the authors' numbers are beside them:
    `rouge_*_recall`, `bleu_4_authors` (4-gram precision alone), `meteor_authors` (words as sets), `cloze_*_authors`
    (the whole answer has to be the dictionary). Recall rewards long answers. Their four reorder deviations are divided
    by their largest value here, as in the paper; their script prints that largest value itself. They generate with
    `repetition_penalty=2.0`, which wrecks small models: it is an option of `answering.answers`, off by default.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.evaluate import LooGLE, Question, answering
        >>> loogle = LooGLE(max_length=4096)
        >>> asked = [Question("shortdep_qa", "Ada wrote the first program.", "Who wrote the first program?", "Ada")]
        >>> answers = answering.answers(asked, *models.load("default"), loogle=loogle)
        >>> loogle.score(asked[0], answers[0].text)["containment"]
        1.0
        >>> loogle.summary(asked, [answer.text for answer in answers])  # doctest: +SKIP

    Source: arXiv:2311.04939; authors' code and data bigai-nlco/LooGLE.
    """

    paper: ClassVar[str] = "loogle"

    max_length: int | None = None
    truncate: Literal["middle", "error"] = "middle"
    judge: metrics.Judge | None = None
    meteor: bool = False

    def read(self, data: str, *, on_error: OnError = "stop") -> Iterator[Question]:
        """The questions of a file, folder or hub data set, document by document.

        Args:
            on_error: as of `rows.read`.

        Raises:
            InputError: nothing is there, or a row is not LooGLE's; file and line are named.
        """
        return (question for row in rows.read(data, LooGLERow, on_error) for question in row.questions())

    def prompt(self, question: Question) -> str:
        """The prompt: instruction, document, question, in the paper's order (Sec. 3, prompts)."""
        return _PROMPTS[question.task].format(document=question.document, question=question.question)

    def instruction(self, question: Question) -> str:
        """The beginning of the prompt, up to the document; the same for all questions of a task."""
        return _PROMPTS[question.task].partition("{document}")[0]

    def encode(self, question: Question, tokenizer: PreTrainedTokenizerBase) -> EncodedDocument:
        """The prompt as tokens, at most `max_length`; never decoded and encoded again, which would change the count.

        Raises:
            InputError: it is longer, and `truncate` is "error".
        """
        ids = tokenizer(self.prompt(question), verbose=False)["input_ids"]
        if self.max_length is None or len(ids) <= self.max_length:
            return EncodedDocument(ids, 0)
        if self.truncate == "error":
            raise InputError(
                f"got a prompt of {len(ids)} tokens on {question.title or 'a document'!r}; expected at most "
                f"{self.max_length}, or truncate='middle'"
            )
        return EncodedDocument(both_ends(ids, self.max_length), len(ids) - self.max_length)

    def encode_together(
        self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
    ) -> list[EncodedDocument]:
        """Prompts of one task on one document as `encode` gives them, but cut at one place of the document.

        `encode` counts the end of a prompt from behind: for a longer question it begins elsewhere in the document, and
        no model can read it once for several. Here all ends begin where that of the longest prompt does, so that the
        others lose as many tokens more as their question is shorter. A prompt that would lose more than a tenth keeps
        its own end.

        Raises:
            InputError: as `encode`.
        """
        made = [self.encode(question, tokenizer) for question in questions]
        longest = max((len(each.ids) + each.cut for each in made if each.cut), default=0)
        found = []
        for each in made:
            more, head = longest - len(each.ids) - each.cut, len(each.ids) // 2
            if each.cut and more <= _MOST_LOST * len(each.ids):
                each = EncodedDocument([*each.ids[:head], *each.ids[head + more :]], each.cut + more)
            found.append(each)
        return found

    def score(self, question: Question, prediction: str) -> dict[str, Score]:
        """Every metric of the question's task for one answer.

        QA and summaries: token_f1, containment, bleu_1, bleu_4, rouge_1, rouge_2, rouge_l (F1), the authors' variants,
        and `judge`. Cloze: cloze_exact, cloze_partial. Timeline reorder: lsd, lmd, sd, sdd from 0 (right) to 1.
        """
        prediction = prediction.strip()
        if isinstance(question.answer, dict):
            return _cloze(question.answer, prediction)
        gold = question.answer.strip()
        if question.kind == "timeline_reorder":
            labels = [label.strip() for label in gold.split(",")]
            deviation = metrics.order_deviation(labels, metrics.read_order(labels, prediction))
            return dict(deviation.normalised(len(labels))._asdict())
        scores = _overlap(gold, prediction, self.meteor)
        if self.judge and question.task != "longdep_summarization":
            scores["judge"] = metrics.judged(self.judge, [(question.question, gold, prediction)])
        return scores

    def summary(self, questions: Sequence[Question], predictions: Sequence[str]) -> dict[str, dict[str, float]]:
        """The scores of a test set: by task, then by metric; `n` is the number of questions.

        Raises:
            InputError: not one prediction per question.
        """
        if len(questions) != len(predictions):
            raise InputError(f"got {len(predictions)} predictions for {len(questions)} questions; expected one each")
        by_task: dict[str, list[dict[str, Score]]] = {}
        for question, prediction in zip(questions, predictions, strict=True):
            by_task.setdefault(question.task, []).append(self.score(question, prediction))
        return {task: {"n": float(len(rows)), **aggregate(rows)} for task, rows in by_task.items()}


def aggregate(rows: Iterable[Mapping[str, Score]]) -> dict[str, float]:
    """The mean of every metric over the rows that have it; of hits, their sum over the sum of possible hits."""
    values: dict[str, list[Score]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: mean(column) for name, column in values.items()}


def mean(values: Sequence[Score]) -> float:
    """The mean of numbers, or the sum of hits over the sum of possible hits; NaN where nothing was possible."""
    pairs = [value if isinstance(value, tuple | list) else (value, 1) for value in values]
    possible = sum(pair[1] for pair in pairs)
    return sum(pair[0] for pair in pairs) / possible if possible else float("nan")


_MOST_LOST = 0.1  # of a prompt, so that it is cut where others are


def both_ends(ids: Sequence[int], length: int) -> list[int]:
    """The first and last `length / 2` tokens, or all of them if they fit; an odd one goes to the end.

    Raises:
        InputError: `length` is below 1.

    Example:
        >>> both_ends([1, 2, 3, 4, 5, 6], 3)
        [1, 5, 6]
    """
    if length < 1:
        raise InputError(f"got a length of {length} tokens; expected at least 1")
    if len(ids) <= length:
        return list(ids)
    head = length // 2  # the first and last max_length/2 tokens of the whole prompt
    return [*ids[:head], *ids[len(ids) - (length - head) :]]


def evidence_depth(question: Question) -> float | None:
    """Where in the document the evidence is, from 0 (its beginning) to 1, averaged over the pieces of evidence.

    Annotators did not always copy: a piece counts as found where a span of its length holds most of its different
    trigrams. None if there is no evidence, or a piece of it is not found.
    """
    document = question.document.lower().split()
    places = [_place(document, piece.lower().split()) for piece in question.evidence]
    found = [place for place in places if place is not None]
    return sum(found) / len(found) if found and len(found) == len(places) else None


def _place(document: list[str], piece: list[str], share: float = 0.5) -> float | None:
    """The middle of the span of `document` with most trigrams of `piece`, if it has at least `share` of them."""
    n = min(3, len(piece))
    if not n:
        return None
    wanted = {tuple(piece[i : i + n]) for i in range(len(piece) - n + 1)}
    hits = [tuple(document[i : i + n]) in wanted for i in range(len(document) - n + 1)]
    before = list(accumulate(hits, initial=0))
    width = len(piece) - n + 1
    counts = [after - start for start, after in zip(before, [*before[width:], *[before[-1]] * width], strict=False)]
    best = max(range(len(counts)), key=counts.__getitem__)
    return (best + width / 2) / max(len(document), 1) if counts[best] >= share * len(wanted) else None


@dataclass(frozen=True)
class LooGLERow:
    """A document of LooGLE with its questions in `qa_pairs`, or with the reference of its summary in `output`."""

    input: str = column()
    qa_pairs: Any = column(default=None)
    output: Any = column(default=None)
    title: str = column(default="", kind="text")

    def __post_init__(self) -> None:
        self.questions()

    def questions(self) -> list[Question]:
        """Raises ValueError: a field cannot be read; the question's number is named."""
        pairs = self.qa_pairs
        if isinstance(pairs, str) and pairs.strip().lower() != "none":
            pairs = metrics.literal(pairs.strip())
            if not isinstance(pairs, list):
                raise ValueError("qa_pairs is a string that holds no list; expected JSON or a Python literal")
        if isinstance(pairs, list):
            return [self._question(number, pair) for number, pair in enumerate(pairs, start=1)]
        if pairs is not None and not isinstance(pairs, str):
            raise ValueError(f"qa_pairs is {type(pairs).__name__}; expected a list, or 'none' for a summary")
        if not isinstance(self.output, str) or self.output.strip().lower() in ("", "none"):
            raise ValueError("neither qa_pairs nor a reference in output; expected a row of LooGLE")
        return [Question("longdep_summarization", self.input, "", self.output, self.title)]

    def _question(self, number: int, pair: Any) -> Question:
        if not isinstance(pair, dict) or not isinstance(pair.get("Q"), str):
            raise ValueError(f"question {number} is not a dictionary with a text Q; expected {{Q, A, S}}")
        answer, kind = pair.get("A"), str(pair.get("type", "")).strip().lower().replace(" ", "_")
        if isinstance(answer, int | float):
            answer = str(answer)
        if isinstance(answer, dict):
            if not answer or not all(isinstance(part, str) for entry in answer.items() for part in entry):
                raise ValueError(
                    f"question {number}: A does not map masks to names; expected {{'<mask-0>': 'name', …}}"
                )
        elif not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"question {number} has no answer A; expected a text, or masks and names")
        elif kind == "timeline_reorder":
            labels = [label.strip() for label in answer.split(",")]
            if len(set(labels)) < len(labels) or "" in labels:
                raise ValueError(
                    f"question {number}: A is {answer!r}; expected different labels separated by commas, as in II,I,III"
                )
        task: Task = "shortdep_cloze" if isinstance(answer, dict) else "longdep_qa" if kind else "shortdep_qa"
        evidence = pair.get("S") or ()
        evidence = (evidence,) if isinstance(evidence, str) else tuple(map(str, evidence))
        return Question(task, self.input, pair["Q"], answer, self.title, evidence, kind)


def _cloze(gold: Mapping[str, str], prediction: str) -> dict[str, Score]:
    found = metrics.cloze_matches(gold, prediction)
    strict = metrics.cloze_matches(gold, prediction, whole=True)
    return {
        "cloze_exact": (found.exact, found.total),
        "cloze_partial": (found.partial, found.total),
        "cloze_exact_authors": (strict.exact, strict.total),
        "cloze_partial_authors": (strict.partial, strict.total),
    }


def _overlap(gold: str, prediction: str, meteor: bool) -> dict[str, Score]:
    scores: dict[str, Score] = {
        "token_f1": metrics.token_f1(gold, prediction),
        "containment": metrics.containment(gold, prediction),
        "bleu_1": metrics.bleu(gold, prediction, 1),
        "bleu_4": metrics.bleu(gold, prediction, 4),
        "bleu_4_authors": metrics.bleu_4_authors(gold, prediction),
        "rouge_1": metrics.rouge_f1(gold, prediction, 1),
        "rouge_2": metrics.rouge_f1(gold, prediction, 2),
        "rouge_l": (longest := metrics.rouge_l(gold, prediction)).f1,
        "rouge_1_recall": metrics.rouge_n(gold, prediction, 1).recall,
        "rouge_2_recall": metrics.rouge_n(gold, prediction, 2).recall,
        "rouge_l_recall": longest.recall,
    }
    if meteor:
        scores["meteor"] = metrics.meteor(gold, prediction)
        scores["meteor_authors"] = metrics.meteor(gold, prediction, ordered=False)
    return scores
