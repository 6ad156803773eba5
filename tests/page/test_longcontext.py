"""What a long input costs, by hand and beside real models; and which ways to read it apply."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers as hf
from attend_zoo import ALL_SLIDING, BASE, CONFIGS, make
from configs import DEFAULT

from broadsheet import attend, decode, models
from broadsheet.attend import FlexPrefill, InfLLM, LMInfinite, LongHeads, cache_bytes
from broadsheet.attend.base import PostRopeAttention, PreRopeAttention
from broadsheet.attend.transnormer import TransNormerForCausalLM
from broadsheet.attend.transnormer_config import TransNormerConfig
from broadsheet.console import InputError
from broadsheet.page import papers
from broadsheet.page.guides import longcontext
from broadsheet.page.guides.longcontext import ModelShape, long_input, ways

# A model that can be counted on paper: 3 layers, 4 heads of 8 that share 2 of keys, hidden 32, MLP 64, 100 tokens.
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
WAYS = {way.id: way for way in ways()}
METHODS = {"lm_infinite": LMInfinite, "infllm": InfLLM, "longheads": LongHeads, "flexprefill": FlexPrefill}


def saved(model: Any) -> dict[str, Any]:
    """A model's config as `config.json` has it."""
    return json.loads(model.config.to_json_string())


def applying(config: dict[str, Any], length: int, **more: Any) -> list[str]:
    return [each.way.id for each in long_input(config, length, **more).ways if each.applies]


def reason(config: dict[str, Any], length: int, way: str, **more: Any) -> str:
    return next(each.reason for each in long_input(config, length, **more).ways if each.way.id == way)


def test_cache_weights_and_operations_are_those_counted_by_hand():
    shape = ModelShape.of(SMALL)
    # Keys and values: 2 · 2 heads · 8 numbers · 3 layers = 96 numbers a token.
    assert shape.cache_bytes(1, 4) == 96 * 4
    assert shape.cache_bytes(10, 2) == 96 * 10 * 2
    # A layer: queries and output 2 · 32 · 32, keys and values 2 · 32 · 16, MLP 3 · 32 · 64, two norms of 32.
    layer = 2048 + 1024 + 6144 + 64
    assert shape.weights == 3 * layer + 32 + 100 * 32
    assert ModelShape.of(SMALL | {"tie_word_embeddings": False}).weights == 3 * layer + 32 + 2 * 100 * 32
    # Reading 10 tokens: 2 operations a weight and token; 55 pairs a layer, each 4 operations of 32 numbers.
    assert shape.prefill(10) == (2 * (3 * layer + 32) * 10, 3 * 55 * 4 * 32)
    assert ModelShape.of(SMALL | {"tie_word_embeddings": False}).prefill(10) == shape.prefill(10), (
        "the head is left out"
    )


def test_heads_may_have_keys_of_their_own_and_any_size():
    own = ModelShape.of({key: value for key, value in SMALL.items() if key != "num_key_value_heads"})
    assert own.cache_bytes(1, 4) == 2 * 96 * 4
    wide = ModelShape.of(SMALL | {"head_dim": 16})
    assert wide.cache_bytes(1, 4) == 2 * 96 * 4
    assert wide.weights == ModelShape.of(SMALL).weights + 3 * (2048 + 1024)  # four matrices twice as large
    assert wide.prefill(10)[1] == 2 * ModelShape.of(SMALL).prefill(10)[1]


