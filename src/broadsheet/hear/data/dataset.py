"""Makes a labelled training set for an audio LLM: clips, training rows, held-out rows, and an account of it.

Knows: files, sizes, splits. Does not know: how a clip is made, models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet.cache import atomic_folder, fingerprint, locked, sha256_file
from broadsheet.console import InputError, progress, say
from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data import grammar
from broadsheet.hear.data.mixing import wav_bytes
from broadsheet.hear.data.sounds import BANDS, NAMES
from broadsheet.hear.data.tasks import TASKS, UNSEEN_ORDERS, Maker, choices
from broadsheet.hear.data.voices import HARD_SPEEDS, RATES, SLOW, require, version

FORMAT = 2  # of what is made: another number, other clips
STAGE1 = ("asr", "sound", "caption")
FILES = ("stage1.jsonl", "stage2.jsonl", "stories.jsonl", "test.jsonl", "hard.jsonl")
SHORTEST, LONGEST = 3.0, 30.0  # seconds of a clip: the longest pair of sounds takes 2.8


@dataclass(frozen=True)
class Made:
    """A finished set.

    Attributes:
        folder: where it is.
        counts: rows of each file by its name without ending, "clips", and "redrawn": sentences drawn anew because
            they did not fit into a clip.
        seconds: length of every clip.
    """

    folder: Path
    counts: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class _Wanted:
    """One row to be made: the file it goes to, its split, its task, its place among its like, what it is about."""

    file: str
    split: str
    task: str
    index: int
    about: Any


def make_data(
    out: str | Path,
    *,
    seed: int = 0,
    seconds: float = 3.2,
    asr: int = 700,
    sound: int = 250,
    caption: int = 100,
    count: int = 100,
    voice: int = 100,
    order: int = 100,
    speech_sound: int = 150,
    stories: int = 12,
    test: int = 60,
    hard: int = 30,
    noisy: int = 30,
    many_words: bool = False,
    force: bool = False,
) -> Made:
    """Make a set of labelled clips of speech, sounds and mixtures, with what is held out from training beside it.

    In `out`: `audio/*.wav` (16 kHz mono, all of one length, names that say nothing); `stage1.jsonl` (asr, sound,
    caption); `stage2.jsonl` (every task); `stories.jsonl` (clips whose answers are yet to be written); `test.jsonl`
    (sentences, word pairs, orders of sounds and pitches that are not in training); `hard.jsonl` (speech that is slower
    than any in training: split "slow"; by espeak-ng: split "espeak"; speech and sounds that are up to 10 dB louder than
    the noise: split "noise"); `made.json` (settings, counts, versions, SHA-256 of each file). The same seed, settings
    and programs give the same bytes. A killed run leaves no `out`.

    Args:
        out: the folder; made anew.
        seed: of everything drawn.
        seconds: length of every clip, 3 to 30.
        asr, sound, caption, count, voice, order, speech_sound: training rows of each task.
        stories: clips to write stories about.
        test: held-out rows of asr, and of sound; half as many of each other task.
        hard: rows of speech with the slow rate, as many by espeak-ng, and as many in noise.
        noisy: rows of sounds in noise.
        many_words: let sentences have some 400 different words instead of some 60.
        force: replace a set with other settings.

    Raises:
        InputError: flite, sox or espeak-ng is missing; `out` holds something else; a size is negative; a clip is too
            short.

    Example:
        make_data("clips", seed=1, asr=100)
    """
    out = Path(out)
    sizes = {"asr": asr, "sound": sound, "caption": caption, "count": count, "voice": voice, "order": order}
    sizes |= {"speech_sound": speech_sound, "stories": stories, "test": test, "hard": hard, "noisy": noisy}
    _check(seed, seconds, sizes)
    settings = {"format": FORMAT, "seed": seed, "seconds": float(seconds), "sizes": sizes, "many_words": many_words}
    with locked(out):
        if (done := _finished(out, settings, force)) is not None:
            return done
        require(["flite", "sox", "espeak-ng"] if hard else ["flite", "sox"])
        with atomic_folder(out) as folder:
            counts = _write(folder, settings)
    made = Made(out, counts, float(seconds))
    say(f"made {counts['clips']} clips of {seconds:g} s in {out} ({counts['redrawn']} sentences redrawn: too long)")
    return made


def _check(seed: int, seconds: float, sizes: dict[str, int]) -> None:
    if seed < 0:
        raise InputError(f"got seed={seed}; expected 0 or more")
    if not SHORTEST <= seconds <= LONGEST:
        raise InputError(f"got seconds={seconds:g}; expected {SHORTEST:g} to {LONGEST:g}, which speech fits into")
    for name, size in sizes.items():
        if size < 0:
            raise InputError(f"got {name}={size}; expected 0 rows or more")
    if not any(sizes.values()):
        raise InputError("got every size 0; expected at least one row to make")


def _finished(out: Path, settings: dict[str, Any], force: bool) -> Made | None:
    """The existing data set; None if there is none, or it may be replaced."""
    if not out.exists():
        return None
    try:
        account = json.loads((out / "made.json").read_text(encoding="utf-8"))
        before, counts = account["settings"], account["counts"]
    except (OSError, ValueError, KeyError, TypeError):
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise InputError(f"{out} holds something that is no made set; give a folder that does not exist yet") from None
    if force and before != settings:
        return None
    if before != settings:
        other = ", ".join(f"{name}={before.get(name)}" for name in settings if before.get(name) != settings[name])
        raise InputError(f"{out} holds a set made with {other}; give another folder, or force to replace it")
    say(f"{out} is already made with these settings: {counts['clips']} clips")
    return Made(out, counts, settings["seconds"])


def _write(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Everything into an empty folder, the account last."""
    seed, seconds, sizes = settings["seed"], settings["seconds"], settings["sizes"]
    (folder / "audio").mkdir()
    makers: dict[str, Maker] = {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    names: set[str] = set()
    wanted = _plan(seed, sizes)
    with progress("making clips", total=len(wanted)) as bar:
        for want in wanted:
            maker = makers.setdefault(want.split, Maker(seconds, want.split, settings["many_words"]))
            clip = maker.make(want.task, want.about, _generator(seed, want.split, want.task, want.index))
            raw = wav_bytes(clip.samples)
            name = hashlib.sha256(f"{seed} ".encode() + raw).hexdigest()[:16]
            if name in names:
                raise RuntimeError(f"two clips are alike: {want}")
            names.add(name)
            (folder / "audio" / f"{name}.wav").write_bytes(raw)
            row = {"task": want.task, "audio": f"audio/{name}.wav"}
            if clip.instruction is not None:
                row["instruction"] = clip.instruction
            rows[want.file].append({**row, "answer": clip.answer, "split": want.split, "about": clip.about})
            bar.advance(bar.task_ids[0])
    rows["stage1.jsonl"] = [row for row in rows["stage2.jsonl"] if row["task"] in STAGE1]
    for name in FILES:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]]
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")
    counts = {name.removesuffix(".jsonl"): len(rows[name]) for name in FILES}
    counts |= {"clips": len(names), "redrawn": sum(maker.redrawn for maker in makers.values())}
    _account(folder, settings, counts, rows)
    return counts


