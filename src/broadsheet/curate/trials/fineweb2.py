"""Try FineWeb2: thresholds from the language itself beside English's, by what they keep and what a model learns."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from broadsheet.apply.base import Source
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, quiet
from broadsheet.curate.fineweb2 import FineWeb2
from broadsheet.curate.languages.lid import Languages
from broadsheet.curate.languages.recipe import FineWeb2Recipe
from broadsheet.curate.minhash import NearDuplicates
from broadsheet.curate.recipe import COUNTS, DOCUMENTS, REASONS
from broadsheet.methods import call_of
from broadsheet.options import option
from broadsheet.training.scratch import SIZES, SplitTexts, TokenBlocks, apart, joined, tokenizer
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.laboratory import LEAST, LOSS, LabArm, Laboratory
from broadsheet.trial.verdicts import Comparison

RAW, ENGLISH, OURS, REPEATED = "everything", "English's thresholds", "each language's thresholds", "and copies"
RIGHT = "kept or dropped rightly"
JUNK = ("repeated lines", "a list", "signs", "glued words", "near copy")
_TUNING = 2  # documents of each language
_SURE = 0.8  # the score from which a page is in the language that it is taken for


@dataclass(frozen=True)
class Page:
    """A document of the dirty corpus, and whether it is worth keeping."""

    id: str
    language: str
    text: str
    good: bool
    source: str  # the page that it is made from
    kind: str = "a page"


@dataclass
class FineWeb2Trial(Laboratory):
    """Do filters keep the right documents of a language, and does a small model learn more from what they keep?

    Real pages in several languages, and beside each some junk that is made from it: lines repeated, lists, signs,
    glued words, and near copies. The arms differ in thresholds alone: none; English's; each language's own; and these
    with copies of what the filters seldom remove. The English arm has each language's stop words too: without them it
    would keep nothing. A third of the clean pages is set aside as the reference.
    """

    paper: ClassVar[str] = "fineweb2"
    title: ClassVar[str] = "FineWeb2: thresholds from the language itself"

    languages: int = option(12, "Languages, those with most pages; English aside.", quick=3, least=2)
    junk: int = option(1, "Junk documents for each page.", least=1)
    texts: int = option(180, "Held-out documents.", quick=18, least=3)
    size: str = option("0.4M", "Of the model, in weights.", choices=tuple(SIZES))

    def question(self) -> str:
        return (
            f"In {self.languages} languages of {self.data}, are the right documents kept where thresholds come from "
            "the language itself rather than from English, and does a model learn more from them?"
        )

    def check(self) -> None:
        super().check()
        FineWeb2()  # its dependencies are there

    # The dirty corpus

    def prepare(self, corpus: Any) -> None:
        pages: dict[str, list[Any]] = {}
        documents = [each for each in corpus if len(each.text) >= 500]
        told = Languages().best([each.text[:2_000] for each in documents])
        for document, (language, score) in zip(documents, told, strict=True):
            if score >= _SURE:
                pages.setdefault(language, []).append(document)
        ranked = sorted((name for name in pages if name != "en"), key=lambda name: (-len(pages[name]), name))
        self._chosen = ranked[: self.languages]
        least = 12 if self.quick else 40
        enough = [name for name in self._chosen if len(pages[name]) >= least]
        if len(enough) < self.languages:
            raise InputError(
                f"got {len(enough)} languages besides English with {least} pages or more of 500 characters in "
                f"{self.data}; expected {self.languages}: fewer --languages, or other data, such as resource:handbook"
            )
        each = max(1, self.texts // self.languages)
        split = {name: apart(pages[name], each, _TUNING, self.seed) for name in self._chosen}
        self.held = SplitTexts(
            tuple(text for one in split.values() for text in one.train),
            tuple(text for one in split.values() for text in one.tuning),
            tuple(text for one in split.values() for text in one.held_out),
            sum(one.dropped for one in split.values()),
        )
        reference = {name: one.train[: len(one.train) // 3] for name, one in split.items()}
        reference["en"] = tuple(document.text for document in pages.get("en", []))[:127]
        self._reference = [{"text": text, "language": name} for name, some in reference.items() for text in some]
        self._pages = self._dirty({name: one.train[len(one.train) // 3 :] for name, one in split.items()})
        self.tokenizer = tokenizer([page.text for page in self._pages], self.vocabulary)
        self.plain_rows = self.rows(RAW, self.seed)

    def _dirty(self, texts: Mapping[str, Sequence[str]]) -> list[Page]:
        """The pages, and junk made from each, in random order."""
        drawn = random.Random(self.seed)
        found = []
        for language, some in texts.items():
            for number, text in enumerate(some):
                source = f"{language}-{number}"
                found.append(Page(source, language, text, True, source))
                kinds = JUNK if " " in text[:200] else tuple(kind for kind in JUNK if kind != "glued words")
                for i, kind in enumerate(drawn.sample(kinds, min(self.junk, len(kinds)))):
                    found.append(Page(f"{source}-{i}", language, junk(text, kind, drawn), False, source, kind))
        drawn.shuffle(found)
        return found

    # What each arm keeps

    def _kept(self, name: str) -> list[tuple[str, str]]:
        """(id, text) of what an arm learns from, in the order of the corpus."""
        if name == RAW:
            return [(page.id, page.text) for page in self._pages]
        with (self._curated(name) / DOCUMENTS).open(encoding="utf-8") as file:
            return [(row["id"], row["text"]) for row in map(json.loads, file)]

    def _curated(self, name: str) -> Path:
        """The folder that the recipe makes with an arm's thresholds, made once."""
        out: Path = self.folder(f"what stays by {name}")
        if not (out / COUNTS).exists():
            carried = dict.fromkeys(("quality", "gopher", "repetition"), "English") if name == ENGLISH else {}
            reference, dirty = (self.folder(each).with_suffix(".jsonl") for each in ("reference", "dirty"))
            _write(reference, self._reference)
            _write(dirty, ({"id": page.id, "text": page.text} for page in self._pages))
            least = 8 if self.quick else 15
            method = FineWeb2(**self.fields(FineWeb2, **{"least": least, **carried}))
            recipe = FineWeb2Recipe(method=call_of(method), reference=str(reference), rehydrate=name == REPEATED)
            with quiet():
                recipe.run(Source(str(dirty)), out)
        return out

    def rows(self, name: str, seed: int) -> TokenBlocks:
        return TokenBlocks(joined([text for _, text in self._kept(name or RAW)], self.tokenizer), self.length)

    def lab(self) -> Sequence[LabArm]:
        ours = FineWeb2.paper
        arms = [
            LabArm(RAW, about="no filter at all", rows=RAW),
            LabArm(ENGLISH, about="the same passes, thresholds as in English", role="sibling", rows=ENGLISH),
            LabArm(OURS, about="language, duplicates, filters", paper=ours, rows=OURS),
        ]
        return arms if self.quick else [*arms, LabArm(REPEATED, about="and rehydration", paper=ours, rows=REPEATED)]

    def claims(self) -> list[Claim]:
        claims = [
            Claim(RIGHT, ENGLISH, OURS, "adapted filters suit a language better than English's (Sec. 3.4)", least=0.02),
            Claim(LOSS, RAW, OURS, "filtering improves all nine languages (Sec. 4)", least=LEAST),
            Claim(LOSS, ENGLISH, OURS, "a model learns more from adapted filters than from English's", least=LEAST),
        ]
        if not self.quick:
            claims.append(Claim(LOSS, OURS, REPEATED, "rehydration lifts it further (Sec. 3.5)", least=LEAST))
        return claims

    # Tasks

    def tasks(self) -> list[EvalTask]:
        _, held = super().tasks()  # a step costs each arm the same
        judged = [page for page in self._pages if page.kind != "near copy"]
        decisions = EvalTask(
            "decisions",
            judged,
            [Metric(RIGHT, cluster=lambda page: page.source, counted="pages", bounds=(0, 1))],
            self._decider,
            item="document",
            about=f"{len(judged)} documents of {len(self._chosen)} languages, half of them junk of four kinds",
            fingerprint=fingerprint([[page.id, page.text] for page in judged]),
        )
        return [held, decisions]

    def _decider(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[Page]) -> dict[str, Any]:
            right = [float((page.id in self._stays(arm.name)) == page.good) for page in block]
            return {RIGHT: np.array(right)}

        return Arm(arm.name, run, description=arm.description)

    def _stays(self, name: str) -> frozenset[str]:
        """The ids that stay, themselves or by a document that is nearly the same."""
        found = self._staying.get(name)
        if found is None:
            ids = {each for each, _ in self._kept(name)}
            if name != RAW:
                with (self._curated(name) / REASONS).open(encoding="utf-8") as file:
                    ids |= {row["id"] for row in map(json.loads, file) if row["reason"] == NearDuplicates.reason}
            found = self._staying[name] = frozenset(ids)
        return found

    @cached_property
    def _staying(self) -> dict[str, frozenset[str]]:
        return {}

    def setting(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"languages": ", ".join(self._chosen)}
        kinds = {page.id: page.kind for page in self._pages}
        total = {kind: sum(page.kind == kind for page in self._pages) for kind in ("a page", *JUNK)}
        for name in self._lab:
            stays = [kinds[each] for each in self._stays(name)]
            told[f"kept by {name}"] = ", ".join(
                f"{kind} {stays.count(kind) / count:.0%}" for kind, count in total.items() if count
            )
        return {**super().setting(), **told}

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if claim.metric == RIGHT:
            return (
                "10Tail drops a tenth of a language's documents by construction, and here half of them were clean; the "
                "English arm had each language's stop words, without which it keeps nothing."
            )
        if claim.arm == REPEATED:
            return "Copies stand for how often the web repeats a page; here duplicates were planted at random."
        return "Its gains are of models of 1.5B weights on 30 billion tokens of the web, which is dirtier than this."


def junk(text: str, kind: str, drawn: random.Random) -> str:
    """A page turned into junk of a kind, in its own script."""
    lines = [line for line in text.split("\n") if line.strip()]
    match kind:
        case "repeated lines":
            some = drawn.sample(lines, min(3, len(lines)))
            return "\n".join(drawn.choice(some) for _ in lines)
        case "a list":  # of beginnings, as menus are
            return "\n".join(line[: max(2, len(line) // 12)].rstrip(".。!?؟:") for line in lines)
        case "signs":
            return "\n".join(" ".join(each for word in _pieces(line) for each in (word, "#")) for line in lines)
        case "glued words":  # of a script with spaces
            return "\n".join(_glued(line.split() or [line]) for line in lines)
        case "near copy":
            end = drawn.choice(lines)[:40]
            return f"{text}\n{end}"
    raise ValueError(kind)


def _pieces(line: str) -> list[str]:
    """Words, or letters where a script has no spaces."""
    return line.split() if " " in line else list(line)


def _glued(words: Sequence[str]) -> str:
    return " ".join("".join(words[i : i + 4]) for i in range(0, len(words), 4))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
