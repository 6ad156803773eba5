"""What a training changes: all weights, or an adapter, new or the one that is there."""

from __future__ import annotations

import sys

import pytest
import torch

from broadsheet.console import InputError
from broadsheet.training.weights import autocast_dtype, trainable


def changing(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_weights_are_trained_in_float32(tiny_model):
    model = tiny_model().bfloat16().requires_grad_(False)
    assert trainable(model) is model
    assert model.dtype == torch.float32
    assert changing(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_an_adapter_is_new_or_the_one_that_is_there(tiny_model, task):
    adapted = trainable(tiny_model(), "lora", 4, task=task)
    assert changing(adapted)
    assert all("lora_" in name for name in changing(adapted))
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, task)
    adapted.requires_grad_(False)
    assert trainable(adapted, "lora", 16) is adapted
    assert config.r == 4
    assert all("lora_" in name for name in changing(adapted))
    with pytest.raises(InputError, match="has an adapter"):
        trainable(adapted, "full")


def test_without_peft_the_remedy_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        trainable(tiny_model(), "lora")


def test_forward_passes_are_narrow_where_that_is_asked_for_or_fast(monkeypatch):
    cpu = torch.device("cpu")
    assert autocast_dtype("none", cpu) is None
    assert autocast_dtype("bfloat16", cpu) == torch.bfloat16
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast, raising=False)
        assert autocast_dtype("auto", cpu) == (torch.bfloat16 if fast else None)
    assert autocast_dtype("auto", torch.device("mps")) is None
