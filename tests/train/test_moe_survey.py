"""Mixtures of experts: what upcycling keeps, and what a layer of experts computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from mixtures import IDS, KINDS, SMALL, dense_of, logits_of, mixture_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as Llama
from transformers import MistralConfig as Mistral

from broadsheet.console import InputError
from broadsheet.page.guides import maps
from broadsheet.train import Upcycling
from broadsheet.train.experts import routing
from broadsheet.train.experts.routers import active_weights, experts, install, loads, routers
from broadsheet.train.moe_survey import expert_distances


@pytest.mark.parametrize(
    ("kind", "router", "layers"), list(itertools.product(KINDS, ("mixtral", "sigmoid"), (None, 2)))
)
def test_a_mixture_computes_what_the_dense_model_does_and_is_read_back_by_plain_transformers(
    kind, router, layers, tmp_path
):
    dense = dense_of(kind)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    mixture = Upcycling(4, 2, router, layers).model(dense)
    torch.testing.assert_close(logits_of(mixture), logits_of(dense), atol=1e-5, rtol=1e-5)
    assert len(routers(mixture)) == (layers or 3)
    mixture.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(read) is type(mixture)
    mixtral = kind in ("llama", "mistral") and (router, layers) == ("mixtral", None)
    assert (type(read).__name__ == "MixtralForCausalLM") is mixtral
    assert torch.equal(logits_of(read), logits_of(mixture))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items()), "it stays as it was"


def test_gates_that_do_not_sum_to_one_are_made_up_for_at_uniform_routing(tmp_path):
    dense = dense_of("llama")
    mixture = Upcycling(4, 1, "switch").model(dense)
    assert not Upcycling(4, 1, "switch").exact
    for each in routers(mixture).values():
        nn.init.zeros_(each.weight)
    torch.testing.assert_close(logits_of(mixture), logits_of(dense), atol=1e-5, rtol=1e-5)
    mixture.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits_of(mixture))


def test_experts_part_by_noise_and_by_units_that_begin_anew(tiny):
    alike = expert_distances(Upcycling(4, 2).model(tiny()))
    assert alike.shape == (1, 4, 4)
    assert float(alike.abs().max()) == 0
    noisy = expert_distances(Upcycling(4, 2, noise=0.1).model(tiny()))
    off = ~torch.eye(4, dtype=torch.bool)
    # Two draws of a tenth of the deviation: √2 of it.
    assert noisy[0][off].tolist() == pytest.approx([0.1 * 2**0.5] * 12, rel=0.1)
    assert torch.equal(noisy, noisy.mT)
    [whole], [dropped] = (experts(Upcycling(4, 2, drop=each).model(tiny())) for each in (0.0, 0.5))
    width = whole.down_proj.shape[2]
    changed = torch.stack(
        [
            (whole.gate_up_proj[:, :width] != dropped.gate_up_proj[:, :width]).all(2),
            (whole.gate_up_proj[:, width:] != dropped.gate_up_proj[:, width:]).all(2),
            (whole.down_proj != dropped.down_proj).all(1),
        ]
    )
    assert torch.equal(changed[0], changed[1]), "units begin anew as a whole"
    assert torch.equal(changed[0], changed[2])
    assert changed[0].sum(1).tolist() == [width // 2] * 4
    assert len({tuple(row) for row in changed[0].tolist()}) == 4, "other units of each expert"
    kept = ~changed[0][0]
    assert torch.equal(whole.down_proj[0][:, kept], dropped.down_proj[0][:, kept])
    old, new = (each.gate_up_proj[0][:width].detach() for each in (whole, dropped))
    assert float(new.std()) == pytest.approx(float(old.std()), rel=0.15)
    again = experts(Upcycling(4, 2, drop=0.5).model(tiny()))[0]
    other = experts(Upcycling(4, 2, drop=0.5, seed=1).model(tiny()))[0]
    assert torch.equal(again.down_proj, dropped.down_proj)
    assert not torch.equal(other.down_proj, dropped.down_proj)


def test_what_cannot_be_upcycled_is_told(tiny):
    for given in ({"top_k": 5}, {"experts": 1, "top_k": 1}, {"top_k": 0}):
        with pytest.raises(InputError, match="expected 2 experts or more"):
            Upcycling(**given)
    for given in ({"drop": 1.5}, {"noise": -1}, {"layers": 0}):
        with pytest.raises(InputError, match="; expected "):
            Upcycling(**given)
    with pytest.raises(InputError, match="expected one of mixtral, switch, sigmoid"):
        Upcycling(router="expert_choice")
    with pytest.raises(InputError, match="at most 1, which the model has"):
        Upcycling(layers=2).model(tiny())
    with pytest.raises(InputError, match="got a mixtral model; expected one of llama"):
        Upcycling().model(Upcycling().model(tiny()))
    biased = AutoModelForCausalLM.from_config(Llama(**SMALL, attention_bias=True))
    with pytest.raises(InputError, match=r"bias and .* have no place"):
        Upcycling().model(biased)
    windowed = AutoModelForCausalLM.from_config(Mistral(**SMALL, sliding_window=8))
    assert Upcycling().model(windowed).config.sliding_window == 8
    with pytest.raises(InputError, match="sliding window of 8"):
        Upcycling(layers=1).model(windowed)


@pytest.mark.parametrize("kind", ["mixtral", "switch", "sigmoid", "noisy"])
def test_a_router_in_place_of_a_models_own_computes_what_it_says(kind, tiny):
    model = mixture_of(tiny, router="mixtral" if kind == "noisy" else kind)
    own = logits_of(model)
    before = [each.weight for each in routers(model).values()]
    undo = install(model, kind)
    assert all(each.weight is old for each, old in zip(routers(model).values(), before, strict=True)), "trained on"
    torch.testing.assert_close(logits_of(model), own, atol=1e-6, rtol=1e-5)
    undo()
    assert torch.equal(logits_of(model), own)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("k", [1, 2])
def test_loop_grouped_and_dense_computations_agree(k, tiny):
    model = mixture_of(tiny, top_k=k)
    block, x = model.model.layers[0].mlp, torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        found.append(block(x)[0])
    held, routed = block.experts, routing.mixtral(x[0] @ block.gate.weight.T, k)
    gate, up = torch.einsum("td,efd->tef", x[0], held.gate_up_proj).chunk(2, -1)
    each = torch.einsum("tef,edf->ted", nn.functional.silu(gate) * up, held.down_proj)
    found.append(torch.einsum("ted,te->td", each, routing.spread(routed)))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], atol=1e-5, rtol=1e-4)


def test_one_expert_is_the_dense_network_and_experts_can_be_renumbered(tiny):
    model = mixture_of(tiny)
    single = install(model, "mixtral", top_k=1)
    block, x = model.model.layers[0].mlp, torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))
    winner = block.gate(x)[2][:, 0]
    for token in range(9):
        gate, up = (x[0, token] @ block.experts.gate_up_proj[winner[token]].T).chunk(2)
        alone = (nn.functional.silu(gate) * up) @ block.experts.down_proj[winner[token]].T
        torch.testing.assert_close(block(x)[0, token], alone, atol=1e-5, rtol=1e-4)
    single()
    before, order = logits_of(model), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for held, router in zip(experts(model), routers(model).values(), strict=True):
            for weight in (held.gate_up_proj, held.down_proj, router.weight):
                weight.copy_(weight[order].clone())
    torch.testing.assert_close(logits_of(model), before, atol=1e-6, rtol=1e-5)


def test_a_token_costs_as_much_whatever_the_number_of_experts(tiny):
    def flops(count: int, k: int) -> int:
        model = mixture_of(tiny, experts=count, top_k=k)
        model.set_experts_implementation("eager")
        with FlopCounterMode(display=False) as counted:
            logits_of(model)
        return counted.get_total_flops() - 2 * IDS.numel() * 16 * count  # but for the router's

    assert flops(4, 2) == flops(8, 2) < flops(8, 3)
    dense = sum(each.numel() for each in tiny().parameters())
    network = sum(each.numel() for each in tiny().model.layers[0].mlp.parameters())
    for count, k in ((4, 2), (8, 2), (8, 1)):
        model = mixture_of(tiny, experts=count, top_k=k)
        active, total = active_weights(model)
        assert active == dense + (k - 1) * network + 16 * count
        assert total == dense + (count - 1) * network + 16 * count


def test_a_token_alone_is_read_as_among_others_unless_one_is_dropped(tiny):
    model = mixture_of(tiny)
    block, x = model.model.layers[0].mlp, torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([block(x[:, [i]])[0, 0] for i in range(24)])
    torch.testing.assert_close(block(x)[0], alone, atol=1e-5, rtol=1e-4)
    undo = install(model.train(), "mixtral", capacity=4.0)
    torch.testing.assert_close(block(x)[0], alone, atol=1e-5, rtol=1e-4)
    assert block.gate.dropped == 0
    undo()
    install(model, "mixtral", capacity=0.5)
    found, dropped = block(x)[0], block.gate.dropped
    assert dropped >= 24, "there is room for half of the choices at most"
    touched = (~torch.isclose(found, alone, atol=1e-5)).any(1)
    assert touched.any()
    gates = block.gate(x)[1]
    assert torch.equal(touched, (gates == 0).any(1)), "and only tokens of which a choice was dropped differ"
    model.eval()
    torch.testing.assert_close(block(x)[0], alone, atol=1e-5, rtol=1e-4)


def test_first_choices_find_room_before_second_ones_and_padding_takes_none():
    indices = torch.tensor([[1, 0], [0, 1], [0, 1], [0, 2], [1, 2]])
    fits = routing.within_capacity(indices, 3, 2)
    assert fits.tolist() == [[True, False], [True, False], [True, False], [False, True], [True, True]]
    asked = torch.tensor([True, False, True, True, True])
    fits = routing.within_capacity(indices, 3, 2, asked)
    assert fits[[0, 2, 3, 4]].tolist() == [[True, False], [True, False], [True, True], [True, True]]
    assert [routing.capacity(*each) for each in ((8, 4, 1, 1.0), (8, 4, 2, 1.25), (7, 4, 1, 1.0))] == [2, 5, 2]


def test_padding_is_not_counted_and_takes_no_room(tiny):
    model = mixture_of(tiny)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros(2, 5, dtype=torch.long), torch.ones_like(IDS)], 1)
    for settings in ({}, {"capacity": 0.7}):
        undo = install(model.train(), "mixtral", **settings)
        positions = mask.cumsum(1).sub(1).clamp(min=0)
        with torch.no_grad():
            short = model(IDS, use_cache=False).logits
            long = model(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(long[:, 5:], short, atol=1e-5, rtol=1e-4)
        undo()
    one = {"input_ids": padded[0], "attention_mask": mask[0]}
    counted = loads(model, [one])
    assert counted.shape == (1, 1, 4)
    assert counted.sum() == 2 * 12
    assert torch.equal(loads(model, [one, one], batch=1)[0], counted[0])


def test_the_surveys_map_names_what_is_here():
    nodes = {node.at: node for node in maps.tree("moe_survey").walk()}
    here = {at for at, node in nodes.items() if "moe_survey" in node.papers}
    assert here == {
        "algorithm/gating/sparse/token", "algorithm/gating/sparse/expert", "algorithm/experts/type/ffn",
        "algorithm/training/dense-to-sparse",
    }  # fmt: skip
    assert "Mixtral" in nodes["algorithm/gating/sparse/token"].examples
