"""How sure a language model is of an answer that it is given: several scores, by what it costs to ask.

Knows: a teacher, prompts and targets, texts that contradict each other. Does not know: rows, thresholds, papers.

Everything is asked in the teacher's own chat template, the one that it generates and is trained in, and what it said is
kept in its cache: a rerun calls no model. A score is higher where the model is surer.

- `log_probability`, `pmi`: of the target itself, one or two forward passes; in nats a token.
- `letters`: of the letters that answer a question, exact; one forward pass.
- `samples` with `contradictions` and `matches`, put together by `consistency`: what it answers itself.
- `reflections`: what it says of the target when it is asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from broadsheet.cache import home
from broadsheet.console import InputError, progress, say

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher
    from broadsheet.teacher.base import Conversation

Floats = NDArray[np.float64]
Asks = Literal["text", "letters"]

TOKEN_F1 = "token-F1"
CORRECT, INCORRECT, UNSURE = "correct", "incorrect", "not sure"
VALUES = {CORRECT: 1.0, INCORRECT: 0.0, UNSURE: 0.5}  # of a reflection
LETTERS = ("A", "B", "C")
FORMS = {  # of an answer, as it is asked for
    "text": "Explain briefly, then give one letter, in this form:\nexplanation: ...\nanswer: [letter]",
    "letters": "Answer with one letter.",
}


# The target's own probability


def log_probability(teacher: Teacher, prompts: Sequence[Conversation], targets: Sequence[str]) -> Floats:
    """The mean log-probability of the target's tokens after its prompt: (n,) nats a token."""
    if not len(targets):
        return np.zeros(0)
    found: Floats = teacher.score(prompts, [[target] for target in targets], per_token=True)[:, 0]
    return found


def pmi(
    teacher: Teacher, prompts: Sequence[Conversation], targets: Sequence[str], nothing: Conversation = ""
) -> Floats:
    """How much the prompt adds to the target's log-probability: pointwise mutual information, (n,) nats a token.

    What is likely after any prompt, a short and common answer, has no advantage.

    Args:
        nothing: a prompt that says nothing, after which targets are read once more.
    """
    given = log_probability(teacher, prompts, targets)
    return given - log_probability(teacher, [nothing] * len(targets), targets)


# What the model answers itself


def samples(
    teacher: Teacher,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    k: int,
    *,
    temperature: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    reasoning: bool = False,
) -> list[list[str]]:
    """k answers of the teacher's own to each prompt.

    Args:
        reasoning: ask for an explanation first, which is then cut off; an answer that has no such form stays whole.
    """
    asked: list[Any] = [_reasoned(prompt) if reasoning else prompt for prompt in prompts]
    made = teacher.chat(asked, n=k, temperature=temperature, max_tokens=max_tokens, seed=seed) if asked else []
    texts = [[completion.text.strip() for completion in row] for row in made]
    return [[_answer(text) for text in row] for row in texts] if reasoning else texts


