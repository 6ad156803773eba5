"""Repeated text: the plan counts what is read, dropout is where and when it is to be, and the monitor sees a rise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from broadsheet.console import InputError
from broadsheet.train import DropStage, LossMethod, MethodObjective
from broadsheet.train.token_crisis import Degradation, HeldOutMonitor, RepetitionPlan
from broadsheet.training.fit import fit

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 20}


def of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    config, model = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}[kind]
    more = {"num_key_value_heads": 2, "head_dim": 8} if kind == "qwen3" else {"num_key_value_heads": 2}
    return model(config(**SMALL, **more))


def test_the_plan_counts_what_is_read_and_warns_of_large_models_on_little_text():
    plan = RepetitionPlan(1_000, steps=30, batch=5, length=10)
    assert plan.tokens_seen == 1_500
    assert plan.epochs == 1.5
    assert not plan.warning, "nothing is known of the model"
    crisis = RepetitionPlan(2**27, steps=2**19, batch=128, length=512, parameters=2_800_000_000)
    assert "256.0 times" in crisis.warning
    assert "6,710,886" in crisis.warning
    assert not RepetitionPlan(2**35, 2**19, 128, 512, parameters=2_800_000_000).warning, "read once"
    assert not RepetitionPlan(2**27, 2**19, 128, 512, parameters=16_000_000).warning, "small"


def test_degradation_is_the_rise_after_the_best():
    assert Degradation.of([3.0, 2.5, 2.0]) == Degradation(2, 0.0)
    assert not Degradation.of([3.0, 2.5, 2.0]).degrades
    found = Degradation.of([3.0, 2.0, 2.25])
    assert (found.best_epoch, found.rise, found.degrades) == (1, 0.25, True)
    with pytest.raises(InputError, match="no losses"):
        Degradation.of([])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "mistral"])
def test_passes_drop_from_the_step_on_in_training_mode_alone_and_nothing_stays(kind, tiny):
    model = tiny() if kind == "llama" else of(kind)
    ids = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(1))

    def passes(times: int = 2) -> list[torch.Tensor]:
        return [model(ids, use_cache=False).logits.detach() for _ in range(times)]

    state = {name: value.clone() for name, value in model.state_dict().items()}
    [plain] = (each.eval() and passes(1)[0] for each in [model])
    model.train()
    method = DropStage(0.3, start=5)
    method.attach(model)
    for step, drops in ((4, False), (5, True), (9, True)):
        method.step = step
        first, second = passes()
        assert torch.equal(first, second) is not drops
        assert torch.equal(first, plain) is not drops
    model.eval()
    assert torch.equal(passes(1)[0], plain), "evaluation is as it was"
    model.train()
    method.detach()
    hooks = [each for each in model.modules() if each._forward_hooks or each._forward_pre_hooks]
    assert not hooks
    assert model.state_dict().keys() == state.keys()
    if kind != "gpt2":  # which has dropout of its own
        assert torch.equal(passes(1)[0], plain)


def sites(model: nn.Module, ids: torch.Tensor, method: DropStage) -> dict[str, float]:
    """Of each part's output, the share that is zero in a pass."""
    seen: dict[str, float] = {}
    watched = [
        (name, each) for name, each in model.named_modules() if name.endswith(("self_attn", "mlp", "embed_tokens"))
    ]
    method.attach(model.train())
    hooks = [
        module.register_forward_hook(
            lambda _, given, out, name=name: seen.update(
                {name: float(((out if torch.is_tensor(out) else out[0]) == 0).float().mean())}
            )
        )
        for name, module in watched
    ]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    method.detach()
    return seen


def test_every_site_drops_by_the_rate(tiny):
    model = tiny()
    ids = torch.randint(1, 20, (16, 32), generator=torch.Generator().manual_seed(1))  # token 0 pads: it is all zeros
    found = sites(model, ids, DropStage(0.25))
    assert set(found) == {"model.embed_tokens", "model.layers.0.self_attn", "model.layers.0.mlp"}
    assert list(found.values()) == pytest.approx([0.25] * 3, abs=0.02)
    method = DropStage(0.25)
    method.attach(model)
    model(ids, use_cache=False)
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    method.detach()
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
    without = DropStage(0.25, attention=False)
    without.attach(model)
    model(ids, use_cache=False)
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
    without.detach()


