"""Models of periods (Fittschen et al., 2025, arXiv:2504.05523): one from nothing on each slice of time, compared.

Knows: the paper's settings, and the order of its parts in `periods/`. Does not know: where texts come from.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.console import InputError, say, within
from broadsheet.curate.periods.slices import periods

if TYPE_CHECKING:
    from broadsheet.curate.periods.change import ChangeReport, Reads
    from broadsheet.curate.periods.reading import PeriodModel


@dataclass
class Diachronic:
    """See how language changed: a small model from nothing for each period, so that nothing later can leak in.

    Use when: you ask what a period knew or meant, and have a million words or more of each; a model that has read
    later text and is tuned to the period keeps some of it. Prefer log-odds (`ChangeReport.log_odds`) for words that
    came or went: they need no model. Models also see words that keep their frequency and change their company.

    Inputs: works with the year they were written, the author's years of birth and death, and texts whose paragraphs
        end at empty lines; `AttributeDate`, `SliceByDate` and `WordBudgetSplit` make slices of them, and so does
        `broadsheet apply diachronic`. `train` takes a slice's texts, `change_report` models and texts not learnt from.
    Relation: the slices are datatrove steps, the training is `training.fit` with an `Objective` of two teachers, as
        BabyLlama-2. Models have tokenizers of their own, and are compared by character and by word, never by token.

    Args:
        bounds: years; a slice goes from one to before the next.
        works: of an author, in a slice, at most.
        train_words, test_words, dev_words: of a slice.
        split_level: what is taken whole into a split: "paragraph" (the paper's, by which parts of a book come to lie in
            train and test) or "work".
        min_occurrence: a word of the shared vocabulary stands more often than that in each slice.
        alpha: weight of the text beside the teachers.
        temperature: of the teachers' and the student's distributions.
        teachers: how many; none: plain training.
        weight_decay: of the student; the teachers have none.

    Example:
        from broadsheet.curate import Diachronic

        texts = {"1750-1820": ["Thou art come hither. " * 40] * 9, "1910-1940": ["You have come here. " * 40] * 9}
        method = Diachronic()
        small = dict(size="0.4M", vocabulary=300, length=32, steps=2, batch=4)
        models = {name: method.train(some, f"runs/{name}", **small) for name, some in texts.items()}
        report = method.change_report(models, texts)
        print(report.matrix, report.words[:9])

    Source: arXiv:2504.05523; authors' code comp-int-hum/historical-perspectival-lm. The scores of words are ours.
    """

    paper: ClassVar[str] = "diachronic"

    bounds: Sequence[int] = (1750, 1820, 1850, 1880, 1910, 1940)
    works: int = 20
    train_words: int = 10_000_000
    test_words: int = 5_000_000
    dev_words: int = 1_000_000
    split_level: str = "paragraph"
    min_occurrence: int = 2
    alpha: float = 0.5
    temperature: float = 1.0
    teachers: int = 2
    weight_decay: float = 5.0

    def __post_init__(self) -> None:
        within(self, min_occurrence=(1, None), weight_decay=(0, None))
        periods(self.bounds)
        if self.works < 1 or self.train_words < 1 or min(self.test_words, self.dev_words, self.teachers) < 0:
            raise InputError(
                f"got works {self.works}, words {self.train_words}, {self.test_words}, {self.dev_words}, teachers "
                f"{self.teachers}; expected a work and a word to learn from, and no number below 0"
            )
        if self.split_level not in ("paragraph", "work"):
            raise InputError(f"got split_level {self.split_level!r}; expected paragraph or work")
        if not 0 <= self.alpha <= 1 or not self.temperature > 0 or self.weight_decay < 0:
            raise InputError(
                f"got alpha {self.alpha}, temperature {self.temperature}, weight_decay {self.weight_decay}; expected a "
                "share, more than 0, and 0 or more"
            )

    @property
    def budgets(self) -> tuple[int, int, int]:
        """Words of train, test and dev, in the order in which they are filled."""
        return self.train_words, self.test_words, self.dev_words

    def objective(self, teachers: Sequence[Any], watched: Any = None) -> Any:
        """What a student minimises, for `training.fit`: an `Objective`."""
        from broadsheet.curate.periods.models import TwoTeachers

        return TwoTeachers(teachers, self.alpha, self.temperature, watched)

    def train(
        self,
        texts: Sequence[str],
        out: str | Path,
        *,
        seed: int = 0,
        device: str | None = None,
        **recipe: Any,
    ) -> PeriodModel:
        """A period's model: a tokenizer of its texts, the teachers from different seeds, and then the student.

        What was trained is kept in `<out>.teachers` until the student stands; the same call goes on after a kill, and
        reads a finished `out` back.

        Args:
            texts: of the period; its own alone.
            out: a folder.
            seed: of the student; the teachers' follow from it.
            device: by default CUDA, where it is there.
            recipe: fields of `periods.training.PeriodRecipe`: size, vocabulary, length, steps or epochs, batch, …

        Raises:
            InputError: a field is out of range, or the texts are too short for two rows.
        """
        from broadsheet.curate.periods.training import DONE, PeriodRecipe, on_device

        how, folder = PeriodRecipe(**recipe), Path(out)
        if not (folder / DONE).exists():
            tokenizer = how.tokenizer(texts)
            beside = folder.with_name(f"{folder.name}.teachers")
            taught = []
            for number in range(self.teachers):
                place = beside / str(number)
                own = 1 + seed * (self.teachers + 1) + number
                if not (place / DONE).exists():
                    say(f"{folder.name}: teacher {number + 1} of {self.teachers}")
                    how.fit(on_device(how.new(len(tokenizer), own), device), tokenizer, texts, place, seed=own)
                taught.append(how.load(place, device).model)
            own = seed * (self.teachers + 1)
            objective = self.objective(taught) if taught else None
            model = on_device(how.new(len(tokenizer), own), device)
            decay = self.weight_decay if taught else 0.0
            how.fit(model, tokenizer, texts, folder, objective, seed=own, weight_decay=decay)
            shutil.rmtree(beside, ignore_errors=True)
        return how.load(folder, device)

    def change_report(
        self,
        models: Mapping[str, Reads],
        texts: Mapping[str, Sequence[str]],
        *,
        learnt: Mapping[str, Mapping[str, int]] | None = None,
        shared: bool = False,
        least: int = 10,
    ) -> ChangeReport:
        """Which words moved, which keep other company, and who reads whose text best.

        Args:
            models: by period, in order.
            texts: of the same periods, that no model has learnt from.
            learnt: counts of the words that each has learnt from.
            shared: look at words alone that every period has more than `min_occurrence` times; new words are left out.
            least: occurrences of a word, in all texts.

        Raises:
            InputError: the periods differ, or are fewer than two; no word is frequent enough.
        """
        from broadsheet.curate.periods.change import change_report
        from broadsheet.curate.periods.counts import counted, shared_vocabulary

        counts = [learnt[name] if learnt else counted(texts[name]) for name in texts]
        vocabulary = shared_vocabulary(counts, self.min_occurrence) if shared else None
        return change_report(models, texts, least=least, vocabulary=vocabulary, learnt=learnt)
