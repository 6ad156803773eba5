"""Give a language model ears: the paper's stages one after another. What `broadsheet apply salmonn` runs.

Knows: a plan of stages, the folder that a training works in. Does not know: how any of them trains.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Recipe, Source
from broadsheet.apply.corpus import Summary
from broadsheet.cache import atomic_folder, fingerprint
from broadsheet.console import InputError, say
from broadsheet.hear.base import named
from broadsheet.hear.data.rows import read_rows, write_rows
from broadsheet.hear.training.plan import FULL, TrainingStage, content, context_for, open_data, planned
from broadsheet.options import default_of, flag, option
from broadsheet.training.workdir import workdir

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
    from broadsheet.hear.training.fitting import TrainOutput


@dataclass
class SalmonnRecipe(Recipe):
    """Give a language model ears: train norms, connector and adapter on rows of audio and answers.

    OUT is a folder for `broadsheet hear listen --model OUT` and `SalmonnForConditionalGeneration.from_pretrained`: what
    was trained, beside the names of the language model and the encoders. A command that was stopped or killed resumes
    when it is repeated; what a finished stage has learnt is kept.

    DATA is a folder that `broadsheet hear make-data` made, whose three stages are trained one after another: speech and
    sounds (`stage1.jsonl`), all tasks (`stage2.jsonl`), then activation tuning on stories (about `stories.jsonl`).
    Or it is a file of rows `{"task": …, "audio": path or list, "instruction": …, "answer": …}`, paths relative to it,
    trained on as one stage; a row without an instruction draws one for its task. `--on-error skip` leaves out rows
    whose audio cannot be read.
    """

    paper: ClassVar[str] = "salmonn"
    lacks: ClassVar[tuple[str, ...]] = ("method",)

    stages: Literal["1", "2", "3", "all"] = option("all", "Which stages are trained.")
    minutes: float | None = option(
        30.0, "Of training, for stages 1 and 2 together, two thirds for the first; 0: no limit.", least=0
    )
    steps: tuple[int, ...] = option((), "Of stages 1 and 2, at most; by default as many as the minutes hold.", least=1)
    epochs: int | None = option(
        None, "How often the rows may come, without --steps; by default as the minutes let them, else once.", least=1
    )
    batch_size: int = option(16, "Rows of a step.", least=1)
    learning_rate: float = option(3e-4, "Of norms and connector.", least=0)
    lora_learning_rate: float = option(1e-3, "Of the adapter.", least=0)
    warm_start_steps: int = option(
        0, "Before the first stage, of a warm start that is ours, not the paper's; 0: none.", least=0
    )
    activate: str | None = option(
        None, "Clips for activation tuning at the end; by default a folder's stories.jsonl; `no`: none.", metavar="FILE"
    )
    factor: float = option(0.5, "Of the adapter's scaling while stories are written.", least=0)
    story_steps: int = option(12, "Of activation tuning, a story each.", least=1)
    story_learning_rate: float = option(1e-4, "Of activation tuning.", least=0)
    rehearse: int = option(
        0,
        "Rows of the stage before beside each story, so that it is not forgotten; ours, not the paper's; 0: none.",
        least=0,
    )
    start: str | None = option(None, "A trained folder to train on from, instead of beginning anew.", metavar="FOLDER")
    encoders: tuple[str, ...] = option(
        ("whisper:tiny.en", "speech-embedding"), "whisper:NAME, beats:FILE, speech-embedding.", metavar="NAME,…"
    )
    context: float | None = option(
        None,
        "Seconds that Whisper looks at, and of the longest piece it hears; by default 8 where no clip is longer, for a "
        "fifth of the work, otherwise 30, the paper's.",
        least=1,
    )
    queries: int = option(1, "Audio tokens a window.", least=1)
    window: float = option(0.333333, "Seconds of a window.", least=0.02)
    connector: Literal["qformer", "stack"] = option("qformer", "The Q-Former, or stack-and-linear.")
    hidden: int = option(384, "Width of the Q-Former, whose heads are 64 wide (the paper: 768).", least=64)
    layers: int = option(2, "Of the Q-Former.", least=1)
    lora_rank: int = option(8, "Of the adapter; 0: none.", least=0)
    lora_alpha: int = option(32, "Of the adapter, whose scaling is alpha / rank.", least=1)
    keep_stages: bool = option(False, "Leave each stage's model as OUT.stage1, OUT.stage2 ….")

    def check(self) -> None:
        if self.activate not in (None, "no") and self.stages not in ("3", "all"):
            raise InputError(f"got --activate {self.activate} with --stages {self.stages}; expected stage 3 or all")
        if self.start:
            defaults = {name: default_of(type(self), name) for name in _ARCHITECTURE}
            if changed := [name for name, default in defaults.items() if getattr(self, name) != default]:
                given = ", ".join(map(flag, changed))
                raise InputError(f"got {given} with --start, which keeps what {self.start} consists of; leave it out")
        if self.hidden % 64:
            raise InputError(f"got --hidden {self.hidden}; expected a multiple of 64, the width of a head")

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        plan = planned(
            open_data(source.spec, on_error=source.on_error),
            self.stages,
            minutes=self.minutes or 0.0,
            steps=",".join(map(str, self.steps)),
            activate=self.activate or "",
            stories=self.story_steps,
            rehearse=self.rehearse > 0,
            warm=self.warm_start_steps,
            seed=self.seed,
        )
        if not (self.lora_rank or self.start) and plan[-1].name == "3":
            raise InputError("got --lora-rank 0: activation tuning weakens an adapter; give a rank, or --activate no")
        options = {name: value for name, value in self.given().items() if name not in ("device", "keep_stages")}
        config = {**options, "start": self._start_identity(), "rows": content(plan)}
        with workdir(
            out,
            config,
            finished="config.json",
            force=force,
            mutable_keys=("minutes", "factor"),
            fingerprints=("rows", "start"),
        ) as folder:
            try:
                stopped = self._stages(plan, folder)
            except BaseException:
                if not _begun(folder):  # so that a mended command is not refused for its other settings
                    shutil.rmtree(folder)
                raise
            if stopped is not None:
                return Summary(out, stopped.examples, 0, stopped.seconds, False)
            records = [_record(folder / stage.folder) for stage in plan]
            self._finish(plan, records, folder, out)
        examples = sum(int(record.get("examples", 0)) for record in records)
        seconds = sum(float(record.get("seconds", 0)) for record in records)
        say(f"{out}: {examples:,} rows in {seconds / 60:.1f} minutes of training")
        say(f"use it: broadsheet hear listen CLIP.wav 'What is said?' --model {out}")
        return Summary(out, examples, 0, seconds, True)

    def _start_identity(self) -> str:
        if not self.start:
            return ""
        from broadsheet.cache import sha256_file

        folder = Path(self.start).expanduser()
        return fingerprint([[file.name, sha256_file(file)] for file in sorted(folder.glob("*.safetensors"))])

    # Doing it

    def _stages(self, plan: Sequence[TrainingStage], folder: Path) -> TrainOutput | None:
        """Train what is not trained yet; the stage that Ctrl-C ended, if one was."""
        model: SalmonnForConditionalGeneration | None = None
        before: Path | None = None
        for stage in plan:
            if (folder / stage.folder / "config.json").is_file():
                before = folder / stage.folder
                continue
            if model is None:
                model = self._model(before, plan)
            fitted = self._train(model, stage, folder)
            if fitted is not None and not fitted.finished:
                return fitted
        return None

    def _model(self, trained: Path | None, plan: Sequence[TrainingStage]) -> SalmonnForConditionalGeneration:
        """What an earlier stage left; the one to train on from; or a new one."""
        from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if trained is not None or self.start:
            return SalmonnForConditionalGeneration.from_pretrained(trained or str(self.start), **options)
        encoders = [named(each) for each in self.encoders]
        if any(each["kind"] == "whisper" for each in encoders):
            context = self.context or context_for(plan)
            short = {} if context == FULL else {"context_seconds": context, "crop": True}
            encoders = [each | short if each["kind"] == "whisper" else each for each in encoders]
        return SalmonnForConditionalGeneration.build(
            self.model,
            encoders,
            seed=self.seed,
            window_seconds=self.window,
            num_queries=self.queries,
            connector=self.connector,
            qformer_hidden=self.hidden,
            qformer_heads=self.hidden // 64,
            qformer_layers=self.layers,
            qformer_ffn=4 * self.hidden,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            **options,
        )

    def _train(self, model: SalmonnForConditionalGeneration, stage: TrainingStage, folder: Path) -> TrainOutput | None:
        """Train one stage into `folder`."""
        from broadsheet.hear.training import warm_start
        from broadsheet.hear.training.fitting import fit

        out = folder / stage.folder
        if stage.name == "warm":
            warmed = warm_start.warm_start(model, stage.rows, steps=self.warm_start_steps, seed=self.seed)
            model.save_pretrained(out)
            say(f"warm start: {warmed.steps:,} steps in {warmed.seconds / 60:.1f} minutes, loss {warmed.last_loss:.3f}")
            return None
        if stage.name == "3":
            return self._activate(model, stage, out)
        limited = stage.minutes is not None or stage.steps is not None
        fitted = fit(
            model,
            stage.rows,
            out,
            steps=stage.steps,
            minutes=stage.minutes,
            epochs=self.epochs or (1_000_000 if limited else 1),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lora_learning_rate=self.lora_learning_rate,
            seed=self.seed,
        )
        _told(f"stage {stage.name}", fitted)
        return fitted

    def _activate(self, model: SalmonnForConditionalGeneration, stage: TrainingStage, out: Path) -> TrainOutput:
        """Stories first, kept as a file so that a run that was cut off tunes on the same; then the tuning."""
        from broadsheet.hear.training.activating import activate, write_stories

        file = out.with_name("stories.jsonl")
        if not file.is_file():
            write_rows(file, write_stories(model, stage.rows, factor=self.factor, seed=self.seed))
        stories = read_rows(file)
        fitted, _ = activate(
            model,
            [],
            out,
            stories=stories,
            steps=self.story_steps,
            learning_rate=self.story_learning_rate,
            rehearse=stage.rehearse,
            rehearsed=self.rehearse,
            seed=self.seed,
        )
        _told(f"activation tuning on {len(stories)} stories", fitted)
        return fitted

    def _finish(self, plan: Sequence[TrainingStage], records: list[dict[str, Any]], folder: Path, out: Path) -> None:
        """The last stage's model as `out`, with an account of all stages; then the working folder goes."""
        account = {
            "settings": self.given(),
            "stages": [
                {"stage": stage.name, **record, "rows": len(stage.rows)}
                for stage, record in zip(plan, records, strict=True)
            ],
        }
        with atomic_folder(out) as aside:
            shutil.copytree(folder / plan[-1].folder, aside, dirs_exist_ok=True)
            (aside / "training.json").write_text(json.dumps(account), "utf-8")
        if self.keep_stages:
            for stage in plan:
                kept = out.with_name(f"{out.name}.{stage.folder}")
                shutil.rmtree(kept, ignore_errors=True)
                (folder / stage.folder).rename(kept)
        shutil.rmtree(folder)


_ARCHITECTURE = (
    *("model", "encoders", "context", "queries", "window", "connector"),
    *("hidden", "layers", "lora_rank", "lora_alpha"),
)


def _begun(folder: Path) -> bool:
    """Whether anything stands in the working folder beside what it is made from."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return any(file.suffix != ".lock" and file.name not in ("settings.json", "replacing") for file in files)


def _record(folder: Path) -> dict[str, Any]:
    """What a stage's training wrote down; nothing of a warm start."""
    file = folder / "training.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _told(what: str, fitted: TrainOutput) -> None:
    if not fitted.finished:
        return
    loss = f", loss {fitted.history[0]['loss']:.3f} → {fitted.last_loss:.3f}" if fitted.history else ""
    say(f"{what}: {fitted.steps:,} steps, {fitted.examples:,} rows in {fitted.seconds / 60:.1f} minutes{loss}")
