"""Try SALMONN: give a language model ears, and see whether it hears, what each part buys, and whether it still obeys.

Knows: the model, its three stages, the cascade, made data, the A/B engine. Does not know: how any of these work.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, at_least, say
from broadsheet.hear import base
from broadsheet.hear.data import audio, make_data
from broadsheet.hear.data.rows import AudioRow, read_rows
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.training.activating import FACTOR
from broadsheet.hear.trials.arms import (
    ABOUT,
    ACTIVATED,
    CASCADE,
    COLD,
    MAIN,
    ONE,
    OPTIONAL,
    REHEARSED,
    SHUFFLED,
    SILENT,
    STACK,
    STAGES,
    TrainedArms,
    for_speech,
    keep,
    spelt,
)
from broadsheet.hear.trials.cascade import PrecomputedFeatures, ZeroFeatures
from broadsheet.hear.trials.following import FOLLOWED, RULES, STORIES, account, stories
from broadsheet.hear.trials.metrics import SCORED, SOUNDS, SPEECH, WER, AudioQuestion, HearTask, jobs, questions
from broadsheet.hear.trials.notes import beside, loss_curve, trained
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import read_json
from broadsheet.page.evidence import provenance, versions
from broadsheet.report.words import memory
from broadsheet.trial.engine import Arm, Outputs, run_arms
from broadsheet.trial.results import ArmResult, Curve, Role, TrialResult, joined
from broadsheet.trial.stats import Comparison

CLAIMS = (
    (WER, SHUFFLED, MAIN),
    (SOUNDS, SHUFFLED, MAIN),
    (WER, STACK, MAIN),
    (SOUNDS, ONE, MAIN),
    (FOLLOWED, MAIN, ACTIVATED),
)
_BESIDE = ((MAIN, SHUFFLED), (MAIN, SILENT), (COLD, SHUFFLED), (ACTIVATED, MAIN), (REHEARSED, MAIN))
_FILES = ("stage1", "stage2", "stories", "test")
_SHORT = 8.0  # seconds; clips that are no longer are given a Whisper of this context
_QUICK = {"asr": 24, "sound": 20, "caption": 10, "count": 8, "voice": 8, "order": 8, "speech_sound": 8}
_CHOICES = range(2, 101)  # so many labels, and a cascade chooses among them


@dataclass
class SalmonnTrial(TrainedArms):
    """A causal LM gets ears: two frozen encoders, a connector, LoRA. Does it hear, and does it still do as it is told?

    Every arm is trained on the same rows for as many steps: first transcripts, sounds and captions, then all tasks. It
    is asked about clips that it has not heard, of sentences, orders and pitches that no training clip has. SALMONN
    reads windows of frames with a Q-Former; the baseline puts the frames of a window through one linear layer. Beside
    them: SALMONN hearing another clip of the task; with one encoder; without the warm start, where there is one;
    trained and asked in silence; and the cascade: Whisper's transcript, read by the same model without an adapter. The
    last stage, activation, is an arm of its own: 12 stories that the model writes at a part of its adapter's scaling,
    learnt in 12 steps. Another arm learns the same stories in as many steps with rows of stage 2 beside each, so that
    it does not forget them; that is not the paper's.

    Options:
        --encoders NAME,…: audio encoders, the one for speech first (whisper:tiny.en,speech-embedding).
        --queries N: audio tokens a window (1).
        --window X: seconds of a window (0.333333).
        --hidden N, --heads N, --layers N, --ffn N: of the Q-Former (384, 6, 2, 1536).
        --init X: standard deviation of the Q-Former's weights at first (0.02, as BERT's).
        --warm-start-steps N: of a warm start of the connectors that is not the paper's (0: none).
        --steps1 N, --steps2 N: of stages 1 and 2 (80 and 120; with --quick 3).
        --activation-steps N: of stage 3, one story each (12; with --quick 2).
        --batch N: clips a step (12; with --quick 4).
        --learning-rate X: of norms and connector (0.0003).
        --lora-learning-rate X: of the adapter (0.001).
        --activation-learning-rate X: of both in stage 3 (0.0001).
        --rehearsed N: rows of stage 2 beside each story in the arm that rehearses (7; 0: no such arm).
        --factor X: of the adapter's scaling while stage 3's stories are written (0.5: 4 becomes 2). An adapter that was
            trained hard needs less.
        --minutes X: that each stage of each arm may take at most (0: no limit).
        --arms NAME,…: besides the baseline and SALMONN: activated, rehearsed, shuffled, one, cold, text, cascade (all;
            cold needs a warm start to go without).
        --test N: test rows of asr and of sound, and half as many of each other task (60; with --quick 6).
        --stories N: test clips that a story is asked about (12; with --quick 2; 0: none).
        --story-tokens N: of a story at most (80).
        --device NAME, --dtype NAME: of the language model, as in models.load.

    --data FOLDER holds stage1.jsonl, stage2.jsonl, stories.jsonl and test.jsonl; by default such a set is made.
    """

    data: str = "pydocs"
    quick: bool = False
    encoders: str = "whisper:tiny.en,speech-embedding"
    steps1: int = 0
    steps2: int = 0
    activation_steps: int = 0
    arms: str = ""
    test: int = 0
    stories: int = -1
    story_tokens: int = 80

    def run(self) -> TrialResult:
        """Make the data, train the arms, ask them, explain.

        Raises:
            InputError: an option, a model, an encoder or the data cannot be used.
        """
        self._settle()
        loaded = models.load(self.model, device=self.device or None, dtype=self.dtype or None)
        known, self.tokenizer_ = loaded.fingerprint, loaded.tokenizer
        del loaded
        self._read_data(known)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": known},
            "data": {"name": self.data_, "fingerprint": _content(self.rows_)},
            "encoders": [{"settings": part.settings(), "fingerprint": part.identity} for part in self.parts_],
        }
        self.listeners_: dict[Any, Callable[[Sequence[AudioQuestion]], Any]] = {}
        self.jobs_ = self._jobs()
        try:
            arms, comparisons = self._compare()
            usable = {arm.name: arm for arm in arms if arm.status == "ok"}
            notes = self._notes(usable, comparisons, self._scaled(usable))
        finally:
            self.models_.clear()
            self.frozen_.clear()
            gc.collect()
        metrics = {metric.name for job in self.jobs_ for metric in job.metrics}
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="salmonn",
            title="SALMONN: ears for a language model",
            question=f"Does {name} hear speech and sounds, does a window-level Q-Former serve it better than one "
            "linear layer, and does it still do what it was not trained to do?",
            setting={
                "model": name,
                "encoders": ", ".join(_called(each) for each in self.settings_),
                "connector": f"{self.queries} audio token{'s' * (self.queries > 1)} a window of {self.window:.3g} s; "
                f"Q-Former of {self.layers} layers, {self.hidden} wide",
                **self._taught(),
                "data": f"{self.data_}; {len(self.rows_['stage2']):,} training rows, clips of at most "
                f"{self.seconds_:.1f} s",
            },
            arms=arms,
            comparisons=comparisons,
            item="clip",
            claims=[claim for claim in CLAIMS if claim[0] in metrics and {*claim[1:]} <= {*self.chosen_}],
            figures=[*self._curves()],
            notes=notes,
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from, trained models and made data too; called when its result is written."""
        shutil.rmtree(self.folder_, ignore_errors=True)

    # what there is to begin with

    def _settle(self) -> None:
        """Sizes where none are given, and what cannot be."""
        quick = self.quick
        self.steps1_, self.steps2_ = self.steps1 or (3 if quick else 80), self.steps2 or (3 if quick else 120)
        self.activation_steps_ = self.activation_steps or (2 if quick else 12)
        self.batch_, self.test_ = self.batch or (4 if quick else 12), self.test or (6 if quick else 60)
        self.stories_ = (2 if quick else 12) if self.stories == -1 else self.stories
        at_least(1, self, "steps1_", "steps2_", "activation_steps_", "batch_", "test_", "story_tokens")
        at_least(0, self, "stories_", "warm_start_steps", "minutes", "factor", "rehearsed")
        asked = [name.strip() for name in self.arms.split(",") if name.strip()] or list(OPTIONAL)
        if unknown := [name for name in asked if name not in OPTIONAL]:
            raise InputError(f"got --arms {','.join(unknown)}; expected some of {', '.join(OPTIONAL)}")
        self.chosen_ = [STACK, MAIN, *(name for short, name in OPTIONAL.items() if short in asked)]
        without = {COLD} if not self.warm_start_steps else set()
        without |= {REHEARSED} if not self.rehearsed else set()
        self.chosen_ = [name for name in self.chosen_ if name not in without]
        self.settings_ = [base.named(name.strip()) for name in self.encoders.split(",") if name.strip()]
        if not self.settings_:
            raise InputError("got no --encoders; expected one or more, such as whisper:tiny.en")

    def _read_data(self, known: str) -> None:
        """The trial's folder, the rows, the longest clip, and the encoders for clips of that length."""
        made = self.data == "pydocs"
        sizes: dict[str, Any] = {
            "seed": self.seed,
            "test": self.test_,
            "stories": self.activation_steps_,
            "hard": 0,
            **(_QUICK if self.quick else {}),
        }
        if not made:
            self.rows_ = _rows(Path(self.data).expanduser())
        key = ["salmonn", versions(), asdict(self), known, sizes if made else _content(self.rows_)]
        self.folder_ = home() / "trials" / f"hear-{fingerprint(key)}"
        self.folder_.mkdir(parents=True, exist_ok=True)
        self.data_ = "speech by flite and sounds by sox, made for the trial" if made else self.data
        if made:
            self.rows_ = _rows(make_data(self.folder_ / "data", **sizes).folder)
        clips = {clip for rows in self.rows_.values() for row in rows for clip in row.audio}
        self.seconds_ = max(len(audio.read(clip)) for clip in clips) / base.SAMPLE_RATE
        if self.seconds_ <= _SHORT:
            short = {"context_seconds": _SHORT, "crop": True}
            self.settings_ = [{**short, **each} if each["kind"] == "whisper" else each for each in self.settings_]
        self.parts_ = [base.encoder(each) for each in self.settings_]
        if len(self.parts_) == 1:
            self.chosen_ = [name for name in self.chosen_ if name != ONE]
        if not any(hasattr(part, "transcribe") for part in self.parts_):
            self.chosen_ = [name for name in self.chosen_ if name != CASCADE]

    # questions

    def _jobs(self) -> list[HearTask]:
        """What is asked: transcripts, sounds, the other tasks, and stories."""
        rows = self._test_rows()
        if not rows:
            raise InputError(f"{self.data_}: test.jsonl has no row that is scored; expected tasks {', '.join(SCORED)}")
        asked = questions(rows, self.seed)
        longest = max(len(self.tokenizer_(row.answer)["input_ids"]) for row in rows)
        found = jobs(rows, asked, min(200, longest + 8))
        if self.stories_:
            told = sorted(asked, key=lambda each: self._draw(each.audio))[: self.stories_]
            found.append(stories(told, {row.answer for row in self.rows_["stage2"]}, self.story_tokens))
        return found

    def _test_rows(self) -> list[AudioRow]:
        """As many rows of each task that is scored as are wanted."""
        kept = []
        for task in SCORED:
            rows = [row for row in self.rows_["test"] if row.task == task]
            wanted = self.test_ if task in SCORED[:2] else max(1, self.test_ // 2)
            kept += sorted(rows, key=lambda row: self._draw(row.audio))[:wanted]
        return kept

    def _draw(self, clips: Sequence[str]) -> str:
        return fingerprint([self.seed, *(Path(clip).name for clip in clips)])

    def _compare(self) -> tuple[list[ArmResult], list[Comparison]]:
        """Every job with every arm: one result an arm; clips/s are those of the first job, whose blocks are many."""
        wanted = [(name, MAIN) for name in (SHUFFLED, ONE, COLD, SILENT, CASCADE)]
        wanted += [(MAIN, ACTIVATED), (MAIN, REHEARSED), (ACTIVATED, REHEARSED)]
        pairs = [pair for pair in wanted if set(pair) <= set(self.chosen_)]
        whole: list[ArmResult] = []
        comparisons: list[Comparison] = []
        for turn, job in enumerate(self.jobs_):
            say(f"asking: {job.name}, {len(job.questions)} questions")
            results, found = run_arms(
                [self._arm(name, job) for name in self.chosen_],
                job.questions,
                job.metrics,
                block_size=-(-len(job.questions) // job.blocks),
                pairs=pairs,
                item="clip",
                seed=self.seed,
                journal=self.folder_ / f"{job.name}.jsonl",
            )
            results = [replace(each, error=f"{job.name}: {each.error}") if each.error else each for each in results]
            whole = [joined(a, b) for a, b in zip(whole, results, strict=True)] if turn else results
            comparisons += [c for c in found if not turn or c.metric != "clips/s"]
        usable = {arm.name for arm in whole if arm.status == "ok"}
        return whole, [c for c in comparisons if {c.baseline, c.arm} <= usable]

    def _arm(self, name: str, job: HearTask) -> Arm:
        role: Role = "baseline" if name == STACK else "method" if name in (MAIN, ACTIVATED) else "sibling"
        source, other = (MAIN if name == SHUFFLED else name), name == SHUFFLED

        def listen(given: Any) -> Outputs:
            block, frames = given
            return job.outputs(block, self._answers(source, block, frames, job.generation, other))

        def read(block: Sequence[AudioQuestion]) -> Outputs:
            requests = [(list(each.audio), each.instruction) for each in block]
            choices = [each.labels if job.name != SPEECH and len(each.labels) in _CHOICES else () for each in block]
            return job.outputs(block, self._model(CASCADE).answers(requests, choices=choices, **job.generation))

        return Arm(
            name,
            read if name == CASCADE else listen,
            role,
            ABOUT[name],
            prepare=lambda: self._model(source),
            shared=None if name == CASCADE else self._listener(name),
        )

    def _listener(self, name: str) -> Callable[[Sequence[AudioQuestion]], Any]:
        """What encodes a block's clips, anew each time: one function for all arms with the same encoders and clips."""
        other = name == SHUFFLED
        parts = [self.parts_[self.settings_.index(for_speech(self.settings_))]] if name == ONE else self.parts_
        key = (other, len(parts))
        if key not in self.listeners_:
            shared = AudioFeatures(parts, keep=False)

            def encode(block: Sequence[AudioQuestion]) -> Any:
                clips = list(dict.fromkeys(clip for each in block for clip in (each.other if other else each.audio)))
                return block, dict(zip(clips, shared.features_all(clips), strict=True))

            self.listeners_[key] = encode
        return self.listeners_[key]

    def _answers(
        self,
        source: str,
        block: Sequence[AudioQuestion],
        frames: Mapping[str, Any],
        how: Mapping[str, Any],
        other: bool = False,
    ) -> list[str]:
        """What a model says to questions about clips that are encoded already."""
        model = self._model(source)
        given = PrecomputedFeatures(frames)
        model.audio_features = ZeroFeatures(given) if source == SILENT else given
        requests = [(list(each.other if other else each.audio), each.instruction) for each in block]
        with quiet():
            return list(model.answers(requests, **how))

    def _scaled(self, usable: Mapping[str, ArmResult]) -> dict[str, dict[float, list[str]]]:
        """Stories about the same clips before and after activation, by factor of the adapter's scaling."""
        told: dict[str, dict[float, list[str]]] = {}
        path = self.folder_ / "scaling.json"
        kept = read_json(path) if path.exists() else {}
        job = self.jobs_[-1]
        for name in (MAIN, ACTIVATED, REHEARSED) if job.name == STORIES else ():
            if name not in usable:
                continue
            told[name] = {1.0: usable[name].samples[f"{STORIES}: answers"]}
            for factor in (FACTOR, 0.0):
                key = f"{name} {factor:g}"
                if key not in kept:
                    block, frames = self._listener(name)(job.questions)
                    with self._model(name).scale_lora(factor):
                        kept[key] = self._answers(name, block, frames, job.generation)
                    keep(path, kept)
                told[name][factor] = kept[key]
        return told

    # what is said of it

    def _taught(self) -> dict[str, str]:
        """How the arms are trained, in words."""
        after = f", after {self.warm_start_steps} steps of warm start" if self.warm_start_steps else ""
        told = f"{self.activation_steps_} steps on stories written at {self.factor:g} of the adapter's scaling, "
        beside_it = f"; in rehearsal {self.rehearsed} rows of stage 2 beside each" if REHEARSED in self.chosen_ else ""
        return {
            "training": f"{self.steps1_} and {self.steps2_} steps of {self.batch_} rows, learning rate "
            f"{self.learning_rate:g}, of the adapter {self.lora_learning_rate:g}{after}",
            "activation": f"{told}learning rate {self.activation_learning_rate:g}{beside_it}",
        }

    def _notes(
        self,
        usable: Mapping[str, ArmResult],
        comparisons: Sequence[Comparison],
        told: Mapping[str, Mapping[float, Sequence[str]]],
    ) -> list[str]:
        notes = [f"{MAIN} is the model after stage 2. What stage 3 makes of it is an arm of its own, {ACTIVATED}."]
        notes += [
            beside(usable[name].values, usable[control].values, name, control)
            for name, control in (
                (MAIN, SHUFFLED),
                (MAIN, SILENT),
                (COLD, SHUFFLED),
                (ACTIVATED, MAIN),
                (REHEARSED, MAIN),
            )
            if {name, control} <= set(usable)
        ]
        notes += self._told(told)
        if CASCADE in usable:
            notes.append(
                f"Where the right answers are a closed set, the {CASCADE} chooses the likeliest of them; all other "
                "arms write freely, and their words are compared."
            )
        notes += filter(None, (trained(name, self._records(name)) for name in self.chosen_))
        steps = {
            stage: {self._record(name, stage)["steps"] for name in self.chosen_ if self._record(name, stage)}
            for stage in ("stage1", "stage2")
        }
        if uneven := [spelt(stage) for stage, counts in steps.items() if len(counts) > 1]:
            notes.append(f"--minutes ended {' and '.join(uneven)} early, after different numbers of steps.")
        peaks = [self._record(name, stage).get("peak_bytes", 0) for name in self.chosen_ for stage in STAGES]
        notes.append(
            f"Memory of the whole process at its highest: {memory(max(peaks))} in training, "
            f"{memory(max((arm.peak_bytes for arm in usable.values()), default=0))} in answering."
        )
        if unscored := sorted({row.task for row in self.rows_["test"]} - set(SCORED)):
            notes.append(f"Not scored: rows of {', '.join(unscored)}, whose answers can be worded in many ways.")
        found = {(c.metric, c.baseline, c.arm): c.verdict for c in comparisons}
        if absent := [claim for claim in CLAIMS if claim in found and found[claim] != "helps"]:
            wins = ", ".join(f"{metric} of {arm} over {baseline}" for metric, baseline, arm in absent)
            notes.append(
                f"Absent here, where the paper leads to expect a gain: {wins}. Its language model has 7 or 13 billion "
                "parameters, its encoders are far larger, and it is trained on thousands of hours of recordings; here "
                f"there are {len(self.rows_['stage2']):,} training rows and {self.steps1_ + self.steps2_:,} steps."
            )
        return notes

    def _told(self, told: Mapping[str, Mapping[float, Sequence[str]]]) -> list[str]:
        """How stories come out at each of the adapter's scalings."""
        notes = []
        for name, by_factor in told.items():
            config, job = self.models_[name].config, self.jobs_[-1]
            scaling = config.lora_alpha / config.lora_rank
            parts = [f"at scaling {factor * scaling:g}: {account(job, each)}" for factor, each in by_factor.items()]
            notes.append(f"{name}, asked for {len(job.questions)} stories, {'; '.join(parts)}.")
        return [*notes, RULES] if notes else []

    def _curves(self) -> list[Curve]:
        """The loss of each arm in stages 1 and 2."""
        found = []
        for stage in ("stage1", "stage2"):
            lines = {name: self._record(name, stage).get("history", []) for name in self.chosen_}
            if any(lines.values()):
                found.append(loss_curve(f"Training loss, {spelt(stage)}", {k: v for k, v in lines.items() if v}))
        return found


def _rows(folder: Path) -> dict[str, list[AudioRow]]:
    """The four files of a set.

    Raises:
        InputError: a file is missing or damaged, or a test clip is trained on.
    """
    found = {name: read_rows(folder / f"{name}.jsonl", answers=name != "stories") for name in _FILES}
    trained = {clip for name in _FILES[:3] for row in found[name] for clip in row.audio}
    if both := trained & {clip for row in found["test"] for clip in row.audio}:
        raise InputError(f"{folder}: {len(both)} clips of test.jsonl are trained on, such as {Path(min(both)).name}")
    return found


def _content(rows: Mapping[str, Sequence[AudioRow]]) -> str:
    sizes: dict[str, int] = {}
    for clip in {clip for several in rows.values() for row in several for clip in row.audio}:
        try:
            sizes[clip] = Path(clip).stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {clip}: {error.strerror}; the rows name it") from None
    return fingerprint(
        [
            [name, row.task, [[Path(clip).name, sizes[clip]] for clip in row.audio], row.instruction, row.answer]
            for name, several in rows.items()
            for row in several
        ]
    )


def _called(settings: Mapping[str, Any]) -> str:
    context = f" with {settings['context_seconds']:g} s of context" if "context_seconds" in settings else ""
    return ":".join(filter(None, (settings["kind"], str(settings.get("spec", ""))))) + context
