"""Which layers make the best embedding: every output layer tried in one forward pass.

Knows: encoders whose last token is the embedding, sentence pairs with scores. Does not know: which method an encoder
is; it asks for `start` and `exit` where the encoder has them.

A causal model runs all its layers anyway: meanwhile the last token's vector is recorded after each layer that is asked
for. So a plain template takes one pass over the texts for all output layers, and Token Prepending, whose early layers
change with `exit`, one pass for each `exit`. Both are tuned by the same function on the same pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet.console import InputError, progress
from broadsheet.embed.modules.encode import features_of, plan_batches
from broadsheet.embed.modules.eol import last_vectors, variant
from broadsheet.embed.modules.layers import layer_inputs
from broadsheet.embed.token_prepending import TokenPrepending
from broadsheet.models import halve_on_oom

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from broadsheet.embed.modules.encoder import CausalEncoder
    from broadsheet.embed.modules.template import Template

    Floats = NDArray[np.float32]

_EXITS = (2, 4, 6, 8, 12)  # of a model of 30 layers; of a small one the lowest may be best, one layer changed
_LAYERS = (15, 20, 25, 28, 30)
_DEPTH = 30


@dataclass(frozen=True)
class SweepCell:
    """One setting and its result.

    Attributes:
        layer: the output layer; the model's depth stands for the last one, with the final norm.
        spearman: rank correlation of cosines with gold scores.
        start, exit: the layers Token Prepending changes; None for a plain encoder.
    """

    layer: int
    spearman: float
    start: int | None = None
    exit: int | None = None

    @property
    def settings(self) -> dict[str, int]:
        """As the encoder takes them."""
        changed = {} if self.start is None or self.exit is None else {"start": self.start, "exit": self.exit}
        return {"layer": self.layer, **changed}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Sweep:
    """All settings that were tried.

    Attributes:
        cells: in the order start, exit, layer.
        passes: forward passes over the texts.
        pairs: number of sentence pairs behind each score.
    """

    cells: tuple[SweepCell, ...]
    passes: int
    pairs: int
    seconds: float = 0.0

    @property
    def best(self) -> SweepCell:
        """The highest Spearman; among equals the lowest layer, which is the cheapest."""
        return max(self.cells, key=lambda cell: (cell.spearman, -cell.layer))

    def at(self, layer: int) -> SweepCell:
        """The best setting with this output layer.

        Raises:
            InputError: the layer was not tried.
        """
        found = [cell for cell in self.cells if cell.layer == layer]
        if not found:
            tried = sorted({cell.layer for cell in self.cells})
            raise InputError(f"layer {layer} was not tried; expected one of {', '.join(map(str, tried))}")
        return max(found, key=lambda cell: cell.spearman)

    def table(self) -> str:
        """Spearman × 100 as a Markdown table: a row for each start and exit, a column for each output layer."""
        layers = sorted({cell.layer for cell in self.cells})
        rows: dict[tuple[int | None, int | None], dict[int, float]] = {}
        for cell in self.cells:
            rows.setdefault((cell.start, cell.exit), {})[cell.layer] = cell.spearman
        lines = ["| start | exit | " + " | ".join(f"layer {layer}" for layer in layers) + " |"]
        lines.append("|" + "---|" * (2 + len(layers)))
        for (start, leave), found in rows.items():
            name = ["–" if value is None else str(value) for value in (start, leave)]
            lines.append("| " + " | ".join(name + [f"{100 * found[layer]:.2f}" for layer in layers]) + " |")
        return "\n".join(lines)


def sweep(
    encoder: CausalEncoder,
    first: Sequence[str],
    second: Sequence[str],
    gold: Sequence[float],
    *,
    starts: Sequence[int] | None = None,
    exits: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    templates: Sequence[Template] = (),
    batch_tokens: int = 1024,
) -> Sweep:
    """Try output layers, and for Token Prepending the layers it changes, on sentence pairs with scores.

    Choose on other pairs than those that the result is reported for. The encoder itself is not changed:
    `variant(encoder, **sweep(…).best.settings)` is the best one.

    Args:
        encoder: a plain one, or a `TokenPrepending`; the last token's vector is taken.
        first, second, gold: the pairs' texts and human similarity scores.
        starts: for Token Prepending; the encoder's own by default.
        exits: likewise; by default `default_exits`.
        layers: output layers; by default `default_layers`.
        templates: vectors are averaged over these; by default the encoder's own alone. Each takes its own pass.
        batch_tokens: padded tokens in a batch.

    Raises:
        InputError: no pairs, lists of unequal length, scores that do not differ, or layers that the model does not
            have.

    Example:
        found = sweep(TokenPrepending(model, tokenizer), first, second, gold)
        print(found.table())
        best = variant(TokenPrepending(model, tokenizer), **found.best.settings)
    """
    if not len(first) == len(second) == len(gold):
        raise InputError(f"got {len(first)} and {len(second)} texts and {len(gold)} scores; expected equal numbers")
    if len(set(gold)) < 2:
        raise InputError(f"got {len(gold)} pairs with {len(set(gold))} different scores; a correlation needs two")
    depth = len(encoder.layers)
    layers = sorted(set(layers if layers is not None else default_layers(depth)))
    ranges: list[dict[str, Any]] = [{}]
    if isinstance(encoder, TokenPrepending):
        wanted = [(s, e) for s in starts or [encoder.start] for e in (default_exits(depth) if exits is None else exits)]
        ranges = [{"start": s, "exit": e} for s, e in wanted if s < e]
    if not ranges:
        raise InputError("got no exit after a start; expected one or more to try")
    texts = list(dict.fromkeys([*first, *second]))
    index = {text: i for i, text in enumerate(texts)}
    one, other = [index[text] for text in first], [index[text] for text in second]
    begin = time.perf_counter()
    cells: list[SweepCell] = []
    with progress("trying layers", total=len(ranges)) as bar:
        for changes in ranges:
            read = variant(encoder, **changes)
            vectors = layer_vectors(read, texts, layers, templates=templates, batch_tokens=batch_tokens)
            cells += [
                SweepCell(layer, _spearman(vectors[layer][one], vectors[layer][other], gold), **changes)
                for layer in layers
            ]
            bar.advance(bar.task_ids[0])
    return Sweep(tuple(cells), len(ranges) * max(1, len(templates)), len(gold), time.perf_counter() - begin)


def layer_vectors(
    encoder: CausalEncoder,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    templates: Sequence[Template] = (),
    batch_tokens: int = 1024,
) -> dict[int, Floats]:
    """The last token's vectors after each of several layers, all from one forward pass of each batch.

    Args:
        encoder: its own `layer` is not used; layers beyond the last one wanted are not run.
        texts: embedded in batches of like length.
        layers: 1 to the model's depth, which stands for the last layer with the final norm.
        templates: vectors are averaged over these.

    Returns:
        For each layer (texts, hidden) in float32, equal to the vectors of an encoder with that `layer` and last-token
        pooling.

    Raises:
        InputError: no layer, or one that the model does not have.
    """
    import torch

    depth = len(encoder.layers)
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise InputError(f"got output layers {', '.join(map(str, layers)) or 'none'}; expected some of 1 to {depth}")
    readers = [variant(encoder, layer=max(layers), template=template) for template in templates or [encoder.template]]
    found: dict[int, Floats] = {}
    for reader in readers:
        reader.eval()
        rows = reader.rows(texts)

        def read(batch: Sequence[int], reader: CausalEncoder = reader, rows: Any = rows) -> list[dict[int, Any]]:
            features: dict[str, Any] = features_of(reader, [rows[i] for i in batch])
            mask = features["attention_mask"]
            inner = set(layers) - {max(layers)}
            last = partial(last_vectors, attention_mask=mask)
            with torch.inference_mode(), layer_inputs(reader.layers, inner, last) as recorded:
                recorded[max(layers)] = last(reader(features)["token_embeddings"])  # (batch, hidden)
            arrays = {layer: part.float().cpu().numpy() for layer, part in recorded.items()}
            return [{layer: array[i] for layer, array in arrays.items()} for i in range(len(batch))]

        for batch in plan_batches([len(row) for row in rows], batch_tokens):
            for i, made in zip(batch, halve_on_oom(read, batch), strict=True):
                for layer, vector in made.items():
                    if layer not in found:
                        found[layer] = np.zeros((len(texts), len(vector)), dtype=np.float32)
                    found[layer][i] += vector / len(readers)
    return found


def default_exits(depth: int) -> list[int]:
    """2, 4, 6, 8 and 12 of 30 layers, in proportion for another depth."""
    return sorted({min(depth, max(2, round(depth * part / _DEPTH))) for part in _EXITS})


def default_layers(depth: int) -> list[int]:
    """15, 20, 25, 28 and 30 of 30 layers, in proportion for another depth."""
    return sorted({max(1, round(depth * part / _DEPTH)) for part in _LAYERS})


def _spearman(first: Floats, second: Floats, gold: Sequence[float]) -> float:
    """Rank correlation of cosines, computed in float64, with gold scores; 0 where all cosines are equal."""
    from scipy.stats import spearmanr

    a, b = first.astype(np.float64), second.astype(np.float64)
    cosines = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return float(spearmanr(cosines, gold).statistic) if np.ptp(cosines) > 0 else 0.0
