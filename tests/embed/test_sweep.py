"""The layer sweep: one forward pass for each exit, and the same numbers as an encoder at that layer gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from lm_zoo import make
from scipy.stats import spearmanr

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.eol import META_EOL, last_vectors, variant
from broadsheet.embed.modules.template import PROMPT_EOL
from broadsheet.embed.sweep import Sweep, SweepCell, default_exits, default_layers, layer_vectors, sweep
from broadsheet.embed.token_prepending import TokenPrepending

FIRST = ["A man plays.", "The cat sat on the mat.", "A red hat", "Nine rats", "The sea", "A man plays."]
SECOND = ["A man is playing the guitar.", "A cat sat.", "A blue hat", "Stone", "An ocean", "The cat"]
GOLD = [4.5, 4.0, 2.0, 0.5, 3.0, 0.0]


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> CausalEncoder:
    return CausalEncoder(tiny_model(num_hidden_layers=6), tiny_tokenizer(), template=PROMPT_EOL)


@pytest.fixture(scope="module")
def ours(plain: CausalEncoder) -> TokenPrepending:
    return TokenPrepending(plain.model, plain.tokenizer)


@contextmanager
def counted(encoder: CausalEncoder) -> Iterator[list[int]]:
    """How many rows each layer has read."""
    rows = [0] * len(encoder.layers)

    def count(i: int) -> Callable[..., None]:
        def add(module: Any, args: Any, output: Any) -> None:
            rows[i] += len(args[0])

        return add

    handles = [layer.register_forward_hook(count(i)) for i, layer in enumerate(encoder.layers)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def directly(encoder: CausalEncoder, texts: list[str]) -> np.ndarray:
    given = encoder.pad(encoder.rows(texts))
    with torch.no_grad():
        return last_vectors(encoder(dict(given))["token_embeddings"], given["attention_mask"]).double().numpy()


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the largest value: states without the final norm are far from 1."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_plain_template_takes_one_pass_for_all_layers(plain):
    texts = {*FIRST, *SECOND}
    with counted(plain) as rows:
        found = sweep(plain, FIRST, SECOND, GOLD, layers=[1, 2, 3, 4, 5, 6])
    assert rows == [len(texts)] * 6  # each text once, however often it stands in the pairs
    assert (found.passes, found.pairs, len(found.cells)) == (1, 6, 6)


def test_token_prepending_takes_one_pass_for_each_exit(ours):
    texts = {*FIRST, *SECOND}
    with counted(ours) as rows:
        found = sweep(ours, FIRST, SECOND, GOLD, exits=[2, 3, 4], layers=[3, 4, 5])
    assert rows == [3 * len(texts)] * 5 + [0]  # no layer behind the last one that is asked about
    assert (found.passes, len(found.cells)) == (3, 9)
    with counted(ours) as rows:
        found = sweep(ours, FIRST, SECOND, GOLD, starts=[0, 2], exits=[2, 3], layers=[6])
    assert [(cell.start, cell.exit) for cell in found.cells] == [(0, 2), (0, 3), (2, 3)]
    assert rows == [3 * len(texts)] * 6


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_vectors_are_those_of_an_encoder_with_that_layer(plain, ours, batch_tokens):
    for encoder in (plain, variant(ours, exit=4)):
        found = layer_vectors(encoder, FIRST, range(1, 7), batch_tokens=batch_tokens)
        for layer in range(1, 7):
            same(found[layer], directly(variant(encoder, layer=layer), FIRST))
        same(found[6], directly(variant(encoder, layer=None), FIRST))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gemma3", "gpt_neox", "qwen3"])
def test_any_architecture_whatever_side_its_tokenizer_pads_on(name, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    encoder = TokenPrepending(make(name), tokenizer, exit=2, max_seq_length=None)
    found = layer_vectors(encoder, FIRST, [1, 2, 3])
    for layer in (1, 2, 3):
        same(found[layer], directly(variant(encoder, layer=layer), FIRST))


def test_scores_are_spearman_of_cosines(ours):
    found = sweep(ours, FIRST, SECOND, GOLD, exits=[3], layers=[4])
    one, other = (directly(variant(ours, exit=3, layer=4), texts) for texts in (FIRST, SECOND))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    [cell] = found.cells
    assert cell.spearman == pytest.approx(spearmanr(cosines, GOLD).statistic)
    assert cell.settings == {"layer": 4, "start": 1, "exit": 3}


def test_several_templates_are_averaged(ours):
    with counted(ours) as rows:
        found = layer_vectors(ours, FIRST[:3], [3, 6], templates=META_EOL)
    assert rows == [8 * 3] * 6
    each = [directly(variant(ours, layer=3, template=template), FIRST[:3]) for template in META_EOL]
    same(found[3], np.mean(each, axis=0))


def test_the_encoder_stays_as_it_was_and_the_best_setting_is_an_encoder(ours):
    before = ours.get_config_dict()
    found = sweep(ours, FIRST, SECOND, GOLD, exits=[2, 4], layers=[3, 5])
    assert ours.get_config_dict() == before
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in ours.layers)
    best = variant(ours, **found.best.settings)
    assert (best.exit, best.layer) == (found.best.exit, found.best.layer)
    assert found.best.spearman == max(cell.spearman for cell in found.cells)


def test_the_best_of_equals_reads_the_lowest_layer_and_at_takes_the_best_exit():
    cells = (SweepCell(20, 0.5, 1, 4), SweepCell(15, 0.6, 1, 4), SweepCell(20, 0.6, 1, 6), SweepCell(15, 0.1, 1, 6))
    found = Sweep(cells, 2, 100)
    assert found.best == cells[1]
    assert found.at(20) == cells[2]
    assert found.table().splitlines()[2:] == ["| 1 | 4 | 60.00 | 50.00 |", "| 1 | 6 | 10.00 | 60.00 |"]
    assert Sweep((SweepCell(3, 0.25),), 1, 9).table().splitlines()[-1] == "| – | – | 25.00 |"
    with pytest.raises(InputError, match="expected one of 15, 20"):
        found.at(3)


def test_the_grid_begins_with_one_changed_layer_and_scales_with_depth():
    assert (default_exits(30), default_layers(30)) == ([2, 4, 6, 8, 12], [15, 20, 25, 28, 30])
    assert (default_exits(32), default_layers(32)) == ([2, 4, 6, 9, 13], [16, 21, 27, 30, 32])
    assert (default_exits(2), default_layers(2)) == ([2], [1, 2])
    for depth in range(2, 80):
        assert default_exits(depth)[-1] <= depth
        assert default_layers(depth)[-1] == depth


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((FIRST, SECOND, GOLD[:3]), "6 and 6 texts and 3 scores"),
        ((FIRST, SECOND, [1.0] * 6), "1 different scores"),
        (([], [], []), "0 pairs"),
    ],
)
def test_pairs_that_tell_nothing_are_refused(plain, given, message):
    with pytest.raises(InputError, match=message):
        sweep(plain, *given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, "output layers none"),
        ({"layers": [7]}, "output layers 7; expected some of 1 to 6"),
        ({"layers": [0, 3]}, "output layers 0, 3"),
        ({"exits": [1], "starts": [1]}, "no exit after a start"),
        ({"exits": [9]}, "exit 9"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(ours, settings, message):
    with pytest.raises(InputError, match=message):
        sweep(ours, FIRST, SECOND, GOLD, **settings)