def test_a_window_bounds_the_cache_and_the_pairs():
    one = SMALL | {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    assert ModelShape.of(one).windows == (None, 4, None)
    assert ModelShape.of(one).cache_bytes(10, 4) == 32 * (10 + 4 + 10) * 4
    assert ModelShape.of(one).cache_bytes(3, 4) == ModelShape.of(SMALL).cache_bytes(3, 4), "shorter than the window"
    # Ten queries see 1, 2, 3, 4, 4, 4, 4, 4, 4, 4 keys: 34 pairs.
    assert ModelShape.of(one).prefill(10)[1] == (55 + 34 + 55) * 4 * 32
    assert ModelShape.of(one | {"use_sliding_window": False}).windows == (None,) * 3
    assert ModelShape.of(SMALL | {"sliding_window": 4}).windows == (4, 4, 4), "as Mistral means it"


@pytest.mark.parametrize(
    "config",
    [
        hf.Qwen2Config(use_sliding_window=True, sliding_window=64, num_hidden_layers=12, max_window_layers=5),
        hf.Gemma2Config(num_hidden_layers=13),
        hf.Gemma3TextConfig(num_hidden_layers=13),
        hf.Cohere2Config(num_hidden_layers=13),
        hf.MistralConfig(num_hidden_layers=3, sliding_window=64),
        hf.LlamaConfig(num_hidden_layers=3),
    ],
    ids=lambda config: config.model_type,
)
def test_older_configs_leave_windows_to_be_told_and_they_are_told_as_transformers_does(config):
    given = json.loads(config.to_json_string())
    sliding = config.sliding_window if hasattr(config, "sliding_window") else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    right = tuple(sliding if kind == "sliding_attention" else None for kind in kinds)
    older = {key: value for key, value in given.items() if key != "layer_types"}
    assert ModelShape.of(given).windows == ModelShape.of(older).windows == right


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_the_weights_of_a_mixture_of_experts_are_not_counted_nor_what_follows_from_them(key):
    made = long_input(SMALL | {key: 8}, 400, memory=1)
    plain = long_input(SMALL, 400, memory=1)
    assert (made.weights, made.of_weights, made.operations, made.attention_share, made.fits) == (None,) * 5
    assert (made.cache, made.of_attention) == (plain.cache, plain.of_attention)
    assert all(each.fits is None for each in made.ways)
    told = made.to_dict()
    assert (told["weights_bytes"], told["prefill_operations"], told["attention_share"]) == (None,) * 3
    assert "not counted" in reason(SMALL | {key: 8}, 400, "flexprefill")


def test_the_text_model_of_a_model_with_several_parts_is_read():
    whole = {"model_type": "seer", "hidden_size": 7, "text_config": SMALL, "vision_config": {"hidden_size": 5}}
    assert ModelShape.of(whole) == ModelShape.of(SMALL)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "n_layer": 2}, "got a config of gpt2 without 'num_hidden_layers'"),
        ({}, "got a config of an unknown kind without 'num_hidden_layers'"),
        ({key: value for key, value in SMALL.items() if key != "vocab_size"}, "without 'vocab_size'"),
        (SMALL | {"num_attention_heads": 0}, "sizes are no whole numbers above 0"),
        (SMALL | {"hidden_size": "large"}, "sizes are no whole numbers above 0"),
        (SMALL | {"num_hidden_layers": [1, 2]}, "sizes are no whole numbers above 0"),
        ({"text_config": None}, "without 'num_hidden_layers'"),
    ],
)
def test_a_config_that_lacks_a_size_is_one_line(config, message):
    with pytest.raises(InputError, match=message) as refused:
        long_input(config, 100)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "got a length of 0; expected 1 token or more"),
        ({"memory": 0}, "got a memory of 0 GB; expected a number above 0"),
        ({"memory": float("nan")}, "got a memory of nan GB"),
        ({"memory": float("inf")}, "got a memory of inf GB"),
        ({"dtype": "int8"}, "got dtype 'int8'; expected one of float32, bfloat16, float16"),
        ({"need": "speed"}, "got need 'speed'; expected one of stream, recall, slow-prefill, slow-decoding, new-model"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(arguments, message):
    with pytest.raises(InputError) as refused:
        long_input(SMALL, **{"length": 100, **arguments})
    assert str(refused.value).startswith(message)


def test_weights_and_cache_of_the_tiny_model_are_exact(tiny_model):
    for more in (
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 4},
    ):
        model = tiny_model(**more)
        shape = ModelShape.of(saved(model))
        assert shape.weights == model.num_parameters()
        for length in (1, 7, 40):
            with torch.no_grad():
                cache = model(torch.ones(1, length, dtype=torch.long), use_cache=True).cache
            assert isinstance(cache, hf.DynamicCache)
            assert shape.cache_bytes(length, 4) == cache_bytes(cache).on_device


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_other_kinds_are_counted_too(name):
    model = make(name)
    shape, length = ModelShape.of(saved(model)), 40
    assert shape.weights == pytest.approx(model.num_parameters(), rel=0.03), "biases and further norms are left out"
    with torch.no_grad():
        cache = model(torch.ones(1, length, dtype=torch.long), use_cache=True).cache
    # Between two steps transformers keeps a token less than the window: the next one fills it.
    spare = sum(2 * shape.kv_heads * shape.head_dim * 4 for window in shape.windows if window)
    assert shape.cache_bytes(length, 4) == cache_bytes(cache).on_device + spare
    assert all(shape.windows) == (name in ALL_SLIDING)