def _reasoned(prompt: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    *before, last = [dict(message) for message in prompt]
    form = "Explain how you get to your answer, then give it, in this form:\nexplanation: ...\nanswer: ..."
    return [*before, {**last, "content": f"{last['content']}\n\n{form}"}]


def _answer(text: str) -> str:
    found = re.split(r"(?im)^\s*answer\s*:\s*", text)
    return found[-1].strip() if len(found) > 1 else text


class Contradicts(Protocol):
    """Whether two texts contradict each other."""

    def __call__(self, ones: Sequence[str], others: Sequence[str]) -> Floats:
        """(n, 2) from 0 to 1: of the pair as it stands, and turned round."""


class TokenF1:
    """1 − the F1 of the words that two texts share: a stand-in for a model of entailment, which it is not.

    Words are runs of letters and digits, in small letters, counted as often as they occur.
    """

    name: ClassVar[str] = TOKEN_F1

    def __call__(self, ones: Sequence[str], others: Sequence[str]) -> Floats:
        bags = {text: Counter(re.findall(r"\w+", text.lower())) for text in {*ones, *others}}
        found = np.array([1 - _f1(bags[a], bags[b]) for a, b in zip(ones, others, strict=True)], dtype=np.float64)
        return np.stack([found, found], axis=1)


def _f1(one: Counter[str], other: Counter[str]) -> float:
    together = one.total() + other.total()
    return 2 * (one & other).total() / together if together else 1.0


@dataclass
class NLI:
    """The probability of contradiction by a model of natural language inference, in both orders of a pair.

    What it said is kept in the teacher's cache.

    Args:
        model, tokenizer: of any class for sequence classification, with a label that begins with "contra".
        batch_tokens: of a batch, padding included.
        truncate: a pair that is longer than the model reads: `"cut"` takes tokens off the longer text, and says of how
            many pairs; `"error"` refuses.

    Raises:
        InputError: no label, or several, are called so.

    Example:
        contradicts = NLI.load("org/some-model-mnli")
        contradicts(["It is open."], ["It is closed."])  # array([[.98, .97]])
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    batch_tokens: int = 8192
    truncate: Literal["cut", "error"] = "cut"
    name: str = "NLI"

    def __post_init__(self) -> None:
        labels = {int(i): str(label) for i, label in self.model.config.id2label.items()}
        found = [i for i, label in labels.items() if label.lower().startswith("contra")]
        if len(found) != 1:
            raise InputError(
                f"{self.name}: its labels are {', '.join(labels.values())}; expected one called contradiction, as an "
                "MNLI model has"
            )
        self.label = found[0]

    @classmethod
    def load(cls, spec: str, device: str | None = None) -> NLI:
        """A model by name: a folder or a hub id, read as safely as any."""
        from broadsheet.models.loading import load_classifier

        model, tokenizer = load_classifier(spec, device=device)
        return cls(model, tokenizer, name=spec)

    @cached_property
    def _identity(self) -> list[Any]:
        from broadsheet import models

        return ["NLI", models.fingerprint(self.model), self.label, self._longest]

    @property
    def _longest(self) -> int:
        """Tokens of a pair; a RoBERTa counts positions from behind its padding token."""
        room = int(getattr(self.model.config, "max_position_embeddings", 0)) or 512
        if self.model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            room -= 2
        return min(room, int(self.tokenizer.model_max_length))

    def __call__(self, ones: Sequence[str], others: Sequence[str]) -> Floats:
        from broadsheet.teacher.store import Store, digest

        both = [*zip(ones, others, strict=True), *zip(others, ones, strict=True)]
        keys = {pair: digest([*self._identity, *pair]) for pair in dict.fromkeys(both)}
        with Store(home() / "teacher" / "cache.sqlite") as store:
            kept = store.get(keys.values())
            missing = [pair for pair, key in keys.items() if key not in kept]
            with progress("comparing answers", total=len(missing), shown=bool(missing)) as bar:
                for batch in self._batches(missing):
                    found = dict(
                        zip((keys[missing[i]] for i in batch), self._read([missing[i] for i in batch]), strict=True)
                    )
                    store.put(found)
                    kept |= found
                    bar.advance(bar.task_ids[0], len(batch))
        values = np.array([kept[keys[pair]] for pair in both], dtype=np.float64)
        return values.reshape(2, len(ones)).T

    def _batches(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        from broadsheet import models

        if not pairs:
            return []
        ids = self.tokenizer([a for a, _ in pairs], [b for _, b in pairs], verbose=False)["input_ids"]
        lengths = [len(row) for row in ids]
        if long := sum(length > self._longest for length in lengths):
            told = f"{long:,} of {len(pairs):,} pairs are longer than the {self._longest:,} tokens of {self.name}"
            if self.truncate == "error":
                raise InputError(f"{told}; give a model that reads more, or truncate='cut'")
            say(f"{told}: the longer text is cut")
        return models.token_budget_batches([min(length, self._longest) for length in lengths], self.batch_tokens)

    def _read(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        from broadsheet import models

        return models.halve_on_oom(self._probabilities, pairs)

    def _probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        with torch.inference_mode():
            texts = [[text for text, _ in pairs], [text for _, text in pairs]]
            read = self.tokenizer(
                *texts, truncation="longest_first", max_length=self._longest, padding=True, return_tensors="pt"
            ).to(self.model.device)
            found: list[float] = self.model(**read).logits.double().softmax(-1)[:, self.label].tolist()
        return found


def contradictor(name: str | Contradicts, device: str | None = None) -> Contradicts:
    """What tells whether texts contradict: `"token-F1"`, a model's folder or hub id, or one that is there already."""
    if not isinstance(name, str):
        return name
    return TokenF1() if name == TOKEN_F1 else NLI.load(name, device)


def contradictions(by: Contradicts, targets: Sequence[str], answers: Sequence[Sequence[str]]) -> Floats:
    """(n, k, 2): how much each target contradicts each of the k answers to its prompt, in both orders.

    A text does not contradict itself, so equal ones are not asked about.
    """
    pairs = [(target.strip(), answer.strip()) for target, row in zip(targets, answers, strict=True) for answer in row]
    different = list(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))
    asked: Any = by([one for one, _ in different], [other for _, other in different]) if different else []
    known = {pair: (float(one), float(other)) for pair, (one, other) in zip(different, asked, strict=True)}
    found = np.array([known.get(pair, (0.0, 0.0)) for pair in pairs], dtype=np.float64)
    return found.reshape(len(targets), len(answers[0]) if answers else 0, 2)


