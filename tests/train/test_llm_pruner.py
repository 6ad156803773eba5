"""LLM-Pruner: what units score, which go, and what is left of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from broadsheet.console import InputError
from broadsheet.models import surgery
from broadsheet.models.surgery import ATTENTION, MLP
from broadsheet.train import LLMPruner
from broadsheet.train.llm_pruner import (
    CRITERIA,
    REDUCTIONS,
    Scored,
    calibration,
    channel_scores,
    group_scores,
    lowest,
    multiply_adds,
    removed,
)  # fmt: skip
from broadsheet.training.scratch import Size, tokenizer

TAYLOR = ("vectorize", "param_first", "param_second", "param_mix")
ROWS = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 4, 8, 15, 11, 2], [12, 0, 3, 3, 19, 6]])


def model(layers: int = 3, seed: int = 0) -> Any:
    """A Llama of 20 tokens with 4 query heads on 2 key-value heads, in float64."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=12, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).double().eval()


def scores(given: Any, criterion: str, rows: Tensor = ROWS, **fields: Any) -> list[Tensor]:
    return [each.scores for each in LLMPruner(criterion=criterion, **fields).scores(given, rows)]


def gradients(given: Any, rows: Tensor) -> dict[str, Tensor]:
    given.zero_grad()
    given(input_ids=rows, labels=rows).loss.backward()
    found = {name: each.grad.clone() for name, each in given.named_parameters()}
    given.zero_grad()
    return found


# Scores


@pytest.mark.parametrize("criterion", TAYLOR)
def test_scores_are_those_of_gradients_that_are_all_kept(criterion: str):
    given = model()
    whole = gradients(given, ROWS)
    squares = {name: torch.stack([gradients(given, row[None])[name] ** 2 for row in ROWS]).mean(0) for name in whole}
    for scored in LLMPruner(criterion=criterion).scores(given, ROWS):
        names = {id(each): name for name, each in given.named_parameters()}
        channels = []
        for part in scored.block.parts:
            name = names[id(part.linear.weight)]
            channels.append(
                channel_scores(part.linear.weight.detach(), criterion, part.dim, whole[name], squares[name])
            )
        expected = group_scores(channels, scored.block.units, scored.block.width).sum(1)
        assert torch.allclose(scored.scores, expected, rtol=1e-10)


def test_first_order_scores_tell_what_a_small_change_costs():
    given = model()
    ours = gradients(given, ROWS)["model.layers.1.mlp.gate_proj.weight"]
    gate = given.model.layers[1].mlp.gate_proj.weight
    with torch.no_grad():
        changed = []
        for step in (1e-2, -1e-2):  # the loss itself is in float32
            gate[3] *= 1 + step
            changed.append(float(given(input_ids=ROWS, labels=ROWS).loss))
            gate[3] /= 1 + step
        slope = (changed[0] - changed[1]) / 2e-2
        assert channel_scores(gate, "vectorize", 0, ours)[3] == pytest.approx(abs(slope), rel=1e-3)


def test_whole_vectors_score_at_most_what_their_weights_do():
    given = model()
    for vector, each in zip(scores(given, "vectorize"), scores(given, "param_first"), strict=True):
        assert (vector <= each + 1e-12).all()
        assert (vector < 0.9 * each).any()


def test_a_scaled_loss_scales_first_order_scores_and_squares_the_fisher():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 4, 6, generator=generator)
    squares = gradient**2
    for criterion, power in (("vectorize", 1), ("param_first", 1), ("param_second", 2)):
        once = channel_scores(weight, criterion, 0, gradient, squares)
        scaled = channel_scores(weight, criterion, 0, -3 * gradient, 9 * squares)
        assert torch.allclose(scaled, 3**power * once)
    assert torch.allclose(channel_scores(weight, "param_second", 0, squares=squares), (weight**2 * squares).sum(1))