@pytest.mark.parametrize("kind", ["gpt_neox", "starcoder2"])
def test_an_mlp_without_a_gate_has_two_matrices(kind):
    base = {key: value for key, value in BASE.items() if kind == "starcoder2" or key != "num_key_value_heads"}
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **base))
    assert ModelShape.of(saved(model)).weights == pytest.approx(model.num_parameters(), rel=0.04)


def test_each_way_is_described_once_with_known_words():
    assert len(WAYS) == len(ways())
    for way in ways():
        facets = way.facets
        assert way.paper.id == way.id
        assert way.paper.kind == "method"
        assert set(facets) == set(longcontext.FACETS)
        assert facets["training"] in ("none", "light", "full")
        assert set(facets["changes"]) <= {"mask", "positions", "cache", "model", "decoding"}
        assert facets["phase"] in ("prefill", "decode", "both")
        assert facets["cost"] in ("n²", "n·window", "n")
        assert facets["keeps"] in ("all", "window", "state")
        assert (way.tokens > 0) == (facets["keeps"] == "window")
        assert way.length in ("within", "beyond", "any")
        assert way.needs


@pytest.mark.parametrize("way", METHODS)
def test_what_is_said_of_a_way_is_so_of_its_class(way):
    method, facets = METHODS[way], WAYS[way].facets
    assert method.paper == way
    assert facets["pre_rope"] == issubclass(method, PreRopeAttention)
    assert facets["pre_rope"] != issubclass(method, PostRopeAttention)
    # What reads keys before rotary encoding places them itself, in a cache of its own.
    assert ({"positions", "cache"} <= set(facets["changes"])) == facets["pre_rope"]
    assert "mask" in facets["changes"]
    assert WAYS[way].offloads == ("offload" in {field.name for field in dataclasses.fields(method)})
    if facets["keeps"] == "window":
        assert WAYS[way].tokens == method().n_global + method().n_local


def test_every_attention_method_of_the_page_is_a_way():
    named = {name: getattr(attend, name) for name in attend.__all__ if isinstance(getattr(attend, name), type)}
    of_papers = {
        kind.paper
        for kind in named.values()
        if issubclass(kind, PreRopeAttention | PostRopeAttention) and hasattr(kind, "paper")
    }
    assert of_papers == set(METHODS)
    assert of_papers <= set(WAYS)


