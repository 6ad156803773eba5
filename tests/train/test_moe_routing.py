"""Routers of experts by name, and the losses that keep their load even."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import IDS, logits_of, mixture_of
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from broadsheet.console import InputError
from broadsheet.train.experts import routing
from broadsheet.train.experts.routers import install, routers
from broadsheet.train.moe_survey import balance_over_layers, pooled_and_by_layer


def test_gates_sum_to_one_where_they_are_renormalised():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for name in ("mixtral", "noisy", "sigmoid"):
        for k in (1, 2, 6):
            gates = routing.router(name)(logits, k).gates
            torch.testing.assert_close(gates.sum(1), torch.ones(50))
    assert bool((routing.switch(logits, 2).gates.sum(1) < 1).all())
    with pytest.raises(InputError, match="expected one of mixtral, switch, noisy, sigmoid, expert_choice"):
        routing.router("soft")


@pytest.mark.parametrize(
    ("name", "k", "learns"),
    [("switch", 1, True), ("switch", 2, True), ("mixtral", 2, True), ("sigmoid", 2, True), ("mixtral", 1, False)],
)
def test_a_router_learns_from_the_loss_unless_its_one_gate_is_always_one(name, k, learns, tiny):
    model = mixture_of(tiny, top_k=k, router=name)
    model(IDS, labels=IDS).loss.backward()
    gradient = next(iter(routers(model).values())).weight.grad
    assert bool(gradient.abs().max() > 1e-8) is learns


def test_noise_is_of_the_training_alone_and_its_scale_is_learnt(tiny):
    model = mixture_of(tiny)
    plain = logits_of(model)
    install(model, "noisy")
    assert torch.equal(logits_of(model), logits_of(model))
    torch.testing.assert_close(logits_of(model), plain, atol=1e-6, rtol=1e-5)
    model.train()
    assert not torch.equal(logits_of(model), logits_of(model))
    model(IDS, labels=IDS).loss.backward()
    [router] = routers(model).values()
    assert float(router.noise.grad.abs().max()) > 0


def test_experts_that_choose_are_evenly_used_and_look_ahead(tiny, capsys):
    model = mixture_of(tiny)
    undo = install(model, "expert_choice", eval_capacity=2.0)
    assert "expert choice is not causal" in capsys.readouterr().err
    block = model.model.layers[0].mlp
    _, gates, indices = block.gate(torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(2)))
    assert indices.shape == (24, 4)
    assert (gates > 0).sum(0).tolist() == [24 * 2 // 4] * 4
    other = IDS.clone()
    other[:, -4:] = (other[:, -4:] + 7) % 20
    leaks = ~torch.isclose(logits_of(model, IDS), logits_of(model, other), atol=1e-5)[:, :-4]
    assert leaks.any(), "what comes later changes what was before"
    undo()
    assert torch.allclose(logits_of(model, IDS)[:, :-4], logits_of(model, other)[:, :-4], atol=1e-5)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    asked = torch.arange(10) < 6
    masked = routing.expert_choice(logits, 1, asked=asked)
    assert (masked.gates > 0).sum(0).tolist() == [2, 2, 2]
    assert float(masked.gates[6:].abs().max()) == 0
    assert torch.equal(masked.gates[:6], routing.expert_choice(logits[:6], 1).gates)
    with pytest.raises(InputError, match="4 experts would take 0 of 3 tokens"):
        routing.expert_choice(torch.zeros(3, 4), 1)


def test_the_bias_selects_and_does_not_weigh():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    plain, pushed = (routing.sigmoid(logits, 2, bias=torch.tensor(each)) for each in ([0.0] * 4, [0.0, 0.0, 0.0, 9.0]))
    assert plain.indices.tolist() == [[0, 1]]
    assert pushed.indices.tolist() == [[3, 0]]
    s = logits[0].sigmoid()
    torch.testing.assert_close(pushed.gates[0], torch.stack([s[3], s[0]]) / (s[3] + s[0]))
    moved = routing.moved(torch.zeros(4), torch.tensor([8.0, 4.0, 4.0, 0.0]), 0.1)
    assert moved.tolist() == pytest.approx([-0.1, 0.0, 0.0, 0.1])


def test_balance_is_k_where_experts_are_chosen_alike_and_e_where_one_is():
    uniform = torch.tensor([[float(i == e or i == (e + 1) % 4) for i in range(4)] for e in range(4)])
    for k in (1, 2):
        _, [even] = pooled_and_by_layer([9 * uniform + torch.eye(4)], k)
        assert float(even) == pytest.approx(k, abs=1e-5)
    collapsed = torch.tensor([[60.0, 0.0, 0.0, 0.0]]).repeat(10, 1)
    assert float(pooled_and_by_layer([collapsed], 1)[1][0]) == pytest.approx(4)


def test_the_gradient_of_balance_goes_through_p_and_that_of_z_is_known():
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = routing.switch(logits, 2)
    fractions = routing.counts(found.indices, 4) / 12
    [gradient] = torch.autograd.grad(routing.balance_loss(fractions, found.probs.mean(0)), logits)
    p = logits.detach().softmax(1)
    wanted = 4 / 12 * p * (fractions - (p * fractions).sum(1, keepdim=True))
    torch.testing.assert_close(gradient, wanted)
    [gradient] = torch.autograd.grad(routing.z_loss(logits), logits)
    torch.testing.assert_close(gradient, 2 / 12 * logits.logsumexp(1, keepdim=True) * logits.softmax(1))


def test_masked_tokens_are_out_of_every_term_and_the_pooled_one_is_transformers():
    generator = torch.Generator().manual_seed(0)
    layers = [3 * torch.randn(20, 4, generator=generator) + torch.tensor([2.0, 0, 0, -2]) * sign for sign in (1, -1)]
    mask = torch.ones(2, 10)
    mask[0, 6:] = 0
    asked = mask.flatten() != 0
    for given, kept in ((None, layers), (asked, [each[asked] for each in layers])):
        pooled, by_layer = pooled_and_by_layer(layers, 2, given)
        theirs = load_balancing_loss_func(tuple(layers), 4, 2, None if given is None else mask)
        assert float(pooled) == pytest.approx(float(theirs), rel=1e-5)
        assert by_layer.tolist() == pytest.approx(pooled_and_by_layer(kept, 2)[1].tolist(), rel=1e-5)
        assert float(by_layer.mean()) > float(pooled) + 0.2, "layers make up for one another in the pool"
        found = [routing.switch(each, 2) for each in layers]
        for each, one, short in zip(layers, found, kept, strict=True):
            assert float(routing.z_loss(each, given)) == pytest.approx(float(routing.z_loss(short)), rel=1e-5)
            loss = routing.importance_loss(routing.spread(one, given))
            assert float(loss) == pytest.approx(
                float(routing.importance_loss(routing.spread(routing.switch(short, 2)))), rel=1e-5
            )


def test_importance_is_the_squared_variation_of_the_gates_sums():
    gates = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert float(routing.importance_loss(gates)) == pytest.approx((1 + 0 + 1) / 3)
    assert float(routing.importance_loss(torch.full((4, 3), 1 / 3))) == pytest.approx(0)


def test_entropy_says_how_even_a_load_is():
    found = routing.entropy(torch.tensor([[5.0, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert found.tolist() == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-6)


def test_the_mean_over_layers_is_not_the_pool():
    even = torch.full((2, 2), 0.5)
    skewed = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(balance_over_layers(skewed, skewed)) == 2.0
    assert float(balance_over_layers(skewed, skewed, hf_compat=True)) == float(balance_over_layers(even, even)) == 1.0


def test_a_soft_mixture_is_means_of_what_experts_make_of_means_of_tokens():
    torch.manual_seed(0)
    x, phi, weights = torch.randn(7, 5), torch.randn(5, 3, 2), torch.randn(3, 5, 5)

    def experts(slots: torch.Tensor) -> torch.Tensor:
        assert slots.shape == (3, 2, 5)
        return torch.tanh(slots @ weights)

    found = routing.soft_mixture(x, phi, experts)
    logits = x @ phi.flatten(1)  # a column a slot, the slots of an expert side by side
    want = torch.zeros(7, 5)
    for slot in range(6):
        dispatched = logits[:, slot].exp() / logits[:, slot].exp().sum()
        made = torch.tanh((dispatched[:, None] * x).sum(0) @ weights[slot // 2])
        share = logits[:, slot].exp() / logits.exp().sum(1)
        want += share[:, None] * made
    assert torch.allclose(found, want, atol=1e-5)
    asked = torch.tensor([True] * 5 + [False] * 2)
    padded = routing.soft_mixture(x, phi, experts, asked)
    assert torch.allclose(padded[:5], routing.soft_mixture(x[:5], phi, experts), atol=1e-6), "padding changes nothing"
    same = routing.soft_mixture(torch.ones(4, 5), phi, lambda slots: slots)
    assert torch.allclose(same, torch.ones(4, 5), atol=1e-6), "means of equal tokens are such a token"
    later = x.clone()
    later[-1] += 1
    assert not torch.allclose(routing.soft_mixture(later, phi, experts)[0], found[0]), "it is not causal"