def test_scores_by_hand():
    weight, gradient = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[0.5, 0.5], [-1.0, 2.0]])
    squares = torch.tensor([[0.2, 0.1], [0.0, 4.0]])
    of = {name: channel_scores(weight, name, 0, gradient, squares).tolist() for name in CRITERIA if name != "random"}
    assert of == {
        "vectorize": [0.5, 2.0],  # 0.5 − 1; −3 + 1
        "param_first": [1.5, 4.0],
        "param_second": pytest.approx([0.6, 1.0]),  # 0.2 + 0.4; 0 + 1
        "param_mix": pytest.approx([1.6, 3.5]),  # |0.5 − 0.1| + |−1 − 0.2|; 3 + |1 − 0.5|
        "l1": [3.0, 3.5],
        "l2": [5.0, 9.25],
    }
    assert channel_scores(weight, "l1", 1).tolist() == [4.0, 2.5]


def test_a_model_in_training_is_scored_without_its_dropout():
    given = model()
    expected = scores(given, "param_first")
    for layer in given.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert all(torch.equal(a, b) for a, b in zip(scores(given.train(), "param_first"), expected, strict=True))


def test_with_one_sample_the_fisher_is_its_squared_gradient():
    given = model()
    own = gradients(given, ROWS[:1])["model.layers.0.mlp.down_proj.weight"]
    weight = given.model.layers[0].mlp.down_proj.weight.detach()
    found = scores(given, "param_second", ROWS[:1], reduction="last")[0]
    assert torch.allclose(found, (weight**2 * own**2).sum(0))


def test_the_fisher_is_of_single_samples():
    given = model()
    together = scores(given, "param_second", ROWS)[0]
    apart = torch.stack([scores(given, "param_second", row[None])[0] for row in ROWS]).mean(0)
    assert torch.allclose(together, apart)
    whole = gradients(given, ROWS)["model.layers.0.mlp.down_proj.weight"]
    weight = given.model.layers[0].mlp.down_proj.weight.detach()
    batch = scores(given, "param_second", ROWS, reduction="last")[0]
    assert not torch.allclose(batch, (weight**2 * whole**2).sum(0), rtol=0.05)


def test_a_permuted_order_permutes_scores():
    given, other = model(), model()
    order = torch.tensor([3, 1, 0, 2, 11, 5, 6, 7, 8, 9, 10, 4])
    mlp = other.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    for criterion in TAYLOR:
        assert torch.allclose(scores(other, criterion)[2], scores(given, criterion)[2][order])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rescaled_channels_score_alike_by_the_loss_and_not_by_size(criterion: str):
    given, other = model(), model()
    mlp = other.model.layers[1].mlp
    with torch.no_grad():
        mlp.up_proj.weight[4] *= 5
        mlp.down_proj.weight[:, 4] /= 5
    same = torch.allclose(scores(given, criterion)[2], scores(other, criterion)[2], rtol=1e-8)
    assert same == (criterion not in ("l1", "l2"))


def test_what_is_zero_scores_zero():
    given = model()
    with torch.no_grad():
        for block in surgery.blocks(given):
            block.zero([1])
    for criterion in (*TAYLOR, "l1", "l2"):
        for found in scores(given, criterion):
            assert found[1] == 0
            assert found[0] > 0


def test_a_query_head_counts_for_the_head_that_it_reads():
    queries = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 80.0])  # 4 heads of 2 channels, on 2 of 2
    keys = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = group_scores([queries, keys], 2, 2)
    assert found.tolist() == [[pytest.approx(4.1), pytest.approx(6.2)], [pytest.approx(120.3), pytest.approx(140.4)]]


def test_parts_are_reduced_channel_by_channel():
    parts = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0]), torch.tensor([5.0, 0.5])]
    found = {name: group_scores(parts, 2, 1, name).flatten().tolist() for name in REDUCTIONS}
    assert found == {
        "sum": [9, 6.5], "prod": [15, 4], "max": [5, 4], "mean": [3, pytest.approx(6.5 / 3)],
        "first": [1, 4], "second": [3, 2], "last": [5, 0.5],
    }  # fmt: skip


@pytest.mark.parametrize("criterion", TAYLOR)
def test_scoring_leaves_the_model_as_it_was(criterion: str):
    given = model().train()
    frozen = given.model.embed_tokens.weight.requires_grad_(False)
    before = {name: each.clone() for name, each in given.state_dict().items()}
    scores(given, criterion)
    assert given.training
    assert not frozen.requires_grad
    assert given.lm_head.weight.requires_grad
    assert all(each.grad is None for each in given.parameters())
    assert all(torch.equal(each, before[name]) for name, each in given.state_dict().items())
    assert not any(each._post_accumulate_grad_hooks for each in given.parameters())


