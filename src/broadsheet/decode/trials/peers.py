"""Peers in a trial of the stage: programs that write by themselves, and programs that draft for the trial's model.

Knows: external processes, prompts, the stage's `Drafter`. Does not know: what a peer does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.decode.base import Drafter
from broadsheet.decode.draft import Draft
from broadsheet.decode.trials.prompts import DecodePrompt

if TYPE_CHECKING:
    from broadsheet.decode.target import TargetModel
    from broadsheet.trial.outside.external import ExternalProcess
    from broadsheet.trial.outside.peers import PeerCall

WINDOW = 16  # last tokens that a draft is asked for (the authors of ADED: 16)


class ExternalDrafter(Drafter):
    """Drafts come from a program; the trial's model verifies them, so that its output is greedy decoding's.

    Args:
        process: gives for an item `{"context": [token ids]}` the output `paths`: lists of token ids below the last one.
    """

    def __init__(self, process: ExternalProcess) -> None:
        self.process = process
        self._tail: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._tail = list(prompt[-WINDOW:])

    def prepare(self, target: TargetModel, room: int) -> None:
        if room >= 2:  # the check reads ahead
            target.check_tree()

    def draft(self, room: int) -> Draft:
        if room < 1:
            return Draft()
        [paths] = self.process.run([{"context": self._tail}]).outputs["paths"]
        self.stats_.unknown += not paths
        return Draft.from_paths([path[:room] for path in paths], source="peer")

    def wrote(self, tokens: Sequence[int], accepted: int) -> None:
        self._tail = [*self._tail, *tokens][-WINDOW:]


def gguf(peer: str, model: str) -> str:
    """The GGUF file of a trial's model.

    Raises:
        InputError: it is no such file.
    """
    if model == "default":
        return str(models.default_gguf())
    if not model.endswith(".gguf"):
        raise InputError(f"got --peer {peer} and --model {model}; expected `default` or a .gguf file")
    return str(Path(model).expanduser().resolve())


def command(call: PeerCall, model: str, prompts: Sequence[DecodePrompt], new_tokens: int, **more: Any) -> list[str]:
    """What the arm of a peer runs.

    Args:
        more: what a peer that drafts gets: `texts`, `vocabulary`.
    """
    if drafts(call):
        return call.command(**more)
    if not call.peer:
        return call.command()
    import torch

    longest = max(len(prompt.tokens) for prompt in prompts)
    return call.command(
        gguf=gguf(call.peer.name, model), threads=torch.get_num_threads(), context=longest + new_tokens + 8
    )


def drafts(call: PeerCall) -> bool:
    """Whether a peer drafts for the trial's model; else it writes by itself."""
    return call.peer is not None and call.peer.kind == "drafts"


def write_texts(file: Path, texts: Iterable[str], tokenizer: Any) -> None:
    """Token ids of texts, a JSON list a line."""
    with atomic_write(file) as out:
        for text in texts:
            print(json.dumps(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), file=out)
