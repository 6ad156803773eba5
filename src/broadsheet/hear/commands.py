"""The commands `broadsheet hear …`. Parses, calls one function of the stage, prints; imports nothing heavy before.

Knows: the options of the group's commands. Does not know: how anything is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from broadsheet.console import InputError, say

app = typer.Typer(
    help="A language model that hears: make data, ask about audio, unlock other tasks, draw the architecture.",
    epilog="Example: broadsheet hear listen clip.wav 'What is said?' --model runs/ears",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NAME = "hear"
Device = Annotated[str | None, typer.Option(help="Of the language model; chosen by default.")]
Dtype = Annotated[str | None, typer.Option(help="Of the language model; chosen by default.")]
Trained = Annotated[Path, typer.Option("--model", metavar="FOLDER", help="What `apply salmonn` wrote.")]
Rows = Annotated[int, typer.Option(min=0, help="Training rows of this task.")]


@app.command(epilog="Example: broadsheet hear listen clip.wav 'What is said?' --model runs/ears")
def listen(
    model: Trained,
    given: Annotated[
        list[str] | None, typer.Argument(metavar="FILE… INSTRUCTION", help="Clips, and what is asked about them.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Of a beam search (the paper: 4); 1 writes as it goes.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 200,
    scale: Annotated[
        float, typer.Option(min=0.0, help="Of the adapter's scaling: 0.5 writes more freely, 0 turns it off.")
    ] = 1.0,
    batch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests instead: JSONL of audio and instruction or task.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Answers to --batch; resumes where a killed run stopped.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="At a request that cannot be answered: stop, or record the error and continue."),
    ] = "skip",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the answer alone.")] = False,
) -> None:
    """Ask one thing about one or more clips; the answer is printed as it is written.

    Several files are several clips in one prompt. What is longer than the encoders hear at once, 30 s at most, is heard
    in pieces.
    """
    if batch is not None:
        if given or out is None or as_json:
            raise InputError("got --batch with FILE… or --json, or without --out; expected --batch FILE --out FILE")
        _listen_all(model, batch, out, on_error, (device, dtype), force, batch_size, beams, max_tokens, scale)
        return
    if out is not None:
        raise InputError("got --out without --batch; the answer goes to stdout")
    files, instruction = question(given or [])
    from dataclasses import asdict

    from broadsheet.hear import listening
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

    found = SalmonnForConditionalGeneration.from_pretrained(model, device=device, dtype=dtype)
    write = None if as_json else _write
    heard = listening.listen(found, files, instruction, beams=beams, max_tokens=max_tokens, scale=scale, write=write)
    print(json.dumps({"instruction": instruction, **asdict(heard)}, indent=1, ensure_ascii=False) if as_json else "")


def _listen_all(
    model: Path,
    batch: Path,
    out: Path,
    on_error: Literal["stop", "skip"],
    place: tuple[str | None, str | None],
    force: bool,
    batch_size: int,
    beams: int,
    max_tokens: int,
    scale: float,
) -> None:
    from broadsheet.data.sources import keep_inputs
    from broadsheet.hear import listening
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

    keep_inputs(out, batch, model)
    requests = listening.Requests(batch, on_error)
    found = SalmonnForConditionalGeneration.from_pretrained(model, device=place[0], dtype=place[1])
    done = listening.listen_all(
        found, requests, out, beams=beams, max_tokens=max_tokens, scale=scale, batch_size=batch_size, force=force
    )
    if not done.finished:
        raise KeyboardInterrupt


def question(given: list[str]) -> tuple[list[str], str]:
    """Files and the instruction, which is the last argument; seen to be there before a model is loaded.

    Raises:
        InputError: one of them is missing.
    """
    if given and Path(given[-1]).is_file():
        raise InputError(
            f"got no instruction: the last argument, {given[-1]}, is a file; expected FILE… 'What is said?'"
        )
    if len(given) < 2:
        raise InputError("got no audio or no instruction; expected FILE… 'What is said?', or --batch FILE --out FILE")
    for file in given[:-1]:
        if not Path(file).expanduser().is_file():
            raise InputError(f"there is no file {file}; expected audio (WAV, FLAC, OGG, MP3), and last what is asked")
    return given[:-1], given[-1]


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@app.command("make-data", epilog="Example: broadsheet hear make-data --out runs/clips")
def make_data(
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    seconds: Annotated[float, typer.Option(help="Length of every clip.")] = 3.2,
    asr: Rows = 700,
    sound: Rows = 250,
    caption: Rows = 100,
    count: Rows = 100,
    voice: Rows = 100,
    order: Rows = 100,
    speech_sound: Rows = 150,
    stories: Annotated[int, typer.Option(min=0, help="Clips to write stories about.")] = 12,
    test: Annotated[int, typer.Option(min=0, help="Held-out rows of asr and sound; half as many of the others.")] = 60,
    hard: Annotated[
        int, typer.Option(min=0, help="Held-out rows of slow speech, and as many by another program and in noise.")
    ] = 30,
    noisy: Annotated[int, typer.Option(min=0, help="Held-out rows of sounds in noise.")] = 30,
    many_words: Annotated[bool, typer.Option("--many-words", help="Some 400 words instead of some 60.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a set made with other settings.")] = False,
) -> None:
    """Make labelled clips to train and test on: speech by flite and espeak-ng, sounds by sox; nothing is downloaded.

    Needs the programs: apt install flite sox espeak-ng.
    """
    from broadsheet.hear import data as making

    sizes = {"asr": asr, "sound": sound, "caption": caption, "count": count, "voice": voice, "order": order}
    sizes |= {"speech_sound": speech_sound, "stories": stories, "test": test, "hard": hard, "noisy": noisy}
    made = making.make_data(out, seed=seed, seconds=seconds, **sizes, many_words=many_words, force=force)
    for name, number in made.counts.items():
        print(f"{name:8}  {number:,}")
    say(f"train on it: broadsheet apply salmonn {out} --out runs/ears")


@app.command(epilog="Example: broadsheet hear activate runs/ears clips.jsonl --out runs/free")
def activate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A trained model.")],
    clips: Annotated[str, typer.Argument(metavar="CLIPS", help="JSONL of audio, or what `make-data` made.")],
    out: Annotated[Path, typer.Option(help="The tuned model; resumes where a killed run stopped.")],
    factor: Annotated[float, typer.Option(help="Of the adapter's scaling while stories are written.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Of training, one story each.")] = 12,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of adapter and connector.")] = 1e-4,
    rehearse: Annotated[
        int, typer.Option(min=0, help="Rows of the last stage of CLIPS, a folder, beside each story; not the paper's.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips, the stories and the training.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")] = False,
) -> None:
    """Unlock tasks that were not trained: the model tells stories with a weaker adapter, then learns from its own.

    Activation tuning, the third stage of the paper: 12 steps on 12 stories.
    """
    from broadsheet.apply.base import Source
    from broadsheet.hear.recipes import SalmonnRecipe

    recipe = SalmonnRecipe(
        stages="3",
        start=str(folder),
        factor=factor,
        story_steps=steps,
        story_learning_rate=learning_rate,
        rehearse=rehearse,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    if not recipe.run(Source(clips), out, force=force).finished:
        raise KeyboardInterrupt


@app.command(epilog="Example: broadsheet hear picture --out ears.svg")
def picture(
    out: Annotated[Path, typer.Option(metavar="FILE.svg", help="The picture.")],
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A trained model, with its parameters counted.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Draw the paper's model instead of the default one.")] = False,
) -> None:
    """Draw the architecture: encoders, windows, connector and language model, frozen and trained."""
    from broadsheet.cache import atomic_write
    from broadsheet.hear import picture as drawing

    if model is not None and paper:
        raise InputError("got --model and --paper; expected one of them")
    if model is None:
        config, sizes = drawing.paper() if paper else drawing.small()
    else:
        from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

        found = SalmonnForConditionalGeneration.from_pretrained(model, device="cpu")
        config, sizes = found.config, drawing.sizes_of(found)
    try:
        with atomic_write(out) as file:
            file.write(drawing.architecture_svg(config, sizes))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    print(out)