def test_at_most_one_gradient_is_held_at_a_time():
    given, held = model(layers=4), []
    real = channel_scores

    def watching(*arguments: Any, **more: Any) -> Tensor:
        held.append(sum(each.grad is not None for each in given.parameters()))
        return real(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broadsheet.train.llm_pruner.channel_scores", watching)
        scores(given, "param_first")
    assert len(held) == 4 * 7
    assert max(held) == 1


# What goes


def test_how_many_go():
    assert [removed(6, 0.25), removed(6, 0.5), removed(5, 0.4), removed(1536, 0.25)] == [2, 3, 2, 384]
    assert removed(3, 0.25, 64) == 0, "three heads are too few"
    assert [removed(32, 0.25, 128), removed(8, 0.25, 128)] == [8, 2]
    assert removed(10, 0.9) == 9, "not ten, for want of a bit"
    assert removed(7, 0) == 0
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2) == [1, 3]
    assert lowest(torch.tensor([1.0, 1.0, 1.0]), 1) == [0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_lowest_go_and_the_closed_form_holds(criterion: str):
    given, before = model(), model()
    expected = scores(before, criterion)
    done = LLMPruner(ratio=0.5, criterion=criterion).prune(given, ROWS)
    layer = 3 * 6 * 16 + 2 * (8 * 16 + 4 * 16)  # six channels; a key-value head of 4 and two query heads
    assert done.before - done.after == 3 * layer
    assert done.cuts == {MLP: (18, 36), ATTENTION: (3, 6)}
    assert done.plain
    kept = expected[2].argsort(stable=True)[6:].sort().values
    old, new = (each.model.layers[1].mlp.up_proj.weight for each in (before, given))
    assert torch.equal(new, old[kept])
    config = given.config
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert str(done).endswith("% less): without 18 of 36 MLP channels and 3 of 6 key-value heads")


def test_a_ratio_of_zero_is_the_identity():
    given, before = model(), model()
    done = LLMPruner(ratio=0.0).prune(given, ROWS)
    assert done.before == done.after
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), before.parameters(), strict=True))
    assert given.config.to_dict() == {**before.config.to_dict(), "head_dim": 4}


def test_some_layers_alone_and_one_kind():
    given = model()
    done = LLMPruner(ratio=0.25, kinds=("mlp",), layers=(1, 3)).prune(given, ROWS)
    assert surgery.widths(given) == [[12, 2], [9, 2], [9, 2]]
    assert not done.plain
    assert done.cuts == {MLP: (6, 24)}


def test_units_compete_over_the_whole_model_and_no_layer_loses_all():
    given = model()
    blocks = [block for block in surgery.blocks(given) if block.kind == MLP]
    values = [torch.arange(12.0), 100 + torch.arange(12.0), 200 + torch.arange(12.0)]
    scored = [Scored(*each) for each in zip(blocks, values, strict=True)]
    pruner = LLMPruner(ratio=0.5, scope="model", kinds=("mlp",))
    assert [away for _, away in pruner.plan(scored)] == [list(range(11)), list(range(7)), []]
    most = LLMPruner(ratio=0.99, scope="model", kinds=("mlp",)).plan(scored)
    assert [len(away) for _, away in most] == [11, 11, 11]
    assert LLMPruner(ratio=0.5, kinds=("mlp",)).plan(scored)[2][1] == list(range(6)), "within each layer"