def matches(targets: Sequence[str], answers: Sequence[Sequence[str]]) -> Floats:
    """(n, k): 1 where an answer is the target, but for white space around it."""
    found = [[target.strip() == answer.strip() for answer in row] for target, row in zip(targets, answers, strict=True)]
    return np.array(found, dtype=np.float64).reshape(len(targets), len(answers[0]) if answers else 0)


def consistency(contradiction: Any, match: Any, alpha: float = 0.8) -> Floats:
    """How well answers agree with a target (BSDetector, arXiv:2308.16175): (n,) from 0 to 1.

    Args:
        contradiction: (n, k, 2), as `contradictions` gives it.
        match: (n, k), as `matches` gives it.
        alpha: weight of what does not contradict; the rest is that of equal texts.
    """
    c = np.asarray(contradiction, dtype=np.float64).mean(-1)  # both orders
    s = alpha * (1 - c) + (1 - alpha) * np.asarray(match, dtype=np.float64)  # s_i = α (1 − c_i) + (1 − α) r_i
    found: Floats = s.mean(-1)  # O = mean of s_i
    return found


# What it says when it is asked


def letters(teacher: Teacher, questions: Sequence[Conversation], choices: Sequence[str] = LETTERS) -> Floats:
    """The probability of each letter after each question, among them: (n, letters); each row sums to 1.

    Exact and repeatable: the share of answers that would begin so, were very many sampled.
    """
    if not len(questions):
        return np.zeros((0, len(choices)))
    scores = teacher.score(questions, list(choices))
    found: Floats = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    return found


def letter_of(text: str, choices: Sequence[str] = LETTERS) -> str | None:
    """The letter that an answer gives: behind the last "answer:", or alone; None where it gives none."""
    some = "".join(choices)
    tagged = re.findall(rf"(?i)answer\s*[:=]\s*[\[(*\"']*([{some}])(?![a-z])", text)
    alone = re.fullmatch(rf"[\s\[(*\"']*([{some}])[\s\])*.:\"']*", text)
    found = tagged[-1] if tagged else alone[1] if alone else None
    return found.upper() if found else None


@dataclass(frozen=True)
class Reflection:
    """What a model said of targets.

    Args:
        values: (n, 2), by the two questions: 1 correct, 0 incorrect, 0.5 not sure.
        unreadable: answers that gave no letter, which count as not sure.
    """

    values: Floats
    unreadable: int = 0


def reflections(
    teacher: Teacher,
    prompts: Sequence[Conversation],
    targets: Sequence[str],
    asks: Asks = "text",
    max_tokens: int = 128,
) -> Reflection:
    """Ask a model whether targets are correct, and then whether it is really sure.

    Args:
        asks: `"text"`: it explains, and gives a letter; an answer without one is a doubt. `"letters"`: ours, the
            expectation over the letters' probabilities, without any text; the second question follows on the likeliest.
        max_tokens: of an explanation with its letter.
    """
    values = np.array(list(VALUES.values()))
    said, unreadable = [], 0
    form = FORMS[asks]
    asked: list[Any] = [
        [{"role": "user", "content": _is_it_right(as_text(prompt), target, form)}]
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    for turn in range(2):
        if asks == "letters":
            shares = letters(teacher, asked)
            said.append(shares @ values)
            answers = [LETTERS[i] for i in shares.argmax(1)]
        else:
            made = teacher.chat(asked, temperature=0.0, max_tokens=max_tokens) if asked else []
            answers = [row[0].text.strip() for row in made]
            found = [letter_of(text) for text in answers]
            unreadable += found.count(None)
            said.append(np.array([values[LETTERS.index(letter or "C")] for letter in found], dtype=np.float64))
        if not turn:
            asked = [
                [*before, {"role": "assistant", "content": answer}, {"role": "user", "content": _are_you_sure(form)}]
                for before, answer in zip(asked, answers, strict=True)
            ]
    return Reflection(np.stack(said, axis=1), unreadable)


def _is_it_right(request: str, target: str, form: str) -> str:
    return (
        f"Here is a request and an answer that was proposed.\n\nRequest: {request}\n\nProposed answer: {target}\n\n"
        f"Is the proposed answer right?\n(A) It is correct.\n(B) It is incorrect.\n(C) I am not sure.\n{form}"
    )


def _are_you_sure(form: str) -> str:
    return (
        "Are you really sure about that? Think again whether the proposed answer is right.\n"
        f"(A) It is correct.\n(B) It is incorrect.\n(C) I am not sure.\n{form}"
    )


def as_text(prompt: Conversation) -> str:
    """A prompt to be quoted: a single message of the user's as it stands, else a transcript."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
