"""Token Prepending: what it changes, where, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from forks import python
from hypothesis import given
from hypothesis import strategies as st
from lm_zoo import CONFIGS, make

from broadsheet.console import InputError
from broadsheet.embed.base import embedder, load
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.eol import (
    KNOWLEDGE,
    META_EOL,
    PRETENDED_COT,
    TEMPLATES,
    TemplateMean,
    last_vectors,
    variant,
)
from broadsheet.embed.modules.template import PROMPT_EOL, Template
from broadsheet.embed.token_prepending import TokenPrepending, add_placeholder, rare_token

TEXTS = ["A man plays the guitar.", "The cat", "", 'She said: "Where are the 12 hats and the red mats?"', "é 木"]


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> TokenPrepending:
    """Five layers, of which the inputs of 1 and 2 are changed. Do not change it."""
    settings: dict[str, Any] = {"start": 1, "exit": 3, "placeholder": "<|endoftext|>"}
    return TokenPrepending(tiny_model(num_hidden_layers=5), tiny_tokenizer(), **settings)


def features(encoder: CausalEncoder, texts: list[str] = TEXTS, side: str = "right") -> dict[str, Any]:
    given = encoder.tokenizer.padding_side
    encoder.tokenizer.padding_side = side
    try:
        return encoder.pad(encoder.rows(texts))
    finally:
        encoder.tokenizer.padding_side = given


def states(encoder: CausalEncoder, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(dict(given))["token_embeddings"]


def vectors(encoder: CausalEncoder, given: dict[str, Any]) -> torch.Tensor:
    return last_vectors(states(encoder, given), given["attention_mask"])


def plain(encoder: TokenPrepending) -> CausalEncoder:
    """The same template without the placeholder."""
    settings = {key: getattr(encoder, key) for key in CausalEncoder.config_keys}
    return CausalEncoder(encoder.model, encoder.tokenizer, **settings)


# Which vectors it changes


def test_an_empty_range_is_the_plain_forward_pass_bit_for_bit(encoder):
    given = features(encoder)
    none = variant(encoder, start=2, exit=2)
    with torch.no_grad():
        expected = plain(encoder).states(given["input_ids"], given["attention_mask"])
    assert states(none, given).equal(expected)
    assert not states(encoder, given).equal(expected)


@pytest.mark.parametrize("layer", [1, 2, 3, 4, 5])
def test_positions_before_the_placeholder_keep_their_states(encoder, layer):
    """At every layer; those behind it change once the overwrite has begun."""
    given = features(encoder)
    at = int((given["input_ids"][0] == encoder.placeholder_id).nonzero()[0])
    ours = states(variant(encoder, layer=layer), given)
    theirs = states(variant(encoder, layer=layer, start=0, exit=0), given)
    assert ours[:, :at].equal(theirs[:, :at])
    assert ours[:, at + 1 :].equal(theirs[:, at + 1 :]) == (layer == 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_vector_a_row_becomes_the_last_tokens_and_all_else_stays(encoder, side, count):
    encoder = variant(encoder, start=0, exit=4, placeholders=count)
    given = features(encoder, side=side)
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda m, args: before.append(args[0])) for layer in encoder.layers]
    try:
        with encoder.around(given):
            handles += [
                layer.register_forward_pre_hook(lambda m, args: after.append(args[0])) for layer in encoder.layers
            ]
            encoder.states(given["input_ids"], given["attention_mask"])
    finally:
        for handle in handles:
            handle.remove()
    places = given["input_ids"] == encoder.placeholder_id
    for i, (one, other) in enumerate(zip(before, after, strict=True)):
        changed = (one != other).any(-1)
        if i >= 4:
            assert not changed.any()
            continue
        assert changed.equal(places)
        assert places.sum(1).tolist() == [count] * len(TEXTS)
        last = last_vectors(one, given["attention_mask"])
        assert other[places].equal(last.repeat_interleave(count, 0))


def test_what_a_layer_put_out_is_not_edited_afterwards(encoder):
    """Recorded hidden states stay what they were: the copy is made for the next layer alone."""
    given = features(encoder)
    recorded: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = encoder.layers[0].register_forward_hook(lambda m, args, out: recorded.append((out, out.clone())))
    try:
        states(encoder, given)
    finally:
        handle.remove()
    [(kept, copied)] = recorded
    assert kept.equal(copied)


def test_layers_behind_the_output_layer_are_not_run(encoder):
    given = features(encoder)
    read = variant(encoder, layer=3)
    expected = vectors(read, given)
    calls: list[int] = []
    handles = [
        layer.register_forward_hook(lambda m, args, out, i=i: calls.append(i)) for i, layer in enumerate(encoder.layers)
    ]
    try:
        states(read, given)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [0, 1, 2]
    weights = [part.detach().clone() for part in encoder.layers[3].parameters()]
    with torch.no_grad():
        for part in encoder.layers[3].parameters():
            part.fill_(torch.nan)
        found = vectors(read, given)
        for part, weight in zip(encoder.layers[3].parameters(), weights, strict=True):
            part.copy_(weight)
    assert found.equal(expected)


def test_an_exit_behind_the_output_layer_changes_what_is_read_no_more(encoder):
    given = features(encoder)
    assert states(variant(encoder, layer=2, exit=4), given).equal(states(variant(encoder, layer=2, exit=2), given))


def test_the_placeholders_own_embedding_reaches_no_further_than_layers_before_start(tiny_model, tiny_tokenizer):
    model = tiny_model(num_hidden_layers=4, tie_word_embeddings=False)
    made = []
    for value in (0.0, 5.0):
        from_0, from_1 = (TokenPrepending(model, tiny_tokenizer(), start=start, exit=3) for start in (0, 1))
        with torch.no_grad():
            model.get_input_embeddings().weight[from_0.placeholder_id] = value
        made.append([vectors(one, features(one, ["A man plays."])) for one in (from_0, from_1)])
    assert made[0][0].equal(made[1][0])
    assert not made[0][1].equal(made[1][1])


@pytest.mark.parametrize("name", CONFIGS)
def test_any_architecture_batched_padded_left_or_right(name, tiny_tokenizer):
    encoder = TokenPrepending(make(name), tiny_tokenizer(), start=1, exit=3, max_seq_length=None)
    alone = torch.cat([vectors(encoder, features(encoder, [text])) for text in TEXTS])
    for side in ("right", "left"):
        assert torch.allclose(vectors(encoder, features(encoder, side=side)), alone, atol=1e-5)
    without = torch.cat([vectors(plain(encoder), features(plain(encoder), [text])) for text in TEXTS])
    assert (alone - without).abs().max() > 1e-3


def test_weights_stay_and_hooks_go_even_if_a_layer_fails(encoder, monkeypatch):
    before = [part.clone() for part in encoder.model.parameters()]
    given = features(encoder)
    states(encoder, given)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(encoder.layers[2], "forward", fail)
    with pytest.raises(RuntimeError, match="broken"):
        states(encoder, given)
    assert all(not layer._forward_pre_hooks for layer in encoder.layers)
    assert all(one.equal(other) for one, other in zip(before, encoder.model.parameters(), strict=True))


def test_gradients_flow_through_the_copy_and_checkpointing_is_refused(tiny_model, tiny_tokenizer):
    encoder = TokenPrepending(tiny_model(num_hidden_layers=4), tiny_tokenizer(), start=1, exit=3)
    given = features(encoder, ["A man plays."])
    place = int((given["input_ids"][0] == encoder.placeholder_id).nonzero()[0])
    taken: list[torch.Tensor] = []

    def take(module: Any, args: Any, out: torch.Tensor) -> None:
        out.retain_grad()
        taken.append(out)

    handle = encoder.layers[0].register_forward_hook(take)
    made = encoder(dict(given))["token_embeddings"][:, place + 1].sum()  # the first token behind sees the last one
    handle.remove()
    made.backward()
    assert taken[0].grad[0, -1].abs().sum() > 0
    assert taken[0].grad[0, place].abs().sum() == 0
    encoder.model.activation_checkpointing_enable()
    encoder.train()
    with pytest.raises(InputError, match="gradient checkpointing"):
        encoder(dict(given))
    encoder.eval()
    states(encoder, given)


# Where the placeholder stands


@given(st.text(max_size=30))
def test_the_row_is_the_templates_with_the_placeholder_before_the_quote(encoder, text):
    [row], [without] = encoder.rows([text]), plain(encoder).rows([text])
    place = row.index(encoder.placeholder_id)
    assert row[:place] + row[place + 1 :] == without
    assert encoder.tokenizer.decode(row[:place]) == "This sentence :"
    assert encoder.tokenizer.decode(row[place + 1 :]).startswith(' "')


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        ({"position": "inside-quote"}, 'This sentence : "'),
        ({"position": "start"}, ""),
        ({"template": PRETENDED_COT}, "After thinking step by step , this sentence :"),
        ({"template": Template("query: ")}, "query:"),
        ({"template": Template()}, ""),
        ({"template": META_EOL[0]}, META_EOL[0].prefix.rstrip('" ')),
    ],
)
def test_other_positions_and_templates(encoder, settings, before):
    encoder = variant(encoder, **settings)
    [row], [without] = encoder.rows(["the hat"]), plain(encoder).rows(["the hat"])
    place = row.index(encoder.placeholder_id)
    assert encoder.tokenizer.decode(row[:place]) == before
    assert row[:place] + row[place + 1 :] == without


def test_a_tokenizer_that_begins_rows_with_a_token_of_its_own_keeps_it_first(tiny_model, tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    encoder = TokenPrepending(tiny_model(), tokenizer, template=Template(), placeholder="Ġthe")
    assert encoder.rows(["a"])[0] == [1, encoder.placeholder_id, *plain(encoder).rows(["a"])[0][1:]]
    assert encoder.rows([""])[0] == [1, encoder.placeholder_id, 2]
    quoted = TokenPrepending(tiny_model(), tokenizer, placeholder="Ġthe")
    place = quoted.rows(["a"])[0].index(quoted.placeholder_id)
    assert tokenizer.decode(quoted.rows(["a"])[0][:place]) == "<|im_start|>This sentence :"


def test_where_lead_in_and_text_share_a_token_the_placeholder_goes_before_it(tiny_model, tiny_tokenizer):
    encoder = TokenPrepending(tiny_model(), tiny_tokenizer(), template=Template("so t"), placeholder="in")
    row = encoder.rows(["he end"])[0]
    assert "Ġthe" in encoder.tokenizer.convert_ids_to_tokens(row)
    assert encoder.tokenizer.decode(row[: row.index(encoder.placeholder_id)]) == "so"


def test_a_text_that_holds_the_placeholder_is_left_alone(tiny_model, tiny_tokenizer):
    encoder = TokenPrepending(tiny_model(num_hidden_layers=3), tiny_tokenizer(), placeholder="<|endoftext|>", exit=2)
    given = features(encoder, ["so <|endoftext|> it is"])
    ours = given["input_ids"][0] == encoder.placeholder_id
    assert ours.sum() == 2
    rows, positions, _ = encoder._positions(given["input_ids"], None)
    assert rows.tolist() == [0]
    assert positions.tolist() == [int(ours.nonzero()[0])]


def test_the_text_is_cut_never_the_template_or_the_placeholder(encoder):
    short = variant(encoder, max_seq_length=40)
    [row] = short.rows(["the cat and the hat " * 20])
    assert len(row) == 40
    assert short.truncated_ == 1
    assert short.max_seq_length == 40
    said = encoder.tokenizer.decode(row)
    assert said.startswith("This sentence :")
    assert said.endswith('" means in one word:"')
    assert row.count(encoder.placeholder_id) == 1
    assert 40 <= len(encoder.rows(["the cat and the hat " * 20])[0]) <= encoder.max_seq_length


def test_it_costs_one_token_and_a_prompt_counts_it(encoder):
    assert [len(row) - len(other) for row, other in zip(encoder.rows(TEXTS), plain(encoder).rows(TEXTS), strict=True)]
    assert {len(a) - len(b) for a, b in zip(encoder.rows(TEXTS), plain(encoder).rows(TEXTS), strict=True)} == {1}
    assert encoder.prompt_length("on hats: ") == plain(encoder).prompt_length("on hats: ") + 1
    row = encoder.rows(["red"], prompt="on hats: ")[0]
    assert '"on hats: red' in encoder.tokenizer.decode(row[row.index(encoder.placeholder_id) :])


def test_a_row_without_its_placeholder_is_refused(encoder):
    given = features(encoder)
    given["input_ids"][1][given["input_ids"][1] == encoder.placeholder_id] = 5
    with pytest.raises(InputError, match="row 2 of the batch lacks"):
        states(encoder, given)
    with pytest.raises(InputError, match="attention mask of shape"):
        states(encoder, {"input_ids": given["input_ids"], "attention_mask": torch.ones(1, 1, 3, 3).bool()})


# Which token it is


def test_the_placeholder_is_a_token_that_text_does_not_hold(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    assert rare_token(tokenizer, 272) == "Ġand"  # every special token has a role: the last of the vocabulary
    assert rare_token(tokenizer, 270) == "at"
    assert rare_token(tokenizer, 272, avoid={271, 270}) == "at"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unused7>", "<filename>"]})
    assert rare_token(tokenizer, 274) == "<unused7>"
    assert rare_token(tokenizer, 272) == "Ġand"
    with pytest.raises(InputError, match="no token to spare"):
        rare_token(tokenizer, 3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_placeholder_can_be_added(tiny_model, tiny_tokenizer, tied):
    model, tokenizer = tiny_model(tie_word_embeddings=tied), tiny_tokenizer()
    before = model.get_input_embeddings().weight.clone()
    with pytest.raises(InputError, match="no token '<PST>'"):
        TokenPrepending(model, tokenizer, placeholder="<PST>")
    assert add_placeholder(model, tokenizer) == add_placeholder(model, tokenizer) == "<PST>"
    encoder = TokenPrepending(model, tokenizer, placeholder="<PST>")
    assert encoder.placeholder_id == 272
    after = model.get_input_embeddings().weight
    assert after.shape[0] == model.config.vocab_size == 273
    assert after[:272].equal(before)
    assert torch.allclose(after[272], before.mean(0), atol=1e-6)
    assert torch.isfinite(vectors(encoder, features(encoder))).all()
    assert encoder.rows(["a"])[0].count(272) == 1


def test_a_model_with_spare_embeddings_is_not_resized(tiny_model, tiny_tokenizer):
    model, tokenizer = tiny_model(vocab_size=300), tiny_tokenizer()
    add_placeholder(model, tokenizer, "<P>")
    assert model.get_input_embeddings().weight.shape[0] == 300
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<x{i}>" for i in range(30)]})
    with pytest.raises(InputError, match="the model has 300 embeddings"):
        TokenPrepending(model, tokenizer, placeholder="<x29>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 3, "exit": 2}, "start 3 and exit 2"),
        ({"exit": 6}, "0 ≤ start ≤ exit ≤ 5"),
        ({"start": -1}, "start -1"),
        ({"placeholders": 0}, "0 placeholders"),
        ({"position": "end"}, "position 'end'"),
        ({"placeholder": "Ġ:"}, "no token"),
        ({"placeholder": ":"}, "is in the template"),
    ],
)
def test_impossible_settings_are_refused(encoder, settings, message):
    with pytest.raises(InputError, match=message):
        variant(encoder, **settings)


def test_one_layer_is_changed_unless_exit_is_given(tiny_model, tiny_tokenizer):
    found = [TokenPrepending(tiny_model(num_hidden_layers=n), tiny_tokenizer()) for n in (2, 4, 12)]
    assert [(each.start, each.exit) for each in found] == [(1, 2)] * 3
    assert TokenPrepending(tiny_model(num_hidden_layers=4), tiny_tokenizer(), start=2).exit == 3
    assert TokenPrepending(tiny_model(num_hidden_layers=4), tiny_tokenizer(), start=4).exit == 4


@pytest.mark.parametrize("pooling", ["mean", "weighted-mean"])
def test_other_pooling_than_the_last_tokens_is_refused(tiny_model, tiny_tokenizer, pooling, tmp_path):
    parts: Any = tiny_model(), tiny_tokenizer()
    with pytest.raises(InputError, match=f"got pooling '{pooling}' after TokenPrepending; expected 'last-token'"):
        embedder(parts, pooling, encoder=TokenPrepending)
    made = embedder(parts, "last-token", encoder=TokenPrepending)
    made.save(str(tmp_path / "made"))
    assert load(tmp_path / "made").encode(["a"]).shape == (1, 32)
    embedder(parts, pooling)  # any other encoder takes it


# As a SentenceTransformer


READ_BACK = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
for folder in sys.argv[1:]:
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    np.save(folder + ".npy", SentenceTransformer.encode(model, ["A man plays the guitar.", "The cat"]))
"""


