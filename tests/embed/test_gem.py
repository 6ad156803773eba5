"""GEM: generation as it was, embeddings that are the bottleneck's states, and its two losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from broadsheet.console import InputError
from broadsheet.embed.base import Embedder, embedder, load
from broadsheet.embed.fitting import fit
from broadsheet.embed.gem import GEM, bottleneck, contrastive_loss, gem_embedder, reconstruct
from broadsheet.embed.modules.bottleneck import (
    PADDING,
    PREFIX,
    SPECIAL,
    SUFFIX,
    BottleneckRow,
    collator_for,
    forward_states,
    special_states,
)
from broadsheet.embed.trials.perplexity import perplexity, text_losses

TEXTS = ["The cat sat on the mat.", "A list of numbers.", "Rain", "It was there, and then it was not there any more."]


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> Callable[..., Embedder]:
    def made(specials: int = 1, pooling: Any = "mean", model: Any = None, **options: Any) -> Embedder:
        return gem_embedder((model or tiny_model(), tiny_tokenizer()), specials, pooling, **options)

    return made


def objective(made: Embedder, **options: Any) -> GEM:
    return GEM(made, **{"ntp_rows": 0, "ramp_rows": 0} | options)


def batch_of(gem: GEM, texts: list[str] = TEXTS, start: int = 0) -> dict[str, torch.Tensor]:
    return gem.collate(list(enumerate(texts, start)))


# Generation is as it was


def test_without_special_tokens_the_model_computes_what_it_did(make: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    base, made = tiny_model(), make(3)
    with torch.no_grad():
        made.encoder.learned.normal_()
    ids = made.encoder.pad([made.encoder.tokenizer(text)["input_ids"] for text in TEXTS])
    with torch.no_grad():
        expected = base(**ids).logits
        got = made.encoder.model(**ids).logits
    assert (got[..., : expected.shape[-1]] - expected).abs().max() < 1e-5
    plain = embedder((base, tiny_tokenizer()))
    assert perplexity(made.encoder, TEXTS) == pytest.approx(perplexity(plain.encoder, TEXTS), abs=1e-4)


def test_perplexity_is_that_of_the_models_own_loss(tiny_model: Any, tiny_tokenizer: Any) -> None:
    encoder = embedder((tiny_model(), tiny_tokenizer())).encoder
    found = text_losses(encoder, ["", "x", *TEXTS], batch_tokens=40)
    assert found[:2, 1].tolist() == [0, 0]
    for row, text in zip(found[2:], TEXTS, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        assert row[0] / row[1] == pytest.approx(encoder.model(ids, labels=ids).loss.item(), abs=1e-4)
    total = found.sum(0)
    assert perplexity(encoder, TEXTS) == pytest.approx(math.exp(total[0] / total[1]), rel=1e-6)
    with pytest.raises(InputError, match="two tokens"):
        perplexity(encoder, ["x"])


def test_the_special_tokens_are_never_generated(make: Any, tiny_model: Any, tmp_path: Path) -> None:
    made = make(2)
    special = [made.encoder.token_id(token) for token in made.encoder.append]
    with torch.no_grad():  # nothing is likelier
        made.encoder.model.get_output_embeddings().weight[special] *= 1000
    made.save(str(tmp_path / "gem"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gem")
    prompt = torch.tensor([[5, 6, 7]])
    written = [one.generate(prompt, max_new_tokens=20, do_sample=False)[0, 3:] for one in (model, made.encoder.model)]
    assert torch.equal(*written)
    assert not set(written[0].tolist()) & set(range(min(special), model.config.vocab_size))
    base = tiny_model().generate(prompt, max_new_tokens=20, do_sample=False)[0, 3:]
    assert torch.equal(written[0], base)
    logits = model(prompt).logits[0, -1]
    assert int(logits.argmax()) in special or int(logits.argmin()) in special


# Embeddings


@pytest.mark.parametrize(("specials", "pooling"), [(1, "mean"), (3, "mean"), (3, "concat")])
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_embedding_is_the_special_states_of_a_row_with_any_suffix(
    make: Any, specials: int, pooling: str, side: str
) -> None:
    made = make(specials, pooling)
    made.encoder.tokenizer.padding_side = side
    vectors = made.encode(TEXTS, convert_to_tensor=True)
    assert vectors.shape == (4, 32 * (specials if pooling == "concat" else 1))
    assert made.get_embedding_dimension() == vectors.shape[1]
    gem = objective(made)
    rows = [
        BottleneckRow(made.encoder.tokenizer(text)["input_ids"], gem.special, [40 + i] * (i + 1))
        for i, text in enumerate(TEXTS)
    ]
    batch = collator_for(made.encoder, bottleneck)(rows)
    states = special_states(forward_states(made.encoder, batch), batch["segments"])
    pooled = states.mean(1) if pooling == "mean" else states.flatten(1)
    assert (vectors - pooled).abs().max() < 1e-5
    alone = torch.stack([made.encode(text, convert_to_tensor=True) for text in TEXTS])
    assert (vectors - alone).abs().max() < 1e-5
    usual = SentenceTransformer.encode(made, TEXTS, convert_to_tensor=True)
    assert (vectors - usual).abs().max() < 1e-5


def test_new_rows_differ_leave_the_others_and_follow_the_seed(make: Any, tiny_model: Any) -> None:
    base, made = tiny_model(), make(3, seed=1)
    model = made.encoder.model
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    known = base.config.vocab_size
    assert torch.equal(table[:known], base.get_input_embeddings().weight)
    assert torch.equal(head[:known], base.get_output_embeddings().weight)
    special = table[[made.encoder.token_id(token) for token in made.encoder.append]]
    assert torch.pdist(special).min() > 0.01
    assert torch.equal(special, make(3, seed=1).encoder.model.get_input_embeddings().weight[known : known + 3])
    assert not torch.equal(special, make(3, seed=2).encoder.model.get_input_embeddings().weight[known : known + 3])
    assert model.config.vocab_size == len(table) == 320
    near_end = make(1, init="end").encoder.model.get_input_embeddings().weight
    assert (near_end[known] - near_end[2]).norm() < (table[known] - table[2]).norm()


def test_a_saved_gem_is_read_back_whole(make: Any, tmp_path: Path) -> None:
    made = make(2, "concat", prompts={"query": "Q: "})
    with torch.no_grad():
        made.encoder.learned.normal_()  # as training leaves it
    before = made.encode_query(TEXTS)
    ids = torch.tensor([made.encoder.rows(["Rain"])[0]])
    logits = made.encoder.model(ids).logits
    made.save(str(tmp_path / "gem"))
    assert not made.encoder.learned.any()
    assert abs(made.encode_query(TEXTS) - before).max() < 1e-5
    for again in (load(tmp_path / "gem"), SentenceTransformer(str(tmp_path / "gem"), trust_remote_code=True)):
        assert abs(again.encode_query(TEXTS) - before).max() < 1e-5
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "gem")
    assert (whole(ids).logits - logits).abs().max() < 1e-4


# Texts to rows


@given(st.text(max_size=60), st.integers(0, 10_000), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 16]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_neither_side_of_a_cut_is_empty_and_a_repeated_text_is_whole(
    make: Any, text: str, place: int, reconstruction: float, limit: int | None
) -> None:
    gem = _cached(make, reconstruction, limit)
    row = gem.row(place, text)
    ids = gem.encoder.tokenizer(text)["input_ids"]
    room = (limit or 256) - 2  # the tiny model reads 256 tokens; two are special
    assert len(row) <= room + 2
    if len(ids) < 2:
        assert not row.special
    elif reconstruction:
        assert list(row.prefix) == list(row.suffix) == ids[: room // 2]
    else:
        assert row.prefix
        assert row.suffix
        assert [*row.prefix, *row.suffix] == ids[:room]


_MADE: dict[Any, GEM] = {}


def _cached(make: Any, reconstruction: float, limit: int | None) -> GEM:
    key = (reconstruction, limit)
    if key not in _MADE:
        _MADE[key] = objective(make(2), raw_share=0.0, reconstruction=reconstruction, max_length=limit)
    return _MADE[key]


def test_shares_are_as_asked_and_draws_follow_from_the_place(make: Any) -> None:
    gem = objective(make(), raw_share=0.8, reconstruction=0.5)
    rows = [gem.row(place, TEXTS[3]) for place in range(2000)]
    compressed = [row for row in rows if row.special]
    assert abs(len(compressed) / 2000 - 0.2) < 3 * (0.2 * 0.8 / 2000) ** 0.5
    repeated = sum(list(row.prefix) == list(row.suffix) for row in compressed) / len(compressed)
    assert abs(repeated - 0.5) < 3 * (0.25 / len(compressed)) ** 0.5
    assert len({len(row.prefix) for row in compressed}) > 15
    other = objective(make(), seed=1)
    assert rows[:50] == [gem.row(place, TEXTS[3]) for place in range(50)]
    assert rows[:50] != [other.row(place, TEXTS[3]) for place in range(50)]


def test_the_second_view_hides_some_of_the_prefix_and_never_all(make: Any) -> None:
    gem = objective(make(2), raw_share=0.0, hidden_share=0.6)
    batch = gem.collate([(place, text) for place, text in enumerate(TEXTS * 50)])
    hidden, segments = batch["view_hidden"], batch["view_segments"]
    prefix = segments == PREFIX
    assert not (hidden & ~prefix).any()
    assert ((prefix & ~hidden).sum(1) > 0).all()
    share = hidden.sum() / prefix.sum()
    assert abs(share - 0.6) < 0.04
    assert ((segments == SPECIAL).sum(1) == 2).all()


def test_all_rows_can_be_contrasted(make: Any) -> None:
    made = make()
    some = batch_of(objective(made, raw_share=0.5), TEXTS * 4)
    every = batch_of(objective(made, raw_share=0.5, contrast="all"), TEXTS * 4)
    compressed = (some["segments"] == SPECIAL).any(1).sum()
    assert 0 < len(some["view_input_ids"]) == compressed < 16
    assert len(every["view_input_ids"]) == 16
    for name in ("input_ids", "labels", "segments"):
        assert torch.equal(some[name], every[name])


# Losses


def test_with_raw_texts_alone_it_is_language_modelling(make: Any) -> None:
    gem = objective(make(), raw_share=1.0, alpha_max=0.0)
    batch = batch_of(gem)
    total = count = 0.0
    for text in TEXTS:
        ids = torch.tensor([gem.encoder.tokenizer(text)["input_ids"]])
        logits = gem.encoder.model(ids).logits
        total += cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    terms = gem.loss(gem._embedder[0], batch)
    assert terms["loss"].item() == pytest.approx(total / count, abs=1e-5)
    assert "contrastive" not in terms


def test_special_tokens_are_no_targets_but_what_follows_them_is(make: Any) -> None:
    gem = objective(make(2), raw_share=0.0)
    batch = batch_of(gem)
    special = batch["segments"] == SPECIAL
    assert (batch["labels"][special] == -100).all()
    behind = special.roll(2, 1) & (batch["segments"] == SUFFIX)
    assert behind.any()
    assert (batch["labels"][behind] == batch["input_ids"][behind]).all()


def untied(tiny_model: Any) -> Any:
    return tiny_model(tie_word_embeddings=False)


@pytest.mark.parametrize("contrast", ["compression", "all"])
@pytest.mark.parametrize("specials", [1, 2])
def test_alpha_decides_what_is_trained(make: Any, tiny_model: Any, contrast: Any, specials: int) -> None:
    def gradients(alpha: float) -> tuple[GEM, dict[str, Any]]:
        made = make(specials, model=untied(tiny_model))
        gem = objective(made, raw_share=0.5, alpha_max=alpha, contrast=contrast)
        terms = gem.loss(made, batch_of(gem, TEXTS * 2))
        terms["loss"].backward()
        return gem, terms

    gem, terms = gradients(0.0)
    assert gem.log_scale.grad is None or gem.log_scale.grad == 0
    assert gem.encoder.model.lm_head.weight.grad.abs().max() > 0
    assert gem.encoder.learned.grad.abs().max() > 0
    gem, terms = gradients(1.0)
    assert gem.encoder.model.lm_head.weight.grad is None
    assert gem.log_scale.grad.abs() > 0
    assert gem.encoder.learned.grad.abs().max() > 0
    full, term = terms["contrastive"], terms["loss"]
    assert full.item() == term.item()
    gem, terms = gradients(0.25)
    assert terms["loss"].item() == pytest.approx(0.75 * terms["ntp"].item() + 0.25 * terms["contrastive"].item())
    assert terms["contrastive"].item() == pytest.approx(full.item(), abs=1e-5)  # whichever pass the anchors come from


@pytest.mark.parametrize(("contrast", "alpha"), [("compression", 0.25), ("compression", 1.0), ("all", 1.0)])
def test_the_loss_contrasts_the_text_with_the_text_without_what_is_hidden(
    make: Any, contrast: Any, alpha: float
) -> None:
    made = make(2)
    gem = objective(made, raw_share=0.5, hidden_share=0.6, alpha_max=alpha, contrast=contrast)
    made.double()
    batch = batch_of(gem, TEXTS * 4)
    assert batch["view_hidden"].any(1).sum() > 3

    def embedding(row: int, shown: torch.Tensor) -> torch.Tensor:
        """The mean state of the special tokens, each read behind the shown tokens alone, all where they stood."""
        segments, states = batch["view_segments"][row], []
        for special in (segments == SPECIAL).nonzero():
            where = torch.cat([(shown & (segments == PREFIX)).nonzero()[:, 0], special])[None]
            kept = {"input_ids": batch["view_input_ids"][row][where], "position_ids": where}
            kept["attention_mask"] = torch.ones_like(where)  # one text, though its position ids have gaps
            states.append(made.encoder.backbone(**kept).last_hidden_state[0, -1])
        return torch.stack(states).mean(0)

    read = batch["view_segments"] != PADDING
    with torch.no_grad():
        anchors, positives = (
            torch.stack([embedding(row, shown[row]) for row in range(len(read))])
            for shown in (read, read & ~batch["view_hidden"])
        )
        found = gem.loss(made, batch)["contrastive"].item()
    assert found == pytest.approx(contrastive_loss(anchors, positives, gem.log_scale).item(), rel=1e-9)
    assert abs(found - contrastive_loss(anchors, anchors, gem.log_scale).item()) > 0.01


def test_alpha_follows_the_texts_read(make: Any) -> None:
    gem = GEM(make(), ntp_rows=100, ramp_rows=50, alpha_max=0.8)
    assert [gem.alpha(place) for place in (0, 99, 100, 125, 150, 10_000)] == [0, 0, 0, 0.4, 0.8, 0.8]
    assert GEM(make(), ntp_rows=100, ramp_rows=0).alpha(100) == 1


@pytest.mark.parametrize("rows", [2, 5])
def test_same_views_and_orthogonal_negatives_leave_the_scale_alone(rows: int) -> None:
    vectors = 3 * torch.eye(rows, 8)
    log_scale = torch.tensor(math.log(7.0), requires_grad=True)
    loss = contrastive_loss(vectors, vectors, log_scale)
    assert loss.item() == pytest.approx(math.log(1 + (rows - 1) * math.exp(-7.0)), rel=1e-4)
    assert torch.autograd.grad(loss, log_scale)[0] < 0  # sharper is better


def test_the_scale_is_kept_between_1_and_100() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 8, generator=generator)
    for outside, edge in ((-3.0, 0.0), (9.0, math.log(100))):
        losses = [contrastive_loss(a, b, torch.tensor(value)) for value in (outside, edge)]
        assert losses[0].item() == pytest.approx(losses[1].item())
    bound = torch.tensor(9.0, requires_grad=True)
    assert torch.autograd.grad(contrastive_loss(a, b, bound), bound)[0] == 0


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_batch_without_compression_rows_is_no_accident(make: Any, alpha: float) -> None:
    made = make()
    gem = objective(made, raw_share=1.0, alpha_max=alpha)
    loss = gem.loss(made, batch_of(gem))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert (loss == 0) == (alpha == 1)


# Training


def test_training_fits_the_tokens_and_goes_through_a_kill(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "merge": True, "autocast": "none"}
    parts: dict[str, Any] = {"ntp_rows": 12, "ramp_rows": 4, "raw_share": 0.5, "contrast": "all"}
    made = make(2)
    table = made.encoder.model.get_input_embeddings().weight.detach().clone()
    begun = made.encode(TEXTS)
    fitted = fit(made, TEXTS, GEM(made, **parts), tmp_path / "whole", **options)
    assert [("loss_ntp" in step, "loss_contrastive" in step) for step in fitted.history] == (
        [(True, False)] * 4 + [(False, True)] * 2
    )
    assert fitted.tokens > 0
    saved = load(tmp_path / "whole")
    assert abs(saved.encode(TEXTS) - made.encode(TEXTS)).max() < 1e-5
    assert abs(saved.encode(TEXTS) - begun).max() > 1e-3
    after = saved.encoder.model.get_input_embeddings().weight
    special = [saved.encoder.token_id(token) for token in saved.encoder.append]
    moved = (after - table).abs().amax(1) > 0
    assert moved.nonzero()[:, 0].tolist() == special

    cut = make(2)
    broken = GEM(cut, **parts)
    whole, calls = broken.loss, []

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(broken, "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, TEXTS, broken, tmp_path / "cut", checkpoint_minutes=1e-9, **options)
    again = make(2)
    resumed = fit(again, TEXTS, GEM(again, **parts), tmp_path / "cut", checkpoint_minutes=1e-9, **options)
    assert resumed.resumed_from == 3
    assert torch.equal(load(tmp_path / "cut").encoder.model.lm_head.weight, saved.encoder.model.lm_head.weight)
    assert abs(load(tmp_path / "cut").encode(TEXTS) - saved.encode(TEXTS)).max() == 0


def test_an_adapter_is_saved_merged_with_the_new_tokens(make: Any, tmp_path: Path) -> None:
    made = make()
    fit(made, TEXTS, objective(made), tmp_path / "lora", steps=2, batch_size=4, learning_rate=1e-2)
    assert not (tmp_path / "lora" / "adapter_config.json").exists()
    assert abs(load(tmp_path / "lora").encode(TEXTS) - made.encode(TEXTS)).max() < 1e-5


def test_a_text_can_be_told_from_its_special_tokens(make: Any) -> None:
    made = make(2)
    gem = objective(made)
    fit(made, ["the"], GEM(made, raw_share=0, reconstruction=1, alpha_max=0), method="full", steps=60, batch_size=2,
        learning_rate=1e-2, autocast="none")  # fmt: skip
    [told] = reconstruct(made, ["a the"], max_new_tokens=6)
    ids = made.encoder.tokenizer("a the")["input_ids"]
    written: list[int] = []
    for _ in range(6):  # the same, token by token, through the mask
        batch = collator_for(made.encoder, bottleneck)([BottleneckRow(ids, gem.special, written)])
        logits = made.encoder.logits(batch["input_ids"], batch["attention_mask"])[0, -1]
        logits[made.encoder.model.generation_config.suppress_tokens] = -torch.inf
        written.append(int(logits.argmax()))
    end = made.encoder.tokenizer.eos_token_id
    assert told == made.encoder.tokenizer.decode(written[: written.index(end)] if end in written else written)
    assert reconstruct(made, ["the"], max_new_tokens=len(made.encoder.tokenizer("the")["input_ids"])) == ["the"]


# Refusals


def test_what_cannot_be_is_refused(make: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="0 special tokens"):
        make(0)
    with pytest.raises(InputError, match="init 'zero'"):
        make(1, init="zero")
    made = make()
    with pytest.raises(InputError, match="already"):
        gem_embedder((made.encoder.model, made.encoder.tokenizer))
    for options, said in (
        ({"raw_share": 1.5}, r"raw_share 1\.5"),
        ({"hidden_share": 1.0}, r"hidden_share 1\.0"),
        ({"ntp_rows": -1}, "ntp_rows -1"),
        ({"contrast": "none"}, "contrast 'none'"),
        ({"max_length": 2}, "max_length 2"),
    ):
        with pytest.raises(InputError, match=said):
            GEM(made, **options)
    with pytest.raises(InputError, match="gem_embedder"):
        GEM(embedder((tiny_model(), tiny_tokenizer())))
    with pytest.raises(InputError, match="gem_embedder"):
        reconstruct(embedder((tiny_model(), tiny_tokenizer())), TEXTS)
