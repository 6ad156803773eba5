"""Use of a trained model: one question about clips, streamed, or a file of requests, resumable after a kill.

Knows: files, requests, generation. Does not know: options and terminals, training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TextStreamer

from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus, Document
from broadsheet.data.rows import OnError, Stored, made
from broadsheet.data.schemas import AudioQA
from broadsheet.data.sources import InvalidRow, RowLocation, RowSource, open_source
from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data import audio as waves_
from broadsheet.hear.prompts import instruction as asked
from broadsheet.hear.training.fitting import identity
from broadsheet.models import halve_on_oom

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

MAX_TOKENS = 200  # of an answer (the authors')


@dataclass(frozen=True)
class Clip:
    """An audio file in a prompt.

    Args:
        file: its path.
        seconds: its length.
        pieces: that it was split into.
    """

    file: str
    seconds: float
    pieces: int


@dataclass(frozen=True)
class Heard:
    """An answer, and its clips.

    Args:
        answer: the text.
        clips: in the order of the prompt.
        audio_tokens: of all clips together; tokens: of the answer, its end included.
        seconds: from the files to the whole answer.
    """

    answer: str
    clips: tuple[Clip, ...]
    audio_tokens: int
    tokens: int
    seconds: float


def listen(
    model: SalmonnForConditionalGeneration,
    files: Sequence[str | Path],
    instruction: str,
    *,
    beams: int = 1,
    max_tokens: int = MAX_TOKENS,
    scale: float = 1.0,
    write: Callable[[str], None] | None = None,
) -> Heard:
    """Ask one thing about one clip, or about several in one prompt.

    A file of more than 30 s (or the encoders' context, where that is shorter) is heard in pieces of that length, one
    after the other in its place in the prompt; that is reported.

    Args:
        files: audio of any length and rate.
        instruction: may mark the place of each clip with `<audio>`.
        beams: of a beam search (the authors: 4); 1 is greedy.
        max_tokens: of the answer.
        scale: of the adapter's scaling (1: as trained; 0.5 writes more freely, 0 is the language model alone).
        write: is given the answer as it comes, word by word; with beams at the end.

    Raises:
        InputError: a file cannot be read, the prompt does not fit into the model's context, or an argument is out of
            range.

    Example:
        listen(model, ["clip.wav"], "What is said?", write=lambda text: print(text, end="", flush=True)).answer
    """
    generation = _generation(beams, max_tokens, scale)
    if not files:
        raise InputError("got no audio; give at least one file")
    begun = time.perf_counter()
    longest = model.audio_features.piece_seconds
    waves = [waves_.read(file) for file in files]
    clips = tuple(
        Clip(str(file), len(wave) / SAMPLE_RATE, len(waves_.pieces(wave, longest)))
        for file, wave in zip(files, waves, strict=True)
    )
    for clip in clips:
        if clip.pieces > 1:
            say(f"{clip.file}: {clip.seconds:.1f} s, heard in {clip.pieces} pieces of at most {longest:g} s")
    batch = model.prepared([(waves, instruction)])
    _fits(model, batch["input_ids"].shape[1], max_tokens)
    streamer = Streamed(model.processor.tokenizer, write) if write and beams == 1 else None
    with scaled(model, scale):
        ids = model.generate(**batch, **generation, streamer=streamer)
    answer = model.processor.decode_answers(ids)[0]
    if write and streamer is None:
        write(answer)
    places = int((batch["input_ids"] == model.processor.audio_token_id).sum())
    return Heard(answer, clips, places, int(ids.shape[1]), time.perf_counter() - begun)


class Streamed(TextStreamer):
    """Gives the words of an answer to `write` as they are generated; together they are the answer, stripped."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self._begun, self._blank = False, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = self._blank + text if self._begun else text.lstrip()
        words = text.rstrip()
        self._blank = text[len(words) :]
        if words:
            self._begun = True
            self.write(words)


class Requests(Stored, Corpus):
    """Requests: rows of `audio` (a path or a list), `instruction` or `task`, perhaps `id`, as `rows.read` takes them.

    Paths are relative to the file. A task alone is asked in its fixed way. A document's metadata holds `audio` (list of
    paths), or, for an invalid line with `on_error="skip"`, `error`: so that each line has its answer.

    Raises:
        InputError: there is no such file; while it is iterated, with `on_error="stop"`, a line that is no request.
    """

    source: RowSource

    def __init__(self, path: str | Path, on_error: OnError = "skip") -> None:
        self.source = open_source(path)
        super().__init__(self.source.spec, on_error, "instruction", "id")
        self.count = self.source.count or sum(1 for _ in self._rows())

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        # A line that cannot be read becomes a document too: it is answered with what is wrong with it.
        return ((place, (row,)) for place, row in self.source.rows())

    def _made(self, place: RowLocation, row: Any) -> Document | InvalidRow:
        found = row[0] if isinstance(row[0], InvalidRow) else made(AudioQA, row[0], place)
        given = row[0].get("id") if isinstance(row[0], dict) else None
        identifier = place.id if given is None else str(given)
        try:
            if not isinstance(found, InvalidRow):
                return Document(identifier, found.instruction or asked(found.task), {"audio": list(found.audio)})
        except InputError as error:
            found = InvalidRow(str(error))
        return found if self.on_error == "stop" else Document(identifier, "", {"error": found.at(place)})


def listen_all(
    model: SalmonnForConditionalGeneration,
    requests: Requests,
    out: Path,
    *,
    beams: int = 1,
    max_tokens: int = MAX_TOKENS,
    scale: float = 1.0,
    batch_size: int = 8,
    force: bool = False,
) -> Summary:
    """Answer a file of requests into JSONL, one `{"id", "answer"}` per line, in order; an interrupted run is resumed.

    A request that cannot be answered has `error` instead, counted and reported; with `requests.on_error="stop"` it
    ends the run. Frames of encoders are not kept.

    Args:
        out: the finished file; until then `<out>.partial` grows.
        beams, max_tokens, scale: as of `listen`.
        batch_size: requests at once; a batch that does not fit into memory is halved.
        force: replace a finished `out`.

    Raises:
        InputError: see `map_corpus` and `Requests`.

    Example:
        listen_all(model, Requests("requests.jsonl"), Path("answers.jsonl"))
    """
    generation = _generation(beams, max_tokens, scale)
    settings = {"model": identity(model), "beams": beams, "max_tokens": max_tokens, "scale": scale}

    def answered(documents: list[Document]) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = [{}] * len(documents)
        ready: list[tuple[int, tuple[list[Tensor], str]]] = []
        for place, document in enumerate(documents):
            try:
                ready.append((place, _request(model, document, max_tokens)))
            except InputError as error:
                if requests.on_error == "stop":
                    raise InputError(f"request {document.id}: {error}; or skip it: --on-error skip") from None
                found[place] = {"error": " ".join(str(error).split())}
        if ready:
            texts = halve_on_oom(
                lambda some: model.answers(some, batch_size=len(some), **generation), [each for _, each in ready]
            )
            for (place, _), text in zip(ready, texts, strict=True):
                found[place] = {"answer": text}
        return found

    kept, model.audio_features.keep = model.audio_features.keep, False
    try:
        with scaled(model, scale):
            summary = map_corpus(requests, out, answered, batch_size=batch_size, settings=settings, force=force)
    finally:
        model.audio_features.keep = kept
    if summary.finished and (failed := _errors(out)):
        say(f"{failed:,} of {summary.documents:,} requests have an error instead of an answer, see {out}")
    return summary


def scaled(model: SalmonnForConditionalGeneration, factor: float) -> AbstractContextManager[None]:
    """`model.scale_lora(factor)`; nothing for 1."""
    return nullcontext() if factor == 1 else model.scale_lora(factor)


def _generation(beams: int, max_tokens: int, scale: float) -> dict[str, Any]:
    if min(beams, max_tokens) < 1 or not 0 <= scale < float("inf"):
        raise InputError(
            f"got beams {beams}, max_tokens {max_tokens}, scale {scale}; expected 1 or more, and a scale from 0"
        )
    return {"num_beams": beams, "max_new_tokens": max_tokens}


def _request(model: SalmonnForConditionalGeneration, document: Document, max_tokens: int) -> tuple[list[Tensor], str]:
    """A request's waves and instruction, seen to be fit.

    Raises:
        InputError: the line was none, a clip cannot be read, marks do not fit the clips, or it is all too long.
    """
    if "error" in document.metadata:
        raise InputError(document.metadata["error"])
    waves = [waves_.read(file) for file in document.metadata["audio"]]
    pieces = [waves_.pieces(wave, model.audio_features.piece_seconds) for wave in waves]
    tokens = [[model.processor.tokens(len(piece)) for piece in clip] for clip in pieces]
    ids, _ = model.processor.example(document.text, tokens)
    _fits(model, len(ids), max_tokens)
    return waves, document.text


def _fits(model: SalmonnForConditionalGeneration, prompt: int, answer: int) -> None:
    context = getattr(model.llm.config, "max_position_embeddings", None)
    if context is not None and prompt + answer > context:
        raise InputError(
            f"the prompt has {prompt:,} tokens and the answer may have {answer:,}, but the model's context holds "
            f"{context:,}; give less audio, or fewer --max-tokens"
        )


def _errors(out: Path) -> int:
    with out.open("rb") as lines:
        return sum("error" in json.loads(line) for line in lines)
