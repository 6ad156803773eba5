"""Mixtures of experts: what upcycling keeps, what routers decide, and what the balance loss counts."""

from __future__ import annotations

import itertools
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers import LlamaConfig as Llama
from transformers import MistralConfig as Mistral
from transformers import Qwen2Config as Qwen2
from transformers import Qwen3Config as Qwen3
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig, SFTTrainer
from two_processes import both, leave

from broadsheet.console import InputError
from broadsheet.page.guides import maps
from broadsheet.train import ExpertBalance, MethodObjective, Upcycling, routing
from broadsheet.train.moe_survey import balance_over_layers, expert_distances, pooled_and_by_layer
from broadsheet.train.routers import BIAS, Watch, active_weights, experts, install, loads, routers
from broadsheet.training.fit import fit
from broadsheet.training.scratch import Size, TokenBlocks, tokenizer

SMALL = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
KINDS = {
    "llama": lambda: Llama(**SMALL, tie_word_embeddings=True),
    "mistral": lambda: Mistral(**SMALL, sliding_window=None, head_dim=8),
    "qwen2": lambda: Qwen2(**SMALL),
    "qwen3": lambda: Qwen3(**SMALL, head_dim=8, tie_word_embeddings=True),
}
IDS = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(1))


def dense_of(kind: str) -> Any:
    """A dense model none of whose biases or norms are what they are made as."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation="sdpa").eval()
        for name, each in model.named_parameters():
            nn.init.normal_(each, 1.0, 0.3) if "norm" in name else nn.init.normal_(each, 0.0, 0.3)
    return model


def logits_of(model: Any, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **more).logits


def mixture_of(tiny: Any, seed: int = 0, **settings: Any) -> Any:
    """A mixture whose routers differ and whose experts have come apart."""
    return Upcycling(**{"experts": 4, "top_k": 2, "noise": 0.5, **settings}).model(tiny(seed)).eval()


# Upcycling


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
        with pytest.raises(InputError, match="expected a share"):
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


# The layer


@pytest.mark.parametrize("kind", ["mixtral", "switch", "sigmoid", "noisy"])
def test_a_router_in_place_of_a_models_own_computes_what_it_says(kind, tiny):
    model = mixture_of(tiny, router="mixtral" if kind == "noisy" else kind)
    own = logits_of(model)
    undo = install(model, kind)
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


# Routers


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


# Losses


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


def test_entropy_says_how_even_a_load_is():
    found = routing.entropy(torch.tensor([[5.0, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert found.tolist() == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-6)


# The method


def weights(model: Any) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def trained(model: Any, rows: Any, folder: Path, method: ExpertBalance, **arguments: Any) -> torch.Tensor:
    settings = {
        "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "optim": "sgd",
        "max_grad_norm": 0.0, "remove_unused_columns": False, "train_sampling_strategy": "sequential",
    } | arguments  # fmt: skip
    made = TrainingArguments(str(folder), **settings)
    Trainer(model, made, train_dataset=rows, compute_loss_func=method, callbacks=[method]).train()
    return weights(model)


def fitted(model: Any, rows: TokenBlocks, method: ExpertBalance, out: Path | None = None, **more: Any) -> torch.Tensor:
    rows.in_order = True
    settings = {
        "steps": 3, "batch_size": 4, "autocast": "none", "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-2,
        "schedule": "constant", "warmup": 0.0,
    } | more  # fmt: skip
    fit(model, rows, MethodObjective(method), out, **settings)
    return weights(model)


def strong(**more: Any) -> ExpertBalance:
    return ExpertBalance(**{"balance": 1.0, "z": 0.1, "importance": 0.5, **more})


@pytest.mark.parametrize("router", ["mixtral", "sigmoid"])
def test_trainer_trl_and_fit_take_the_same_steps(router, tiny, rows, tmp_path):
    first = mixture_of(tiny, router=router)
    theirs = trained(first, rows, tmp_path / "t", strong())
    other, method = mixture_of(tiny, router=router), strong()
    torch.testing.assert_close(fitted(other, rows, method), theirs)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in other.modules()), "taken off in the end"
    assert all("forward" not in vars(each) for each in other.modules())
    plain = mixture_of(tiny, router=router)
    assert not torch.allclose(fitted(plain, rows, strong(balance=0.0, z=0.0, importance=0.0)), theirs)
    third, method = mixture_of(tiny, router=router), strong()
    settings = SFTConfig(
        str(tmp_path / "s"), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", save_strategy="no", disable_tqdm=True,
        optim="sgd", max_grad_norm=0.0, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    SFTTrainer(
        third, settings, train_dataset=Dataset.from_dict({"input_ids": rows.ids.tolist()}),
        processing_class=tokenizer(["which is not asked"], 257), compute_loss_func=method, callbacks=[method],
    ).train()  # fmt: skip
    torch.testing.assert_close(weights(third), theirs)
    if router == "sigmoid":
        biases = [getattr(each, BIAS) for each in (*routers(first).values(), *routers(other).values())]
        assert float(biases[0].abs().max()) > 0
        torch.testing.assert_close(biases[0], biases[1])


def test_the_term_is_the_mean_over_layers_of_the_pass_with_padding_left_out():
    dense = dense_of("llama")
    model = Upcycling(4, 2).model(dense).train()
    mask = torch.ones_like(IDS)
    mask[0, 7:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    for compat in (False, True):
        method = ExpertBalance(balance=0.3, z=0.2, hf_compat=compat)
        method.attach(model)
        found = model(IDS, attention_mask=mask, use_cache=False, output_router_logits=True)
        total, count = method.loss(found.logits, labels, {})
        asked = mask.flatten() != 0
        pooled, by_layer = pooled_and_by_layer(list(found.router_logits), 2, asked)
        balance = pooled if compat else by_layer.mean()
        z = torch.stack([routing.z_loss(each, asked) for each in found.router_logits]).mean()
        plain = model(IDS, attention_mask=mask, labels=labels, use_cache=False).loss
        assert float((total / count).detach()) == pytest.approx(
            float((plain + 0.3 * balance + 0.2 * z).detach()), rel=1e-5
        )
        assert method.terms == pytest.approx({"balance": float(balance.detach()), "z": float(z.detach())}, rel=1e-5)
        method.detach()


def test_accumulated_batches_share_their_load_and_one_of_them_need_not_be_even(tiny, rows, tmp_path):
    """The load of the step so far: the last batch's f is that of all."""
    method, model = strong(z=0.0, importance=0.0), mixture_of(tiny).train()
    alone = strong(z=0.0, importance=0.0, step_load=False)
    seen: dict[str, list[float]] = {"step": [], "batch": []}
    ids = [rows.ids[:4], rows.ids[4:8]]
    for each, name in ((method, "step"), (alone, "batch")):
        each.attach(model)
        for part in ids:
            found = model(part, use_cache=False)
            each.loss(found.logits, part, {})
            seen[name].append(each.terms["balance"])
        each.after_step()
        each.detach()
    watch = Watch(model)
    model(rows.ids[:8], use_cache=False)
    [whole] = watch.passes
    fractions = routing.counts(whole.indices, 4) / whole.indices.shape[0]
    p = whole.probs[len(whole.probs) // 2 :].mean(0)
    watch.remove()
    assert seen["step"][0] == pytest.approx(seen["batch"][0])
    assert seen["step"][1] == pytest.approx(float(routing.balance_loss(fractions, p)), rel=1e-5)
    assert seen["step"][1] != pytest.approx(seen["batch"][1], rel=1e-4)
    assert method.load is not None
    assert method.load[0].tolist() == pytest.approx((fractions * len(whole.indices)).tolist())
    assert method._seen is None, "and the next step begins anew"


def lopsided(tiny: Any, router: str) -> Any:
    """A mixture all of whose tokens have a direction in common, along which the first expert stands out."""
    model = mixture_of(tiny, router=router)
    shared = torch.randn(16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.02 * shared)
        for each in routers(model).values():
            each.weight[0] += 0.2 * shared / shared.norm()
    return model


def test_experts_that_are_not_chosen_are_used_again(tiny, rows):
    lacking = []
    for balance in (0.0, 1.0):
        method = ExpertBalance(balance=balance, z=0.0)
        fitted(lopsided(tiny, "mixtral"), rows, method, steps=30, batch_size=24, learning_rate=0.3)
        lacking.append(1 - method.entropy)
    assert lacking[0] > 0.02
    assert lacking[1] < lacking[0] / 4


def test_a_bias_evens_the_load_without_a_gradient(tiny, rows):
    lacking = []
    for speed in (0.0, 0.005):
        method = ExpertBalance(balance=0.0, z=0.0, speed=speed)
        fitted(lopsided(tiny, "sigmoid"), rows, method, steps=30, batch_size=24, learning_rate=1e-6)
        lacking.append(1 - method.entropy)
    assert lacking[0] > 0.02
    assert lacking[1] < lacking[0] / 4


def test_a_training_that_is_stopped_goes_on_as_one_that_is_not_biases_too(tiny, rows, tmp_path):
    def run(out: Path, stop_at: int = 0) -> Any:
        class Stopping(MethodObjective):
            def loss(self, model, batch, generator):
                if self.step == stop_at and stop_at:
                    raise RuntimeError("stopped")
                return super().loss(model, batch, generator)

        Stopping.__name__ = "MethodObjective"
        model = mixture_of(tiny, router="sigmoid")
        settings = {"steps": 5, "batch_size": 4, "learning_rate": 1e-2, "autocast": "none"}
        fit(model, rows, Stopping(ExpertBalance(speed=0.1)), out, checkpoint_minutes=1e-9, **settings)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "cut", stop_at=3)
    again = run(tmp_path / "cut")
    assert torch.equal(weights(again), weights(whole))
    [bias], [other] = ([getattr(each, BIAS) for each in routers(model).values()] for model in (again, whole))
    assert torch.equal(bias, other)
    assert float(bias.abs().max()) > 0
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(logits_of(read), logits_of(whole)), "what is saved is an ordinary model"


