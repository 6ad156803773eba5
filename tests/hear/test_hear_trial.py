"""The trial of SALMONN on tiny parts: who hears what, what is claimed, what a killed one goes on from."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hearing import Blocks
from shown import shown
from torch import Tensor
from training_runs import differ

from broadsheet import cache
from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.trials import arms, sets, telling
from broadsheet.hear.trials import salmonn as salmonn_trial
from broadsheet.hear.trials.following import FOLLOWED, NAMED_STORIES, NAMING
from broadsheet.hear.trials.likelihoods import LIKELIER, LIKELIHOODS, RATIO, nats
from broadsheet.hear.trials.metrics import HARD_SOUNDS, HARD_WER, OTHERS, SOUNDS, SPEECH, WER, HearTask, jobs
from broadsheet.hear.trials.notes import beside, loss_curve
from broadsheet.hear.trials.roster import (
    ACTIVATED,
    CASCADE,
    COLD,
    MAIN,
    ONE,
    REHEARSED,
    SHUFFLED,
    SILENT,
    STACK,
)
from broadsheet.hear.trials.salmonn import SalmonnTrial, claims_of
from broadsheet.trial.base import Outcome
from broadsheet.trial.examples import excerpt
from broadsheet.trial.results import TrialResult
from broadsheet.trial.stats import Interval

SAID = "the queen slept"
SIZES = {"hidden": 16, "heads": 2, "layers": 1, "ffn": 32, "steps1": 1, "steps2": 1, "batch": 2, "activation_steps": 1}
SIZES |= {"warm_start_steps": 1, "init": 0.4}  # so large that few and small layers hear
COLDS = [STACK + COLD, MAIN + COLD, SHUFFLED + COLD]


class Talking(Blocks):
    """Stands in for Whisper, and writes the same for every wave."""

    kind = "whisper"

    def __init__(self, spec: str = "tiny.en", context_seconds: float = 30.0, crop: bool = False) -> None:
        super().__init__()
        self.context_seconds, self.crop = context_seconds, crop

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "context_seconds": self.context_seconds, "crop": self.crop}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        return 6, 50.0

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        return -(-samples // 320)

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        return [SAID for _ in waves]


def write_set(folder: Path) -> Path:
    """Clips of a second, each another pattern fifty times over, and rows about them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    made = 0

    def row(task: str, answer: str, **more: Any) -> dict[str, Any]:
        nonlocal made
        made += 1
        with wave.open(str(folder / f"{made}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(np.tile(random.normal(0, 9000, 320), 50).clip(-32_000, 32_000).astype("<i2").tobytes())
        return {"task": task, "audio": f"{made}.wav", "answer": answer, **more}

    heard = {"sounds": [{"name": "bell"}], "speech": None}
    first = [row("asr", "the king sang"), row("sound", "bell"), row("sound", "horn")]
    sets = {
        "stage1": first,
        "stage2": [*first, row("count", "two"), row("caption", "a bell rings")],
        "stories": [row("story", "once there was a bell that nobody rang")],
        "test": [
            *(row("asr", answer) for answer in (SAID, "a king sang", SAID)),
            *(row("sound", answer, about=heard) for answer in ("bell", "horn", "bell")),
            *(row("count", answer) for answer in ("one", "two")),
            row("caption", "a horn blows"),
            row("caption", "a bell rings"),
        ],
        "hard": [
            *(row("asr", "the king sang", split=split) for split in ("slow", "slow", "slow", "espeak", "noise")),
            *(row("sound", name, split="noise", about=heard) for name in ("bell", "horn")),
        ],
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def short_jobs(rows: Any, asked: Any, max_new_tokens: int, hard: bool = False) -> list[HearTask]:
    """Answers of four tokens, in two turns of each arm: a random model never ends one by itself."""
    assert max_new_tokens > 8
    return [replace(job, turn=-(-len(job.questions) // 2)) for job in jobs(rows, asked, 4, hard)]


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable
) -> Iterator[dict[str, Any]]:
    """Options for a trial on a tiny model, two fake encoders and a small set."""
    folder = tmp_path_factory.mktemp("trial")
    tiny_model(max_position_embeddings=512, num_hidden_layers=1).save_pretrained(folder / "llm")
    tiny_tokenizer().save_pretrained(folder / "llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(folder / "home"))
        patch.setitem(base.KINDS, "whisper", f"{__name__}:Talking")
        patch.setitem(base.KINDS, "blocks", "hearing:Blocks")
        patch.setattr(salmonn_trial, "jobs", short_jobs)
        yield {
            "model": str(folder / "llm"),
            "data": str(write_set(folder / "set")),
            "encoders": ("whisper:tiny.en", "blocks"),
            "quick": True,
            "device": "cpu",
            "dtype": "float32",
            "stories": 2,
            "story_tokens": 4,
            "hard": 2,
            "noisy": 1,
            **SIZES,
        }


@pytest.fixture(scope="module")
def tried(parts: dict[str, Any]) -> tuple[SalmonnTrial, TrialResult]:
    trial = SalmonnTrial(**parts)
    return trial, trial.run()


def test_all_arms_are_asked_everything(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    _, result = tried
    warmed = [STACK, MAIN, ACTIVATED, REHEARSED, SHUFFLED, ONE, SILENT, CASCADE]
    assert [arm.name for arm in result.arms] == [*warmed, *COLDS]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    asked = {WER, SOUNDS, OTHERS, HARD_WER, HARD_SOUNDS, FOLLOWED, NAMING, NAMED_STORIES, RATIO, LIKELIER}
    assert all(set(arm.values) == asked for arm in result.arms)
    assert [arm.name for arm in result.arms if arm.role == "method"] == [MAIN, ACTIVATED]
    assert {arm.role for arm in result.arms if arm.name in COLDS} == {"sibling"}, "reported beside, and not judged"
    assert result.arms[0].role == "baseline"
    plain, hard, stories, captions = 3 + 3 + 2, 2 + 1 + 1 + 1, 2, 2
    assert [arm.n_items for arm in result.arms] == [plain + hard + stories + captions] * 11
    told = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    claims = [(claim.metric, claim.baseline, claim.arm) for claim in claims_of()]
    assert result.claims == claims
    assert set(claims) <= told
    assert {(FOLLOWED, MAIN, REHEARSED), (WER, ACTIVATED, REHEARSED), (HARD_WER, STACK, MAIN)} <= told
    assert {(WER, MAIN + COLD, MAIN), (WER, SHUFFLED + COLD, MAIN + COLD), (WER, STACK + COLD, MAIN + COLD)} <= told
    assert {c.metric for c in result.comparisons if c.test == "exact McNemar"} == {
        *(SOUNDS, OTHERS, HARD_SOUNDS, FOLLOWED, NAMING, LIKELIER)
    }
    assert {claim.kind for claim in result.judged if claim.baseline == SHUFFLED} == {"control"}
    assert {c.chance for c in result.comparisons if c.metric == SOUNDS} == {1 / 2}, "of two names"
    assert not next(c for c in result.comparisons if c.metric == WER).higher_is_better
    assert len([c for c in result.comparisons if (c.metric, c.arm) == ("clips/s", MAIN) and c.baseline == STACK]) == 1


def test_the_examples_are_what_was_answered(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    trial, result = tried
    kept = {answer for job in trial.jobs_ if job.texts for answer in result.arms[0].samples[f"{job.name}: answers"]}
    for example in shown(result):
        assert example.expected.startswith("Heard: ")
        assert example.answers[STACK] in {excerpt(answer) or "nothing" for answer in kept}


def test_the_shuffled_arm_is_the_same_model_hearing_the_other_clip(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    trial, result = tried
    samples = {arm.name: arm.samples for arm in result.arms}
    for job in trial.jobs_[:2]:
        clips = [question.audio for question in job.questions]
        own, others = (samples[name][f"{job.name}: answers"] for name in (MAIN, SHUFFLED))
        assert [own[clips.index(question.other)] for question in job.questions] == others
    assert len(set(samples[MAIN]["sounds: answers"])) > 1  # it does hear


def test_in_silence_all_clips_are_one(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    samples = {arm.name: arm.samples for arm in tried[1].arms}
    assert len(set(samples[SILENT]["sounds: answers"])) == 1
    assert len(set(samples[SILENT]["speech: answers"])) == 1


def test_the_cascade_answers_by_its_transcript_and_among_the_labels(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    samples = {arm.name: arm for arm in tried[1].arms}[CASCADE].samples
    assert samples["speech: answers"] == [SAID] * 3
    assert sorted(samples["words"]) == [[0, 3], [0, 3], [3, 3]]
    assert set(samples["sounds: answers"]) <= {"bell", "horn"}
    assert set(samples["other tasks: answers"]) <= {"one", "two"}


def test_short_clips_are_heard_in_a_short_context(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    trial, result = tried
    assert trial.settings_[0] == {"kind": "whisper", "spec": "tiny.en", "context_seconds": 8.0, "crop": True}
    assert trial.settings_[1] == {"kind": "blocks"}
    assert result.setting["encoders"] == "whisper:tiny.en with 8 s of context, blocks"
    assert trial._seconds == 1


def test_the_notes_hold_controls_stories_training_and_memory(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    result = tried[1]
    notes = "\n".join(result.notes)
    values = {arm.name: arm.values for arm in result.arms}
    assert beside(values[MAIN], values[SHUFFLED], MAIN, SHUFFLED) in result.notes
    stages = r"stage 1, 1 steps of 2 rows in \d+ s; stage 2, 1 steps of 2 rows in"
    for name in (STACK, MAIN, ONE, SILENT):
        begun = rf"^{name}: warm start, which is not the paper's, 1 steps in \d+ s; {stages}"
        assert re.search(begun, notes, re.M), "all alike"
    for name in COLDS[:2]:
        assert re.search(rf"^{name}: {stages}", notes, re.M)
    assert f"{ACTIVATED}: stage 3, 1 steps of 1 rows in " in notes
    assert f"{REHEARSED}: stage 3, 1 steps of 1 rows and 5 rehearsed in " in notes
    for name in (MAIN, ACTIVATED, REHEARSED):
        note = next(note for note in result.notes if note.startswith(f"{name}, asked for 2 stories, at scaling"))
        assert [part.split(" ")[2] for part in note.split("stories, ")[1].split("; ")] == ["4:", "2:", "0:"]
    assert "Memory of the whole process" in notes
    assert "Not scored: rows of caption" in notes
    assert "gain that the paper reports is absent" in notes
    wer = {name: values[name][WER].estimate for name in (MAIN, SHUFFLED)}
    assert f"has a WER of {wer[MAIN]:.2f}, and of {wer[SHUFFLED]:.2f} where it hears another clip" in notes
    [note] = [note for note in result.notes if note.startswith("Perplexity of a story and of a caption")]
    assert all(f"{name}: " in note for name in (MAIN, ACTIVATED, REHEARSED))
    assert [figure.title for figure in result.figures] == ["Training loss, stage 1", "Training loss, stage 2"]
    assert set(result.figures[0].lines) == {STACK, MAIN, ONE, SILENT, *COLDS[:2]}  # type: ignore[union-attr]


def test_stories_are_written_once_for_both_ways_of_learning_them(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set")
    clips = [{**json.loads(line), "answer": ""} for line in (folder / "stories.jsonl").read_text().splitlines()]
    (folder / "stories.jsonl").write_text("".join(json.dumps(each) + "\n" for each in clips))
    written: list[list[str]] = []
    learnt: list[tuple[list[str], int]] = []
    activate = telling.activate

    def write(model: Any, rows: Any, **settings: Any) -> Any:
        written.append([row.answer for row in rows])
        return [replace(row, answer="once there was a bell") for row in rows]

    def noted(model: Any, rows: Any, out: Path, *, stories: Any, **settings: Any) -> Any:
        learnt.append(([row.answer for row in stories], len(settings.get("rehearse", ()))))
        return activate(model, rows, out, stories=stories, **settings)

    monkeypatch.setattr(telling, "write_stories", write)
    monkeypatch.setattr(telling, "activate", noted)
    options = parts | {"also": ("activated", "rehearsed"), "encoders": ("blocks",), "seed": 3, "data": str(folder)}
    options["runs"] = 2
    trial = SalmonnTrial(**options)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys([STACK, MAIN, ACTIVATED, REHEARSED], "ok")
    assert written == [[""]] * 2 + [["", ""]] * 2, "once a training run, to learn and to weigh"
    assert sorted(learnt) == [(["once there was a bell"], 0)] * 2 + [(["once there was a bell"], 5)]
    assert differ(trial, STACK, MAIN, ACTIVATED)
    assert {arm.name: arm.runs for arm in result.arms} == {STACK: 2, MAIN: 2, ACTIVATED: 2, REHEARSED: 1}
    assert not any(claim.trained_once for claim in result.judged)
    assert {arm.name: arm.samples for arm in SalmonnTrial(**options).run().arms} == {
        arm.name: arm.samples for arm in result.arms
    }
    trial.finish()


def test_stories_are_written_with_the_strongest_adapter_that_tells_one_of_each_clip(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = SalmonnTrial(**parts)
    trial.tasks()
    trial.workdir = tmp_path
    rows = [replace(trial.rows_["stories"][0], answer=""), replace(trial.rows_["stage1"][0], answer="")]
    trial.rows_["stories"] = rows
    come, asked = {0.5: 0, 0.25: 1, 0.1: 2}, list[float]()

    def write(model: Any, rows: Any, *, factor: float, **_: Any) -> Any:
        asked.append(factor)
        if not come[factor]:
            raise InputError("no story; give a smaller factor")
        return [replace(row, answer=f"at {factor}") for row in rows[: come[factor]]]

    monkeypatch.setattr(telling, "write_stories", write)
    monkeypatch.setattr(trial, "_trained", lambda run: run)
    monkeypatch.setattr(trial, "_load", lambda *_, **__: None)
    assert trial._factor(0) == 0.5, "before any is written"
    for _ in range(2):
        assert [row.answer for row in trial._stories_of(0)] == ["at 0.1"] * 2
    assert asked == [0.5, 0.25, 0.1], "once"
    assert trial._factor(0) == 0.1
    assert trial._how_written() == ["Stage 3's stories were written at 0.1 of the adapter's scaling."]
    come[0.1] = 0
    assert [row.answer for row in trial._stories_of(1)] == ["at 0.25"], "else that which tells most"
    come[0.25] = 0
    with pytest.raises(InputError, match="smaller factor"):
        trial._stories_of(2)
    trial.finish()


def test_a_story_and_a_caption_are_weighed_by_all_arms_alike(tried: tuple[SalmonnTrial, TrialResult]) -> None:
    trial, result = tried
    job = next(job for job in trial.jobs_ if job.name == LIKELIHOODS)
    [file] = trial.workdir.glob("told-*.jsonl")
    told = {row["audio"][0]: row["answer"] for row in map(json.loads, file.read_text().splitlines())}
    samples = {arm.name: arm.samples for arm in result.arms}
    for name in (MAIN, ACTIVATED):
        [folder] = {file.parent for file in trial.run_folder(name, 0).glob("stage[23]/config.json")}
        model = SalmonnForConditionalGeneration.from_pretrained(folder, device="cpu")
        requests = [(list(each.audio), "Write a story about the audio.") for each in job.questions]
        stories = nats(model, requests, [told[each.audio[0]] for each in job.questions])
        captions = nats(model, requests, [each.answer for each in job.questions])
        weighed = [*zip(stories, captions, strict=True)]
        assert samples[name][f"{LIKELIHOODS}: answers"] == [pytest.approx(pair, abs=1e-4) for pair in weighed]
        assert samples[name][RATIO] == pytest.approx([np.exp(a - b) for a, b in weighed], rel=1e-3)
        assert samples[name][LIKELIER] == [int(a < b) for a, b in weighed]
    assert {row.answer for row in trial.rows_["test"] if row.task == "caption"} == {q.answer for q in job.questions}
    assert samples[MAIN][RATIO] != samples[SHUFFLED][RATIO]


def test_what_is_judged_is_trained_from_each_seed_and_the_rest_once(parts: dict[str, Any]) -> None:
    trial = SalmonnTrial(**parts | {"runs": 3, "seed": 6})
    trial.tasks()
    trial.workdir = Path("none")
    seeded = {arm.name: arm.by_seed is not None for arm in trial.arms()}
    assert [name for name, several in seeded.items() if several] == [STACK, MAIN, ACTIVATED, ONE]
    assert {*seeded} - {*COLDS} == {STACK, MAIN, ACTIVATED, REHEARSED, SHUFFLED, ONE, SILENT, CASCADE}
    needed = {name for claim in trial.claims() if claim.kind == "claim" for name in (claim.baseline, claim.arm)}
    assert needed <= {name for name, several in seeded.items() if several}


def test_without_a_warm_start_the_papers_stages_are_what_is_judged(parts: dict[str, Any]) -> None:
    trial = SalmonnTrial(**parts | {"warm_start_steps": 0, "seed": 7})
    trial.tasks()
    assert not {*COLDS} & {*trial._chosen}
    assert trial.claims() == claims_of(warmed=False)
    assert "warm start" not in str(trial.setting())
    trial = SalmonnTrial(**parts | {"seed": 7})
    trial.tasks()
    assert trial.claims() == claims_of(warmed=True)
    assert "before these 1 steps of warm start, which is ours" in trial.setting()["training"]


def test_where_another_clip_serves_as_well_an_absent_gain_is_said_to_be_of_a_deaf_model(
    tried: tuple[SalmonnTrial, TrialResult],
) -> None:
    trial, result = tried
    [claim] = [claim for claim in claims_of() if claim.metric == HARD_SOUNDS]

    def said(verdict: str) -> str:
        found = [
            replace(c, verdict=verdict) if (c.metric, c.baseline, c.arm) == (SOUNDS, SHUFFLED, MAIN) else c
            for c in result.comparisons
            if c.metric != WER
        ]
        return trial.absence(claim, found[0], Outcome([], result.arms, found))

    assert "By its sound accuracy, another clip serves as well: it does not hear" in said("no measurable difference")
    assert "does not hear" not in said("helps")


def test_the_first_weights_are_as_large_as_the_width_asks_and_said(parts: dict[str, Any]) -> None:
    trial = SalmonnTrial(**parts | {"init": None, "also": (), "hidden": 64, "seed": 8})
    trial.tasks()
    made = trial._build(trial.settings_, "qformer", 0)
    deviations = [w.std().item() for name, w in made.connector.qformer.named_parameters() if w.ndim > 1]
    assert deviations == pytest.approx([64**-0.5] * len(deviations), rel=0.2)
    assert "with weights of ±0.125 at first" in trial.setting()["connector"]
    assert SalmonnTrial()._init == pytest.approx(0.051, abs=1e-4)


def test_arms_are_asked_in_the_type_that_the_device_is_fast_in_around_one_language_model(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "autocast_dtype", lambda name, device: torch.bfloat16)
    options = parts | {"also": ("cascade",), "seed": 9, "stories": 0}

    def asked(dtype: str | None) -> tuple[set[torch.dtype], set[torch.dtype], set[int]]:
        trial = SalmonnTrial(**options | {"dtype": dtype})
        trial.tasks()
        trial.workdir = Path(os.environ["BROADSHEET_HOME"]) / f"asked-{dtype}"
        trial.workdir.mkdir()
        trained: set[torch.dtype] = set()
        fit = arms.fit

        def noted(model: Any, *more: Any, **settings: Any) -> Any:
            trained.add(model.llm.dtype)
            return fit(model, *more, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(arms, "fit", noted)
            made = [trial._model(arms.Run(name, 9)) for name in (STACK, MAIN)]
        cascade = trial._model(arms.Run(CASCADE, 9)).model
        models = [each.llm for each in made] + [cascade]
        tables = {each.get_input_embeddings().weight.data_ptr() for each in models}
        return trained, {each.dtype for each in models}, tables

    trained, answering, tables = asked(None)
    assert (trained, answering, len(tables)) == ({torch.float32}, {torch.bfloat16}, 1)
    trained, answering, tables = asked("float32")
    assert (trained, answering, len(tables)) == ({torch.float32}, {torch.float32}, 1)


def test_frames_are_encoded_anew_where_time_is_taken_and_else_read(parts: dict[str, Any], tmp_path: Path) -> None:
    trial = SalmonnTrial(**parts | {"also": (), "seed": 10})
    trial.tasks()
    jobs_ = {job.name: job for job in trial.jobs_}
    calls = trial.parts_[1]
    for name, several in (("speech", 2), ("sounds", 1)):
        job, before = jobs_[name], calls.calls
        listen = trial._listener(MAIN, job)
        shutil.rmtree(cache.home() / "features", ignore_errors=True)
        for _ in range(2):
            listen(job.questions)
        assert calls.calls - before == several * len({each.audio for each in job.questions}), name
        assert trial._listener(MAIN, job) is trial._listener(STACK, job), "once for all arms"
    assert any((cache.home() / "features").rglob("*.npy")), "where a pilot and a recording both find them"


def test_each_architecture_has_the_rate_that_serves_clips_held_back(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, trained, weighed = arms.fit, [], []
    best = {("stack", 2): 1e-4, ("qformer", 2): 1e-3, ("qformer", 1): 3e-4}

    def noted(model: Any, rows: Any, out: Path | None, **settings: Any) -> Any:
        kind = (model.config.connector, len(model.config.encoders))
        trained.append((kind, out is None, settings["learning_rate"], sets.clips_of(rows)))
        model.rate = settings["learning_rate"]
        return fit(model, rows, out, **settings)

    def lost(model: Any, requests: Any, answers: Any) -> list[float]:
        weighed.append({clip for clips, _ in requests for clip in clips})
        wanted = best[model.config.connector, len(model.config.encoders)]
        return [abs(np.log(model.rate / wanted))]

    monkeypatch.setattr(arms, "fit", noted)
    monkeypatch.setattr(arms, "nats", lost)
    options = parts | {
        "quick": False,
        "runs": 1,
        "also": ("one", "cold"),
        "stories": 0,
        "hard": 0,
        "noisy": 0,
        "test": 6,
    }
    trial = SalmonnTrial(**options)
    result = trial.run()
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    tuning = [(connector, rate) for connector, tuned, rate, _ in trained if tuned]
    beyond = {("stack", 2): {3e-5}, ("qformer", 2): {3e-3}, ("qformer", 1): set[float]()}  # where the best is an end
    tried = [(kind, rate) for kind in best for rate in {*arms.RATES, *beyond[kind]}]
    assert sorted(tuning) == sorted(tried), "in the judged way alone"
    assert {(kind, rate) for kind, tuned, rate, _ in trained if not tuned} == {*best.items()}
    held = set.union(*weighed)
    assert len(held) == 1
    assert not any(held & clips for *_, clips in trained)
    assert {name for name in result.setting if name.startswith("tuning of ")} == {
        f"tuning of {name}" for name in (STACK, MAIN, ONE)
    }
    trained.clear()
    assert SalmonnTrial(**options).run().setting == result.setting
    assert not trained, "what is tuned is kept"
    trial.finish()


def test_stage_3_has_the_rate_that_brings_stories_and_spares_transcripts(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set")
    first = (folder / "stage1.jsonl").read_text()
    heard = {"about": {"sounds": [{"name": "bell"}]}}
    held = [{**json.loads(first.splitlines()[i]), **heard} for i in (0, 1, 2)]
    monkeypatch.setattr(sets, "held_back", lambda rows: {**rows, "tuning": sets.read_rows(tmp_path / "set/held.jsonl")})
    (folder / "held.jsonl").write_text("".join(json.dumps(each) + "\n" for each in held))
    learnt: list[tuple[bool, float]] = []
    activate = telling.activate

    def noted(model: Any, rows: Any, out: Path | None, **settings: Any) -> Any:
        learnt.append((out is None, settings["learning_rate"]))
        model.rate = settings["learning_rate"]
        return activate(model, rows, out, **settings)

    monkeypatch.setattr(telling, "activate", noted)
    options = {"quick": False, "also": ("activated",), "data": str(folder), "learning_rate": 3e-4, "seed": 11}
    trial = SalmonnTrial(**parts | options | {"runs": 1})
    trial.tasks()
    trial.workdir = tmp_path
    judged: list[list[str]] = []

    def about_clips(asked: Any) -> HearTask:
        def judge(question: Any, answer: Any) -> dict[str, float]:
            judged.append([question.instruction, *question.audio])
            return {NAMED_STORIES: {1e-4: 0.0, 3e-4: 0.4, 1e-3: 0.6}[learnt[-1][1]]}  # most at the highest rate

        return replace(SalmonnTrial._about_clips(trial, asked), judge=judge)

    monkeypatch.setattr(trial, "_about_clips", about_clips)
    errors = {1e-4: 0, 3e-4: 0, 1e-3: 2}  # of three words

    def transcribed(rows: Any, asked: Any, max_new_tokens: int) -> list[HearTask]:
        return [
            replace(job, judge=lambda *_: {"words": (errors[learnt[-1][1]], 3)})
            for job in jobs(rows, asked, max_new_tokens)
            if job.name == SPEECH
        ]

    monkeypatch.setattr(telling, "jobs", transcribed)
    trial._trained(arms.Run(ACTIVATED, 11))
    assert learnt == [*((True, rate) for rate in arms.RATES), (False, 3e-4)]
    assert {asked for asked, _ in judged} == {"Write a story about the audio."}
    assert {clip for _, clip in judged} == sets.clips_of(trial.rows_["tuning"])
    assert trial.setting()["activation"].count("learning rate as tuned") == 1


def test_a_second_run_reads_what_the_first_has_kept(
    tried: tuple[SalmonnTrial, TrialResult], parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(arms, "fit", refuse)
    monkeypatch.setattr(telling, "activate", refuse)
    trial = SalmonnTrial(**parts)
    again = trial.run()
    assert {arm.name: arm.samples for arm in again.arms} == {arm.name: arm.samples for arm in tried[1].arms}
    assert again.notes == tried[1].notes
    trial.finish()


def test_a_killed_trial_goes_on_with_the_next_stage(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = parts | {"also": ("shuffled", "cold"), "stories": 0, "seed": 1}
    fit, calls = arms.fit, []

    def killed(model: Any, rows: Any, out: Path, **settings: Any) -> Any:
        calls.append((out.parent.name, out.name))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(model, rows, out, **settings)

    monkeypatch.setattr(arms, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        SalmonnTrial(**options).run()
    result = SalmonnTrial(**options).run()
    assert [stage for _, stage in calls] == ["stage1", "stage2", "stage2"] + ["stage1", "stage2"] * 3
    assert calls[1] == calls[2]
    assert [arm.name for arm in result.arms] == [STACK, MAIN, SHUFFLED, *COLDS]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert {arm for _, *arms in result.claims for arm in arms} == {MAIN, SHUFFLED}


def test_without_stories_that_come_out_one_arm_fails_and_keeps_its_claim(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise InputError("no story came out")

    monkeypatch.setattr(telling, "activate", nothing)
    result = SalmonnTrial(**parts | {"also": ("activated",), "encoders": ("blocks",), "seed": 2, "stories": 1}).run()
    assert {arm.name: arm.status for arm in result.arms} == {STACK: "ok", MAIN: "ok", ACTIVATED: "failed"}
    assert "no story came out" in result.arms[2].error
    assert (NAMED_STORIES, MAIN, ACTIVATED) in result.claims


def test_by_default_the_set_is_made_in_the_trials_folder(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def make(out: Path, **sizes: Any) -> SimpleNamespace:
        asked.append((out, sizes))
        return SimpleNamespace(folder=write_set(out))

    monkeypatch.setattr(sets, "make_data", make)
    trial = SalmonnTrial(**parts | {"data": "pydocs", "also": ("one", "cascade"), "encoders": ("blocks",), "test": 7})
    trial.tasks()
    [(folder, sizes)] = asked
    assert folder.parent.name == "trials"
    assert {name: sizes[name] for name in ("seed", "test", "stories", "hard", "noisy", "many_words", "asr")} == {
        "seed": 0,
        "test": 7,
        "stories": 1,
        "hard": 2,
        "noisy": 1,
        "many_words": True,
        "asr": 24,
    }
    assert trial._chosen == [STACK, MAIN]  # one encoder, and none that transcribes
    trial.workdir = folder.parent / "none"
    trial.finish()
    assert not folder.exists()


def test_losses_are_means_of_consecutive_steps() -> None:
    histories = {"a": [{"loss": float(i)} for i in range(5)], "b": [{"loss": 9.0}]}
    curve = loss_curve("t", histories, points=3)
    assert curve.x == [2, 4, 5]
    assert curve.lines == {"a": [0.5, 2.5, 4.0], "b": [9.0, None, None]}


def test_a_control_is_said_with_its_distance() -> None:
    said = beside({WER: Interval(0.125, 0, 1)}, {WER: Interval(0.875, 0, 1), SOUNDS: Interval(1, 1, 1)}, "A", "B")
    assert said == "A beside B: WER 0.125 against 0.875, 0.750 apart."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps1": 0}, "--steps1 0"),
        ({"batch": 0}, "--batch 0"),
        ({"stories": -2}, "--stories -2"),
        ({"hard": -1}, "--hard -1"),
        ({"noisy": -1}, "--noisy -1"),
        ({"rehearsed": -1}, "--rehearsed -1"),
        ({"also": ("shuffled", "loud")}, "--also 'loud'"),
        ({"encoders": ("ears",)}, "audio encoder 'ears'"),
        ({"encoders": ()}, "no --encoders"),
    ],
)
def test_bad_options_are_named(parts: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SalmonnTrial(**parts | options).run()


def test_a_set_that_tests_what_it_trains_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    first = (folder / "stage1.jsonl").read_text().splitlines()[0]
    with (folder / "test.jsonl").open("a") as file:
        file.write(first + "\n")
    with pytest.raises(InputError, match=r"1 clips of test\.jsonl are trained on, such as 1\.wav"):
        SalmonnTrial(**parts | {"data": str(folder)}).run()
    (folder / "test.jsonl").write_text(json.dumps({"task": "caption", "audio": "9.wav", "answer": "a bell"}) + "\n")
    with pytest.raises(InputError, match="no row that is scored"):
        SalmonnTrial(**parts | {"data": str(folder)}).run()
    (folder / "9.wav").unlink()
    with pytest.raises(InputError, match=r"9\.wav does not exist"):
        SalmonnTrial(**parts | {"data": str(folder)}).run()


HEARS = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    texts = ["the queen slept" for _ in json.loads(line)["items"]]
    print(json.dumps({"outputs": {"text": texts}}), flush=True)
"""


def test_a_peer_transcribes_for_a_cascade_of_its_own(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ears.py").write_text(HEARS)
    peer = shlex.join([sys.executable, str(tmp_path / "ears.py")])
    options = parts | {"also": ("cascade",), "encoders": ("whisper:tiny.en",), "seed": 4, "stories": 0, "peer": peer}
    result = SalmonnTrial(**options).run()
    ours, theirs = result.arms[-2:]
    assert (theirs.name, theirs.role, theirs.status, theirs.error) == ("peer: ears.py", "peer", "ok", "")
    assert theirs.samples["words"] == ours.samples["words"]  # `Talking` hears the same
    assert theirs.values[SOUNDS].estimate == ours.values[SOUNDS].estimate
    assert (WER, "peer: ears.py", MAIN) in {(c.metric, c.baseline, c.arm) for c in result.comparisons}