@pytest.mark.parametrize(
    ("way", "method"),
    [
        ("lm_infinite", LMInfinite(n_global=2, n_local=30)),
        ("infllm", InfLLM(n_init=2, n_local=14, block_size=4, top_k=2)),
        ("longheads", LongHeads(chunk_size=4, attention_length=16)),
        ("flexprefill", FlexPrefill(block_size=16, min_budget=16)),
    ],
)
def test_a_cache_grows_with_the_text_exactly_where_it_is_said_to(tiny_model, way, method):
    model = tiny_model()
    plain = ModelShape.of(saved(model))
    held = {}
    with method(model), torch.no_grad():
        for length in (100, 200):
            ids = torch.arange(length)[None] % 250 + 3
            held[length] = cache_bytes(model(ids, use_cache=True).cache).on_device
    if WAYS[way].facets["keeps"] == "window":
        assert held[100] == held[200] < plain.cache_bytes(40, 4)
    else:
        assert held[100] >= plain.cache_bytes(100, 4)
        assert held[200] >= held[100] + plain.cache_bytes(90, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_states_of_transnormer_are_what_is_said(dtype):
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = TransNormerForCausalLM(TransNormerConfig(**sizes)).to(getattr(torch, dtype)).eval()
    for length in (5, 50):
        with torch.no_grad():
            cache = model(torch.ones(1, length, dtype=torch.long), use_cache=True).cache
        (said,) = [each.cache for each in long_input(SMALL, length, dtype=dtype).ways if each.way.id == "transnormer"]
        assert said == cache_bytes(cache).on_device, "of a model of this shape, whatever the length"


def test_speculation_alone_keeps_the_output_and_takes_one_text_at_a_time(tiny_model):
    assert [way.id for way in ways() if way.facets["lossless"]] == ["aded"]
    assert not WAYS["aded"].facets["batch"]
    model = tiny_model()
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    greedy = model.generate(prompt, max_new_tokens=20, do_sample=False)
    assert torch.equal(model.generate(prompt, max_new_tokens=20, custom_generate=decode.ADED(tree_size=8)), greedy)
    with pytest.raises(InputError):
        model.generate(prompt.repeat(2, 1), max_new_tokens=4, custom_generate=decode.ADED(tree_size=8))


@pytest.mark.parametrize(
    ("length", "ids"),
    [
        (4096, ["aded", "transnormer"]),
        (8192, ["flexprefill", "aded", "transnormer"]),
        (16384, ["lm_infinite", "infllm", "longheads", "transnormer"]),
        (32768, ["lm_infinite", "infllm", "longheads", "transnormer"]),
    ],
)
def test_what_applies_to_the_default_model_and_what_is_recorded_of_it(length, ids):
    made = long_input(DEFAULT, length)
    applies = [each for each in made.ways if each.applies]
    last = [each.way.id for each in applies if each.way.paper.verdict == "refuted here"]
    assert [each.way.id for each in applies] == [way for way in ids if way not in last] + last
    for each, told in zip(made.ways, made.to_dict()["ways"], strict=True):
        paper = papers.get(each.way.id)
        assert (told["verdict"], told["rung"]) == (paper.verdict, paper.rung)
        assert told["command"] == f"broadsheet try {paper.id}"
        assert told["applies"] == (each.way.id in ids)
    assert [each.applies for each in made.ways] == sorted((each.applies for each in made.ways), reverse=True)


def test_why_a_way_does_not_apply_is_said_in_numbers():
    assert reason(DEFAULT, 4096, "lm_infinite") == "4,096 tokens are within the 8,192 that the model was trained on"
    for way in ("flexprefill", "aded"):  # they read as full attention does, which breaks there
        assert reason(DEFAULT, 16384, way) == "16,384 tokens are more than the 8,192 that the model was trained on"
    assert applying(DEFAULT, 4096, need="slow-decoding") == ["aded"]
    # Attention of 4,096 tokens: 30 · 4 · 576 · 4096 · 4097 / 2; weights: 2 · (134,515,008 − 49,152 · 576) · 4,096.
    share = 5.80e11 / (5.80e11 + 8.70e11)
    assert long_input(DEFAULT, 4096).attention_share == pytest.approx(share, rel=1e-3)
    assert reason(DEFAULT, 4096, "flexprefill") == "attention is 40 % of reading 4,096 tokens"
    assert reason(DEFAULT, 16384, "aded", need="recall") == "it is for another need: slow-decoding"


def test_the_trained_length_is_the_border_and_where_it_is_not_known_both_sides_are_open(monkeypatch):
    monkeypatch.setattr(papers.Paper, "verdict", "open")  # whatever is recorded
    assert long_input(DEFAULT, 8192).beyond is False
    assert long_input(DEFAULT, 8193).beyond is True
    unknown = {key: value for key, value in DEFAULT.items() if key != "max_position_embeddings"}
    assert long_input(unknown, 8192).beyond is None
    assert applying(unknown, 8192) == [way.id for way in ways()]
    assert "is not known" in reason(unknown, 8192, "infllm")


@pytest.mark.parametrize(
    ("need", "ids"),
    [
        ("stream", ["lm_infinite"]),
        ("recall", ["infllm", "longheads"]),
        ("slow-prefill", []),
        ("slow-decoding", []),
        ("new-model", ["transnormer"]),
    ],
)
def test_a_need_leaves_its_own_ways(need, ids, monkeypatch):
    monkeypatch.setattr(papers.Paper, "verdict", "open")  # what is refuted comes last
    assert applying(DEFAULT, 32768, need=need) == ids


def test_methods_for_long_attention_have_nothing_to_do_where_all_layers_slide():
    sliding = DEFAULT | {"sliding_window": 512}
    for length in (4096, 8192, 65536):
        assert applying(sliding, length) == ["transnormer"]
        assert reason(sliding, length, "infllm") == "every layer of the model attends to a window already"
        assert "dropped from layers that attend to a window" in reason(sliding, length, "aded")
    mixed = DEFAULT | {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 15}
    assert "infllm" in applying(mixed, 65536)
    assert "aded" not in applying(mixed, 65536)


def test_what_was_refuted_comes_last_among_what_applies(monkeypatch):
    refuted = property(lambda paper: "refuted here" if paper.id == "lm_infinite" else "open")
    monkeypatch.setattr(papers.Paper, "verdict", refuted)
    assert applying(DEFAULT, 16384) == ["infllm", "longheads", "transnormer", "lm_infinite"]
    assert long_input(DEFAULT, 16384).to_dict()["ways"][3]["verdict"] == "refuted here"


def test_what_fits_is_weights_and_cache_together():
    weights, cache = 134_515_008 * 4, 2 * 3 * 64 * 30 * 32768 * 4
    window = 2 * 3 * 64 * 30 * 2058 * 4
    made = long_input(DEFAULT, 32768, memory=1)
    assert (made.weights, made.cache, made.fits) == (weights, cache, False)
    held = {each.way.id: (each.cache, each.fits) for each in made.ways}
    assert held["lm_infinite"] == (window, True)
    assert held["infllm"] == held["longheads"] == held["aded"] == (cache, False)
    assert held["transnormer"] == (31 * 9 * 64 * 64 * 4, True)
    edge = (weights + cache) / 1e9
    assert long_input(DEFAULT, 32768, memory=edge + 1e-9).fits is True
    assert long_input(DEFAULT, 32768, memory=edge - 1e-8).fits is False
    assert long_input(DEFAULT, 32768).fits is None
    half = long_input(DEFAULT, 32768, dtype="bfloat16")
    assert (half.weights, half.cache) == (weights // 2, cache // 2)
    assert long_input(DEFAULT, 32768).to_dict()["cache_bytes_per_token"] == 2 * 3 * 64 * 30 * 4


@pytest.mark.real
def test_the_default_model_has_the_sizes_that_its_config_gives(default_model):
    shape = ModelShape.of(models.config("default"))
    assert shape == ModelShape.of(DEFAULT)
    assert shape.weights == default_model.model.num_parameters()
    with torch.no_grad():
        cache = default_model.model(torch.ones(1, 30, dtype=torch.long), use_cache=True).cache
    assert shape.cache_bytes(30, 4) == cache_bytes(cache).on_device
