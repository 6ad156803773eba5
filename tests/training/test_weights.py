"""What a training changes: all weights, or an adapter, new or the one that is there; and what it leaves as it was."""

from __future__ import annotations

import sys

import pytest
import torch

from broadsheet.console import InputError
from broadsheet.models import adapters
from broadsheet.training.weights import autocast_dtype, trained


def changing(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_weights_are_trained_in_float32_and_given_back(tiny_model):
    model = tiny_model().bfloat16().requires_grad_(False)
    with trained(model.train()):
        assert model.dtype == torch.float32
        assert changing(model) == {name for name, _ in model.named_parameters()}
        model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.grad is None
    assert not model.training


def test_an_adapter_is_new_or_the_one_that_is_there(tiny_model):
    model = tiny_model()
    with trained(model, "lora", 4):
        first = changing(model)
        assert first
        assert all("lora_" in name for name in first)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 8)
    model.requires_grad_(False)
    with trained(model, "lora", 16):
        assert changing(model) == first
    assert config.r == 4
    with pytest.raises(InputError, match="has an adapter"), trained(model, "full"):
        pass
    adapters.merge(model)
    with trained(model, "full"):
        assert len(changing(model)) == len(list(model.parameters()))


def test_a_model_that_peft_wrapped_is_trained_as_it_is(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with trained(model, "lora"):
        assert changing(model)
        assert all("lora_" in name for name in changing(model))


def test_given_parameters_stay_those_that_are_trained(tiny_model):
    model = tiny_model().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    with trained(model, "given"):
        assert len(changing(model)) == 1


def test_without_peft_the_remedy_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"), trained(tiny_model(), "lora"):
        pass


def test_forward_passes_are_narrow_where_that_is_asked_for_or_fast(monkeypatch):
    cpu = torch.device("cpu")
    assert autocast_dtype("none", cpu) is None
    assert autocast_dtype("bfloat16", cpu) == torch.bfloat16
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast, raising=False)
        assert autocast_dtype("auto", cpu) == (torch.bfloat16 if fast else None)
    assert autocast_dtype("auto", torch.device("mps")) is None