def test_random_units_go_by_the_seed():
    first, again, other = (scores(model(), "random", seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pruned_model_can_be_pruned_again():
    given = model()
    for _ in range(2):
        LLMPruner(ratio=0.25, kinds=("mlp",)).prune(given, ROWS)
    assert surgery.widths(given) == [[6, 2]] * 3  # 12 − int(9) = 3, 9 − int(6.75) = 3
    assert given.config.intermediate_size == 6


def test_published_sizes_of_llama_7b():
    """6.74B to 5.42B weights, 424.02 to 339.60 billion multiply-adds at 64 tokens."""
    config = LlamaConfig(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32)
    config.num_attention_heads = config.num_key_value_heads = 32
    with torch.device("meta"):
        given = LlamaForCausalLM(config)
    assert multiply_adds(given, 64) / 1e9 == pytest.approx(424.02, rel=5e-4)
    done = LLMPruner(ratio=0.25, layers=(4, 30), criterion="random").prune(given)
    assert done.before / 1e9 == pytest.approx(6.74, abs=0.005)
    assert done.after / 1e9 == pytest.approx(5.42, abs=0.005)
    assert multiply_adds(given, 64) / 1e9 == pytest.approx(339.60, rel=5e-4)


# Text, and what is refused


def test_windows_are_of_different_texts_by_the_seed():
    texts = [" ".join(f"w{i}{j}" for j in range(30)) for i in range(12)] + ["short"]
    by = tokenizer(texts, 300)
    rows = calibration(texts, by, samples=5, length=8, seed=3)
    assert rows.shape == (5, 8)
    assert torch.equal(rows, calibration(texts, by, samples=5, length=8, seed=3))
    assert not torch.equal(rows, calibration(texts, by, samples=5, length=8, seed=4))
    whole = [by.decode(by(text)["input_ids"]) for text in texts]
    homes = [[i for i, text in enumerate(whole) if by.decode(row) in text] for row in rows]
    assert all(homes)
    assert not all(
        text.startswith(by.decode(row)) for row, each in zip(rows, homes, strict=True) for text in [whole[each[0]]]
    )
    assert len({tuple(each) for each in homes}) == 5
    with pytest.raises(InputError, match="12 of 13 texts have 8 tokens or more; expected 13"):
        calibration(texts, by, samples=13, length=8)
    with pytest.raises(InputError, match="0 of 0 texts"):
        calibration([], by)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ratio": 1.0}, "got ratio 1.0"),
        ({"ratio": -0.1}, "from 0 to below 1"),
        ({"criterion": "l3"}, "'l3'"),
        ({"scope": "all"}, "'all'"),
        ({"reduction": "median"}, "'median'"),
        ({"kinds": ("hidden",)}, "hidden"),
        ({"kinds": ()}, "expected 'mlp', 'attention'"),
    ],
)
def test_settings_that_are_none_are_one_line(fields: dict[str, Any], told: str):
    with pytest.raises(InputError, match=told):
        LLMPruner(**fields)


def test_what_cannot_be_pruned_is_one_line_and_leaves_the_model():
    given = model()
    before = [each.clone() for each in given.parameters()]
    for pruner, rows, told in (
        (LLMPruner(), None, "param_first needs rows of tokens"),
        (LLMPruner(), ROWS[:, :1], "needs rows of tokens"),
        (LLMPruner(ratio=0.95, kinds=("mlp",)), ROWS, "leaves nothing of layer 0's mlp, which has 12 units"),
        (LLMPruner(layers=(1, 9)), ROWS, "expected a part of 0 to 3"),
        (LLMPruner(layers=(2, 2)), ROWS, "expected a part of 0 to 3"),
    ):
        with pytest.raises(InputError, match=told):
            pruner.prune(given, rows)
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))
    with torch.no_grad():
        given.model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match="the loss of the calibration text is nan"):
        LLMPruner().prune(given, ROWS)
    with pytest.raises(InputError, match="expected l1, l2;"):
        channel_scores(ROWS.double(), "param_first")


def test_what_matters_least_costs_least():
    """A trained model loses less without its lowest units than without its highest."""
    from broadsheet.train import LossMethod, MethodObjective
    from broadsheet.training.fit import fit
    from broadsheet.training.scratch import TokenBlocks

    stream = torch.tensor([(7 * i * i + 3 * i) % 19 for i in range(1200)])
    rows = TokenBlocks(stream, 24)
    made = Size(2, 32, 2).model(20, 32, 0)
    fit(made, rows, MethodObjective(LossMethod()), steps=120, batch_size=16, learning_rate=1e-2)

    def loss_without(sign: int) -> float:
        import copy

        given = copy.deepcopy(made)
        for scored in LLMPruner(kinds=("mlp",)).scores(given, rows.ids[:10]):
            scored.block.remove(lowest(sign * scored.scores, scored.block.units // 4))
        with torch.no_grad():
            return float(given(input_ids=rows.ids, labels=rows.ids).loss)

    assert loss_without(1) < loss_without(-1) - 0.1
