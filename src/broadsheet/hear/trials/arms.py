"""The models of SALMONN's trial: every arm trained stage by stage, kept, read back, all around one language model.

Knows: the model, its stages, folders. Does not know: what the arms are asked.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from broadsheet import models
from broadsheet.cache import atomic_write
from broadsheet.clock import measure
from broadsheet.console import say
from broadsheet.hear import base
from broadsheet.hear.data.rows import AudioRow, read_rows, write_rows
from broadsheet.hear.data.tasks import WHAT_SAID
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.prompts import INSTRUCTIONS
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training.activating import FACTOR, activate, write_stories
from broadsheet.hear.training.fitting import TrainOutput, fit
from broadsheet.hear.training.warm_start import warm_start
from broadsheet.hear.trials.cascade import Cascade, ZeroFeatures
from broadsheet.hear.trials.metrics import SPEECH, HearTask
from broadsheet.hear.trials.peers import ExternalTranscriber
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.trial.trained.arms import TrainedTrial

STACK, MAIN, ACTIVATED, REHEARSED = "stack and linear", "SALMONN", "SALMONN, activated", "activated with rehearsal"
SHUFFLED, ONE, COLD, SILENT, CASCADE = "shuffled audio", "one encoder", "no warm start", "text alone", "cascade"
# By their names on the command line, those that may be left out.
OPTIONAL = {
    "activated": ACTIVATED,
    "rehearsed": REHEARSED,
    "shuffled": SHUFFLED,
    "one": ONE,
    "cold": COLD,
    "text": SILENT,
    "cascade": CASCADE,
}
ABOUT = {
    STACK: "the frames of a window through one linear layer; all else is SALMONN's",
    MAIN: "Q-Former, after stage 2, before activation",
    ACTIVATED: "after stage 3: stories that SALMONN wrote at a weaker adapter",
    REHEARSED: "the same stage 3 with rows of stage 2 beside each story, which is not the paper's",
    SHUFFLED: "SALMONN, hearing another clip of the same task",
    ONE: "SALMONN with the encoder for speech alone",
    COLD: "SALMONN as the paper trains it, from random weights, for as many steps of stages 1 and 2",
    SILENT: "SALMONN trained and asked with frames of zeros: what text and lengths give away",
    CASCADE: "Whisper's transcript, read by the language model without an adapter",
}
STAGES = ("start", "stage1", "stage2", "stage3")


class Run(NamedTuple):
    """A training run of the arm of that name."""

    name: str
    seed: int


@dataclass
class TrainedArms(TrainedTrial):
    """What the models of all arms have in common, and how each comes to be.

    A model is trained when it is first asked for, and a stage that stands in the folder is not trained again. The
    trial's own attributes are set before: `rows_` by stage, `settings_` and `parts_` of encoders, `jobs_`.
    """

    queries: int = option(1, "Audio tokens a window.", least=1)
    window: float = option(0.333333, "Seconds of a window.", least=0.02)
    hidden: int = option(384, "Width of the Q-Former.", least=1)
    heads: int = option(6, "Of the Q-Former.", least=1)
    layers: int = option(2, "Of the Q-Former.", least=1)
    ffn: int = option(1536, "Width of the Q-Former's feed-forward layers.", least=1)
    init: float = option(0.02, "Standard deviation of the Q-Former's weights at first (as BERT's).", least=0)
    warm_start_steps: int = option(0, "Of a warm start of the connectors that is not the paper's; 0: none.", least=0)
    steps1: int = option(80, "Of stage 1.", quick=3, least=1)
    steps2: int = option(120, "Of stage 2.", quick=3, least=1)
    activation_steps: int = option(12, "Of stage 3, one story each.", quick=2, least=1)
    batch: int = option(12, "Clips a step.", quick=4, least=1)
    learning_rate: float = option(3e-4, "Of norms and connector.", least=0)
    lora_learning_rate: float = option(1e-3, "Of the adapter.", least=0)
    activation_learning_rate: float = option(1e-4, "Of both in stage 3.", least=0)
    rehearsed: int = option(7, "Rows of stage 2 beside each story in the arm that rehearses; 0: no such arm.", least=0)
    factor: float = option(
        FACTOR,
        "Of the adapter's scaling while stage 3's stories are written (0.5: 4 becomes 2); an adapter that was trained "
        "hard needs less.",
        least=0,
    )
    minutes: float | None = option(None, "That each stage of each arm may take at most.", least=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows_: dict[str, list[AudioRow]] = {}
        self.settings_: list[dict[str, Any]] = []
        self.parts_: list[base.AudioEncoder] = []
        self.jobs_: list[HearTask] = []
        self.models_: dict[Run, Any] = {}
        self.frozen_: dict[str, Tensor] = {}
        self.peer_name_, self.peer_command_ = "", list[str]()

    def _build(
        self, encoders: Sequence[Mapping[str, Any]], connector: str, seed: int
    ) -> SalmonnForConditionalGeneration:
        """A new model, untrained."""
        return SalmonnForConditionalGeneration.build(
            self.model,
            encoders,
            seed=seed,
            device=self.device,
            dtype=self.dtype,
            features=self.workdir / "features",
            connector=connector,
            num_queries=self.queries,
            window_seconds=self.window,
            qformer_hidden=self.hidden,
            qformer_heads=self.heads,
            qformer_layers=self.layers,
            qformer_ffn=self.ffn,
            qformer_init=self.init,
        )

    def _load(self, folder: Path, name: str) -> SalmonnForConditionalGeneration:
        """A model of an arm, as it was saved; all share the frozen weights of one language model."""
        made = SalmonnForConditionalGeneration.from_pretrained(
            folder, device=self.device, features=self.workdir / "features"
        )
        self._share(made.llm)
        return self._ears(made, name)

    def _ears(self, made: SalmonnForConditionalGeneration, name: str) -> SalmonnForConditionalGeneration:
        if name == SILENT:
            made.audio_features = cast(AudioFeatures, ZeroFeatures(made.audio_features))
        return made

    def _share(self, llm: Any) -> None:
        for name, weight in llm.named_parameters():
            if "lora_" not in name:
                kept = self.frozen_.setdefault(name.replace(".base_layer", ""), weight.data)
                if (kept.shape, kept.dtype, kept.device) == (weight.shape, weight.dtype, weight.device):
                    weight.data = kept

    def _model(self, run: Run) -> Any:
        """The model of an arm's training run, trained or read on first use; what that raised is raised again."""
        if run not in self.models_:
            made: Any
            try:
                if run.name in self.untrained_:
                    made = self._cascade(run.name)
                else:
                    made = self._load(self._trained(run), run.name)
            except Exception as error:
                made = error
            self.models_[run] = made
        if isinstance(self.models_[run], Exception):
            raise self.models_[run]
        return self.models_[run]

    @property
    def untrained_(self) -> tuple[str, str]:
        """Arms that are not trained."""
        return CASCADE, self.peer_name_

    def _cascade(self, name: str) -> Cascade:
        whisper: Any = ExternalTranscriber(self.peer_command_)
        if name == CASCADE:
            whisper = next(part for part in self.parts_ if hasattr(part, "transcribe"))
        model, tokenizer = models.load(self.model, device=self.device, dtype=self.dtype)
        self._share(model)
        own = {question.instruction for job in self.jobs_ if job.name == SPEECH for question in job.questions}
        return Cascade(whisper, (model, tokenizer), transcribes={*INSTRUCTIONS["asr"], *WHAT_SAID, *own})

    def _trained(self, run: Run) -> Path:
        """The folder of an arm's trained model; a killed trial resumes at the last stage, or within it."""
        if run.name in (ACTIVATED, REHEARSED):
            return self._activated(run)
        first, last = (self._stage(run, stage) for stage in ("stage1", "stage2"))
        if not _stands(last):
            if not _stands(first):
                self._fit(self._begin(run), run, first, self.steps1)
            self._fit(self._load(first, run.name), run, last, self.steps2)
        return last

    def _begin(self, run: Run) -> SalmonnForConditionalGeneration:
        """The untrained model of an arm, after its warm start where one is asked for."""
        name = run.name
        encoders = [for_speech(self.settings_)] if name == ONE else self.settings_

        def new() -> SalmonnForConditionalGeneration:
            made = self._ears(self._build(encoders, "stack" if name == STACK else "qformer", run.seed), name)
            self._share(made.llm)
            return made

        if not self.warm_start_steps or name == COLD:
            return new()
        start = self._stage(run, "start")
        if not _stands(start):
            say(f"warm start: {self._spelt(run)}")
            made = new()
            rows = [row for row in self.rows_["stage1"] if row.task in ("asr", "sound")]
            warmed = warm_start(made, rows, steps=self.warm_start_steps, seed=run.seed)
            keep(_beside(start), {"steps": warmed.steps, "seconds": warmed.seconds, "loss": warmed.last_loss})
            made.save_pretrained(start)
        return self._load(start, name)

    def _activated(self, run: Run) -> Path:
        """After stage 3; both arms of it learn from the same stories."""
        last = self._stage(run, "stage3")
        if not _stands(last):
            model = self._load(self._trained(run._replace(name=MAIN)), run.name)
            rows = self._stories(model, run.seed)
            say(f"training: {self._spelt(run)}")
            training: Any = {
                "steps": self.activation_steps,
                "learning_rate": self.activation_learning_rate,
                "seed": run.seed,
            }
            if run.name == REHEARSED:
                training |= {"rehearse": self.rows_["stage2"], "rehearsed": self.rehearsed}
            (fitted, _), _, peak = measure(lambda told: activate(model, [], last, stories=told, **training), rows)
            _finished(fitted, last, peak)
        return last

    def _stories(self, model: SalmonnForConditionalGeneration, seed: int) -> list[AudioRow]:
        """Stories to tune on: the data's own, or those that SALMONN writes, once a training run, after stage 2."""
        rows = self.rows_["stories"]
        if all(row.answer for row in rows):
            return rows
        file = self.workdir / f"written-{seed}.jsonl"  # the journals have the names of what is asked
        if not file.exists():
            write_rows(file, write_stories(model, rows, factor=self.factor, seed=seed))
        return read_rows(file)

    def _fit(self, model: SalmonnForConditionalGeneration, run: Run, out: Path, steps: int) -> None:
        say(f"training: {self._spelt(run)}, {spelt(out.name)}")
        fitted, _, peak = measure(
            lambda rows: fit(
                model,
                rows,
                out,
                steps=steps,
                minutes=self.minutes,
                batch_size=self.batch,
                learning_rate=self.learning_rate,
                lora_learning_rate=self.lora_learning_rate,
                seed=run.seed,
            ),
            self.rows_[out.name],
        )
        _finished(fitted, out, peak)

    def _spelt(self, run: Run) -> str:
        return run.name + f", seed {run.seed}" * (self._runs > 1)

    def _stage(self, run: Run, stage: str) -> Path:
        return self.run_folder(*run) / stage

    def _records(self, run: Run) -> dict[str, dict[str, Any]]:
        """What is known of each stage of a training run, in order."""
        return {stage: self._record(run, stage) for stage in STAGES}

    def _record(self, run: Run, stage: str) -> dict[str, Any]:
        """What is known of a stage: what `fit` wrote, and what was kept beside it."""
        folder = self._stage(run, stage)
        return {
            k: v
            for path in (folder / "training.json", _beside(folder))
            if path.exists()
            for k, v in read_json(path).items()
        }


def for_speech(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The encoder that is left when there is to be one: the first Whisper, or the first."""
    return next((each for each in settings if each["kind"] == "whisper"), settings[0])


def spelt(stage: str) -> str:
    """A stage by its name."""
    return f"stage {stage.removeprefix('stage')}"


def _stands(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def keep(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file)


def _finished(fitted: TrainOutput, out: Path, peak: int) -> None:
    """Ends the trial where Ctrl-C has ended a training, whose checkpoint is kept; notes the memory that it took."""
    if not fitted.finished:
        raise KeyboardInterrupt
    keep(_beside(out), {"peak_bytes": peak})
    gc.collect()
