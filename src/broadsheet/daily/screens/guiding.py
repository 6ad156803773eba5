"""The guides as screens: the surveys' maps, what a long text costs, the adviser.

Knows: the page's guides, the standings. Does not know: the store, HTML. No model is looked for: a model's sizes are
numbers in a form, at first those of the default model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from broadsheet.console import InputError
from broadsheet.page.guides import advice, maps
from broadsheet.page.guides.advice import Advice, AdvisedPaper, Fact
from broadsheet.page.guides.longcontext import BYTES, LongInput, long_input, ways
from broadsheet.page.guides.maps import MapNode
from broadsheet.page.papers import get
from broadsheet.report.words import memory, number

LONG = "long-context"
_LONGEST = 10**9
# A config's sizes: (name in the form, name in the config, of SmolLM2-135M-Instruct, in words).
SIZES = (
    ("layers", "num_hidden_layers", 30, "layers"),
    ("hidden", "hidden_size", 576, "hidden size"),
    ("heads", "num_attention_heads", 9, "heads"),
    ("kv", "num_key_value_heads", 3, "heads of keys and values"),
    ("ffn", "intermediate_size", 1536, "width of the MLP"),
    ("vocab", "vocab_size", 49_152, "vocabulary"),
    ("context", "max_position_embeddings", 8192, "tokens it was trained on"),
)


@dataclass(frozen=True)
class Atlas:
    """A survey's tree, or the tree of goals.

    Attributes:
        trees: (name, title) of all.
        gaps: leaves that no paper of the page covers, of `leaves`.
    """

    name: str
    root: MapNode
    trees: tuple[tuple[str, str], ...]
    gaps: int
    leaves: int
    marks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LongScreen:
    """What a long text costs a model, and the ways that apply.

    Attributes:
        given: the form's values.
        facts: (what, in words).
    """

    trees: tuple[tuple[str, str], ...]
    given: Mapping[str, str]
    made: LongInput
    facts: tuple[tuple[str, str], ...]
    needs: tuple[str, ...]
    dtypes: tuple[str, ...] = tuple(BYTES)


@dataclass(frozen=True)
class Advised:
    """The adviser's questions with the answers given, and what they come to.

    Attributes:
        asked: facts that a rule still goes by, with the values that are worth offering.
    """

    answers: Mapping[str, str]
    asked: tuple[tuple[Fact, Mapping[str, str]], ...]
    made: Advice | None

    def section(self, name: str) -> tuple[AdvisedPaper, ...]:
        return self.made.section(name) if self.made else ()


def trees() -> tuple[tuple[str, str], ...]:
    """Names and titles of all maps."""
    surveys = [(name, get(name).title) for name in maps.trees() if name != maps.GOALS]
    return ((LONG, "What a long text costs"), (maps.GOALS, "What do you want to do?"), *surveys)


def atlas(name: str) -> Atlas:
    """A tree.

    Raises:
        InputError: there is none of that name.
    """
    root = maps.tree(name)
    leaves = [node for node in root.walk() if not node.children]
    used = {node.mark for node in root.walk()}
    marks = tuple((mark, words) for mark, words in maps.MARKS.items() if mark in used and mark != "s")
    return Atlas(name, root, trees(), sum(node.gap for node in leaves), len(leaves), marks)


def long_screen(asked: Mapping[str, str]) -> LongScreen:
    """What a text costs a model of given sizes.

    Raises:
        InputError: a value is no number, or too large.
    """
    given = {"length": "32768", "memory": "", "dtype": "float32", "need": ""}
    given |= {name: str(size) for name, _, size, _ in SIZES}
    given |= {name: value.strip() for name, value in asked.items() if name in given and value.strip()}
    config = {key: _whole(given[name], words) for name, key, _, words in SIZES}
    room = _room(given["memory"]) if given["memory"] else None
    length = _whole(given["length"], "tokens of the text")
    made = long_input(
        {"model_type": "llama", **config}, length, memory=room, dtype=given["dtype"], need=given["need"] or None
    )
    needs = tuple(dict.fromkeys(need for way in ways() for need in way.needs))
    return LongScreen(trees(), given, made, tuple(_facts(made)), needs)


def _whole(text: str, what: str) -> int:
    digits = text.replace(",", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 11 and 0 < int(digits) <= _LONGEST):
        raise InputError(f"got {text[:40]!r} as the {what}; expected a whole number from 1 to {_LONGEST:,}")
    return int(digits)


def _room(text: str) -> float:
    try:
        room = float(text)
    except ValueError:
        room = math.nan
    if not 0 < room < 1e9:
        raise InputError(f"got a memory of {text[:40]!r}; expected a number of GB above 0")
    return room


def _facts(made: LongInput) -> list[tuple[str, str]]:
    facts = []
    if made.weights is not None:
        facts.append(("weights", memory(made.weights)))
    if made.cache is not None and made.per_token is not None:
        facts.append(("keys and values", f"{memory(made.cache)}, {made.per_token / 1024:,.1f} KiB a token"))
    if made.operations is not None and made.attention_share is not None:
        share = f"{made.attention_share:.0%}".replace("%", " %")
        facts.append(("reading it", f"{number(made.operations / 1e12)} trillion operations, {share} of them attention"))
    if made.shape.context:
        facts.append(("trained on", f"{made.shape.context:,} tokens" + ", fewer than the text" * bool(made.beyond)))
    if made.fits is not None and made.memory is not None:
        facts.append((f"{memory(made.memory)} of memory", "it fits" if made.fits else "it does not fit"))
    return facts


def advised(asked: Mapping[str, str]) -> Advised:
    """The adviser's questions, and the papers for the answers given.

    Raises:
        InputError: an answer that cannot be given.
    """
    known = advice.facts()
    answers = {name: value for name, value in asked.items() if name in known and value}
    advice.check(answers)
    goal = known["goal"]
    if "goal" not in answers:
        return Advised({}, ((goal, goal.values),), None)
    # A question of another goal may still be among the answers: it is dropped where nothing goes by it.
    live = [rule for rule in advice.rules() if answers["goal"] in rule.when["goal"]]
    needed = {fact for rule in live for fact in rule.when}
    if any(rule.emergent for rule in live):
        needed.add("size")
    needed |= {"weights", "knowledge", "latency"} if answers["goal"] == "domain" else set()
    offers = {fact: advice.offered(fact, {"goal": answers["goal"]}) for fact in known if fact in needed}
    answers = {fact: value for fact, value in answers.items() if fact == "goal" or value in offers.get(fact, {})}
    asking = tuple((known[fact], goal.values if fact == "goal" else offers[fact]) for fact in known if fact in offers)
    return Advised(answers, asking, advice.advise(answers))
