"""A model card for every folder that a model is saved to: what it is, of what it was made, and how it was trained.

Knows: folders by the files in them, the page of papers, a training's record. Does not know: models, weights.

The card is `README.md`, with metadata as the hub reads it. A card that somebody wrote, or changed, is never replaced:
ours end in a fingerprint of what stands above it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broadsheet.console import InputError, duration
from broadsheet.models import embedded
from broadsheet.models.safefiles import read_json
from broadsheet.page import evidence
from broadsheet.page.papers import RUNGS, Paper, page

CARD = "README.md"
_SEAL = re.compile(r"<!-- card of broadsheet, (\w{16}) -->\n\Z")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SETTINGS = ("method", "lora_rank", "steps", "epochs", "batch_size", "accumulate", "learning_rate", "schedule", "seed")
# What a folder is, by a file in it: what it is called, the hub's task, and the lines that load it.
_KINDS = {
    "modules.json": (
        "embedder",
        "sentence-similarity",
        "from broadsheet import embed\n\nembedder = embed.load({name!r})",
    ),
    "reranker.json": (
        "reranker",
        "text-ranking",
        "from broadsheet.rank import ListwiseReranker\n\nreranker = ListwiseReranker.load({name!r})",
    ),
    "connector.safetensors": (
        "language model that hears",
        "audio-text-to-text",
        "from broadsheet.hear import SalmonnForConditionalGeneration\n\n"
        "model = SalmonnForConditionalGeneration.from_pretrained({name!r})",
    ),
    "adapter_config.json": ("adapter", "text-generation", ""),
    "config.json": (
        "language model",
        "text-generation",
        "{register}from transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained({name!r})",
    ),
}


def write(
    folder: Path,
    *,
    to: Path | None = None,
    paper: str = "",
    base: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write the card of a saved model, unless somebody's own stands there.

    Args:
        folder: holds the model's files.
        to: where the folder will come to stand, if it is written aside: a card there that is not ours is kept.
        paper: the id of the paper whose method made it; empty for none.
        base: the name of the model that it was made from: of the hub, `"default"`, or a folder or file, of which the
            last part is told; None where that is not known.
        record: of the training, as in `training.json`: `settings`, `steps`, `examples`, `tokens`, `seconds`, `command`,
            `versions`, `data`; each may be missing.

    Returns:
        The card's path.
    """
    path, named = folder / CARD, to or folder
    for there in (named / CARD, path):
        if there.is_file() and not is_ours(there.read_text("utf-8")):
            if there != path:
                shutil.copyfile(there, path)
            return path
    known = next((each for each in page() if each.id == paper), None)
    body = _card(folder, named.name, known, _named(base), record or {})
    path.write_text(_whole(body), "utf-8")
    return path


def is_ours(text: str) -> bool:
    """Whether a card is one that `write` made, and unchanged since."""
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _sealed(text[: seal.start() - 1])


def renamed(text: str, name: str) -> str:
    """A card of ours under another name, as that of a repository; one that is not ours stays as it is."""
    if not is_ours(text):
        return text
    body = text[: _SEAL.search(text).start() - 1]  # type: ignore[union-attr]
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    old = title[1] if title else ""
    body = body.replace(f"# {old}\n", f"# {name.rpartition('/')[2]}\n", 1).replace(f"({old!r})", f"({name!r})")
    return _whole(body)


def paper_of(*parts: Any) -> str:
    """The paper of the first of these that has one: an objective, a loss, a model, or one of its modules."""
    for part in parts:
        each: Any = next(iter(part.values()), None) if isinstance(part, Mapping) else part
        modules = each.modules() if hasattr(each, "modules") else ()
        for one in (each, *modules):
            if isinstance(found := getattr(one, "paper", ""), str) and found:
                return found
    return ""


def _whole(body: str) -> str:
    """A card with the fingerprint at its end."""
    return f"{body}\n<!-- card of broadsheet, {_sealed(body)} -->\n"


