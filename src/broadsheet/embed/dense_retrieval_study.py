"""The dense-retrieval study (2024, arXiv:2408.12194): one recipe for many backbones, cell by cell, each kept.

Knows: a recipe (model, loss, training), a question (an evaluation), how a cell is trained, evaluated and recorded. Does
not know: which cells make up which table (`trials.study_presets`), or how a result is shown (the trial).

The recipe that all backbones share (Sec. 3): h is the state of an appended end-of-text token under causal attention,
s(q, p) = cos(h_q, h_p) / τ with τ = 0.02 (Eq. 1), and the loss is InfoNCE over the passages of the batch (Eq. 4 and 5).
The printed index of Eq. 4 leaves open which negatives are meant: here every other passage of the batch.

A recipe's run and a cell's answers are kept in the cache, named by everything that determines them. The same cell asked
again is read back; a run that was killed is resumed.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.clock import measure
from broadsheet.console import InputError, say
from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.embed.data import doc_tasks, tasks
from broadsheet.embed.losses.contrastive import ContrastiveObjective
from broadsheet.embed.modules.encoder import context_length
from broadsheet.embed.modules.from_scratch import Pretrained, is_scratch, pretrained
from broadsheet.embed.modules.layers import decoder_layers
from broadsheet.embed.modules.shallow import FirstLayers, parameters
from broadsheet.page.evidence import versions

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder
    from broadsheet.embed.data.tasks import RetrievalTask
    from broadsheet.trial.stats import Floats

_MOST = 4000  # examples of a task; longer runs see them again
_TUNING = (200, 500)  # queries and passages to choose settings by, at most
MEASURES = ("nDCG@10", "RR@10", "R@10", "R@100")
# Dimension E: paraphrases that training draws from, and two that it never sees.
SEEN = (
    "Find the documentation that answers the query. Query: ",
    "Which passage of the documentation does this line describe? ",
    "Search query, to be answered by a passage: ",
    "Retrieve the passage that fits this request: ",
    "Given a short description, find the full text. ",
)
UNSEEN = (
    "You are given one sentence about a piece of software. Look for the paragraph that goes on to explain it: ",
    "Among many paragraphs of reference documentation, one belongs to the following line. Find it. Line: ",
)


@dataclass(frozen=True)
class StudyRecipe:
    """A model and its training; by default the study's recipe at a small scale.

    Args:
        backbone: a name for `models.load`, or `scratch:SIZE`: a model pre-trained here on the training packages' texts.
        pretraining: steps of that, see `modules.from_scratch`; the split is its seed.
        layers: number of first layers that are kept; 0 for all.
        pooling: "last-token" of an appended end-of-text token, as in the study; "mean", "weighted-mean".
        attention: "causal", as in the study, or "bidirectional".
        method: "lora" or "full".
        loss: "infonce" over the batch's passages, as in the study; "ntxent-cos", "ntxent-l2".
        temperature, learning_rate: the study's 0.02 and 0.0003. The rate falls linearly to 0, without warm-up.
        steps, batch, negatives: the study has about 3,700 steps of 128 queries with 7 hard negatives.
        tasks: of training, see `doc_tasks.TASKS`; several give a joint run, with as many examples of each.
        words: of a passage. length: tokens of a text, at most.
        instructed: queries of training begin with one of `SEEN`, drawn by seed and index.
        chunk: queries that are read at once; 0: all. See `ContrastiveObjective`.
        split: the seed of the data: which packages are for training and which for evaluation, and which examples. It
            must be the question's.
        seed: of order, adapters and instructions.
        data: the documentation that is trained on, `pydocs` or `pydocs:stdlib`.
    """

    backbone: str = "default"
    layers: int = 0
    pooling: Literal["last-token", "mean", "weighted-mean"] = "last-token"
    attention: Literal["causal", "bidirectional"] = "causal"
    method: Literal["lora", "full"] = "lora"
    loss: Literal["infonce", "ntxent-cos", "ntxent-l2"] = "infonce"
    temperature: float = 0.02
    learning_rate: float = 3e-4
    steps: int = 25
    batch: int = 32
    negatives: int = 1
    tasks: tuple[str, ...] = ("summary",)
    words: int = 24
    length: int = 64
    instructed: bool = False
    chunk: int = 8
    split: int = 0
    seed: int = 0
    data: str = "pydocs"
    pretraining: int = 600

    @property
    def total_steps(self) -> int:
        """A joint run takes as many steps for each task as a single one."""
        return self.steps * len(self.tasks)

    def checkpoints(self) -> list[int]:
        """Steps after which the run's weights are kept, besides the last: 1/5 and 2/5 of all (dimension B)."""
        return sorted({max(1, self.total_steps * i // 5) for i in (1, 2)} - {self.total_steps})


@dataclass(frozen=True)
class StudyQuestion:
    """An evaluation of an embedder.

    Args:
        task: one of `doc_tasks.TASKS`, or a BEIR folder.
        queries, passages: numbers of them; 0 passages for all.
        words: of a passage. length: tokens of a text that are read, at most (dimension D).
        instruction: before each query.
        seed: of the choice.
        data: the documentation that is searched, where the task is one of it.
    """

    task: str = "summary"
    queries: int = 100
    passages: int = 300
    words: int = 24
    length: int = 64
    instruction: str = ""
    seed: int = 0
    data: str = "pydocs"


@dataclass(frozen=True)
class StudyCell:
    """One cell of the grid: a recipe, the number of its steps that were taken (0: the raw model), and a question."""

    recipe: StudyRecipe
    step: int
    question: StudyQuestion


@dataclass(frozen=True)
class CellRecord:
    """A cell's result.

    Args:
        model: backbone and its fingerprint. parameters, non_embedding: of the model as it ran, adapter left out.
        seed, steps, tokens, seconds, peak_bytes: of its training; tokens, seconds and peak are those of the whole run,
            the first two in proportion at a checkpoint.
        answer_seconds, answer_peak_bytes: of encoding and searching.
        values: by measure, one for each query of `queries`.
    """

    model: str
    parameters: int
    non_embedding: int
    seed: int
    steps: int
    tokens: int
    seconds: float
    peak_bytes: int
    answer_seconds: float
    answer_peak_bytes: int
    queries: list[str] = field(repr=False)
    values: dict[str, list[float]] = field(repr=False)


@dataclass(frozen=True)
class StudyBackbone:
    """A backbone as it is loaded.

    Args:
        source: what `models.load` takes.
        depth: layers. weights: how many it has.
        pretrained: what its pre-training was, of one that was made here.
    """

    source: str
    fingerprint: str
    depth: int
    weights: int
    pretrained: Pretrained | None = None


class CheckpointedContrast(ContrastiveObjective):
    """The study's loss, as an objective that also writes the embedder at given steps of a run.

    Args:
        folders: by number of steps, the folder that the embedder is written to after them. Others: see
            `ContrastiveObjective`.
    """

    def __init__(self, embedder: Embedder, folders: Mapping[int, Path], **settings: Any) -> None:
        super().__init__(embedder, **settings)
        self.folders = dict(folders)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings of the loss, as a run records them."""
        names = ("contrastive", "temperature", "hard", "chunk_size", "gather_across_devices")
        return {name: getattr(self, name) for name in names}

    def after_step(self, model: Any, step: int) -> dict[str, float]:
        """Write the embedder if its number of steps has a folder, which a resumed run finds."""
        from broadsheet.embed.fitting import write

        folder = self.folders.get(step)
        if folder is not None and not folder.exists():
            write(model, folder)
        return {}


class Study:
    """Trains and evaluates cells of the study's grid, each once: every result is kept, and read back when asked again.

    A cell is a recipe (backbone, layers, pooling, attention, loss, data, instructions), a step of its training, and a
    question (a task, the length that is read, an instruction).

    Inputs: cells, one by one; `broadsheet study dense_retrieval` evaluates whole axes of the grid and prints tables.
    Use when … a choice of backbone, size, pooling or data has to be made before a retriever is trained. For one choice
        between two methods a trial with its paired verdict tells more.
    Relation: the paper compares backbones of many sizes and families under one recipe. Here sizes are models given by
        name, models pre-trained here on equal tokens (`scratch:1M`), or the first layers of one, which are no sizes in
        the paper's sense.

    Args:
        folder: of runs and results; by default in the cache.
        device, dtype: of `models.load`; the dtype is that of evaluation and of frozen weights.

    Example:
        from broadsheet.embed.dense_retrieval_study import Study, StudyCell, StudyQuestion, StudyRecipe

        record = Study().cell(StudyCell(StudyRecipe(layers=6), 25, StudyQuestion()))
        sum(record.values["nDCG@10"]) / len(record.queries)

    Source: arXiv:2408.12194.
    """

    paper: ClassVar[str] = "dense_retrieval_study"

    def __init__(self, folder: Path | None = None, *, device: str = "", dtype: str = "") -> None:
        self.folder = home() / "study" if folder is None else folder
        self.device = device or None
        self.dtype = dtype or None
        self._backbones: dict[tuple[Any, ...], StudyBackbone] = {}
        self._data: dict[tuple[int, int, str], str] = {}
        self._tasks: dict[StudyQuestion, RetrievalTask] = {}

    def cell(self, cell: StudyCell) -> CellRecord:
        """The cell's record, from the cache or anew.

        Raises:
            InputError: an impossible recipe or question; a step at which the run keeps nothing.
            KeyboardInterrupt: training was stopped; the same call resumes it.
        """
        recipe, step = cell.recipe, cell.step
        if recipe.split != cell.question.seed:
            raise InputError(
                f"got split {recipe.split} and a question of seed {cell.question.seed}; packages would mix"
            )
        if step not in (0, recipe.total_steps, *recipe.checkpoints()):
            raise InputError(
                f"got step {step}; the run keeps its weights after {[*recipe.checkpoints(), recipe.total_steps]}"
            )
        task = self.task(cell.question)
        asked = {**asdict(cell.question), "task": task.fingerprint()}
        key = fingerprint([versions(), self._run_key(recipe) if step else self._raw_key(recipe), step, asked])
        path = self.folder / f"cell-{key}.json"
        if path.exists():
            return CellRecord(**json.loads(path.read_text("utf-8")))
        record = self._ask(cell, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(asdict(record), file)
        return record

    def task(self, question: StudyQuestion) -> RetrievalTask:
        """The question's queries and passages; they depend neither on the length that is read nor on instructions."""
        same = replace(question, length=0, instruction="")
        if same not in self._tasks:
            self._tasks[same] = doc_tasks.question(
                same.task, same.queries, same.passages, words=same.words, seed=same.seed, data=same.data
            )
        return self._tasks[same]

    def trained(self, recipe: StudyRecipe) -> Path:
        """The folder of the recipe's last step; trained if it is not there."""
        folder = self._run_folder(recipe)
        last = folder / "last"
        if (last / "modules.json").exists() and (folder / "run.json").exists():
            return last
        say(f"training: {described(recipe)}")
        folder.mkdir(parents=True, exist_ok=True)
        items = examples(recipe)

        def train(_: None) -> Any:
            return self._fit(recipe, items, folder)

        fitted, _, peak = measure(train, None)
        gc.collect()
        if not fitted.finished:
            raise KeyboardInterrupt
        with atomic_write(folder / "run.json") as file:
            json.dump({"tokens": fitted.tokens, "seconds": fitted.seconds, "peak_bytes": peak}, file)
        return last

    def _fit(self, recipe: StudyRecipe, items: Sequence[Any], folder: Path) -> Any:
        from broadsheet.embed.fitting import fit

        model = self.raw(recipe)
        objective = CheckpointedContrast(
            model,
            {step: folder / f"step-{step}" for step in recipe.checkpoints()},
            contrastive=recipe.loss,  # "infonce": Eq. 4 and 5
            temperature=recipe.temperature,  # τ of Eq. 1
            chunk_size=recipe.chunk or None,
        )
        return fit(
            model,
            items,
            objective,
            folder / "last",
            steps=recipe.total_steps,
            batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            method=recipe.method,
            warmup=0.0,
            seed=recipe.seed,
            force=(folder / "last").exists(),  # its record was not written: the run was cut off at its end
        )

    def raw(self, recipe: StudyRecipe) -> Embedder:
        """The recipe's embedder before training."""
        from broadsheet import models
        from broadsheet.embed.base import embedder

        loaded = models.load(self.backbone(recipe).source, device=self.device, dtype=self.dtype)
        end = loaded.tokenizer.eos_token
        if recipe.pooling == "last-token" and end is None:
            raise InputError(f"{recipe.backbone} has no end-of-text token to pool; expected pooling mean")
        return embedder(
            loaded,
            recipe.pooling,  # Sec. 3: the final hidden state of an appended end-of-text token
            attention=recipe.attention,
            append=(end,) if recipe.pooling == "last-token" else (),
            max_seq_length=recipe.length,
            encoder=FirstLayers,
            keep=recipe.layers,
        )

    def _ask(self, cell: StudyCell, task: RetrievalTask) -> CellRecord:
        from broadsheet.embed.base import load

        recipe, step = cell.recipe, cell.step
        run = {"tokens": 0, "seconds": 0.0, "peak_bytes": 0}
        if step:
            last = self.trained(recipe)
            run = json.loads((last.parent / "run.json").read_text("utf-8"))
            kept = last if step == recipe.total_steps else last.parent / f"step-{step}"
            model = load(kept, device=self.device, dtype=self.dtype)
        else:
            model = self.raw(recipe)
        context = context_length(model.encoder.model, model.encoder.tokenizer)
        if context is not None and cell.question.length > context:
            raise InputError(
                f"{recipe.backbone} reads at most {context} tokens; got a cut-off of {cell.question.length}"
            )
        model.encoder.max_seq_length = cell.question.length
        model.prompts = {"query": cell.question.instruction, "document": ""}
        values, seconds, peak = measure(lambda task: answer(model, task), task)
        share = step / recipe.total_steps
        total, beyond = parameters(model.encoder.model)
        return CellRecord(
            model=f"{recipe.backbone} {self.backbone(recipe).fingerprint}",
            parameters=total,
            non_embedding=beyond,
            seed=recipe.seed,
            steps=step,
            tokens=round(run["tokens"] * share),
            seconds=run["seconds"] * share,
            peak_bytes=int(run["peak_bytes"]),
            answer_seconds=seconds,
            answer_peak_bytes=peak,
            queries=[query.id for query in task.queries],
            values=values,
        )

    def backbone(self, recipe: StudyRecipe) -> StudyBackbone:
        """The recipe's backbone; one from nothing is pre-trained if it is not there.

        Raises:
            InputError: it cannot be loaded, or made.
            KeyboardInterrupt: pre-training was stopped; the same call resumes it.
        """
        from broadsheet import models

        made = (recipe.pretraining, recipe.words, recipe.split, recipe.data) if is_scratch(recipe.backbone) else ()
        if (recipe.backbone, *made) not in self._backbones:
            source, told = recipe.backbone, None
            if made:
                texts = tasks.training_texts(recipe.words, recipe.split, recipe.data)
                folder, told = pretrained(
                    source, texts, self.folder, steps=recipe.pretraining, seed=recipe.split, device=self.device
                )
                source = str(folder)
            loaded = models.load(source, device=self.device, dtype=self.dtype)
            weights, _ = parameters(loaded.model)
            found = StudyBackbone(source, loaded.fingerprint, len(decoder_layers(loaded.model)), weights, told)
            self._backbones[recipe.backbone, *made] = found
        return self._backbones[recipe.backbone, *made]

    def tuning(self, recipe: StudyRecipe) -> list[RetrievalTask]:
        """What a recipe's settings are chosen by: queries of its tasks that neither it nor any question has seen.

        Raises:
            InputError: all passages of the packages that are trained on are trained on.
        """
        found = []
        for task in recipe.tasks:
            known = {item["positive"] for item in examples(replace(recipe, tasks=(task,)))}
            found.append(
                doc_tasks.tuning(task, *_TUNING, without=known, words=recipe.words, seed=recipe.split, data=recipe.data)
            )
        return found

    def score(self, recipe: StudyRecipe, asked: Sequence[RetrievalTask]) -> float:
        """Mean nDCG@10 of the trained recipe over tasks, with an instruction as in training."""
        from broadsheet.embed.base import load

        model = load(self.trained(recipe), device=self.device, dtype=self.dtype)
        model.prompts = {"query": SEEN[0] if recipe.instructed else "", "document": ""}
        return float(np.mean([np.mean(answer(model, task)["nDCG@10"]) for task in asked]))

    def _raw_key(self, recipe: StudyRecipe) -> list[Any]:
        """Everything that determines the raw model."""
        made = [recipe.layers, recipe.pooling, recipe.attention]
        return [self.backbone(recipe).fingerprint, *made, self.device, self.dtype]

    def _run_key(self, recipe: StudyRecipe) -> list[Any]:
        data = (recipe.words, recipe.split, recipe.data)
        if data not in self._data:
            self._data[data] = tasks.documentation(*data).fingerprint()
        return [self.backbone(recipe).fingerprint, asdict(recipe), self._data[data], self.device, self.dtype]

    def _run_folder(self, recipe: StudyRecipe) -> Path:
        return self.folder / f"run-{fingerprint([versions(), self._run_key(recipe)])}"


def examples(recipe: StudyRecipe) -> list[dict[str, Any]]:
    """The recipe's training data: for each task as many examples as its steps read, instructions in front."""
    each = min(recipe.steps * recipe.batch, _MOST)
    found = []
    for task in recipe.tasks:
        found += doc_tasks.examples(
            task, each, recipe.negatives, words=recipe.words, seed=recipe.split, data=recipe.data
        )
    if recipe.instructed:
        draw = random.Random(recipe.seed)
        found = [{**item, "query": f"{draw.choice(SEEN)}{item['query']}"} for item in found]
    return found


def answer(model: Embedder, task: RetrievalTask) -> dict[str, list[float]]:
    """Each measure for each query: all passages are ranked by cosine."""
    passages = _units(model.encode_document(list(task.corpus.values()), show_progress_bar=False))
    queries = _units(model.encode_query([query.text for query in task.queries], show_progress_bar=False))
    order = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :100]
    names = list(task.corpus)
    rankings = {query.id: [names[i] for i in row] for query, row in zip(task.queries, order, strict=True)}
    found = evaluate(rankings, task.qrels, MEASURES)
    return {measure: [found[measure][query.id] for query in task.queries] for measure in MEASURES}


def _units(vectors: Any) -> Floats:
    array = np.asarray(vectors, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)


def described(recipe: StudyRecipe) -> str:
    """A recipe in a few words: backbone, layers, and the fields that differ from the default."""
    words = [recipe.backbone, f"first {recipe.layers} layers" if recipe.layers else "all layers"]
    for name, standard in asdict(StudyRecipe()).items():
        value = getattr(recipe, name)
        known = name in ("backbone", "layers") or (name == "pretraining" and not is_scratch(recipe.backbone))
        if not known and value != standard:
            words.append(f"{name} {', '.join(value) if isinstance(value, tuple) else value}")
    return ", ".join(words)