def _plan(seed: int, sizes: dict[str, int]) -> list[_Wanted]:
    """Every row to make; those of training in random order."""
    wanted: list[_Wanted] = []

    def add(file: str, split: str, task: str, size: int) -> None:
        drawn = choices(task, split, size, _generator(seed, split, task, -1))
        wanted.extend(_Wanted(file, split, task, i, about) for i, about in enumerate(drawn))

    told = [task for task in TASKS if task != "story"]
    for task in told:
        add("stage2.jsonl", "train", task, sizes[task])
    order = _generator(seed, "train", "all", -1).permutation(len(wanted))
    wanted = [wanted[i] for i in order]
    add("stories.jsonl", "train", "story", sizes["stories"])
    for task in told:
        add("test.jsonl", "test", task, sizes["test"] if task in ("asr", "sound") else sizes["test"] // 2)
    for split in ("slow", "espeak", "noise"):
        add("hard.jsonl", split, "asr", sizes["hard"])
    add("hard.jsonl", "noise", "sound", sizes["noisy"])
    return wanted


def _account(
    folder: Path, settings: dict[str, Any], counts: dict[str, int], rows: dict[str, list[dict[str, Any]]]
) -> None:
    """made.json: what was asked for, what there is, with which programs."""
    programs = ["flite", "sox", *(["espeak-ng"] if settings["sizes"]["hard"] else [])]
    account = {
        "settings": settings,
        "counts": counts,
        "rows": {name: _tally(rows[name]) for name in FILES},
        "sha256": {name: sha256_file(folder / name) for name in FILES},
        "audio": fingerprint(sorted(path.name for path in (folder / "audio").iterdir())),
        "sample_rate": SAMPLE_RATE,
        "programs": {program: version(program) for program in programs},
        "speaking_rates": {"train, test and noise": RATES, "slow": SLOW, "espeak": HARD_SPEEDS},
        "sounds": {"names": NAMES, "semitones": BANDS},
        "held_out": {
            "pairs": sorted(" ".join(pair) for pair in grammar.held_out_pairs(settings["many_words"])),
            "share_of_sentences": grammar.HELD_OUT_SHARE,
            "orders": sorted(" then ".join(pair) for pair in UNSEEN_ORDERS),
        },
    }
    (folder / "made.json").write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8", newline="\n")


def _tally(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Rows by split and task."""
    found: dict[str, int] = {}
    for row in rows:
        found[f"{row['split']}.{row['task']}"] = found.get(f"{row['split']}.{row['task']}", 0) + 1
    return found


def _generator(seed: int, split: str, task: str, index: int) -> np.random.Generator:
    """For one clip, or with −1 for a whole task; whatever else is made."""
    digest = hashlib.sha256(f"{split} {task} {index}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
