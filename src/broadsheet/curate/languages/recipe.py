"""What `broadsheet apply fineweb2` runs: a corpus of any languages to the documents worth learning from.

Knows: passes, statistics between them. Does not know: formulas, filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.apply.base import Source
from broadsheet.console import InputError, say
from broadsheet.curate.recipe import CurateRecipe, Passes, UnsuitedError
from broadsheet.options import option

if TYPE_CHECKING:
    from datatrove.data import Document

    from broadsheet.curate.fineweb2 import FineWeb2, LanguageThresholds

Statistics = dict[str, dict[str, Any]]


@dataclass
class FineWeb2Recipe(CurateRecipe):
    """Language identification, duplicates, filters with each language's own thresholds; and, if asked, repetition.

    Thresholds on lines and words come from `--reference`, documents with a field `language`, such as Wikipedia's; those
    on what repeats from the corpus itself, after duplicates are gone; without a reference all do. English's place in
    its own text is told by `--english`, where there is too little of it.
    """

    paper: ClassVar[str] = "fineweb2"
    lacks: ClassVar[tuple[str, ...]] = ("model", "seed", "device", "dtype")

    languages: str | None = option(None, "To keep, as de,fr; by default all that have documents enough.")
    lid: str = option("resource:lid176/lid.176.ftz", "fastText model of languages, such as GlotLID's.", metavar="FILE")
    reference: str | None = option(None, "Corpus with a field `language`, for statistics; by default the data itself.")
    english: str = option("pydocs:stdlib", "English text, where the reference has too little.", metavar="DATA")
    precision: bool = option(False, "Drop documents without a word of their language, where many have none.")
    rehydrate: bool = option(False, "Repeat documents whose duplicates the filters seldom remove.")

    def title(self) -> str:
        return "FineWeb2"

    def curate(self, source: Source, passes: Passes) -> Path | Iterator[Document]:
        from broadsheet.curate.files import in_order, once, parts
        from broadsheet.curate.fineweb2 import FineWeb2, LanguageThresholds
        from broadsheet.curate.languages.measures import merged
        from broadsheet.curate.languages.rehydration import json_weights

        method = self.configured(FineWeb2)
        self.check_calls([FineWeb2])
        work, tasks = passes.folder, passes.tasks
        self._identify(source, passes)
        scores = once(work / "scores.json", lambda: _added(parts(work / "scores", tasks)))
        asked = self._asked(scores, method)
        self._deduplicate(passes, {name: least for name, least in method.confidence(scores).items() if name in asked})
        own: Statistics = once(work / "statistics.json", lambda: merged(parts(work / "statistics", tasks)))
        told: Statistics = once(work / "reference.json", self._reference) if self.reference else own
        made = once(
            work / "thresholds.json",
            lambda: {name: asdict(each) for name, each in self._thresholds(method, told, own).items()},
        )
        thresholds = {name: LanguageThresholds(**each) for name, each in made.items()}
        self._filter(passes, method, thresholds, told)
        if not self.rehydrate:
            return work / "kept"
        by_language = json_weights(once(work / "weights.json", lambda: _weights(work, tasks, method.most)))
        return _repeated(in_order(work / "kept"), by_language)

    def _identify(self, source: Source, passes: Passes) -> None:
        from broadsheet.curate.files import CorpusReader, ShardWriter
        from broadsheet.curate.fineweb2 import Identify
        from broadsheet.curate.languages.lid import Languages
        from broadsheet.curate.languages.measures import LanguageScores
        from broadsheet.curate.readable import Readable

        reader = CorpusReader(source.spec, source.on_error, source.text_field, source.id_field)
        identify = Identify(Languages(self.lid, k=1))
        scores = LanguageScores(passes.folder / "scores")
        writer = ShardWriter(passes.folder / "identified")
        passes.run("1 languages", [reader, Readable(), identify, scores, writer])

    def _asked(self, scores: Mapping[str, Mapping[str, int]], method: FineWeb2) -> set[str]:
        """The languages that are kept.

        Raises:
            UnsuitedError: one that was asked for is not there, or has too few documents.
        """
        if self.languages is None:
            return set(scores)
        asked = {each.strip() for each in self.languages.split(",") if each.strip()}
        for language in sorted(asked):
            found = sum(scores.get(language, {}).values())
            if found < method.least and not self.reference:
                raise UnsuitedError(
                    f"{language}: {found} documents, of which thresholds are made; expected {method.least} or more: "
                    "name others by --reference, or leave it out of --languages"
                )
        return asked

    def _deduplicate(self, passes: Passes, least: Mapping[str, float]) -> None:
        from broadsheet.curate.files import ShardReader, ShardWriter, once
        from broadsheet.curate.fineweb2 import Confident
        from broadsheet.curate.languages.measures import LanguageStatistics
        from broadsheet.curate.minhash import NearDuplicates, Signatures, cluster
        from broadsheet.curate.running import without_logs

        work = passes.folder
        signatures = Signatures(work / "signatures", within="language")
        sure = ShardWriter(work / "sure")
        passes.run("2 signatures", [ShardReader(work / "identified"), Confident(least), signatures, sure])

        def clusters() -> bool:
            cluster(signatures, work, save_cluster_size=True)
            return True

        with without_logs():
            once(work / "clusters.json", clusters)
        unique = NearDuplicates(str(work / "clusters"), load_cluster_sizes=True)
        statistics = LanguageStatistics(work / "statistics")
        passes.run("3 duplicates", [ShardReader(work / "sure"), unique, statistics, ShardWriter(work / "unique")])

    def _reference(self) -> Statistics:
        """Of each language of the reference."""
        from broadsheet.curate.languages.measures import counted
        from broadsheet.data import corpora

        rows = ((each.metadata.get("language"), each.text) for each in corpora.load(str(self.reference)))
        return counted((str(language), text) for language, text in rows if language)

    def _thresholds(self, method: FineWeb2, told: Statistics, own: Statistics) -> dict[str, LanguageThresholds]:
        from broadsheet.curate.languages.measures import counted
        from broadsheet.data import corpora

        english, own_english = (each.get("en", each.get("eng", {"documents": 0})) for each in (told, own))
        if english["documents"] < method.least:
            english = counted(("en", document.text) for document in corpora.load(self.english))["en"]
        try:
            return method.thresholds(told, english, own, own_english)
        except InputError as error:
            raise UnsuitedError(str(error)) from None

    def _filter(
        self, passes: Passes, method: FineWeb2, thresholds: Mapping[str, LanguageThresholds], told: Statistics
    ) -> None:
        from broadsheet.curate.files import ShardReader, ShardWriter
        from broadsheet.curate.fineweb2 import AdaptedFilters, Finish
        from broadsheet.curate.languages.rehydration import ClusterSizes
        from broadsheet.curate.languages.wordlists import PrecisionFilter

        work = passes.folder
        steps: list[Any] = [ShardReader(work / "unique"), ClusterSizes(work / "came"), AdaptedFilters(thresholds)]
        if self.precision:
            steps.append(PrecisionFilter(self._lists(method, told, work)))
        passes.run("4 filters", [*steps, ClusterSizes(work / "stayed"), Finish(), ShardWriter(work / "kept")])
        for language, each in thresholds.items():
            if each.documents:
                say(f"{language}: thresholds from {each.documents:,} documents")

    def _lists(self, method: FineWeb2, told: Statistics, work: Path) -> dict[str, list[str]]:
        """Word lists of the languages that need one: whose documents often hold none of its words."""
        from broadsheet.curate.files import in_order, once
        from broadsheet.curate.languages.wordlists import contamination

        def made() -> dict[str, list[str]]:
            lists = method.word_lists(told)
            unique = ((each.metadata["language"], each.text) for each in in_order(work / "unique"))
            shares = contamination(unique, lists)
            return {name: words for name, words in lists.items() if shares[name] > method.contaminated}

        return once(work / "lists.json", made)


def _added(ranks: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for rank in ranks:
        for language, counts in rank.items():
            found.setdefault(language, Counter()).update(counts)
    return {language: dict(counts) for language, counts in sorted(found.items())}


def _weights(work: Path, tasks: int, most: int) -> dict[str, dict[int, int]]:
    from broadsheet.curate.files import parts
    from broadsheet.curate.languages.rehydration import removal, sizes_of, weights

    came, stayed = (sizes_of(parts(work / name, tasks)) for name in ("came", "stayed"))
    return {
        language: weights(*removal(counts, stayed.get(language, Counter())), most) for language, counts in came.items()
    }


def _repeated(documents: Iterator[Document], by_language: Mapping[str, Mapping[int, int]]) -> Iterator[Document]:
    from broadsheet.curate.languages.rehydration import Rehydrate

    return Rehydrate(by_language).run(documents)
