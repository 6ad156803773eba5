"""The loss of a mixture of experts: in each trainer, through a stop, and on two processes that share experts out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from mixtures import IDS, dense_of, logits_of, mixture_of
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from two_processes import both, leave

from broadsheet.console import InputError
from broadsheet.train import ExpertBalance, MethodObjective, Upcycling
from broadsheet.train.experts import routing
from broadsheet.train.experts.routers import BIAS, Watch, install, routers
from broadsheet.train.moe_survey import pooled_and_by_layer
from broadsheet.training.fit import fit
from broadsheet.training.scratch import Size, TokenBlocks, tokenizer


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
    method.attach(model.train())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    total, count = method.loss(model(IDS, use_cache=False).logits, IDS, {})
    (total / count).backward()
    assert len(method._watch._found) == 1, "nothing of what is computed anew is held"
    method.detach()
    model.zero_grad()
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
