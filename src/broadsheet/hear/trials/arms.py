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

import torch
from torch import Tensor

from broadsheet import models
from broadsheet.cache import atomic_write
from broadsheet.clock import measure
from broadsheet.console import say
from broadsheet.hear import base
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.data.tasks import WHAT_SAID
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.prompts import INSTRUCTIONS, instruction
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training.fitting import TrainOutput, fit
from broadsheet.hear.training.warm_start import warm_start
from broadsheet.hear.trials.cascade import Cascade, ZeroFeatures
from broadsheet.hear.trials.likelihoods import nats
from broadsheet.hear.trials.metrics import HARD_SPEECH, SPEECH, HearTask
from broadsheet.hear.trials.peers import ExternalTranscriber
from broadsheet.hear.trials.roster import CASCADE, MAIN, ONE, SILENT, STACK, cold, plain
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.training.weights import autocast_dtype
from broadsheet.trial.trained.arms import TrainedTrial

STAGES = ("start", "stage1", "stage2", "stage3")
RATES = (1e-4, 3e-4, 1e-3)  # from which each arm's is chosen


class Run(NamedTuple):
    """A training run of the arm of that name."""

    name: str
    seed: int


@dataclass
class TrainedArms(TrainedTrial):
    """What the models of all arms have in common, and how each comes to be.

    A model is trained when it is first asked for, and a stage that stands in the folder is not trained again. The
    trial's own attributes are set before: `rows_` by stage, and those of `tuning`, `settings_` and `parts_` of
    encoders, `jobs_`, and `longest_`: tokens of a transcript or a label at most.
    """

    queries: int = option(1, "Audio tokens a window.", least=1)
    window: float = option(0.333333, "Seconds of a window.", least=0.02)
    hidden: int = option(384, "Width of the Q-Former.", least=1)
    heads: int = option(6, "Of the Q-Former.", least=1)
    layers: int = option(2, "Of the Q-Former.", least=1)
    ffn: int = option(1536, "Width of the Q-Former's feed-forward layers.", least=1)
    init: float | None = option(
        None,
        "Standard deviation of the Q-Former's weights at first; by default 1 / √hidden, 0.051 at 384 (BERT's: 0.02).",
        least=0,
    )
    warm_start_steps: int = option(
        300,
        "Of a warm start of the connectors, which is not the paper's, for all arms but those of `cold`; 0: none, and "
        "all are trained by the paper's stages alone.",
        quick=3,
        least=0,
    )
    steps1: int = option(80, "Of stage 1.", quick=3, least=1)
    steps2: int = option(120, "Of stage 2.", quick=3, least=1)
    batch: int = option(12, "Clips a step.", quick=4, least=1)
    learning_rate: float | None = option(
        None,
        f"Of norms and connector; by default {best_of(RATES)} on clips that are held back, for each connector and "
        "for one encoder.",
        quick=3e-4,
        least=0,
    )
    lora_learning_rate: float = option(1e-3, "Of the adapter.", least=0)
    minutes: float | None = option(None, "That each stage of each arm may take at most.", least=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows_: dict[str, list[AudioRow]] = {}
        self.settings_: list[dict[str, Any]] = []
        self.parts_: list[base.AudioEncoder] = []
        self.jobs_: list[HearTask] = []
        self.models_: dict[Run, Any] = {}
        self.frozen_: dict[tuple[str, torch.dtype], Tensor] = {}
        self.peer_name_, self.peer_command_ = "", list[str]()
        self.longest_ = 0

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
            connector=connector,
            num_queries=self.queries,
            window_seconds=self.window,
            qformer_hidden=self.hidden,
            qformer_heads=self.heads,
            qformer_layers=self.layers,
            qformer_ffn=self.ffn,
            qformer_init=self._init,
        )

    @property
    def _init(self) -> float:
        return float(self.hidden**-0.5) if self.init is None else self.init

    def _load(self, folder: Path, name: str, *, asked: bool = False) -> SalmonnForConditionalGeneration:
        """A model of an arm, as it was saved, to be trained on; or, to be asked, as fast as it computes."""
        made = SalmonnForConditionalGeneration.from_pretrained(folder, device=self.device, dtype=self.dtype)
        self._share(made.llm, asked=asked)
        return self._ears(made, name)

    def _ears(self, made: SalmonnForConditionalGeneration, name: str) -> SalmonnForConditionalGeneration:
        if plain(name) == SILENT:
            made.audio_features = cast(AudioFeatures, ZeroFeatures(made.audio_features))
        return made

    def _share(self, llm: Any, *, asked: bool = False) -> None:
        """Let a language model have the frozen weights that all others have.

        Args:
            asked: whether it is to answer: without a --dtype in bfloat16, where the device computes in it.
        """
        fast = autocast_dtype("auto", llm.device) if asked and self.dtype is None else None
        if fast is not None:
            llm.to(fast)
        for name, weight in llm.named_parameters():
            if "lora_" not in name:
                kept = self.frozen_.setdefault((name.replace(".base_layer", ""), weight.dtype), weight.data)
                if (kept.shape, kept.device) == (weight.shape, weight.device):
                    weight.data = kept

    def _model(self, run: Run) -> Any:
        """The model of an arm's training run, trained or read on first use; what that raised is raised again."""
        if run not in self.models_:
            made: Any
            try:
                if run.name in self.untrained_:
                    made = self._cascade(run.name)
                else:
                    made = self._load(self._trained(run), run.name, asked=True)
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
        self._share(model, asked=True)
        spoken = (job for job in self.jobs_ if job.name in (SPEECH, HARD_SPEECH))
        own = {question.instruction for job in spoken for question in job.questions}
        return Cascade(whisper, (model, tokenizer), transcribes={*INSTRUCTIONS["asr"], *WHAT_SAID, *own})

    def _trained(self, run: Run) -> Path:
        """The folder of an arm's trained model; a killed trial resumes at the last stage, or within it."""
        first, last = (self._stage(run, stage) for stage in ("stage1", "stage2"))
        if not stands(last):
            if not stands(first):
                self._fit(self._begin(run), run, first, self.steps1)
            self._fit(self._load(first, run.name), run, last, self.steps2)
        return last

    def _begin(self, run: Run) -> SalmonnForConditionalGeneration:
        """The untrained model of an arm, after its warm start where it has one."""
        name = plain(run.name)
        encoders = [for_speech(self.settings_)] if name == ONE else self.settings_

        def new() -> SalmonnForConditionalGeneration:
            made = self._ears(self._build(encoders, "stack" if name == STACK else "qformer", run.seed), name)
            self._share(made.llm)
            return made

        if cold(run.name) or not self.warm_start_steps:
            return new()
        start = self._stage(run, "start")
        if not stands(start):
            say(f"warm start: {self._spelt(run)}")
            made = new()
            rows = [row for row in self.rows_["stage1"] if row.task in ("asr", "sound")]
            warmed = warm_start(made, rows, steps=self.warm_start_steps, seed=run.seed)
            keep(_beside(start), {"steps": warmed.steps, "seconds": warmed.seconds, "loss": warmed.last_loss})
            made.save_pretrained(start)
        return self._load(start, name)

    def _rate(self, name: str) -> float:
        """The learning rate of norms and connector in an arm: the one given, or the best for its connector and ears.

        An arm without the warm start has the rate of the same architecture with it.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        like = plain(name) if plain(name) in (STACK, ONE) else MAIN
        held, steps = self.rows_["tuning"], max(1, self.steps1 // 2)
        asked = [(list(row.audio), row.instruction or instruction(row.task)) for row in held]

        def score(rate: float) -> float:
            model = self._begin(Run(like, self.seed))
            fitted = self._fitted(model, self.rows_["stage1"], None, steps, rate, self.seed)
            if not fitted.finished:
                raise KeyboardInterrupt
            lost = nats(model, asked, [row.answer for row in held])
            return -sum(lost) / len(lost)

        on = f"{len(held)} clips that no arm is trained on, in nats a token after {steps} steps"
        return self.tuned(like, RATES, score, on=on, open_ended=True)

    def _fit(self, model: SalmonnForConditionalGeneration, run: Run, out: Path, steps: int) -> None:
        rate = self._rate(run.name)
        say(f"training: {self._spelt(run)}, {spelt(out.name)}")
        fitted, _, peak = measure(
            lambda rows: self._fitted(model, rows, out, steps, rate, run.seed), self.rows_[out.name]
        )
        finished(fitted, out, peak)

    def _fitted(
        self,
        model: SalmonnForConditionalGeneration,
        rows: Sequence[AudioRow],
        out: Path | None,
        steps: int,
        rate: float,
        seed: int,
    ) -> TrainOutput:
        return fit(
            model,
            rows,
            out,
            steps=steps,
            minutes=self.minutes,
            batch_size=self.batch,
            learning_rate=rate,
            lora_learning_rate=self.lora_learning_rate,
            seed=seed,
        )

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


def stands(folder: Path) -> bool:
    """Whether a trained model is there, whole."""
    return (folder / "config.json").exists()


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def keep(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file)


def finished(fitted: TrainOutput, out: Path, peak: int) -> None:
    """Ends the trial where Ctrl-C has ended a training, whose checkpoint is kept; notes the memory that it took."""
    if not fitted.finished:
        raise KeyboardInterrupt
    keep(_beside(out), {"peak_bytes": peak})
    gc.collect()
