"""Try SALMONN: give a language model ears, and see whether it hears, what each part buys, and whether it still obeys.

Knows: the model, its three stages, what is asked, what the paper says. Does not know: how any of these work.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.data import audio
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training.activating import FACTOR
from broadsheet.hear.trials import sets
from broadsheet.hear.trials.arms import STAGES, Run, for_speech, keep, spelt
from broadsheet.hear.trials.asking import AskedArms
from broadsheet.hear.trials.following import NAMED_STORIES, RULES, STORIES, account
from broadsheet.hear.trials.likelihoods import LIKELIER, LIKELIHOODS, likelihoods, perplexities
from broadsheet.hear.trials.metrics import HARD_SOUNDS, SCORED, SOUNDS, WER, HearTask, jobs, questions
from broadsheet.hear.trials.notes import beside, loss_curve, trained
from broadsheet.hear.trials.peers import command
from broadsheet.hear.trials.roster import (
    ACTIVATED,
    CASCADE,
    COLD,
    MAIN,
    ONE,
    OPTIONAL,
    REHEARSED,
    SEEDED,
    SHUFFLED,
    SILENT,
    STACK,
    about,
    cold,
    plain,
)
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.report.words import memory
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.outside import peers
from broadsheet.trial.results import ArmResult, Curve, TrialResult
from broadsheet.trial.verdicts import Comparison


def claims_of(warmed: bool = True) -> list[Claim]:
    """What the paper says it wins.

    Args:
        warmed: whether the arms begin with the warm start, which each claim then says.
    """
    after = "; all arms have the warm start, which is ours" if warmed else ""
    return [
        Claim(WER, SHUFFLED, MAIN, f"it hears: another clip does not serve{after}", kind="control"),
        Claim(SOUNDS, SHUFFLED, MAIN, f"it hears: another clip does not serve{after}", kind="control"),
        Claim(HARD_SOUNDS, ONE, MAIN, f"a second encoder is needed for sounds (Sec. 3.1){after}", least=0.1),
        # The paper counts stories that follow the request, 0.00 before and 1.00 after, and gives no figure for these.
        Claim(
            NAMED_STORIES,
            MAIN,
            ACTIVATED,
            f"activation makes it follow what it was not trained to do, about what it hears (Sec. 3.2){after}",
            least=0.2,
        ),
        Claim(
            WER,
            MAIN,
            ACTIVATED,
            f"activated, it transcribes as before (2.1, 4.9 and 9.1 % of words wrong become 2.1, 4.9 and 10.0){after}",
            margin=0.05,
        ),
        Claim(
            LIKELIER,
            MAIN,
            ACTIVATED,
            f"where a story is asked for, captions are likelier before activation, and stories after it{after}",
            least=0.2,
        ),
    ]


_PAPERS = (MAIN, ACTIVATED)
_TOLD = (MAIN, ACTIVATED, REHEARSED)  # before activation and after it
_SHORT = 8.0  # seconds; clips that are no longer are given a Whisper of this context


@dataclass
class SalmonnTrial(AskedArms):
    """A causal LM gets ears: two frozen encoders, a connector, LoRA. Does it hear, and does it still do as it is told?

    Every arm is trained on the same rows for as many steps: a warm start of the connector, which is ours and not the
    paper's; then the paper's stages, first transcripts, sounds and captions, then all tasks. It is asked about clips
    that it has not heard, of sentences, orders and pitches that no training clip has; and, harder, about slower speech,
    another program's voices, and speech and sounds in noise. SALMONN reads windows of frames with a Q-Former; the
    baseline puts the frames of a window through one linear layer. Beside them: SALMONN hearing another clip of the
    task; with one encoder; trained and asked in silence; and the cascade: Whisper's transcript, read by the same model
    without an adapter. The last stage, activation, is an arm of its own: stories that the model writes at a part of its
    adapter's scaling, learnt in as many steps. Another arm learns the same stories in as many steps with rows of stage
    2 beside each, so that it does not forget them; that is not the paper's.

    Without the warm start a training this short hears nothing, and a deaf model decides nothing: so what is judged has
    it, all arms alike. The paper's stages as published, from random weights, are beside it, trained once (`cold`).
    --warm-start-steps 0 leaves it out, and judges those.

    --data FOLDER holds stage1.jsonl, stage2.jsonl, stories.jsonl, test.jsonl and perhaps hard.jsonl; by default such a
    set is made.
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
        "Arms besides the baseline and SALMONN.",
        choices=OPTIONAL,
        metavar="NAME,…",
    )
    test: int = option(60, "Test rows of asr and of sound, and half as many of each other task.", quick=6, least=1)
    hard: int = option(
        67,
        "Clips of the harder test: so many of slower speech, by espeak-ng, and of speech in noise; 0: none.",
        quick=3,
        least=0,
    )
    noisy: int = option(250, "Clips of the harder test: sounds in noise; 0: none.", quick=3, least=0)
    stories: int = option(40, "Test clips that a story is asked about; 0: none.", quick=2, least=0)
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
            f"Does {self.model_name} hear speech and sounds, does it need a second encoder for sounds, and does it "
            "still do what it was not trained to do?"
        )

    def tasks(self) -> list[EvalTask]:
        self._known, self._tokenizer = self.loaded.fingerprint, self.loaded.tokenizer
        self.release()
        self.settings_ = [base.named(name) for name in self.encoders]
        self._read_data()
        without = {REHEARSED} if not self.rehearsed else set()
        without |= {ONE} if len(self.parts_) == 1 else set()
        without |= set() if self.warm_start_steps else {*OPTIONAL["cold"]}
        without |= set() if any(hasattr(part, "transcribe") for part in self.parts_) else {CASCADE}
        wanted = [STACK, MAIN, *(name for short, names in OPTIONAL.items() if short in self.also for name in names)]
        self._chosen = [name for name in wanted if name not in without]
        if self._peer:
            self.peer_name_, self.peer_command_ = self._peer.label, command(self._peer, for_speech(self.settings_))
            self._chosen.append(self.peer_name_)
        self.jobs_ = self._jobs()
        known = sets.content(self.rows_)
        return [self._task(job, known) for job in self.jobs_]

    def facts(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "fingerprint": self._known},
            "encoders": [{"settings": part.settings(), "fingerprint": part.identity} for part in self.parts_],
        }

    def setting(self) -> Mapping[str, Any]:
        """How the arms are made and trained, in words."""
        after = f"; before these {self.warm_start_steps} steps of warm start, which is ours" * bool(
            self.warm_start_steps
        )
        factors = " or ".join(f"{factor:g}" for factor in self.factors_)
        told = f"{self.activation_steps} steps on stories written at {factors} of the adapter's scaling, "
        beside_it = f"; in rehearsal {self.rehearsed} rows of stage 2 beside each" if REHEARSED in self._chosen else ""
        rates = {name: f"{self._rate(name):g}" for name in self._chosen if name not in self.untrained_}
        spelt_rates = rates[MAIN] if len({*rates.values()}) == 1 else "as tuned"
        story_rate = "as tuned" if (given := self.activation_learning_rate) is None else f"{given:g}"
        return {
            "encoders": ", ".join(_called(each) for each in self.settings_),
            "connector": f"{self.queries} audio token{'s' * (self.queries > 1)} a window of {self.window:.3g} s; "
            f"Q-Former of {self.layers} layers, {self.hidden} wide, with weights of ±{self._init:.3f} at first",
            "training": f"{self.steps1} and {self.steps2} steps of {self.batch} rows, learning rate "
            f"{spelt_rates}, of the adapter {self.lora_learning_rate:g}{after}",
            "activation": f"{told}learning rate {story_rate}{beside_it}",
            "data": f"{self._source}; {len(self.rows_['stage2']):,} training rows, clips of at most "
            f"{self._seconds:.1f} s",
        }

    def arms(self) -> list[ModelArm]:
        made = []
        for name in self._chosen:
            role: Any = {STACK: "baseline", self.peer_name_: "peer"}.get(name, "sibling" if cold(name) else None)
            paper = SalmonnForConditionalGeneration.paper if plain(name) in _PAPERS else ""
            by_seed = partial(self._by_seed, name.replace(SHUFFLED, MAIN))
            seeded = by_seed if name in SEEDED else None
            made.append(ModelArm(name, by_seed(self.seed), role, about(name), paper, seeded))
        return made

    def _by_seed(self, name: str, seed: int) -> Callable[[], Any]:
        return lambda: self._model(Run(name, seed))

    def _first_run(self, name: str) -> Run:
        return Run(name, self.seed)

    def claims(self) -> list[Claim]:
        """Those of arms that take part and of metrics that there are."""
        metrics = {metric.name for job in self.jobs_ for metric in job.metrics}
        claims = claims_of(bool(self.warm_start_steps))
        return [each for each in claims if each.metric in metrics and {each.baseline, each.arm} <= {*self._chosen}]

    def also_compare(self) -> list[tuple[str, str]]:
        wanted = [
            (STACK, MAIN),  # a window-level Q-Former beside one linear layer: the paper has no such comparison
            *((name, MAIN) for name in (SHUFFLED, ONE, SILENT, CASCADE, MAIN + COLD, self.peer_name_)),
            *((MAIN, ACTIVATED), (MAIN, REHEARSED), (ACTIVATED, REHEARSED)),
            *((name + COLD, MAIN + COLD) for name in (STACK, SHUFFLED)),
            (self.peer_name_, CASCADE),
        ]
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
        pairs = [(MAIN, SHUFFLED), (MAIN, SILENT), (ACTIVATED, MAIN), (REHEARSED, MAIN), (MAIN + COLD, SHUFFLED + COLD)]
        notes += [
            beside(usable[name].values, usable[control].values, name, control)
            for name, control in pairs
            if {name, control} <= set(usable)
        ]
        for job in self.jobs_:
            if job.name == STORIES:
                notes += self._told(job, self._scaled(job, usable))
        notes += self._weighed(usable)
        if CASCADE in usable:
            notes.append(
                f"Where the right answers are a closed set, the {CASCADE} chooses the likeliest of them; all other "
                "arms write freely, and their words are compared."
            )
        return [*notes, *self._of_training(usable)]

    def _of_training(self, usable: Mapping[str, ArmResult]) -> list[str]:
        """What each arm's first training run took, and of all of them the steps and the memory."""
        notes = list(filter(None, (trained(name, self._records(self._first_run(name))) for name in self._chosen)))
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
        usable = outcome.usable
        heard = ""
        if {MAIN, SHUFFLED} <= set(usable) and WER in usable[MAIN].values:
            own, others = (usable[name].values[WER].estimate for name in (MAIN, SHUFFLED))
            heard = f" Here {MAIN} has a WER of {own:.2f}, and of {others:.2f} where it hears another clip."
        controls = [outcome.comparison(metric, SHUFFLED, MAIN) for metric in (WER, SOUNDS)]
        if deaf := [each.metric for each in controls if each is not None and each.verdict != "helps"]:
            heard += (
                f" By its {' and '.join(deaf)}, another clip serves as well: it does not hear, and nothing is decided."
            )
        return (
            "Its language model has 7 or 13 billion parameters, its encoders are far larger, and it is trained on "
            f"thousands of hours of recordings; here there are {len(self.rows_['stage2']):,} training rows and "
            f"{self.steps1 + self.steps2:,} steps.{heard}"
        )

    # What there is to begin with

    def _read_data(self) -> None:
        """The rows, the longest clip, and the encoders for clips of that length."""
        sizes = {"seed": self.seed, "test": self.test, "stories": self.activation_steps}
        sizes |= {"hard": self.hard, "noisy": self.noisy}
        folder, self._made, self._source = sets.made_or_given(self.data, bool(self.quick), **sizes)
        rows = sets.rows_of(folder)
        given = None not in (self.learning_rate, self.activation_learning_rate)
        self.rows_ = rows if given else sets.held_back(rows)
        self._seconds = max(len(audio.read(clip)) for clip in sets.clips_of(*rows.values())) / base.SAMPLE_RATE
        if self._seconds <= _SHORT:
            short = {"context_seconds": _SHORT, "crop": True}
            self.settings_ = [{**short, **each} if each["kind"] == "whisper" else each for each in self.settings_]
        self.parts_ = [base.encoder(each) for each in self.settings_]

    # Questions

    def _jobs(self) -> list[HearTask]:
        """What is asked: transcripts, sounds, the other tasks; the harder test; stories; and what those cost."""
        rows = self._test_rows()
        if not rows:
            scored = ", ".join(SCORED)
            raise InputError(f"{self._source}: test.jsonl has no row that is scored; expected tasks {scored}")
        asked, hard = questions(rows, self.seed), self._hard_rows()
        self.longest_ = min(200, 8 + max(len(self._tokenizer(row.answer)["input_ids"]) for row in [*rows, *hard]))
        found = jobs(rows, asked, self.longest_)
        if hard:
            found += jobs(hard, questions(hard, self.seed), self.longest_, hard=True)
        if self.stories:
            told = sets.drawn(asked, self.stories, self.seed)
            found.append(self._about_clips(told))
        captions = [row for row in self.rows_["test"] if row.task == "caption"]
        if self.stories and len(captions) > 1:
            drawn = sets.drawn(captions, max(2, self.test // 2), self.seed)
            found.append(likelihoods(questions(drawn, self.seed)))
        return found

    def _test_rows(self) -> list[AudioRow]:
        """As many rows of each task that is scored as are wanted."""
        kept = []
        for task in SCORED:
            rows = [row for row in self.rows_["test"] if row.task == task]
            kept += sets.drawn(rows, self.test if task in SCORED[:2] else max(1, self.test // 2), self.seed)
        return kept

    def _hard_rows(self) -> list[AudioRow]:
        """As many rows of each kind of the harder test as are wanted."""
        kinds: dict[Any, list[AudioRow]] = {}
        for row in self.rows_["hard"]:
            if row.task in SCORED[:2]:
                kinds.setdefault((row.task, row.more.get("split")), []).append(row)
        sizes = {"asr": self.hard, "sound": self.noisy}
        return [row for (task, _), rows in kinds.items() for row in sets.drawn(rows, sizes[task], self.seed)]

    def _task(self, job: HearTask, known: str) -> EvalTask:
        keys = [question.audio and sets.draw(self.seed, question.audio) for question in job.questions]
        return EvalTask(
            job.name,
            job.questions,
            job.metrics,
            lambda arm, model, kept: self._arm(arm, model, job),
            item="clip",
            about=f"{len(job.questions)} questions",
            fingerprint=fingerprint([known, keys]),
            block_size=job.turn,
            examples=job.examples,
        )

    # Stories at other scalings, and what they cost

    def _scaled(self, job: HearTask, usable: Mapping[str, ArmResult]) -> dict[str, dict[float, list[str]]]:
        """Stories about the same clips before and after activation, by factor of the adapter's scaling."""
        told: dict[str, dict[float, list[str]]] = {}
        path = self.workdir / "scaling.json"
        kept = read_json(path) if path.exists() else {}
        for name in [name for name in _TOLD if name in usable]:
            told[name] = {1.0: usable[name].samples[f"{STORIES}: answers"]}
            for factor in (FACTOR, 0.0):
                key = f"{name} {factor:g}"
                if key not in kept:
                    block, frames = self._listener(name, job)(job.questions)
                    model = self._model(self._first_run(name))
                    self._let_hear(model, name, frames)
                    with model.scale_lora(factor):
                        kept[key] = self._answers(name, model, job, block)
                    keep(path, kept)
                told[name][factor] = kept[key]
        return told

    def _told(self, job: HearTask, told: Mapping[str, Mapping[float, Sequence[str]]]) -> list[str]:
        """How stories come out at each of the adapter's scalings."""
        notes = []
        for name, by_factor in told.items():
            config = self.models_[self._first_run(name)].config
            scaling = config.lora_alpha / config.lora_rank
            parts = [f"at scaling {factor * scaling:g}: {account(job, each)}" for factor, each in by_factor.items()]
            notes.append(f"{name}, asked for {len(job.questions)} stories, {'; '.join(parts)}.")
        return [*self._how_written(), *notes, RULES] if notes else []

    def _weighed(self, usable: Mapping[str, ArmResult]) -> list[str]:
        """The perplexity of stories and of captions before and after activation."""
        weighed = {name: usable[name].samples.get(f"{LIKELIHOODS}: answers") for name in _TOLD if name in usable}
        told = [
            "{}: {:,.1f} and {:,.1f}".format(name, *perplexities(pairs)) for name, pairs in weighed.items() if pairs
        ]
        return (
            [f"Perplexity of a story and of a caption, where a story is asked for: {'; '.join(told)}."] if told else []
        )


def _called(settings: Mapping[str, Any]) -> str:
    context = f" with {settings['context_seconds']:g} s of context" if "context_seconds" in settings else ""
    return ":".join(filter(None, (settings["kind"], str(settings.get("spec", ""))))) + context