def test_saved_folders_are_read_back_in_a_fresh_process(tmp_path, tiny_model, tiny_tokenizer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from broadsheet.embed.base import load

    model = tiny_model(num_hidden_layers=5, max_position_embeddings=512)
    settings: dict[str, Any] = {"exit": 3, "layer": 4, "placeholder": "<|endoftext|>", "placeholders": 2}
    encoder = TokenPrepending(model, tiny_tokenizer(), template=KNOWLEDGE, max_seq_length=None, **settings)
    expected = {}
    for name, parts in {"one": [encoder, Pooling(32, "lasttoken")], "mean": [TemplateMean(encoder)]}.items():
        made = SentenceTransformer(modules=parts, device="cpu")
        made.save(str(tmp_path / name))
        expected[name] = made.encode(TEXTS[:2])
    read_back = python(READ_BACK, *(tmp_path / name for name in expected))
    assert read_back.returncode == 0, read_back.stderr
    for name, vectors_ in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), vectors_, atol=1e-6)
        read = load(tmp_path / name, device="cpu")
        np.testing.assert_allclose(SentenceTransformer.encode(read, TEXTS[:2]), vectors_, atol=1e-6)
        first = read[0].encoder if name == "mean" else read[0]
        assert first.get_config_dict() == encoder.get_config_dict()


