"""Try Token Prepending: the same template with and without it, each at the layers that suit it best.

Knows: pairs with scores, the layer sweep.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.data.tasks import BODY_WORDS, SentencePair, documented_pairs, sts
from broadsheet.embed.trials.base import sts_task
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.results import Curve

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder
    from broadsheet.embed.sweep import Sweep, SweepCell
    from broadsheet.trial.verdicts import Comparison

METHOD, MEAN = "Token Prepending", "mean pooling"
LABELS = {
    "prompt-eol": "PromptEOL",
    "pretended-cot": "Pretended CoT",
    "knowledge": "Knowledge",
    "meta-eol": "MetaEOL",
}


# Llama-2-7B, mean Spearman over seven STS sets, without and with Token Prepending: 70.03 and 77.19 (here the template
# alone reads the last layer, hence a part of the gain), 76.86 and 77.54, 77.14 and 77.54, 75.96 and 77.91.
EFFECTS = {"prompt-eol": 0.0716, "pretended-cot": 0.0068, "knowledge": 0.0040, "meta-eol": 0.0195}


@dataclass(frozen=True)
class Pairs:
    """What the layers are chosen on, what the arms are tried on, and one line on both."""

    tuning: list[SentencePair]
    test: list[SentencePair]
    about: str


@dataclass
class TokenPrependingTrial(Trial):
    """Sentence similarity without training: does the last token say more when the first ones have seen the end?

    A template that asks for the sentence in one word is tried with Token Prepending's placeholder and without. Which
    layers to change and which layer to read is chosen for both on pairs of their own, by the same sweep over the same
    output layers; then both are tried on other pairs, beside the template's last layer and mean pooling.
    """

    paper: ClassVar[str] = "token_prepending"
    title: ClassVar[str] = "Token Prepending: sentence embeddings without training"

    sts: str | None = option(
        None,
        "Sentence pairs with scores (TSV or CSV with a header, JSONL, Parquet, `hf:org/name:split`), a half for the "
        "choice and a half for the test. Without it, documentation asks: a summary and its body, or the body of "
        "another (score 1 or 0), chosen on packages that the test leaves out.",
        metavar="FILE",
    )
    dev: str | None = option(None, "Pairs for the choice; those of --sts are all for the test then.", metavar="FILE")
    pairs: int | None = option(
        None,
        "For the choice, and as many for the test; by default all of a file, 300 of the documentation.",
        quick=60,
        least=4,
    )
    tuning_pairs: int | None = option(
        None, "For the choice, of --dev; by default as many as --pairs, all of the file without it.", least=4
    )
    templates: tuple[str, ...] = option(
        ("prompt-eol",),
        "Each is tried with and without Token Prepending, chosen alike; the first is the baseline.",
        choices=LABELS,
        metavar="NAME,…",
    )
    start: int = option(1, "The first layer whose input is changed, from 0.", least=0)
    exits: tuple[int, ...] = option(
        (), "The first layer left alone again, to choose from; by default 2,4,6,8,12 of 30.", least=1
    )
    layers: tuple[int, ...] = option(
        (), "Output layers to choose from; by default all: each is read in the same pass.", least=1
    )
    placeholders: int = option(1, "How many.", least=1)

    def check(self) -> None:
        if self.tuning_pairs and not self.dev:
            raise InputError("got --tuning-pairs without --dev; give the file that layers are chosen on")
        if self.dev and not self.sts:
            raise InputError("got --dev without --sts; give the test's pairs as --sts, or all pairs as --sts alone")
        if not self.sts and not is_pydocs(self.data):
            raise InputError(f"got --data {self.data}; give sentence pairs with scores as --sts FILE")
        self.templates = tuple(dict.fromkeys(self.templates))
        if not self.templates:
            raise InputError(f"got no --templates; expected some of {', '.join(LABELS)}")

    def question(self) -> str:
        return f"Does {METHOD} make better sentence embeddings of {self.model_name} than the same template without it?"

    def tasks(self) -> list[EvalTask]:
        self._pairs = self._drawn()
        return [sts_task(self._pairs.test, self._pairs.about)]

    def facts(self) -> dict[str, Any]:
        tuning = sts_task(self._pairs.tuning).fingerprint
        return {"model": {"name": self.model, "fingerprint": self.loaded.fingerprint}, "tuning": tuning}

    def setting(self) -> Mapping[str, Any]:
        first, model = self.templates[0], self.loaded.model
        return {
            "tuning": f"{len(self._pairs.tuning)} other pairs to choose layers on",
            "template": LABELS[first],
            "placeholder": f"{self._encoder(first, METHOD).placeholder} × {self.placeholders}",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.base import baseline
        from broadsheet.embed.token_prepending import TokenPrepending

        self._found = {name: self._sweeps(name, self._pairs.tuning) for name in self.templates}
        made: list[ModelArm] = []
        for name, (plain, ours) in self._found.items():
            label, first = LABELS[name], not made

            def embedder(name: str = name, arm: str = label, cell: SweepCell | None = None) -> Any:
                return lambda: self._embedder(name, arm, cell)

            about = f"{label} with a placeholder, {ours.best}"
            made += [
                ModelArm(
                    label,
                    embedder(cell=plain.best),
                    "baseline" if first else None,
                    f"the template alone, {plain.best}",
                ),
                ModelArm(
                    METHOD if first else f"{label} + {METHOD}",
                    embedder(arm=METHOD, cell=ours.best),
                    None if first else "sibling",
                    about,
                    TokenPrepending.paper,
                ),
            ]
            if first:
                made.append(ModelArm(f"{label}, last layer", embedder(), description="as the template is used untuned"))
        made.append(ModelArm(MEAN, lambda: baseline("mean", self.loaded), description="no template, last layer"))
        return made

    def claims(self) -> list[Claim]:
        first, says = self.templates[0], "it improves sentence embeddings untrained (Sec. 4, STS)"
        return [Claim("Spearman", LABELS[first], METHOD, says, EFFECTS[first])]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(LABELS[name], f"{LABELS[name]} + {METHOD}") for name in self.templates[1:]]

    def figures(self, outcome: Outcome) -> list[Curve]:
        return [_curve(LABELS[name], plain, ours) for name, (plain, ours) in self._found.items()]

    def notes(self, outcome: Outcome) -> list[str]:
        return _notes(self._found)

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        millions = self.loaded.model.num_parameters() / 1e6
        why = (
            f"Its models have 7 to 13 billion parameters, this one has {millions:,.0f} million; and its PromptEOL "
            f"baseline reads the last layer while {METHOD} reads an earlier one, so that part of its gain is the "
            "choice of the layer, which both arms have here."
        )
        plain, ours = self._found[self.templates[0]]
        start, leave = ours.best.start or 0, ours.best.exit or 0
        read = [cell.spearman for cell in plain.cells if start <= cell.layer < leave]
        if read:
            changed = f"layer {start}" if leave == start + 1 else f"layers {start} to {leave - 1}"
            why += (
                f" What the placeholder takes over are the last token's vectors before {changed}: "
                f"in the template alone these reach a Spearman of at most {max(read):.3f} by themselves, against "
                f"{plain.best.spearman:.3f} at layer {plain.best.layer}."
            )
        return why

    def _drawn(self) -> Pairs:
        n = self.pairs or 0
        if self.sts and self.dev:
            tuning = sts(self.dev, self.tuning_pairs or n, self.seed)
            return Pairs(tuning, sts(self.sts, n, self.seed), f"{self.sts}, layers by {self.dev}")
        if self.sts:
            drawn = sts(self.sts, 2 * n, self.seed)
            places = set(random.Random(f"{self.seed}/halves").sample(range(len(drawn)), len(drawn) // 2))
            if len(drawn) < 4:
                raise InputError(f"{self.sts} has {len(drawn)} pairs; expected 4 or more, or a --dev file")
            one, other = ([pair for i, pair in enumerate(drawn) if (i in places) == half] for half in (True, False))
            return Pairs(one, other, f"{self.sts}, a random half of it")
        n = n or 300
        about = f"docstrings' summaries and bodies of {BODY_WORDS} words, their own (score 1) or another's (0)"
        return Pairs(
            documented_pairs(n, False, self.seed, self.data), documented_pairs(n, True, self.seed, self.data), about
        )

    def _encoder(self, template: str, arm: str) -> Any:
        """The encoder of a template, with Token Prepending or without, before its layers are chosen."""
        from broadsheet.embed.modules.encoder import CausalEncoder
        from broadsheet.embed.modules.eol import TEMPLATES
        from broadsheet.embed.token_prepending import TokenPrepending

        model, tokenizer = self.loaded
        first = TEMPLATES[template][0]
        if arm != METHOD:
            return CausalEncoder(model, tokenizer, template=first, spec=self.loaded.spec)
        settings: dict[str, Any] = {"start": self.start, "placeholders": self.placeholders, "spec": self.loaded.spec}
        return TokenPrepending(model, tokenizer, template=first, **settings)

    def _sweeps(self, template: str, pairs: Sequence[SentencePair]) -> tuple[Sweep, Sweep]:
        """The template alone and with Token Prepending, each over all settings; kept for a run that was stopped."""
        from broadsheet.embed.modules.eol import TEMPLATES
        from broadsheet.embed.sweep import Sweep, SweepCell, sweep

        found = []
        for arm in (LABELS[template], METHOD):
            kept = self.folder(f"sweep of {template}, {arm}").with_suffix(".json")
            if not kept.exists():
                encoder = self._encoder(template, arm)
                depth = len(encoder.layers)
                say(f"choosing layers on {len(pairs)} pairs: {arm}, template {template}")
                made = sweep(
                    encoder,
                    [pair.a for pair in pairs],
                    [pair.b for pair in pairs],
                    [pair.score for pair in pairs],
                    exits=_within("--exits", self.exits, depth) or None,
                    layers=_within("--layers", self.layers, depth) or range(1, depth + 1),
                    templates=TEMPLATES[template],
                )
                with atomic_write(kept) as file:
                    json.dump(asdict(made), file)
            data = json.loads(kept.read_text(encoding="utf-8"))
            found.append(Sweep(**data | {"cells": tuple(SweepCell(**cell) for cell in data["cells"])}))
        return found[0], found[1]

    def _embedder(self, template: str, arm: str, cell: SweepCell | None) -> Embedder:
        """An arm's embedder at the layers chosen, or at the last one."""
        from sentence_transformers.sentence_transformer.modules import Pooling

        from broadsheet.embed.base import Embedder
        from broadsheet.embed.modules.eol import TEMPLATES, TemplateMean, variant

        encoder = variant(self._encoder(template, arm), **(cell.settings if cell else {}))
        parts: list[Any] = [encoder, Pooling(encoder.get_embedding_dimension(), "lasttoken")]
        if len(TEMPLATES[template]) > 1:
            parts = [TemplateMean(encoder, TEMPLATES[template])]
        return Embedder(modules=parts, device=str(encoder.device)).eval()


