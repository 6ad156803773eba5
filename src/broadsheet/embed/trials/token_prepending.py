"""Try Token Prepending: the same template with and without it, each at the layers that suit it best.

Knows: pairs with scores, the layer sweep, the A/B engine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.embed.data.tasks import SentencePair, documentation, sts
from broadsheet.embed.trials.base import EvalTask, ModelArm, clear, compare, workdir
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.results import Curve, TrialResult

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder
    from broadsheet.embed.sweep import Sweep, SweepCell
    from broadsheet.trial.stats import Comparison

METHOD, MEAN = "Token Prepending", "mean pooling"
LABELS = {
    "prompt-eol": "PromptEOL",
    "pretended-cot": "Pretended CoT",
    "knowledge": "Knowledge",
    "meta-eol": "MetaEOL",
}
_WORDS = 20  # of a body in pairs from documentation: as long as a sentence


@dataclass(frozen=True)
class Pairs:
    """What the layers are chosen on, what the arms are tried on, and one line on both."""

    tuning: list[SentencePair]
    test: list[SentencePair]
    about: str


@dataclass
class TokenPrependingTrial:
    """Sentence similarity without training: does the last token say more when the first ones have seen the end?

    A template that asks for the sentence in one word is tried with Token Prepending's placeholder and without. Which
    layers to change and which layer to read is chosen for both on pairs of their own, by the same sweep over the same
    output layers; then both are tried on other pairs, beside the template's last layer and mean pooling.

    Options:
        --sts FILE: sentence pairs with scores (TSV or CSV with a header, JSONL, Parquet, `hf:org/name:split`), a half
            for the choice and a half for the test. Without it, documentation asks: a summary and its body, or the body
            of another (score 1 or 0), chosen on packages that the test leaves out.
        --dev FILE: pairs for the choice; those of --sts are all for the test then.
        --pairs N: at most so many for each (all of a file, 300 of the documentation; with --quick 60).
        --template NAME: prompt-eol, pretended-cot, knowledge or meta-eol (prompt-eol).
        --also NAME,…: further templates, each with and without Token Prepending, chosen alike.
        --start N: the first layer whose input is changed, from 0 (1).
        --exits N,…: the first layer left alone again, to choose from (2,4,6,8,12 of 30, or as many of the model's).
        --layers N,…: output layers to choose from (all: each is read in the same pass).
        --placeholders N: how many (1).
        --device NAME, --dtype NAME: as in models.load.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    sts: str = ""
    dev: str = ""
    pairs: int = -1
    template: str = "prompt-eol"
    also: str = ""
    start: int = 1
    exits: str = ""
    layers: str = ""
    placeholders: int = 1
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Choose the layers, run the arms, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        names = self._templates()
        pairs = self._pairs()
        self._loaded = models.load(self.model, device=self.device or None, dtype=self.dtype or None)
        job = EvalTask.sts(pairs.test, pairs.about)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": self._loaded.fingerprint},
            "data": {
                "name": self.sts or self.data,
                "fingerprint": job.fingerprint,
                "tuning": EvalTask.sts(pairs.tuning).fingerprint,
            },
        }
        self.folder_ = workdir("token_prepending", versions(), facts, asdict(self))
        sweeps = {name: self._sweeps(name, pairs.tuning) for name in names}
        main = LABELS[names[0]]
        arms, comparisons = compare(
            self._candidates(sweeps),
            [job],
            self.folder_,
            pairs=[(LABELS[name], f"{LABELS[name]} + {METHOD}") for name in names[1:]],
            seed=self.seed,
        )
        model = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="token_prepending",
            title="Token Prepending: sentence embeddings without training",
            question=f"Does {METHOD} make better sentence embeddings of {model} than the same template without it?",
            setting={
                "model": model,
                "data": pairs.about,
                "pairs": f"{len(pairs.test)}, and {len(pairs.tuning)} others to choose layers on",
                "template": main,
                "placeholder": f"{self._encoder(names[0], METHOD).placeholder} × {self.placeholders}",
                "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
                "device": str(self._loaded.model.device),
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("Spearman", main, METHOD)],
            figures=[_curve(LABELS[name], plain, ours) for name, (plain, ours) in sweeps.items()],
            notes=[*_notes(sweeps), *self._absence(comparisons, sweeps[names[0]])],
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _templates(self) -> list[str]:
        names = list(dict.fromkeys([self.template, *filter(None, self.also.split(","))]))
        if unknown := [name for name in names if name not in LABELS]:
            raise InputError(f"got template {unknown[0]!r}; expected one of {', '.join(LABELS)}")
        return names

    def _pairs(self) -> Pairs:
        if self.pairs < -1:
            raise InputError(f"got --pairs {self.pairs}; expected 0 (all) or more")
        n = self.pairs if self.pairs != -1 else 60 if self.quick else 0
        if self.dev and not self.sts:
            raise InputError("got --dev without --sts; give the test's pairs as --sts, or all pairs as --sts alone")
        if self.sts and self.dev:
            return Pairs(sts(self.dev, n, self.seed), sts(self.sts, n, self.seed), f"{self.sts}, layers by {self.dev}")
        if self.sts:
            drawn = sts(self.sts, 2 * n, self.seed)
            tuning = set(random.Random(f"{self.seed}/halves").sample(range(len(drawn)), len(drawn) // 2))
            if len(drawn) < 4:
                raise InputError(f"{self.sts} has {len(drawn)} pairs; expected 4 or more, or a --dev file")
            one, other = ([pair for i, pair in enumerate(drawn) if (i in tuning) == half] for half in (True, False))
            return Pairs(one, other, f"{self.sts}, a random half of it")
        if self.data != "pydocs":
            raise InputError(f"got --data {self.data}; give sentence pairs with scores as --sts FILE")
        n = n or 300
        about = f"docstrings' summaries and bodies of {_WORDS} words, their own (score 1) or another's (0)"
        return Pairs(documented(n, False, self.seed), documented(n, True, self.seed), about)

    def _encoder(self, template: str, arm: str) -> Any:
        """The encoder of a template, with Token Prepending or without, before its layers are chosen."""
        from broadsheet.embed.modules.encoder import CausalEncoder
        from broadsheet.embed.modules.eol import TEMPLATES
        from broadsheet.embed.token_prepending import TokenPrepending

        model, tokenizer = self._loaded
        first = TEMPLATES[template][0]
        if arm != METHOD:
            return CausalEncoder(model, tokenizer, template=first, spec=self._loaded.spec)
        settings: dict[str, Any] = {"start": self.start, "placeholders": self.placeholders, "spec": self._loaded.spec}
        return TokenPrepending(model, tokenizer, template=first, **settings)

    def _sweeps(self, template: str, pairs: Sequence[SentencePair]) -> tuple[Sweep, Sweep]:
        """The template alone and with Token Prepending, each over all settings; kept for a run that was stopped."""
        from broadsheet.embed.modules.eol import TEMPLATES
        from broadsheet.embed.sweep import Sweep, SweepCell, sweep

        found = []
        for arm in (LABELS[template], METHOD):
            kept = self.folder_ / f"sweep-{fingerprint([template, arm])}.json"
            if not kept.exists():
                encoder = self._encoder(template, arm)
                depth = len(encoder.layers)
                say(f"choosing layers on {len(pairs)} pairs: {arm}, template {template}")
                made = sweep(
                    encoder,
                    [pair.a for pair in pairs],
                    [pair.b for pair in pairs],
                    [pair.score for pair in pairs],
                    exits=_numbers("--exits", self.exits, depth),
                    layers=_numbers("--layers", self.layers, depth) or range(1, depth + 1),
                    templates=TEMPLATES[template],
                )
                with atomic_write(kept) as file:
                    json.dump(asdict(made), file)
            data = json.loads(kept.read_text(encoding="utf-8"))
            found.append(Sweep(**data | {"cells": tuple(SweepCell(**cell) for cell in data["cells"])}))
        return found[0], found[1]

    def _candidates(self, sweeps: Mapping[str, tuple[Sweep, Sweep]]) -> list[ModelArm]:
        from broadsheet.embed.base import baseline

        made: list[ModelArm] = []
        for name, (plain, ours) in sweeps.items():
            label, first = LABELS[name], not made
            one = self._embedder(name, label, plain.best)
            other = self._embedder(name, METHOD, ours.best)
            made.append(ModelArm(label, one, "baseline" if first else "sibling", f"the template alone, {plain.best}"))
            made.append(
                ModelArm(METHOD, other, "method", f"{label} with a placeholder, {ours.best}")
                if first
                else ModelArm(f"{label} + {METHOD}", other, "sibling", f"with a placeholder, {ours.best}")
            )
            if first:
                last = self._embedder(name, label, None)
                made.append(ModelArm(f"{label}, last layer", last, "sibling", "as the template is used untuned"))
        made.append(ModelArm(MEAN, baseline("mean", self._loaded), "sibling", "no template, last layer"))
        return made

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

    def _absence(self, comparisons: Sequence[Comparison], sweeps: tuple[Sweep, Sweep]) -> list[str]:
        """A gain that the paper found and this trial did not is said to be absent, and what may be behind it."""
        found = [c for c in comparisons if (c.metric, c.arm) == ("Spearman", METHOD)]
        if not found or found[0].verdict == "helps":
            return []
        millions = self._loaded.model.num_parameters() / 1e6
        said = (
            "The gain that the paper reports is absent here. Its models have 7 to 13 billion parameters, this one has "
            f"{millions:,.0f} million; and its PromptEOL baseline reads the last layer while {METHOD} reads an earlier "
            "one, so that part of its gain is the choice of the layer, which both arms have here."
        )
        plain, ours = sweeps
        start, leave = ours.best.start or 0, ours.best.exit or 0
        read = [cell.spearman for cell in plain.cells if start <= cell.layer < leave]
        if read:
            changed = f"layer {start}" if leave == start + 1 else f"layers {start} to {leave - 1}"
            said += (
                f" What the placeholder takes over are the last token's vectors before {changed}: "
                f"in the template alone these reach a Spearman of at most {max(read):.3f} by themselves, against "
                f"{plain.best.spearman:.3f} at layer {plain.best.layer}."
            )
        return [said]


def documented(n: int, held_out: bool, seed: int = 0) -> list[SentencePair]:
    """Pairs from documentation: a docstring's summary with its own body (score 1), and with another's (score 0).

    Args:
        n: how many, half of each kind.
        held_out: from the packages that training leaves out, or from the others.
        seed: of the split and the choice.

    Raises:
        InputError: fewer than four pairs, or more than the documentation has.
    """
    if n < 4:
        raise InputError(f"got {n} pairs; expected 4 or more")
    half = -(-n // 2)
    entries = documentation(_WORDS, seed).pairs(half, held_out=held_out)
    if len(entries) < half:
        raise InputError(f"the corpus has {2 * len(entries)} pairs; expected {n}: ask for fewer")
    pairs = []
    for i, entry in enumerate(entries):
        pairs.append(SentencePair(entry.summary, entry.text, 1.0))
        pairs.append(SentencePair(entry.summary, entries[i - 1].text, 0.0))
    return pairs[:n]


def _numbers(option: str, given: str, depth: int) -> list[int] | None:
    """`"4,6"` to numbers of layers; None where nothing is given."""
    if not given:
        return None
    parts = given.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= depth for part in parts):
        raise InputError(f"got {option} {given!r}; expected numbers from 1 to {depth}, such as 4,6")
    return sorted({int(part) for part in parts})


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