def test_the_mean_over_draws_is_what_nothing_dropped_would_be(tiny):
    model, method = tiny(), DropStage(0.4)
    method.attach(model.train())
    embeddings, ids = model.get_input_embeddings(), torch.arange(20)
    torch.manual_seed(0)
    drawn = torch.stack([embeddings(ids).detach() for _ in range(4000)])
    bound = 5 * drawn.std(0) / 4000**0.5 + 1e-6
    assert bool(((drawn.mean(0) - embeddings.weight.detach()).abs() < bound).all())
    method.detach()


def weights(model) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def in_trainer(model, rows, folder: Path, method: LossMethod, *callbacks, **more) -> torch.Tensor:
    settings = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "seed": 1,
    } | more  # fmt: skip
    arguments = TrainingArguments(str(folder), **settings)
    parts = {"compute_loss_func": method, "callbacks": [method, *callbacks]}
    Trainer(model, arguments, train_dataset=rows, **parts).train()
    return weights(model)


def test_rate_0_is_plain_training_to_the_last_bit_and_a_late_start_is_plain_until_then(tiny, rows, tmp_path):
    plain = in_trainer(tiny(), rows, tmp_path, LossMethod())
    assert torch.equal(in_trainer(tiny(), rows, tmp_path, DropStage(0.0)), plain)
    assert torch.equal(in_trainer(tiny(), rows, tmp_path, DropStage(0.3, start=4)), plain)
    model = tiny()
    assert not torch.allclose(in_trainer(model, rows, tmp_path, DropStage(0.3, start=3)), plain)
    assert not any(each._forward_hooks for each in model.modules()), "taken off in the end"


def test_fit_takes_the_hooks_off_even_where_it_fails(tiny, rows):
    class Failing(MethodObjective):
        def after_step(self, model, step):
            raise RuntimeError("failed")

    model = tiny()
    with pytest.raises(RuntimeError, match="failed"):
        fit(model, rows, Failing(DropStage(0.3)), steps=2, batch_size=4)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_a_monitor_stops_where_held_out_loss_has_risen_beyond_noise(tiny, rows, tmp_path):
    told = iter([3.0, 2.0, 2.001, 2.5, 9.0])
    noise = np.random.default_rng(0).normal(size=40)

    def measure(model):
        loss = next(told)
        return loss + 0.1 * (noise if loss == 2.0 else noise[::-1] if loss == 2.001 else noise)

    monitor = HeldOutMonitor(measure, stop=True)
    in_trainer(tiny(), rows, tmp_path, LossMethod(), monitor, max_steps=-1, num_train_epochs=9)
    assert len(monitor.epochs) == 4, "the third is within noise"
    assert monitor.risen
    assert monitor.degradation.best_epoch == 1
    assert monitor.degradation.rise == pytest.approx(0.5)


def test_repeating_little_text_harms_and_dropout_mends_some_of_it():
    """The paper's finding on a toy: words of a small grammar, of which a model learns 24 rows by heart."""
    from broadsheet.training.losses import token_losses
    from broadsheet.training.scratch import Size, TokenBlocks

    generator = torch.Generator().manual_seed(0)
    chances = torch.softmax(2 * torch.randn(20, 20, generator=generator), 1)

    def text(count: int) -> torch.Tensor:
        rows = [torch.randint(0, 20, (count,), generator=generator)]
        for _ in range(15):
            rows.append(torch.multinomial(chances[rows[-1]], 1, generator=generator)[:, 0])
        return torch.stack(rows, 1)

    few, many, asked = text(24), text(600), text(200)

    def held_out(rows: torch.Tensor, method: LossMethod) -> float:
        model = Size(2, 32, 2).model(20, 16, 0)
        fit(
            model, TokenBlocks(rows.flatten(), 16), MethodObjective(method), steps=150, batch_size=24,
            learning_rate=1e-2, autocast="none",
        )  # fmt: skip
        with torch.no_grad():
            return float(token_losses(model(asked).logits, asked)[0].mean())

    fresh, repeated = held_out(many, LossMethod()), held_out(few, LossMethod())
    dropped = held_out(few, DropStage(0.3))
    assert fresh < dropped < repeated


def test_what_cannot_be_is_refused(tiny):
    for given in ({"rate": 1.0}, {"rate": -0.1}, {"start": -1}):
        with pytest.raises(InputError, match="expected 0 to below 1"):
            DropStage(**given)
    with pytest.raises(InputError, match="has no dropout, and no decoder layers"):
        DropStage(0.1).attach(nn.Linear(2, 2))
    model = tiny()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="flex attention"):
        DropStage(0.1).attach(model)
