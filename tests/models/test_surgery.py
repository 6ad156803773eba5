"""Surgery: a model without some units is the one in which they are 0, and is saved and read as an ordinary one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.models import adapters, surgery

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
SMALL = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 33, 12, 60, 7, 21, 40], [11, 3, 8, 50, 44, 6, 9, 13]])


def of(kind: str, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL | more)).eval()
        for name, each in model.named_parameters():  # what is not initialised at random matters too
            if each.ndim == 1:
                each.data.add_(0.3 * torch.randn(each.shape))
            elif "embed" not in name:
                each.data.mul_(4)
    return model.double()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("kind", FAMILY)
def test_without_units_a_model_computes_as_where_they_are_zero(kind: str):
    model, whole = of(kind), logits(of(kind))
    away = {surgery.MLP: [0, 5, 23], surgery.ATTENTION: [1]}
    for block in surgery.blocks(model):
        block.zero(away[block.kind])
    zeroed = logits(model)
    for block in surgery.blocks(model):
        block.remove(away[block.kind])
    assert surgery.conform(model)
    assert torch.allclose(logits(model), zeroed, atol=1e-5)
    assert not torch.allclose(zeroed, whole, atol=1e-3)
    assert surgery.widths(model) == [[21, 2]] * 3
    config = model.config
    assert (config.intermediate_size, config.num_key_value_heads, config.num_attention_heads) == (21, 2, 4)


def test_a_unit_of_attention_is_a_head_with_the_queries_that_read_it():
    model, before = of("llama"), of("llama")
    surgery.blocks(model)[1].remove([1])
    own, theirs = (each.model.layers[0].self_attn for each in (model, before))
    kept = [*range(16), *range(32, 48)]  # of six query heads the third and fourth are gone
    assert torch.equal(own.q_proj.weight, theirs.q_proj.weight[kept])
    assert torch.equal(own.o_proj.weight, theirs.o_proj.weight[:, kept])
    assert torch.equal(own.k_proj.weight, theirs.k_proj.weight[[*range(8), *range(16, 24)]])
    assert (own.q_proj.out_features, own.o_proj.in_features) == (32, 32)


def test_biases_go_with_their_rows():
    model = of("qwen2")
    bias = model.model.layers[0].self_attn.k_proj.bias.clone()
    surgery.blocks(model)[1].remove([0])
    assert torch.equal(model.model.layers[0].self_attn.k_proj.bias, bias[8:])


@pytest.mark.parametrize("uniform", [True, False])
def test_what_is_saved_reads_as_it_was(uniform: bool, tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path):
    model = models.load(tiny_folder, dtype="float32").model
    channels, heads = surgery.blocks(model)[:2]
    channels.remove([3, 4])
    heads.remove([0])
    if uniform:
        surgery.blocks(model)[2].remove([0, 9])
        surgery.blocks(model)[3].remove([1])
    assert surgery.conform(model) == uniform
    model.save_pretrained(tmp_path / "out")
    tiny_tokenizer().save_pretrained(tmp_path / "out")
    again = models.load(tmp_path / "out", dtype="float32").model
    assert type(again).__name__ == type(model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert models.fingerprint(again) == models.fingerprint(model)
    again.save_pretrained(tmp_path / "again")
    assert (json.loads((tmp_path / "again" / "config.json").read_text()).get(surgery.WIDTHS) is None) == uniform
    if uniform:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
        with torch.no_grad():
            assert torch.equal(plain(IDS).logits, model(IDS).logits)
    else:
        with pytest.raises(RuntimeError, match="ismatch"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_heads_that_a_class_does_not_allow_are_read_by_their_widths(tiny_tokenizer: Any, tmp_path: Path):
    by = tiny_tokenizer()
    model = of("llama", vocab_size=len(by), hidden_size=32, num_attention_heads=4, num_key_value_heads=4)
    for block in surgery.blocks(model):
        block.remove([1])
    assert not surgery.conform(model), "3 heads do not divide 32"
    model.save_pretrained(tmp_path)
    by.save_pretrained(tmp_path)
    assert torch.equal(logits(models.load(tmp_path, dtype="float64").model), logits(model))


def test_layers_that_are_alike_again_need_no_widths():
    model = of("llama")
    channels = [block for block in surgery.blocks(model) if block.kind == surgery.MLP]
    channels[0].remove([0])
    assert not surgery.conform(model)
    assert getattr(model.config, surgery.WIDTHS) == [[23, 3], [24, 3], [24, 3]]
    for block in channels[1:]:
        block.remove([0])
    assert surgery.conform(model)
    assert surgery.WIDTHS not in model.config.to_dict()


@pytest.mark.parametrize("uniform", [True, False])
def test_it_writes_with_and_without_a_cache_alike(uniform: bool):
    model = of("llama")
    for block in surgery.blocks(model)[: None if uniform else 2]:
        block.remove([0])
    surgery.conform(model)
    given = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **given), model.generate(IDS, use_cache=False, **given))
    with torch.no_grad():
        begun = model(IDS[:, :5], use_cache=True)
        after = model(IDS[:, 5:], past_key_values=begun.past_key_values).logits
    assert torch.allclose(after, logits(model)[:, 5:], atol=1e-5)


def test_a_pruned_model_takes_an_adapter():
    model = of("llama")
    for block in surgery.blocks(model):
        block.remove([0])
    surgery.conform(model)
    before = logits(model)
    adapters.add(model, 2)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            each.data.normal_(generator=torch.Generator().manual_seed(1))
    adapted = logits(model)
    adapters.merge(model)
    assert torch.allclose(logits(model), adapted, atol=1e-4)
    assert not torch.allclose(before, adapted, atol=1e-3)


def test_an_adapter_of_a_narrow_model_has_wide_weights():
    model = of("llama").bfloat16()
    adapters.add(model, 2)
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in model.parameters() if not each.requires_grad} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16
    adapters.merge(model)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(InputError, match="a Phi3ForCausalLM has no layers of the Llama family"):
        surgery.blocks(of("phi3"))
    with pytest.raises(InputError, match="norms all heads together"):
        surgery.blocks(of("olmo2"))
    with pytest.raises(InputError, match="no layers of the Llama family"):
        surgery.blocks(of("gpt2", num_attention_heads=4))
    with pytest.raises(InputError, match="no layers of the Llama family"):
        surgery.blocks(of("mixtral"))
    odd = of("llama")
    odd.model.layers[2].self_attn.sinks = torch.nn.Parameter(torch.zeros(6))  # one a head, as some models have
    with pytest.raises(InputError, match="no layers of the Llama family"):
        surgery.blocks(odd)
    model = of("llama")
    with pytest.raises(InputError, match="nothing would be left of layer 0's attention, which has 3 units"):
        surgery.blocks(model)[1].remove(range(3))
    adapters.add(model, 2)
    with pytest.raises(InputError, match="without an adapter"):
        surgery.blocks(model)


@pytest.mark.parametrize(
    "widths", ["all", [], [[10, 2]], [[10, 2], [0, 2]], [[10, 2], [65, 2]], [[10, 2], [10, True]], [[10], [10, 2]]]
)
def test_widths_that_are_not_the_layers_are_one_line(widths: Any, tiny_folder: Path):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps({**config, surgery.WIDTHS: widths}))
    with pytest.raises(InputError, match="expected 2 pairs of channels and key-value heads, each from 1 to 64 and 2"):
        models.load(tiny_folder)