def _sealed(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _named(base: str | None) -> str:
    """A base as others know it: its name on the hub, or the last part of its path."""
    if not base:
        return ""
    if base == "default" or Path(base) == embedded.DEFAULT.folder:
        return embedded.DEFAULT.hub
    return base if _HUB.fullmatch(base) and not Path(base).exists() else Path(base).name


def _card(folder: Path, name: str, paper: Paper | None, base: str, record: Mapping[str, Any]) -> str:
    """Metadata and text."""
    from huggingface_hub import ModelCard, ModelCardData

    kind, task, use = next((known for file, known in _KINDS.items() if (folder / file).is_file()), ("model", None, ""))
    data = _data(record)
    tags = ["broadsheet", *([paper.stage, paper.id, f"arxiv:{paper.arxiv}"] if paper else [])]
    metadata = ModelCardData(
        library_name=_library(folder),
        base_model=base if _HUB.fullmatch(base) else None,
        datasets=[each.partition(":")[0] for each in (one.removeprefix("hf:") for one in data if one[:3] == "hf:")]
        or None,
        pipeline_tag=task,
        tags=tags,
    )
    made = f"A{'n' * (kind[0] in 'aeiou')} {kind}"
    made += f" made from `{base}`" if base else ""
    made += f" with the method of [{paper.title}]({paper.url})." if paper else "."
    parts = [f"# {name}", f"{made} Saved by broadsheet."]
    if paper:
        parts.append(_found(paper))
    if code := use.format(name=name, register=_registers(folder)):
        parts.append(f"## Use\n\n```python\n{code}\n```")
    if trained := _trained(record, data):
        parts.append(f"## Training\n\n{trained}")
    text = "\n\n".join(["---\n" + metadata.to_yaml() + "\n---", *parts])
    return ModelCard(text + "\n").content


def _registers(folder: Path) -> str:
    """The line that makes a type of ours known to transformers; empty for its own types."""
    home = {"transnormer": "broadsheet.attend.transnormer"}.get(_type(folder), "")
    return f"import {home}\n" * bool(home)


def _type(folder: Path) -> str:
    try:
        return str(read_json(folder / "config.json").get("model_type", ""))
    except (InputError, OSError):
        return ""


def _library(folder: Path) -> str:
    """The library that reads the folder."""
    if (folder / "modules.json").is_file():
        return "sentence-transformers"
    if (folder / "config.json").is_file():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return "transformers" if _type(folder) in CONFIG_MAPPING_NAMES else "broadsheet"
    return "peft" if (folder / "adapter_config.json").is_file() else "broadsheet"


def _found(paper: Paper) -> str:
    """What is recorded of the paper: of its method, not of these weights."""
    recorded = evidence.read(paper.id)
    if recorded is None or not paper.verdict:
        return "No trial of the method with a verdict is recorded; how good this model is was not measured."
    return (
        f"What broadsheet's recorded trial says of the paper's claims: **{paper.verdict}** (rung {paper.rung}, "
        f"{RUNGS[paper.rung]}; {recorded['provenance']['date'][:10]}). That is of the method, on the model and data of "
        f"the trial; this model was not measured there. `broadsheet try {paper.id}` measures on yours."
    )


def _data(record: Mapping[str, Any]) -> list[str]:
    """The data's names: those of the record, else what its command names after the paper."""
    if given := record.get("data"):
        return [each for one in ([given] if isinstance(given, str) else given) for each in str(one).split(",")]
    words = shlex.split(record.get("command") or "")
    if words[1:2] != ["apply"] or len(words) < 4 or words[3].startswith("-"):
        return []
    return words[3].split(",")


def _trained(record: Mapping[str, Any], data: Sequence[str]) -> str:
    settings = record.get("settings") or {}
    objective = settings.get("objective") or {}
    lines = [f"- data: {', '.join(f'`{_short(each)}`' for each in data)}"] if data else []
    if objective:
        fields = ", ".join(f"{key}={value}" for key, value in objective.items() if key != "name")
        lines.append(f"- objective: `{objective.get('name', '')}`" + f" ({fields})" * (0 < len(fields) < 300))
    told = {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}
    if "steps" in record:
        told.pop("steps", None)
        done = ", ".join(f"{record[key]:,} {key}" for key in ("steps", "examples", "tokens") if record.get(key))
        lines.append(f"- seen: {done}" + f", in {duration(record['seconds'])}" * bool(record.get("seconds")))
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in told.items()]
    if versions := record.get("versions"):
        named = (f"{each} {versions[each]}" for each in ("broadsheet", "torch", "transformers") if each in versions)
        lines.append(f"- versions: {', '.join(named)}")
    if command := record.get("command"):
        short = shlex.join(_short(word) for word in shlex.split(command))
        lines.append(f"\n```sh\n{short}\n```")
    return "\n".join(lines)


def _short(word: str) -> str:
    """Paths, perhaps several with commas between, without the folders of one machine."""
    return ",".join(Path(each).name if Path(each).is_absolute() else each for each in word.split(","))