def _within(option: str, layers: Sequence[int], depth: int) -> list[int]:
    """The layers asked for, ascending; the model must have them."""
    if layers and max(layers) > depth:
        raise InputError(f"got {option} {','.join(map(str, layers))}; expected numbers from 1 to {depth}, such as 4,6")
    return sorted(set(layers))


def _curve(label: str, plain: Sweep, ours: Sweep) -> Curve:
    """Spearman over the output layer, for the template alone and for each exit."""
    layers = sorted({cell.layer for cell in plain.cells})
    lines: dict[str, list[float | None]] = {f"{label} alone": [plain.at(layer).spearman for layer in layers]}
    for leave in dict.fromkeys(cell.exit for cell in ours.cells):
        at = {cell.layer: cell.spearman for cell in ours.cells if cell.exit == leave}
        lines[f"{METHOD}, exit {leave}"] = [at[layer] for layer in layers]
    title = f"{label}: which layer to read, on the pairs the layers are chosen on"
    return Curve(title, "output layer", "Spearman", [float(layer) for layer in layers], lines)


def _notes(sweeps: Mapping[str, tuple[Sweep, Sweep]]) -> list[str]:
    notes = []
    for name, (plain, ours) in sweeps.items():
        label, one, other = LABELS[name], plain.best, ours.best
        notes.append(
            f"Chosen on {plain.pairs} pairs that are not in the test: {label} alone reads layer {one.layer} (Spearman "
            f"{one.spearman:.3f} there, the best of {len(plain.cells)} settings in {_passes(plain)}); with {METHOD} "
            f"{other} ({other.spearman:.3f}, the best of {len(ours.cells)} in {_passes(ours)}). Both chose from the "
            f"same output layers; {METHOD} chose its exit besides."
        )
        alone, with_it = plain.at(other.layer).spearman, ours.at(one.layer).spearman
        notes.append(
            f"At equal layers, on those pairs: reading layer {other.layer}, {label} has {alone:.3f} alone and "
            f"{other.spearman:.3f} with {METHOD}; reading layer {one.layer}, {one.spearman:.3f} and {with_it:.3f} at "
            "its best exit."
        )
    return notes


def _passes(found: Sweep) -> str:
    return f"{found.passes} pass{'es' * (found.passes > 1)} over the texts and {found.seconds:.0f} s"
