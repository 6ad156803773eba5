"""What a trial of the stage measures while texts are read, and what it reports: metrics, figures, notes.

Knows: numbers by length, names of arms. Does not know: models, methods, or how a text is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet.attend.trials.longtexts import LongText
from broadsheet.trial.engine import Metric
from broadsheet.trial.examples import excerpt, marked, most_apart
from broadsheet.trial.results import ArmResult, Curve, Example, listed
from broadsheet.trial.verdicts import compare_samples

FULL, ONE_PIECE, TRUNCATION = "full attention", "full, one piece", "truncation"
_DEPTHS = 5  # bins of the figures by depth
_AROUND = 32  # tokens of a text that an example shows before a password, and from there


@dataclass(frozen=True)
class Plan:
    """What is read, and at which lengths it is measured.

    Attributes:
        lengths: tokens at which every arm is measured, ascending.
        window: tokens that truncation keeps, and that methods with a window see.
        scored: how many tokens before a length its loss is that of.
        context: positions that the model was trained on; None where it does not say.
    """

    lengths: tuple[int, ...]
    window: int
    scored: int
    context: int | None

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """Which lengths (by number) a headline is about, under what is printed behind its name.

        All of them lie beyond the window: up to the positions the model was trained on, and beyond these.
        """
        context = self.context or self.lengths[-1]
        numbered = list(enumerate(self.lengths))
        within = [i for i, length in numbered if length - self.scored >= self.window and length <= context]
        beyond = [i for i, length in numbered if length - self.scored >= context]
        found = {"": within, f" beyond {context:,}": beyond}
        return {suffix: numbers for suffix, numbers in found.items() if numbers}


@dataclass(frozen=True)
class LengthMetrics:
    """What was seen of an arm at one length.

    Attributes:
        loss: mean of the scored tokens, nats.
        seconds: of reading up to here.
        decode_seconds: of one token more.
        held: bytes of the cache.
        right: for each password of the text 1 if its word came first among the text's words, else 0; NaN if it is told
            further on.
        said: the same among the whole vocabulary.
        chosen: for each password whose word came first among the text's words, by its place among the passwords; empty
            where that is not known.
        attended: for each password the share of layers and heads that attended to it when it was asked for; NaN where
            that follows from the distance alone, empty where it is not known.
    """

    loss: float
    seconds: float
    decode_seconds: float
    held: int
    right: list[float]
    said: list[float]
    chosen: list[float] = field(default_factory=list)
    attended: list[float] = field(default_factory=list)


def outputs(plan: Plan, by_length: Sequence[LengthMetrics], by_position: list[float]) -> dict[str, Any]:
    """An arm's outputs for one text: the headline numbers, and what the figures are drawn from.

    Args:
        by_length: one for each length.
        by_position: the mean loss of each stretch of `scored` tokens, where every token was scored; else empty.
    """
    right = np.array([each.right for each in by_length])
    last = by_length[-1]
    headlines: dict[str, Any] = {
        "prefill seconds": last.seconds,
        "decode ms/token": 1000 * last.decode_seconds,
        "cache MiB": last.held / 2**20,
    }
    for suffix, numbers in plan.groups.items():
        headlines[f"loss{suffix}"] = float(np.mean([by_length[i].loss for i in numbers]))
        headlines[f"retrieval{suffix}"] = _mean(right[numbers])
    return headlines | {
        "losses": [each.loss for each in by_length],
        "seconds": [each.seconds for each in by_length],
        "decode": [1000 * each.decode_seconds for each in by_length],
        "held": [each.held / 2**20 for each in by_length],
        "right": right.tolist(),
        "said": [each.said for each in by_length],
        "chosen": last.chosen,
        "attended": [each.attended for each in by_length],
        "by position": by_position,
    }


def metrics(plan: Plan, texts: Sequence[LongText]) -> list[Metric]:
    """The headline numbers: what is known of the text, and what that costs at the last length."""
    asked: list[Metric] = []
    losses = []
    # Tokens, and passwords, of one text are no samples of their own: a text's value is their mean, and n counts texts.
    by_text: dict[str, Any] = {"cluster": lambda text: tuple(text.documents), "counted": "texts"}
    for suffix, numbers in plan.groups.items():
        losses.append(Metric(f"loss{suffix}", higher_is_better=False, unit="nats", **by_text))
        if all(any(q.position < plan.lengths[numbers[-1]] for q in text.questions) for text in texts):
            asked.append(Metric(f"retrieval{suffix}", bounds=(0, 1), **by_text))
    costs = ("prefill seconds", "decode ms/token", "cache MiB")
    return [*losses, *asked, *(Metric(name, higher_is_better=False, scale="ratio", **by_text) for name in costs)]


def figures(arms: Sequence[ArmResult], texts: Sequence[LongText], plan: Plan) -> list[Curve]:
    """Cost and loss against length, retrieval by depth, loss by position; means over the texts."""
    arms = [arm for arm in arms if arm.status == "ok"]
    if not arms:
        return []
    lengths = [float(length) for length in plan.lengths]

    def curve(title: str, y_label: str, output: str) -> Curve:
        lines = {arm.name: _means(arm.samples[output]) for arm in arms}
        return Curve(title, "tokens read", y_label, lengths, lines, log_x=True)

    drawn = [
        curve(f"Loss of the {plan.scored:,} tokens before each length", "nats per token", "losses"),
        curve("Time to read so far", "prefill seconds", "seconds"),
        curve("Time to write one token", "ms per token", "decode"),
        curve("Memory of what was read", "cache, MiB", "held"),
    ]
    if any(text.questions for text in texts):
        shares = {arm.name: np.array(arm.samples["right"]) for arm in arms}  # (texts, lengths, passwords)
        lines = {name: [_known(_mean(right[:, i])) for i in range(len(lengths))] for name, right in shares.items()}
        drawn.append(Curve("Passwords found", "tokens read", "share", lengths, lines, log_x=True))
        drawn += [_depths(arms, texts, plan, numbers[-1]) for numbers in plan.groups.values()]
    passes = {arm.name: _means(arm.samples["by position"]) for arm in arms if arm.samples["by position"][0]}
    if passes:
        ends = [float(plan.scored * (i + 1)) for i in range(len(next(iter(passes.values()))))]
        drawn.append(
            Curve(f"Loss by position, {plan.scored:,} tokens a point", "position", "nats per token", ends, passes)
        )
    return drawn


def examples(
    texts: Sequence[LongText], arms: Mapping[str, ArmResult], plan: Plan, decode: Callable[[list[int]], str]
) -> list[Example]:
    """Passwords where they are told, and what is said when they are asked for at the last length."""
    end = plan.lengths[-1]
    asked = [(i, n) for i, text in enumerate(texts) for n, each in enumerate(text.questions) if each.position < end]
    right = [{name: arm.samples["right"][i][-1][n] for name, arm in arms.items()} for i, n in asked]
    found = []
    for i, n in (asked[place] for place in most_apart(right)):
        text, question = texts[i], texts[i].questions[n]
        around = decode(text.ids[max(0, question.position - _AROUND) : question.position + _AROUND])
        told = {}
        for name, arm in arms.items():
            chosen = arm.samples["chosen"][i]
            word = text.words[int(chosen[n])] if chosen and not np.isnan(chosen[n]) else ""
            told[name] = marked(arm.samples["right"][i][-1][n] == 1, word or "the password")
        where = f"told at token {question.position:,}, asked for at {end:,}"
        found.append(Example(f"… {excerpt(around)} … [{where}]", told, f"Right: {text.words[n]}"))
    return found


def _depths(arms: Sequence[ArmResult], texts: Sequence[LongText], plan: Plan, number: int) -> Curve:
    """Retrieval at one length, by where in the text a password is told."""
    length = plan.lengths[number]
    where = np.array([[question.position / length for question in text.questions] for text in texts])
    bins = np.minimum(where * _DEPTHS, _DEPTHS).astype(int)  # what is told further on falls into none
    lines = {}
    for arm in arms:
        right = np.array(arm.samples["right"])[:, number]
        lines[arm.name] = [_known(_mean(right[bins == depth])) for depth in range(_DEPTHS)]
    middles = [100 * (depth + 0.5) / _DEPTHS for depth in range(_DEPTHS)]
    return Curve(f"Passwords found at {length:,} tokens", "depth in the text, %", "share", middles, lines)


def notes(
    arms: Sequence[ArmResult],
    texts: Sequence[LongText],
    plan: Plan,
    held: int,
    wanted: int,
    in_one_piece: Sequence[str] = (),
) -> list[str]:
    """What a reader should know before trusting the numbers; each note is made from this run.

    Args:
        texts: those that were read.
        held: texts of this length that the data was found to hold, up to `wanted`, the most that may be read.
        in_one_piece: the methods that read a prefill in one piece.
    """
    told = [
        f"Loss is that of the {plan.scored:,} tokens before a length, the same tokens for every arm. Truncation reads "
        f"them and the {plan.window:,} tokens in front of them, nothing else. Prefill, decoding and cache are those at "
        f"{plan.lengths[-1]:,} tokens; prefill is timed without the head.",
    ]
    if in_one_piece:
        told.append(
            f"{', '.join(in_one_piece)} and full attention beside read a prompt in one piece, all but the scored "
            "tokens; these follow in small pieces that attend in full, as in decoding, and are not timed. So loss "
            "shows what reading the prompt sparsely costs the text behind it."
        )
    usable = {arm.name: arm for arm in arms if arm.status == "ok"}
    told += [*_on_context(usable, plan), *_on_retrieval(usable, texts, plan)]
    for name in in_one_piece:
        told += _on_sparse_loss(usable, plan, name)
    if len(texts) == held < wanted:
        told.append(f"The data holds {held} texts of this length; {wanted} were wanted.")
    if len(texts) < 6:
        told.append(
            f"{len(texts)} texts are few, however long they are: intervals are wide. --texts {4 * len(texts)} gives "
            "intervals less than half as wide."
        )
    return told


def _on_context(arms: dict[str, ArmResult], plan: Plan) -> Iterator[str]:
    """How the loss changes beyond the trained positions, or that no length lies there."""
    if plan.context and len(plan.groups) < 2 and "" in plan.groups:
        yield (
            f"All lengths lie within the {plan.context:,} positions that the model was trained on. What happens beyond "
            f"them shows with a length of at least {plan.context + plan.scored:,}."
        )
    elif len(plan.groups) == 2:
        inside, outside = (numbers[-1] for numbers in plan.groups.values())
        changes = []
        for arm in arms.values():
            losses = np.mean(arm.samples["losses"], axis=0)
            changes.append(f"{arm.name} {losses[inside]:.2f} → {losses[outside]:.2f}")
        yield (
            f"From {plan.lengths[inside]:,} tokens, within the positions that the model was trained on, to "
            f"{plan.lengths[outside]:,}, beyond them, the loss goes: {'; '.join(changes)}."
        )


def _on_retrieval(arms: dict[str, ArmResult], texts: Sequence[LongText], plan: Plan) -> Iterator[str]:
    """Whether the model can do at all what it is asked."""
    asked = len(texts[0].questions)
    if FULL not in arms or not asked:
        return
    for suffix, numbers in plan.groups.items():
        lengths = " and ".join(f"{plan.lengths[i]:,}" for i in numbers)
        shares = {name: _mean(np.array(arm.samples["said"])[:, numbers]) for name, arm in arms.items()}
        right = _mean(np.array(arms[FULL].samples["right"])[:, numbers])
        said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        yield (
            f"At {lengths} tokens even full attention finds {right:.0%} of the passwords (guessing: {1 / asked:.0%}). "
            f"Greedy decoding would say the right one: {said}. A text's value is the share of its passwords; n counts "
            f"{len(texts)} texts, not their {asked * len(texts)} passwords."
        )
        for arm in arms.values():
            yield from _on_lookups(arm, plan, f"retrieval{suffix}")
        if not suffix and right < 0.5:
            yield "A model that misses most passwords with full attention shows little of what a method keeps."


def looked_up(arm: ArmResult, plan: Plan, metric: str = "retrieval") -> dict[str, float]:
    """In what share of an arm's lookups what was asked for was among what they gave, at the lengths of a metric.

    Returns:
        `"all"`, and `"where it was found"` and `"where it was missed"` as far as there are such passwords; nothing
        where the arm looks nothing up, or where that is not known.
    """
    numbers = plan.groups[metric.removeprefix("retrieval")]
    right = np.array(arm.samples["right"], dtype=np.float64)
    shares = np.array(arm.samples.get("attended", []), dtype=np.float64)
    if shares.shape != right.shape or np.isnan(shares[:, numbers]).all():
        return {}
    right, shares = right[:, numbers], shares[:, numbers]
    found = {"all": shares[~np.isnan(shares)]}
    found |= {"where it was found": shares[right == 1], "where it was missed": shares[right == 0]}
    return {name: float(those.mean()) for name, those in found.items() if those.size}


def _on_lookups(arm: ArmResult, plan: Plan, metric: str) -> Iterator[str]:
    if found := looked_up(arm, plan, metric):
        lengths = listed([f"{plan.lengths[i]:,}" for i in plan.groups[metric.removeprefix("retrieval")]])
        share, apart = found.pop("all"), [f"{share:.0%} {where}" for where, share in found.items()]
        yield (
            f"Asked for a password at {lengths} tokens, {arm.name} attended to it in {share:.0%} of its lookups, one a "
            f"layer or head: {listed(apart)}."
        )


def _on_sparse_loss(arms: dict[str, ArmResult], plan: Plan, name: str) -> Iterator[str]:
    """By how many per cent a sparse prefill moves the loss: it is good if that is near nothing."""
    sparse, whole = arms.get(name), arms.get(ONE_PIECE, arms.get(FULL))
    if not sparse or not whole:
        return
    for suffix in plan.groups:
        before, after = (np.log(arm.samples[f"loss{suffix}"]) for arm in (whole, sparse))
        change = compare_samples(before, after, metric="loss", baseline=whole.name, arm=sparse.name).difference
        low, centre, high = (100 * np.expm1(end) for end in (change.low, change.estimate, change.high))
        span = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(high) else f" (of {len(before)} texts)"
        amount = f"{centre:+.2f} %{span}".replace("-", "−")
        yield f"{name} changes the loss{suffix} by {amount} against {whole.name}."


def _means(values: Sequence[Sequence[float]]) -> list[float | None]:
    """The mean over texts of each entry of their rows."""
    return [_known(_mean(column)) for column in zip(*values, strict=True)]


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of what is known; NaN if nothing is."""
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