# Templates


def test_the_mean_of_templates_is_the_mean_of_their_vectors(encoder):
    mean = TemplateMean(encoder)
    made = mean(mean.preprocess(TEXTS))["sentence_embedding"]
    ones = [variant(encoder, template=template) for template in META_EOL]
    expected = torch.stack([vectors(one, features(one)) for one in ones]).mean(0)
    assert torch.allclose(made, expected, atol=1e-6)
    assert mean.get_embedding_dimension() == 32
    assert len(list(mean.parameters())) == len(list(encoder.parameters()))
    with pytest.raises(InputError, match="no templates"):
        TemplateMean(encoder, [])


def test_every_template_quotes_the_text_and_asks_for_one_word():
    for templates in TEMPLATES.values():
        for template in templates:
            said = template.around('Is it "red"?')
            assert ": \"Is it 'red'.\" " in said or ": \"Is it 'red'\" " in said, said
            assert said.endswith('in one word:"')
    assert len({template.around("x") for template in META_EOL}) == 8
    assert PROMPT_EOL.around("x").split(maxsplit=1)[1] == PRETENDED_COT.around("x").split("this ")[1]


# On the default model


@pytest.mark.real
def test_the_default_model(default_model):
    """The choice of the placeholder hardly matters, and what it carries does."""
    model, tokenizer = default_model
    texts = ["A man is playing the guitar.", "Someone makes music.", "The stock market fell by two percent."]
    encoder = TokenPrepending(model, tokenizer, layer=25, exit=7)
    assert (encoder.exit, encoder.placeholder) == (7, "<empty_output>")
    made = vectors(encoder, features(encoder, texts))
    other = variant(encoder, placeholder="<gh_stars>")
    again = vectors(other, features(other, texts))
    assert torch.cosine_similarity(made, again).min() > 0.999
    assert torch.allclose(vectors(encoder, features(encoder, texts, "left")), made, atol=1e-3, rtol=1e-4)
    without = vectors(plain(encoder), features(plain(encoder), texts))
    assert torch.cosine_similarity(made, without).max() < 0.99
