"""Try SALMONN: give a language model ears, and see whether it hears, what each part buys, and whether it still obeys.

Knows: the model, its three stages, the cascade, made data. Does not know: how any of these work.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.hear import base
from broadsheet.hear.data import audio, make_data
from broadsheet.hear.data.rows import AudioRow, read_rows
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
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
    Run,
    TrainedArms,
    for_speech,
    keep,
    spelt,
)
from broadsheet.hear.trials.cascade import PrecomputedFeatures, ZeroFeatures
from broadsheet.hear.trials.following import FOLLOWED, RULES, STORIES, account, stories
from broadsheet.hear.trials.metrics import SCORED, SOUNDS, SPEECH, WER, AudioQuestion, HearTask, jobs, questions
from broadsheet.hear.trials.notes import beside, loss_curve, trained
from broadsheet.hear.trials.peers import ExternalTranscriber, command
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.report.words import memory
from broadsheet.trial import peers
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Outputs
from broadsheet.trial.results import ArmResult, Curve, TrialResult
from broadsheet.trial.verdicts import Comparison

CLAIMS = (
    Claim(WER, SHUFFLED, MAIN, "it hears: another clip does not serve", kind="control"),
    Claim(SOUNDS, SHUFFLED, MAIN, "it hears: another clip does not serve", kind="control"),
    Claim(WER, STACK, MAIN, "a window-level Q-Former serves speech (Sec. 3.1); the plain connector beside it is ours"),
    Claim(SOUNDS, ONE, MAIN, "a second encoder is needed for sounds (Sec. 3.1)"),
    # Stories of which the request is followed, before and after activation: 0.00 and 1.00.
    Claim(FOLLOWED, MAIN, ACTIVATED, "activation makes it follow what it was not trained to do (Sec. 3.2)", effect=1.0),
)
_PAPERS = (MAIN, ACTIVATED)
_FILES = ("stage1", "stage2", "stories", "test")
_SHORT = 8.0  # seconds; clips that are no longer are given a Whisper of this context
_QUICK = {"asr": 24, "sound": 20, "caption": 10, "count": 8, "voice": 8, "order": 8, "speech_sound": 8}
_CHOICES = range(2, 101)  # numbers of labels from which a cascade chooses


@dataclass
class SalmonnTrial(TrainedArms):
    """A causal LM gets ears: two frozen encoders, a connector, LoRA. Does it hear, and does it still do as it is told?

    Every arm is trained on the same rows for as many steps: first transcripts, sounds and captions, then all tasks. It
    is asked about clips that it has not heard, of sentences, orders and pitches that no training clip has. SALMONN
    reads windows of frames with a Q-Former; the baseline puts the frames of a window through one linear layer. Beside
    them: SALMONN hearing another clip of the task; with one encoder; without the warm start, where there is one;
    trained and asked in silence; and the cascade: Whisper's transcript, read by the same model without an adapter. The
    last stage, activation, is an arm of its own: stories that the model writes at a part of its adapter's scaling,
    learnt in as many steps. Another arm learns the same stories in as many steps with rows of stage 2 beside each, so
    that it does not forget them; that is not the paper's.

    --data FOLDER holds stage1.jsonl, stage2.jsonl, stories.jsonl and test.jsonl; by default such a set is made.
    """

    paper: ClassVar[str] = "salmonn"
    stage: ClassVar[str] = "hear"
    lacks: ClassVar[tuple[str, ...]] = ("method",)
    title: ClassVar[str] = "SALMONN: ears for a language model"

    encoders: tuple[str, ...] = option(
        ("whisper:tiny.en", "speech-embedding"), "Audio encoders, the one for speech first.", metavar="NAME,…"
    )
    also: tuple[str, ...] = option(
        tuple(OPTIONAL),
        "Arms besides the baseline and SALMONN; cold needs a warm start to go without.",
        choices=OPTIONAL,
        metavar="NAME,…",
    )
    test: int = option(60, "Test rows of asr and of sound, and half as many of each other task.", quick=6, least=1)
    stories: int = option(12, "Test clips that a story is asked about; 0: none.", quick=2, least=0)
    story_tokens: int = option(80, "Of a story at most.", least=1)
    peer: str | None = option(
        None,
        "A peer that transcribes for a second cascade: `faster_whisper` (`broadsheet peer` builds it), or a program "
        "(docs/external.md).",
        metavar="NAME|COMMAND",
    )

    def check(self) -> None:
        self._peer = peers.parse(self.peer, self.stage) if self.peer else None
        if not self.encoders:
            raise InputError("got no --encoders; expected one or more, such as whisper:tiny.en")

    def run(self) -> TrialResult:
        try:
            return super().run()
        finally:
            self.models_.clear()
            self.frozen_.clear()
            gc.collect()

    def finish(self) -> None:
        super().finish()
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def question(self) -> str:
        return (
            f"Does {self.model_name} hear speech and sounds, does a window-level Q-Former serve it better than one "
            "linear layer, and does it still do what it was not trained to do?"
        )

    def tasks(self) -> list[EvalTask]:
        self._known, self._tokenizer = self.loaded.fingerprint, self.loaded.tokenizer
        self.release()
        self.settings_ = [base.named(name) for name in self.encoders]
        self._read_data()
        without = {COLD} if not self.warm_start_steps else set()
        without |= {REHEARSED} if not self.rehearsed else set()
        without |= {ONE} if len(self.parts_) == 1 else set()
        without |= set() if any(hasattr(part, "transcribe") for part in self.parts_) else {CASCADE}
        wanted = [STACK, MAIN, *(name for short, name in OPTIONAL.items() if short in self.also)]
        self._chosen = [name for name in wanted if name not in without]
        if self._peer:
            self.peer_name_, self.peer_command_ = self._peer.label, command(self._peer, for_speech(self.settings_))
            self._chosen.append(self.peer_name_)
        self._listeners: dict[Any, Callable[[Sequence[AudioQuestion]], Any]] = {}
        self.jobs_ = self._jobs()
        known = _content(self.rows_)
        return [self._task(job, known) for job in self.jobs_]

    def facts(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "fingerprint": self._known},
            "encoders": [{"settings": part.settings(), "fingerprint": part.identity} for part in self.parts_],
        }

    def setting(self) -> Mapping[str, Any]:
        """How the arms are made and trained, in words."""
        after = f", after {self.warm_start_steps} steps of warm start" if self.warm_start_steps else ""
        told = f"{self.activation_steps} steps on stories written at {self.factor:g} of the adapter's scaling, "
        beside_it = f"; in rehearsal {self.rehearsed} rows of stage 2 beside each" if REHEARSED in self._chosen else ""
        return {
            "encoders": ", ".join(_called(each) for each in self.settings_),
            "connector": f"{self.queries} audio token{'s' * (self.queries > 1)} a window of {self.window:.3g} s; "
            f"Q-Former of {self.layers} layers, {self.hidden} wide",
            "training": f"{self.steps1} and {self.steps2} steps of {self.batch} rows, learning rate "
            f"{self.learning_rate:g}, of the adapter {self.lora_learning_rate:g}{after}",
            "activation": f"{told}learning rate {self.activation_learning_rate:g}{beside_it}",
            "data": f"{self._source}; {len(self.rows_['stage2']):,} training rows, clips of at most "
            f"{self._seconds:.1f} s",
        }

    def arms(self) -> list[ModelArm]:
        made = []
        for name in self._chosen:
            role: Any = "baseline" if name == STACK else "peer" if name == self.peer_name_ else None
            about = ABOUT.get(name, "the peer's transcript, read by the language model without an adapter")
            paper = SalmonnForConditionalGeneration.paper if name in _PAPERS else ""
            by_seed = partial(self._by_seed, MAIN if name == SHUFFLED else name)
            trained = None if name in self.untrained_ else by_seed
            made.append(ModelArm(name, by_seed(self.seed), role, about, paper, trained))
        return made

    def _by_seed(self, name: str, seed: int) -> Callable[[], Any]:
        return lambda: self._model(Run(name, seed))

    def _first_run(self, name: str) -> Run:
        return Run(name, self.seed)

    def claims(self) -> list[Claim]:
        metrics = {metric.name for job in self.jobs_ for metric in job.metrics}
        return [each for each in CLAIMS if each.metric in metrics and {each.baseline, each.arm} <= {*self._chosen}]

    def also_compare(self) -> list[tuple[str, str]]:
        wanted = [(name, MAIN) for name in (SHUFFLED, ONE, COLD, SILENT, CASCADE)]
        wanted += [(MAIN, ACTIVATED), (MAIN, REHEARSED), (ACTIVATED, REHEARSED)]
        wanted += [(self.peer_name_, name) for name in (MAIN, CASCADE)]
        return [pair for pair in wanted if set(pair) <= set(self._chosen)]

    def figures(self, outcome: Outcome) -> list[Curve]:
        """The loss of each arm in stages 1 and 2."""
        found = []
        for stage in ("stage1", "stage2"):
            lines = {name: self._record(self._first_run(name), stage).get("history", []) for name in self._chosen}
            if any(lines.values()):
                found.append(loss_curve(f"Training loss, {spelt(stage)}", {k: v for k, v in lines.items() if v}))
        return found

    def notes(self, outcome: Outcome) -> list[str]:
        usable = outcome.usable
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
        notes += self._told(self._scaled(usable))
        if CASCADE in usable:
            notes.append(
                f"Where the right answers are a closed set, the {CASCADE} chooses the likeliest of them; all other "
                "arms write freely, and their words are compared."
            )
        notes += filter(None, (trained(name, self._records(self._first_run(name))) for name in self._chosen))
        runs = [Run(name, seed) for name in self._chosen for seed in self.seeds]
        records = {stage: [self._record(run, stage) for run in runs] for stage in STAGES}
        steps = {stage: {each["steps"] for each in records[stage] if each} for stage in ("stage1", "stage2")}
        if uneven := [spelt(stage) for stage, counts in steps.items() if len(counts) > 1]:
            notes.append(f"--minutes ended {' and '.join(uneven)} early, after different numbers of steps.")
        peaks = [each.get("peak_bytes", 0) for several in records.values() for each in several]
        notes.append(
            f"Memory of the whole process at its highest: {memory(max(peaks))} in training, "
            f"{memory(max((arm.peak_bytes for arm in usable.values()), default=0))} in answering."
        )
        if unscored := sorted({row.task for row in self.rows_["test"]} - set(SCORED)):
            notes.append(f"Not scored: rows of {', '.join(unscored)}, whose answers can be worded in many ways.")
        return notes

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its language model has 7 or 13 billion parameters, its encoders are far larger, and it is trained on "
            f"thousands of hours of recordings; here there are {len(self.rows_['stage2']):,} training rows and "
            f"{self.steps1 + self.steps2:,} steps."
        )

    # What there is to begin with

    def _read_data(self) -> None:
        """The rows, the longest clip, and the encoders for clips of that length."""
        self._made: Path | None = None
        self._source = self.data
        folder = local(self.data)
        if is_pydocs(self.data):
            sizes: dict[str, Any] = {
                "seed": self.seed,
                "test": self.test,
                "stories": self.activation_steps,
                "hard": 0,
                **(_QUICK if self.quick else {}),
            }
            self._source = "speech by flite and sounds by sox, made for the trial"
            self._made = home() / "trials" / f"salmonn-data-{fingerprint(sizes)}"
            folder = make_data(self._made, **sizes).folder
        self.rows_ = _rows(folder)
        clips = {clip for rows in self.rows_.values() for row in rows for clip in row.audio}
        self._seconds = max(len(audio.read(clip)) for clip in clips) / base.SAMPLE_RATE
        if self._seconds <= _SHORT:
            short = {"context_seconds": _SHORT, "crop": True}
            self.settings_ = [{**short, **each} if each["kind"] == "whisper" else each for each in self.settings_]
        self.parts_ = [base.encoder(each) for each in self.settings_]

    # Questions

    def _jobs(self) -> list[HearTask]:
        """What is asked: transcripts, sounds, the other tasks, and stories."""
        rows = self._test_rows()
        if not rows:
            scored = ", ".join(SCORED)
            raise InputError(f"{self._source}: test.jsonl has no row that is scored; expected tasks {scored}")
        asked = questions(rows, self.seed)
        longest = max(len(self._tokenizer(row.answer)["input_ids"]) for row in rows)
        found = jobs(rows, asked, min(200, longest + 8))
        if self.stories:
            told = sorted(asked, key=lambda each: self._draw(each.audio))[: self.stories]
            found.append(stories(told, {row.answer for row in self.rows_["stage2"]}, self.story_tokens))
        return found

    def _test_rows(self) -> list[AudioRow]:
        """As many rows of each task that is scored as are wanted."""
        kept = []
        for task in SCORED:
            rows = [row for row in self.rows_["test"] if row.task == task]
            wanted = self.test if task in SCORED[:2] else max(1, self.test // 2)
            kept += sorted(rows, key=lambda row: self._draw(row.audio))[:wanted]
        return kept

    def _draw(self, clips: Sequence[str]) -> str:
        return fingerprint([self.seed, *(Path(clip).name for clip in clips)])

    def _task(self, job: HearTask, known: str) -> EvalTask:
        return EvalTask(
            job.name,
            job.questions,
            job.metrics,
            lambda arm, model, kept: self._arm(arm, model, job),
            item="clip",
            about=f"{len(job.questions)} questions",
            fingerprint=fingerprint(
                [known, [question.audio and self._draw(question.audio) for question in job.questions]]
            ),
            blocks=job.blocks,
            examples=job.examples,
        )

    def _arm(self, arm: ModelArm, model: LazyModel, job: HearTask) -> Arm:
        other = arm.name == SHUFFLED

        def listen(given: Any) -> Outputs:
            block, frames = given
            return job.outputs(block, self._answers(model(), arm.name, block, frames, job.generation, other))

        def read(block: Sequence[AudioQuestion]) -> Outputs:
            requests = [(list(each.audio), each.instruction) for each in block]
            choices = [each.labels if job.name != SPEECH and len(each.labels) in _CHOICES else () for each in block]
            return job.outputs(block, model().answers(requests, choices=choices, **job.generation))

        if arm.role == "peer":

            def start() -> None:
                model().encoder.start()

            def close() -> None:
                if (run := self._first_run(self.peer_name_)) in self.models_:
                    getattr(self.models_[run], "encoder", ExternalTranscriber(())).close()

            return Arm(arm.name, read, description=arm.description, prepare=start, close=close)
        if arm.name == CASCADE:
            return Arm(arm.name, read, description=arm.description, prepare=model.prepare)
        shared = self._listener(arm.name)
        return Arm(arm.name, listen, description=arm.description, prepare=model.prepare, shared=shared)

    def _listener(self, name: str) -> Callable[[Sequence[AudioQuestion]], Any]:
        """What encodes a block's clips, anew each time: one function for all arms with the same encoders and clips."""
        other = name == SHUFFLED
        parts = [self.parts_[self.settings_.index(for_speech(self.settings_))]] if name == ONE else self.parts_
        key = (other, len(parts))
        if key not in self._listeners:
            shared = AudioFeatures(parts, keep=False)

            def encode(block: Sequence[AudioQuestion]) -> Any:
                clips = list(dict.fromkeys(clip for each in block for clip in (each.other if other else each.audio)))
                return block, dict(zip(clips, shared.features_all(clips), strict=True))

            self._listeners[key] = encode
        return self._listeners[key]

    def _answers(
        self,
        model: Any,
        name: str,
        block: Sequence[AudioQuestion],
        frames: Mapping[str, Any],
        generation: Mapping[str, Any],
        other: bool = False,
    ) -> list[str]:
        """What a model answers to questions about clips that are encoded already."""
        given = PrecomputedFeatures(frames)
        model.audio_features = ZeroFeatures(given) if name == SILENT else given
        requests = [(list(each.other if other else each.audio), each.instruction) for each in block]
        with quiet():
            return list(model.answers(requests, **generation))

    def _scaled(self, usable: Mapping[str, ArmResult]) -> dict[str, dict[float, list[str]]]:
        """Stories about the same clips before and after activation, by factor of the adapter's scaling."""
        told: dict[str, dict[float, list[str]]] = {}
        path = self.workdir / "scaling.json"
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
                    model = self._model(self._first_run(name))
                    with model.scale_lora(factor):
                        kept[key] = self._answers(model, name, block, frames, job.generation)
                    keep(path, kept)
                told[name][factor] = kept[key]
        return told

    def _told(self, told: Mapping[str, Mapping[float, Sequence[str]]]) -> list[str]:
        """How stories come out at each of the adapter's scalings."""
        notes = []
        for name, by_factor in told.items():
            config, job = self.models_[self._first_run(name)].config, self.jobs_[-1]
            scaling = config.lora_alpha / config.lora_rank
            parts = [f"at scaling {factor * scaling:g}: {account(job, each)}" for factor, each in by_factor.items()]
            notes.append(f"{name}, asked for {len(job.questions)} stories, {'; '.join(parts)}.")
        return [*notes, RULES] if notes else []


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
