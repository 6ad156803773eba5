"""Every recipe and every command that reads data, on what is tiny: what attacks are made on.

Knows: the smallest words with which each runs to its end. Does not know: what is done to them. A recipe that is new
has to be added to `RECIPES`: `tests/attack` fails until it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unittest.mock import patch

from kills import dying

TEXTS = 24
LETTERS = 500  # of a text

_TRAINED = "--model {model} --steps 2 --batch-size 2"
_FURTHER = f"{_TRAINED} --tune full --length 16"
_RANKED = f"{_TRAINED} --lists 4 --sizes 2,3"
_EARS = "--encoders speech-embedding --hidden 64 --layers 1 --activate no"

# The words after the data; {model}, {teacher}, {old}, {rows} and {words} are in the workshop.
RECIPES: Mapping[str, str] = {
    "aded": "--model {model}",
    "clear": "--model {model} --by PMI",
    "cmr": "--model {model} --steps 8 --batch-size 2 --tune full --length 16 --learning-rate 0.003 --old {old} "
    "--probe 12 --ratios 0.25,0.5,1 --method CriticalMixtureRatio(weight=1e-9,epsilon=9)",
    "continual_pretraining": f"{_FURTHER} --old {{old}} --replay 0.25",
    "data_preprocessors": "--model {model} --task impute --column label --columns text",
    "dataset_decomposition": f"{_FURTHER} --shortest 4",
    "diachronic": "--bounds 1800,1850,1900",
    "fineweb2": "--tasks 2 --precision --rehydrate --method FineWeb2(low=0,high=0,least=5) --english {rows}",
    "first": _RANKED,
    "fullrank": _RANKED,
    "gem": f"{_TRAINED} --length 16",
    "in_context_pretraining": "--tasks 2",
    "lastde": "--model {model} --method lastdepp",
    "lexical_specialization": f"{_TRAINED}",
    "llm_embedder": f"{_TRAINED} --length 64",
    "llm_pruner": f"{_FURTHER} --window 8 --samples 2",
    "llm_ql": f"{_TRAINED} --length 96 --ql-steps 2",
    "loss_reweighting": _FURTHER,
    "megatron_530b": "--model {model} --gpus 8",
    "moe_survey": f"{_FURTHER} --layers 1 --experts 3",
    "pg_rank": _RANKED,
    "salmonn": f"--model {{model}} --steps 2 --batch-size 2 {_EARS}",
    "salt": f"{_FURTHER} --teacher {{teacher}}",
    "token_crisis": f"{_FURTHER} --method DropStage(rate=0.3)",
    "token_prepending": "--model {model}",
    "ullme": f"{_TRAINED} --length 16",
    "unlearning_whp": f"{_FURTHER} --dictionary {{words}} --retain {{old}} --reinforce 1 --limit 4 --epochs 1",
}

# Commands beside `apply` that read data.
COMMANDS: Mapping[str, str] = {
    "compare": "compare {rows} {data}",
    "hear listen": "hear listen --batch {data} --out {out} --model {ears} --max-tokens 4",
    "page add": "page add {data} --store {out} --at 2026-01-01",
    "rerank": "rerank {data} --out {out} --reranker {model}",
    "encode": "encode {data} --out {out} --embedder {model}",
    "index": "index {data} --out {out} --embedder {model}",
    "profile": "profile {data} --card {out}",
    "label": "label {data} --out {out} --reranker {model}",
}

# Commands that read none, or what others read.
NO_DATA: Mapping[str, str] = {
    "advise": "facts, which it asks for",
    "datasets": "our catalogue, or a page of the same form",
    "demo": "nothing",
    "guide llm-or-tuned": "nothing",
    "guide long-context": "the config of a model",
    "hear activate": "what `apply salmonn` wrote, and clips",
    "hear make-data": "nothing",
    "hear picture": "our catalogue",
    "map": "our catalogue",
    "mcp": "requests of an agent",
    "models": "the cache",
    "new": "nothing",
    "page digest": "the store",
    "page export": "the store",
    "page list": "the store",
    "page search": "the store",
    "page similar": "the store",
    "page sync": "sources online, each read as `page add` reads a file",
    "papers": "our catalogue",
    "peer": "our lists",
    "push": "what a training wrote",
    "search": "an index",
    "serve": "reports of trials, and models",
    "show": "our catalogue",
    "study": "data as `try` does",
    "try": "data by the readers of the recipes",
}
UNKILLED = ("compare", "page add")  # one writes nothing, the other into a database, which has tests of its own
KEPT = ("encode", "index", "page add")  # of these: what is written in place, and says itself whether it is whole


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    error: str


@dataclass(frozen=True)
class Made:
    """What a command wrote, and at how many operations of files it could have been killed."""

    out: Path
    operations: int


@dataclass(frozen=True)
class Workshop:
    """A folder with what the commands read.

    Args:
        folder: holds `rows.jsonl`, models, texts; nothing in it is changed by a command.
    """

    folder: Path
    _made: dict[tuple[str, ...], Made] = field(default_factory=dict)

    def made(self, name: str, *more: str) -> Made:
        """What a command writes where nothing disturbs it, once for all tests.

        Args:
            more: words after the command's own.
        """
        if (name, *more) not in self._made:
            place = self.folder / "made" / "-".join((name, *more))
            place.mkdir(parents=True)
            with patch.dict(os.environ, BROADSHEET_HOME=str(place / "home")), dying(place) as life:
                ended = run([*self.words(name, place / "out"), *more])
            assert ended.status == 0, ended.error
            self._made[name, *more] = Made(place / "out", life.count)
        return self._made[name, *more]

    @property
    def rows(self) -> Path:
        """24 rows that have the columns of every method."""
        return self.folder / "rows.jsonl"

    def data(self, name: str) -> Path:
        """What a command reads."""
        others = {"salmonn": "clips", "hear listen": "clips/stage1.jsonl"}
        others |= {"rerank": "requests.jsonl", "page add": "papers.jsonl"}
        return self.folder / others.get(name, "rows.jsonl")

    def words(self, name: str, out: Path, data: Path | str | None = None) -> list[str]:
        """A command's words.

        Args:
            name: a paper that has a recipe, or one of `COMMANDS`.
            out: what it writes.
            data: what it reads; the workshop's by default.
        """
        form = COMMANDS.get(name) or f"apply {name} {{data}} --out {{out}} {RECIPES[name]}"
        data = data or self.data(name)
        places = {"words": self.folder / "dictionary.json", "rows": self.rows}
        if "{ears}" in form:
            places["ears"] = self.made("salmonn").out
        places |= {each: self.folder / each for each in ("model", "teacher", "old")}
        return [word.format(data=data, out=out, **places) for word in form.split()]


def build(folder: Path, tiny_model: Callable, tiny_tokenizer: Callable) -> Workshop:
    """The workshop, in a folder that is empty."""
    texts = [" ".join(text.split())[:LETTERS] + "." for text in islice(_long(), 2 * TEXTS)]
    texts, old = texts[:TEXTS], texts[TEXTS:]
    for name, layers in (("model", 4), ("teacher", 1)):
        tiny_model(num_hidden_layers=layers, max_position_embeddings=2048).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    rows = []
    for i, text in enumerate(texts):
        wrong = [texts[(i + k) % TEXTS] for k in (1, 2, 3)]
        row = {
            "id": f"d{i}", "text": text, "year": 1801 + 4 * i, "prompt": f"Where is n{i}?", "completion": text,
            "query": f"where is n{i}", "positive": text, "negatives": wrong, "answers": [f"n{i}"],
            "label": ["red", "blue"][i % 2], "sentence1": text, "sentence2": wrong[0], "score": i % 5,
            "word1": f"one{i}", "word2": f"two{i}",
            "documents": [text, *wrong], "labels": [3, 2, 1, 0], "ranking": [0, 1, 2, 3],
        }  # fmt: skip
        rows.append(row)
    write(folder / "rows.jsonl", rows)
    requests = [
        {"query": {"qid": f"q{i}", "text": f"where is n{i}"},
         "candidates": [{"docid": f"d{k}", "score": -k, "doc": {"text": texts[k]}} for k in range(4)]}
        for i in range(6)
    ]  # fmt: skip
    write(folder / "requests.jsonl", requests)
    papers = [{"id": f"2404.0000{i}", "title": f"On n{i}", "abstract": text} for i, text in enumerate(texts[:6])]
    write(folder / "papers.jsonl", papers)
    (folder / "old").mkdir()
    for i, text in enumerate(old):
        (folder / "old" / f"{i}.txt").write_text(text.upper())  # so that what is learnt of it can be told apart
    (folder / "dictionary.json").write_text('{"this": "that", "module": "package"}')
    _clips(folder / "clips")
    return Workshop(folder)


def _long() -> Iterator[str]:
    """Real English prose that is long enough for all filters."""
    from broadsheet.data import corpora

    return (each.text for each in corpora.load("pydocs:stdlib") if len(each.text) > 2 * LETTERS)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _clips(folder: Path) -> None:
    """Six clips of noise with what is said in them: the rows of both stages."""
    import numpy as np
    import soundfile

    (folder / "audio").mkdir(parents=True)
    for i in range(6):
        noise = np.random.default_rng(i).normal(0, 0.1, 16_000)
        soundfile.write(folder / "audio" / f"{i}.wav", noise, 16_000)
    for stage, task in ((1, "asr"), (2, "sound")):
        said = [{"task": task, "answer": f"word {i}", "audio": f"audio/{i}.wav"} for i in range(6)]
        write(folder / f"stage{stage}.jsonl", said)


def run(words: list[str]) -> Ended:
    """`broadsheet …` in this process.

    Raises:
        Exception: whatever `main` lets through, where a user would see a traceback.
    """
    from broadsheet.cli import main

    out, error = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["broadsheet", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Ended(status, out.getvalue(), error.getvalue())