def test_routers_compute_in_float32_whatever_the_autocast(tiny):
    model, method = mixture_of(tiny).train(), ExpertBalance()
    method.attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS, use_cache=False)
    assert {each.logits.dtype for each in method._watch.passes} == {torch.float32}
    method.detach()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_leave_the_terms_as_they_are_or_are_refused(reentrant, tiny, rows, tmp_path):
    more = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model, method = mixture_of(tiny), strong()
    if reentrant:
        with pytest.raises(InputError, match="use_reentrant"):
            trained(model, rows, tmp_path, method, **more)
        return
    theirs = trained(model, rows, tmp_path, method, **more)
    torch.testing.assert_close(theirs, trained(mixture_of(tiny), rows, tmp_path, strong()))


def test_what_cannot_be_balanced_is_told(tiny):
    with pytest.raises(InputError, match="balance -1"):
        ExpertBalance(balance=-1)
    with pytest.raises(InputError, match="has no routers"):
        ExpertBalance().attach(tiny())
    with pytest.raises(InputError, match="no router was seen"):
        ExpertBalance().loss(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), {})
    with pytest.raises(InputError, match="got top_k 9"):
        install(mixture_of(tiny), "mixtral", top_k=9)


# Several processes


def work(rank: int, folder: Path) -> None:
    from transformers.distributed import DistributedConfig

    torch.set_num_threads(1)
    port = int((folder / "port").read_text())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found: dict[str, Any] = {"both": [by_batches(2, folder, router) for router in ("mixtral", "sigmoid")]}
    # Each process holds half of the experts, and reads texts of its own: tokens travel to their experts and back.
    shares = DistributedConfig(fsdp_size=2, ep_size=2, ep_implementation="all_to_all")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", distributed_config=shares).train()
    method, ids = strong(importance=0.0), IDS[[rank]]
    method.attach(model)
    logits = model(ids, use_cache=False).logits
    total, count = method.loss(logits, ids, {})
    (total / count).backward()
    held = model.model.layers[0].mlp.experts.gate_up_proj
    found |= {"logits": logits.detach(), "loss": float(total.detach() / count), "own": held.to_local().shape[0]}
    found["gradients"] = {name: _whole(each.grad) for name, each in model.named_parameters()}
    torch.save(found, folder / f"process-{rank}.pt")
    leave()


