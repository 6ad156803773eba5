"""The picture says what the config says, counts what is there, and stands alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from hearing import Blocks, tiny

from broadsheet.hear.configuration import SalmonnConfig
from broadsheet.hear.picture import Sizes, architecture_svg, counted, described, paper, sizes_of, small

SVG = "{http://www.w3.org/2000/svg}"


def drawn(config: SalmonnConfig, sizes: Sizes) -> ElementTree.Element:
    return ElementTree.fromstring(architecture_svg(config, sizes))


def texts(config: SalmonnConfig, sizes: Sizes) -> str:
    return "\n".join(each.text or "" for each in drawn(config, sizes).iter(f"{SVG}text"))


def boxes(config: SalmonnConfig, sizes: Sizes, kind: str) -> int:
    """Boxes of a kind that are large enough to hold a word."""
    found = [each for each in drawn(config, sizes).iter(f"{SVG}rect") if each.get("class") == kind]
    return sum(float(each.get("width", 0)) > 100 for each in found)


def variants() -> dict[str, tuple[SalmonnConfig, Sizes]]:
    blocks = [{"kind": "blocks", "width": 6, "rate": 50.0, "seed": i} for i in range(3)]
    made: dict[str, tuple[SalmonnConfig, Sizes]] = {"small": small(), "paper": paper()}
    for name, config in {
        "one": SalmonnConfig("default", blocks[:1]),
        "three": SalmonnConfig("default", blocks),
        "stack": SalmonnConfig("default", blocks[:2], connector="stack", num_queries=2),
        "no adapter": SalmonnConfig("default", blocks[:2], lora_rank=0),
        "odd names": SalmonnConfig("/models/<a> & 'b'" + "x" * 90, blocks, lora_modules=["m" * 80]),
    }.items():
        made[name] = config, described(config, 576, 1000 * bool(config.lora_rank))
    return made


@pytest.mark.parametrize("name", list(variants()))
def test_it_is_valid_xml_that_needs_no_other_file(name: str) -> None:
    svg = architecture_svg(*variants()[name])
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {"svg", "title", "style", "rect", "path", "text"}
    assert not re.search(r"href|url\(|@import|script", svg)
    assert "prefers-color-scheme:dark" in svg


@pytest.mark.parametrize("name", list(variants()))
def test_nothing_lies_beyond_the_page(name: str) -> None:
    root = drawn(*variants()[name])
    wide, high = float(root.get("width", 0)), float(root.get("height", 0))
    for box in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert min(x, y) >= 0
        assert x + w <= wide
        assert y + h <= high
    for each in root.iter(f"{SVG}text"):
        x, length = float(each.get("x", 0)), 6.5 * len(each.text or "")
        left = x - length / 2 if each.get("text-anchor") == "middle" else x
        assert left >= 0, each.text
        assert left + length <= wide, each.text


def test_it_says_what_the_config_says() -> None:
    said = texts(*small())
    for fact in (
        "Whisper: tiny.en",
        "384 wide, 50 frames a second",
        "96 wide, 12.5 frames a second",
        "× 4: 50 a second",
        "LayerNorm, 384 wide",
        "LayerNorm, 96 wide",
        "480 wide, 50 a second",
        "windows of 17 frames (0.34 s): 88 in a full piece",
        "2 layers, 768 wide, 12 heads; N = 1 query",
        "linear, 768 → 576",
        "88 audio tokens",
        "LoRA in q_proj, v_proj",
        "rank 8, scaling 32/8 = 4",
    ):
        assert fact in said


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"num_queries": 3}, ["N = 3 queries", "264 audio tokens"]),
        ({"window_seconds": 0.5, "stride_seconds": 0.25}, ["windows of 25 frames (0.50 s), one every 12"]),
        ({"qformer_hidden": 384, "qformer_heads": 6}, ["384 wide, 6 heads", "linear, 384 → 576"]),
        ({"connector": "stack"}, ["stack and linear", "102 → 1 × 576"]),
        ({"lora_rank": 16, "lora_alpha": 8, "lora_modules": ["o_proj"]}, ["LoRA in o_proj", "scaling 8/16 = 0.5"]),
    ],
)
def test_another_config_is_another_picture(settings: dict[str, Any], facts: list[str]) -> None:
    config = SalmonnConfig("default", [{"kind": "blocks", "width": 6, "rate": 50.0, "seed": 0}], **settings)
    said = texts(config, described(config, 576))
    assert all(fact in said for fact in facts), said


def test_frozen_and_trained_parts_are_told_apart() -> None:
    every = variants()
    # each encoder and the language model; each norm, Q-Former, projection and adapter
    assert (boxes(*every["small"], "frozen"), boxes(*every["small"], "trained")) == (3, 5)
    assert (boxes(*every["three"], "frozen"), boxes(*every["three"], "trained")) == (4, 6)
    assert (boxes(*every["stack"], "frozen"), boxes(*every["stack"], "trained")) == (3, 4)
    assert (boxes(*every["no adapter"], "frozen"), boxes(*every["no adapter"], "trained")) == (3, 4)


def test_the_papers_model_trains_33_million_parameters() -> None:
    config, sizes = paper()
    assert sizes.trained == 33_332_992
    assert "trained: 33.3 M parameters" in texts(config, sizes)


@pytest.mark.parametrize("settings", [{}, {"connector": "stack", "num_queries": 2}, {"lora_rank": 0}])
def test_a_model_is_counted_and_shapes_alone_give_the_same(
    tiny_model: Callable, tiny_tokenizer: Callable, settings: dict[str, Any]
) -> None:
    model = tiny(tiny_model(), tiny_tokenizer(), [Blocks(), Blocks(4, 25.0)], **settings)
    sizes = sizes_of(model)
    assert sizes.trained == sum(each.numel() for each in model.trained_parameters().values())
    assert sizes.frozen == (320 * 6, 640 * 4)
    whole = sum(each.numel() for each in model.parameters())
    assert (sizes.trained or 0) + sum(sizes.frozen) + (sizes.llm_parameters or 0) == whole
    assert f"({(sizes.trained or 0) / whole:.1%})" in texts(model.config, sizes)
    assert counted(model.config, replace(sizes, connector=None)) == sizes
    alone = described(model.config, sizes.llm, sizes.adapter)
    assert alone == replace(sizes, frozen=(), llm_parameters=None)


def test_pieces_are_as_long_as_the_encoders_hear() -> None:
    short = {"kind": "whisper", "spec": "tiny.en", "context_seconds": 8.0, "crop": True}
    config = SalmonnConfig("default", [short, "speech-embedding"])
    said = texts(config, described(config, 576))
    assert "pieces of at most 8 s" in said
    assert "23 in a full piece" in said
