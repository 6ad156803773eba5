"""`broadsheet apply unlearning_whp`: a model is made to forget documents, approximately.

Knows: documents, folders, the steps of the method. Does not know: how any of them works.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.apply.base import Source
from broadsheet.apply.corpus import Summary
from broadsheet.cache import fingerprint, remove_folder
from broadsheet.console import InputError, say
from broadsheet.options import option
from broadsheet.train.recipes import FurtherTraining

if TYPE_CHECKING:
    from broadsheet.train.unlearning_whp import GenericLabels
    from broadsheet.training.trainer import TrainOutput

_RETAINED = 2_000  # documents of unrelated text that are counted
_FEW = 60  # steps, with which the paper's familiarity has nearly fallen to what it falls to
_MEASURED = 40  # documents of it, and twice as many prompts, that are measured


@dataclass
class WhosHarryPotterRecipe(FurtherTraining):
    """Train on documents that are to be forgotten, with the labels of a model that never read them; approximate."""

    paper: ClassVar[str] = "unlearning_whp"
    usage: ClassVar[str] = (
        FurtherTraining.usage
        + "\nit is approximate, and no deletion: a few steps on the documents bring much of it back"
    )

    epochs: int = option(2, "How often the labels are read.", least=1)
    dictionary: str | None = option(
        None, "A JSON file, {term: stand-in}; by default terms are found, and kept in OUT.runs.", metavar="FILE"
    )
    retain: str = option(
        "pydocs:stdlib",
        "Unrelated text: terms are found beside it, and it is told how much worse it gets.",
        metavar="DATA",
    )
    review: bool = option(False, "Find the terms, write the dictionary, and stop: to look it over.")
    reinforce: int = option(3, "Epochs of the reinforced model, which reads the documents even more often.", least=1)

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        if not self.review:
            return super().apply(source, out, force)
        self._dictionary(self.texts(source), out)
        return Summary(out, 0, 0, 0.0, True)

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        done = super().train(source, out, force)
        if done.finished:
            after = self._measured()
            say("; ".join(f"{name} {value:.4g} → {after[name]:.4g}" for name, value in self._before.items()))
        return done

    def rows(self, texts: Sequence[str], out: Path) -> GenericLabels:
        from broadsheet.models import fingerprint as model_fingerprint
        from broadsheet.train.unlearning.familiarity import anchored_prompts
        from broadsheet.train.unlearning_whp import GenericLabels, WhosHarryPotter

        dictionary = self._dictionary(texts, out)
        method = self.configured(WhosHarryPotter, dictionary=dictionary)
        self.check_calls()
        self._prompts = anchored_prompts(texts, dictionary, 2 * _MEASURED, self.seed)
        self._before = self._measured()
        of_method = dataclasses.asdict(method)
        made_of = [model_fingerprint(self.base.model), list(texts), of_method, self.length, self._reinforcing]
        runs = _runs(out)
        kept = runs / "labels.safetensors"
        rows = GenericLabels.load(kept, made_of)
        if rows is None:
            say(f"the reinforced model: {self.reinforce} epochs on the documents")
            reinforced = runs / f"reinforced-{fingerprint(made_of)}"
            rows = self._labels(method, texts, reinforced)
            rows.save(kept, made_of)
            remove_folder(reinforced)
        say(
            f"labels: {len(rows):,} blocks; {rows.changed:.0%} of the labels are others than the text's tokens, and "
            f"{1 - rows.asked:.0%} of the tokens have none".replace("%", " %")
        )
        return rows

    def told(self, rows: Any, steps: int) -> str:
        if steps >= _FEW:
            return ""
        return (
            f"{steps} steps are few, the paper makes 120: give --steps, or --epochs, and look what unrelated text costs"
        )

    @property
    def _reinforcing(self) -> dict[str, Any]:
        """Settings of the reinforced model's training."""
        return self.settings(steps=None, epochs=self.reinforce, drop_last=False)

    def _labels(self, method: Any, texts: Sequence[str], folder: Path) -> GenericLabels:
        """The labels, by a reinforced model that is trained into the folder, or was."""
        from broadsheet import models
        from broadsheet.models import adapters
        from broadsheet.train.base import LossMethod, MethodObjective
        from broadsheet.training.fit import fit

        model, tokenizer = self.base.model, self.base.tokenizer
        learner = model if self.tune == "lora" else self.loaded().model
        lora = self.tune == "lora"
        plain = super().rows(texts, folder)

        def save(place: Path) -> None:
            if lora:
                adapters.save(learner, place, self.model)
            else:
                learner.save_pretrained(place)
                tokenizer.save_pretrained(place)

        done = fit(
            learner, plain, MethodObjective(LossMethod()), folder, reuse=True,
            save=save,
            **{**self._reinforcing, "batch_size": min(self.batch_size, len(plain))},
        )  # fmt: skip
        if not done.finished:
            raise KeyboardInterrupt
        if not lora:
            learner = models.load(str(folder), device=self.device, dtype=self.dtype).model
        elif not adapters.has_adapter(learner):  # it was trained before
            adapters.attach(learner, folder, self.model)
        rows: GenericLabels = method.rows(texts, tokenizer, learner, None if lora else model, self.length)
        adapters.remove(model)
        return rows

    # What is exchanged, and what is measured

    def _dictionary(self, texts: Sequence[str], out: Path) -> dict[str, str]:
        """The dictionary that is given, or the terms that are found, which are written to be looked over.

        Raises:
            InputError: the file cannot be used; no terms are found.
        """
        from broadsheet.train.unlearning import terms

        if self.dictionary is not None:
            return terms.read(Path(self.dictionary).expanduser())
        found = terms.TermFinder()(texts, self._retained)
        if not found:
            raise InputError(
                "no terms were found: words with a capital that the documents have three times, and --retain hardly "
                "ever; give --dictionary FILE"
            )
        path = _runs(out) / "dictionary.json"
        terms.write(path, found)
        some = ", ".join(f"{each.term} → {each.stand_in}" for each in found[:5])
        say(f"{path}: {len(found):,} terms ({some}{', …' * (len(found) > 5)}); mend it and give it as --dictionary")
        return {each.term: each.stand_in for each in found}

    @cached_property
    def _retained(self) -> list[str]:
        from broadsheet.data import corpora

        return [each.text for each in corpora.load(self.retain).take(_RETAINED, self.seed) if each.text.strip()]

    def _measured(self) -> dict[str, float]:
        """How probable terms are where the documents name them, and what unrelated text costs."""
        from broadsheet.train.unlearning.familiarity import familiarity
        from broadsheet.training.scratch import document_losses

        model, tokenizer = self.base.model, self.base.tokenizer
        known = familiarity(model, tokenizer, self._prompts, self.length)
        found = {"familiarity": float(known.mean())} if len(known) else {}
        if unrelated := self._retained[:_MEASURED]:
            loss = document_losses(model, tokenizer, unrelated, self.length).mean()
            found["unrelated text, nats a byte"] = float(loss)
        return found


def _runs(out: Path) -> Path:
    """Where what is made on the way lies."""
    return out.with_name(f"{out.name}.runs")