def _whole(value: Any) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def by_batches(batch_size: int, folder: Path, router: str) -> torch.Tensor:
    """Weights after `fit` and a Trainer whose steps read so many rows a process, and the biases that select."""
    ids = torch.randint(0, 20, (24 * 12,), generator=torch.Generator().manual_seed(3))
    rows = TokenBlocks(ids, 12)
    made = [mixture_of(_tiny, router=router) for _ in range(2)]
    method = strong(importance=0.0)
    one = fitted(made[0], rows, method, batch_size=batch_size)
    other = trained(made[1], rows, folder / "t", strong(importance=0.0), per_device_train_batch_size=batch_size)
    biases = [
        getattr(each, BIAS).flatten() for model in made for each in routers(model).values() if hasattr(each, BIAS)
    ]
    return torch.cat([one, other, *biases])


def _tiny(seed: int = 0) -> Any:
    return Size(1, 16, 2).model(20, 32, seed)


def test_two_processes_take_the_steps_of_one_and_experts_may_be_shared_out(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(held.getsockname()[1]))
    model = mixture_of(_tiny).train()
    model.save_pretrained(tmp_path / "model")
    both(work, tmp_path)
    found = [torch.load(tmp_path / f"process-{rank}.pt") for rank in (0, 1)]
    for rank in (0, 1):
        for router, theirs in zip(("mixtral", "sigmoid"), found[rank]["both"], strict=True):
            torch.testing.assert_close(theirs, by_batches(4, tmp_path, router), atol=1e-6, rtol=1e-4)
    method = strong(importance=0.0)
    method.attach(model)
    logits = model(IDS, use_cache=False).logits
    total, count = method.loss(logits, IDS, {})
    (total / count).backward()
    for rank in (0, 1):
        assert found[rank]["own"] == 2
        torch.testing.assert_close(found[rank]["logits"], logits[[rank]].detach(), atol=1e-5, rtol=1e-4)
        for name, each in model.named_parameters():
            torch.testing.assert_close(found[rank]["gradients"][name], each.grad, atol=1e-6, rtol=1e-3, msg=name)
    losses = [each["loss"] for each in found]
    assert sum(losses) / 2 == pytest.approx(float((total / count).detach()), rel=1e-5), "with the load of both"


# The map


def test_the_surveys_map_names_what_is_here():
    nodes = {node.at: node for node in maps.tree("moe_survey").walk()}
    here = {at for at, node in nodes.items() if "moe_survey" in node.papers}
    assert here == {
        "algorithm/gating/sparse/token", "algorithm/gating/sparse/expert", "algorithm/experts/type/ffn",
        "algorithm/training/dense-to-sparse",
    }  # fmt: skip
    assert "Mixtral" in nodes["algorithm/gating/sparse/token"].examples


def test_the_mean_over_layers_is_not_the_pool():
    even = torch.full((2, 2), 0.5)
    skewed = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(balance_over_layers(skewed, skewed)) == 2.0
    assert float(balance_over_layers(skewed, skewed, hf_compat=True)) == float(balance_over_layers(even, even)) == 1.0
