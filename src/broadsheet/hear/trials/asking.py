"""How the arms of SALMONN's trial are asked: who hears which clip, what counts, what is kept for a killed trial.

Knows: questions, models that are trained, frames that several arms share. Does not know: what is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.trials.arms import Run, for_speech
from broadsheet.hear.trials.cascade import PrecomputedFeatures, ZeroFeatures
from broadsheet.hear.trials.likelihoods import LIKELIHOODS, weigh
from broadsheet.hear.trials.metrics import HARD_SPEECH, SPEECH, AudioQuestion, HearTask
from broadsheet.hear.trials.peers import ExternalTranscriber
from broadsheet.hear.trials.roster import CASCADE, ONE, SHUFFLED, SILENT, plain
from broadsheet.hear.trials.telling import ToldArms
from broadsheet.models.reading import quiet
from broadsheet.trial.base import ModelArm
from broadsheet.trial.engine import Arm, Outputs
from broadsheet.trial.lazy import LazyModel

_CHOICES = range(2, 101)  # numbers of labels from which a cascade chooses
_STORY_TOKENS = 15  # at least, of a story whose likelihood is measured


@dataclass
class AskedArms(ToldArms):
    """Trained arms that answer questions about clips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._listeners: dict[Any, Callable[[Sequence[AudioQuestion]], Any]] = {}

    def _arm(self, arm: ModelArm, model: LazyModel, job: HearTask) -> Arm:
        def listen(given: Any) -> Outputs:
            block, frames = given
            made = model()
            self._let_hear(made, arm.name, frames)
            return self._outputs(arm.name, made, job, block)

        def read(block: Sequence[AudioQuestion]) -> Outputs:
            return self._outputs(arm.name, model(), job, block)

        if arm.role == "peer":

            def start() -> None:
                model().encoder.start()

            def close() -> None:
                if (run := Run(self.peer_name_, self.seed)) in self.models_:
                    getattr(self.models_[run], "encoder", ExternalTranscriber(())).close()

            return Arm(arm.name, read, description=arm.description, prepare=start, close=close)
        if arm.name == CASCADE:
            return Arm(arm.name, read, description=arm.description, prepare=model.prepare)
        shared = self._listener(arm.name, job)
        return Arm(arm.name, listen, description=arm.description, prepare=model.prepare, shared=shared)

    def _listener(self, name: str, job: HearTask) -> Callable[[Sequence[AudioQuestion]], Any]:
        """What encodes a block's clips: one function for all arms with the same encoders and clips.

        In the first job, which alone is timed, anew each time; in all others from the cache.
        """
        other, one = plain(name) == SHUFFLED, plain(name) == ONE
        parts = [self.parts_[self.settings_.index(for_speech(self.settings_))]] if one else self.parts_
        timed = job.name == self.jobs_[0].name
        key = (other, len(parts), timed)
        if key not in self._listeners:
            shared = AudioFeatures(parts, keep=not timed)

            def encode(block: Sequence[AudioQuestion]) -> Any:
                clips = list(dict.fromkeys(clip for each in block for clip in (each.other if other else each.audio)))
                return block, dict(zip(clips, shared.features_all(clips), strict=True))

            self._listeners[key] = encode
        return self._listeners[key]

    def _let_hear(self, model: Any, name: str, frames: Mapping[str, Any]) -> None:
        """Give a model the frames of clips that are encoded already; in silence zeros instead."""
        given = PrecomputedFeatures(frames)
        model.audio_features = ZeroFeatures(given) if plain(name) == SILENT else given

    def _outputs(self, name: str, model: Any, job: HearTask, block: Sequence[AudioQuestion]) -> Outputs:
        """What an arm answers to a block of questions, judged."""
        if job.name == LIKELIHOODS:
            seed = next(run.seed for run, made in self.models_.items() if made is model)
            return job.outputs(block, weigh(model, self._requests(name, block), self._texts(seed, job, block)))
        return job.outputs(block, self._answers(name, model, job, block))

    def _requests(self, name: str, block: Sequence[AudioQuestion]) -> list[tuple[list[str], str]]:
        other = plain(name) == SHUFFLED
        return [(list(each.other if other else each.audio), each.instruction) for each in block]

    def _answers(self, name: str, model: Any, job: HearTask, block: Sequence[AudioQuestion]) -> list[str]:
        """An arm's answers; a cascade chooses among labels where those are a closed set."""
        choices: dict[str, Any] = {}
        if name in self.untrained_:
            closed = job.name not in (SPEECH, HARD_SPEECH)
            choices["choices"] = [each.labels if closed and len(each.labels) in _CHOICES else () for each in block]
        with quiet():
            return list(model.answers(self._requests(name, block), **choices, **job.generation))

    # A story and a caption of the same clip

    def _texts(self, seed: int, job: HearTask, block: Sequence[AudioQuestion]) -> list[tuple[str, str]]:
        """Of each clip of a block a story, written as those of stage 3 are, and its caption."""
        clips = [AudioRow("story", question.audio, "") for question in job.questions]
        told = self._written("told", seed, clips, (self._factor(seed),), least_words=1, min_new_tokens=_STORY_TOKENS)
        stories = {row.audio: row.answer for row in told}
        return [(stories[question.audio], question.answer) for question in block]
