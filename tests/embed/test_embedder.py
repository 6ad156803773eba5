"""The stage's socket: any causal LM gives the same vectors whatever the padding, and comes back from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_zoo import CONFIGS, make

from broadsheet.console import InputError
from broadsheet.embed.base import BASELINES, baseline, embedder, load
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.layers import decoder_layers
from broadsheet.embed.modules.template import PROMPT_EOL, Template

TEXTS = ["hello world, this is it", "short", "another text that is longer than all the others, with words", "a"]


def vectors(encoder: CausalEncoder, texts: list[str]) -> list[torch.Tensor]:
    """Each text's own token vectors, from one batch."""
    features = encoder.preprocess(texts)
    with torch.no_grad():
        states = encoder(features)["token_embeddings"]
    return [row[mask.bool()] for row, mask in zip(states, features["attention_mask"], strict=True)]


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_on_either_side_changes_nothing(name: str, kind: str, attention: Any, tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    encoder = CausalEncoder(make(name, attention=kind), tokenizer, attention=attention)
    alone = [vectors(encoder, [text])[0] for text in TEXTS]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        for one, together in zip(alone, vectors(encoder, TEXTS), strict=True):
            torch.testing.assert_close(one, together, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_token_reaches_the_first_only_without_the_causal_mask(name: str, tiny_tokenizer: Any) -> None:
    encoder = CausalEncoder(make(name), tiny_tokenizer())
    ids = torch.tensor([[20, 30, 40, 50]])
    other = torch.tensor([[20, 30, 40, 51]])
    with torch.no_grad():
        assert torch.equal(encoder.states(ids)[0, 0], encoder.states(other)[0, 0])
        moved = encoder.states(ids, attention="bidirectional") - encoder.states(other, attention="bidirectional")
        plain = encoder.model(input_ids=ids).logits
    assert moved[0, 0].abs().max() > 1e-4
    torch.testing.assert_close(encoder.logits(ids), plain, atol=0, rtol=0)  # and nothing of it stays in the model
    assert getattr(encoder.model.config, "is_causal", True)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_is_what_transformers_calls_hidden_states_of_it(name: str, tiny_tokenizer: Any) -> None:
    model, tokenizer = make(name), tiny_tokenizer()
    ids = torch.tensor([[20, 30, 40, 50, 60]])
    with torch.no_grad():
        expected = model.base_model(ids, output_hidden_states=True).hidden_states
        for layer in (1, 2, 3):
            found = CausalEncoder(model, tokenizer, layer=layer).states(ids)
            torch.testing.assert_close(found, expected[layer], atol=1e-6, rtol=0)


def test_layers_behind_the_one_asked_for_are_not_run(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model(num_hidden_layers=4)
    ran: list[int] = []
    for number, part in enumerate(decoder_layers(model)):
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
    CausalEncoder(model, tiny_tokenizer(), layer=2).states(torch.tensor([[5, 6]]))
    assert ran == [0, 1]
    assert not any(part._forward_pre_hooks for part in decoder_layers(model))


def test_gradients_flow_through_an_early_layer(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model(num_hidden_layers=3)
    CausalEncoder(model, tiny_tokenizer(), layer=2).states(torch.tensor([[5, 6, 7]])).sum().backward()
    assert decoder_layers(model)[1].mlp.up_proj.weight.grad.abs().sum() > 0
    assert decoder_layers(model)[2].mlp.up_proj.weight.grad is None


# Rows of tokens


def test_what_stands_around_a_text_is_never_cut(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    encoder = CausalEncoder(
        tiny_model(), tokenizer, template=Template("<<", ">> in one word:"), append=["<|im_end|>"], max_seq_length=40
    )
    short, long = encoder.rows(["abc", "x" * 500])
    assert tokenizer.decode(short) == "<<abc>> in one word:<|im_end|>"
    assert len(long) == 40
    text = tokenizer.decode(long)
    assert text.startswith("<<xxx")
    assert text.endswith("x>> in one word:<|im_end|>")
    assert (encoder.texts_, encoder.truncated_) == (2, 1)


def test_a_prompt_stands_before_the_text_and_its_length_is_told(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    encoder = CausalEncoder(tiny_model(), tokenizer, template=Template("[", "]"))
    features = encoder.preprocess(["abc"], prompt="query:\n")
    assert tokenizer.decode(features["input_ids"][0]) == "[query:\nabc]"
    before, after = features["input_ids"][0].tensor_split([features["prompt_length"]])
    assert (tokenizer.decode(before), tokenizer.decode(after)) == ("[query:\n", "abc]")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=80), limit=st.integers(12, 40))
def test_rows_of_any_text_keep_the_limit_the_prefix_and_the_suffix(
    text: str, limit: int, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    tokenizer = tiny_tokenizer()
    encoder = CausalEncoder(tiny_model(), tokenizer, template=Template("<", "> is:"), max_seq_length=limit)
    (row,) = encoder.rows([text])
    assert 0 < len(row) <= limit
    decoded = tokenizer.decode(row)
    assert decoded.startswith("<")
    assert decoded.endswith("> is:")


def test_texts_without_tokens_get_one(tiny_model: Any, tiny_tokenizer: Any) -> None:
    encoder = CausalEncoder(tiny_model(), tiny_tokenizer())
    assert encoder.rows(["", "a"])[0] == [2]
    assert encoder.empty_ == 1
    assert all(torch.isfinite(each).all() for each in vectors(encoder, ["", "abc"]))


def test_a_huge_text_is_cut_as_a_long_one(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of ten million characters is what is read of a hundred thousand, and costs as much."""
    lm, tokenizer = tiny_model(), tiny_tokenizer()
    encoder = CausalEncoder(lm, tokenizer, max_seq_length=40)
    long = "a bad cab fed a deep lion. " * 4_000
    seen: list[int] = []
    read = type(tokenizer).__call__

    def counted(self: Any, text: Any, *others: Any, **more: Any) -> Any:
        seen.append(sum(map(len, [text] if isinstance(text, str) else text)))
        return read(self, text, *others, **more)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    [huge], [shorter] = encoder.rows([long * 100]), encoder.rows([long])
    assert huge == shorter
    assert len(huge) == 40
    assert encoder.truncated_ == 2
    assert 0 < sum(seen) < 20_000, "characters that were tokenized, of ten million"


def test_a_text_over_the_limit_can_be_an_error(tiny_model: Any, tiny_tokenizer: Any) -> None:
    encoder = CausalEncoder(tiny_model(), tiny_tokenizer(), max_seq_length=8, truncate="error")
    with pytest.raises(InputError, match=r"text 2 has 30 tokens, the limit is 8"):
        encoder.rows(["fine", "x" * 30])


def test_a_template_without_room_for_text_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    encoder = CausalEncoder(tiny_model(), tiny_tokenizer(), template=Template("x" * 30), max_seq_length=20)
    with pytest.raises(InputError, match="leaves no room for text"):
        encoder.rows(["abc"])


def test_prompt_eol_makes_one_sentence_without_double_quotes() -> None:
    assert PROMPT_EOL.around('He said "hi"') == 'This sentence : "He said \'hi\'" means in one word:"'
    assert PROMPT_EOL.around("Who?") == 'This sentence : "Who." means in one word:"'
    assert PROMPT_EOL.around("a b") == 'This sentence : "a b." means in one word:"'


# Bad settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": "sideways"}, "expected causal or bidirectional"),
        ({"layer": 3}, "layers 1 to 2"),
        ({"layer": 0}, "layers 1 to 2"),
        ({"append": ["<nothing>"]}, "no token '<nothing>'"),
        ({"truncate": "fold"}, "expected cut or error"),
        ({"template": {"before": "x"}}, "expected prefix, suffix and clean"),
    ],
)
def test_settings_that_cannot_be_are_named(
    wrong: dict[str, Any], message: str, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(InputError, match=message):
        CausalEncoder(tiny_model(), tiny_tokenizer(), **wrong)


def test_a_tokenizer_without_pad_token_pads_with_the_end_of_text(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    encoder = CausalEncoder(tiny_model(), tokenizer)
    alone = vectors(encoder, ["abc"])[0]
    torch.testing.assert_close(vectors(encoder, ["abc", "longer than abc"])[0], alone, atol=1e-5, rtol=0)
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a pad nor an end-of-text token"):
        CausalEncoder(tiny_model(), tokenizer)


def test_an_unknown_baseline_or_pooling_is_named(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="expected one of mean"):
        baseline("median", (tiny_model(), tiny_tokenizer()))
    with pytest.raises(InputError, match="expected one of mean"):
        embedder((tiny_model(), tiny_tokenizer()), "median")  # type: ignore[arg-type]


# Poolings, folders


def test_baselines_pool_as_they_say(tiny_model: Any, tiny_tokenizer: Any) -> None:
    pair = (tiny_model(), tiny_tokenizer())
    states = vectors(CausalEncoder(*pair), TEXTS)
    expected = {
        "mean": [each.mean(0) for each in states],
        "last-token": [each[-1] for each in states],
        "weighted-mean": [
            (each * torch.arange(1, len(each) + 1)[:, None]).sum(0) / sum(range(1, len(each) + 1)) for each in states
        ],
        "prompt-eol": [each[-1] for each in vectors(CausalEncoder(*pair, template=PROMPT_EOL), TEXTS)],
    }
    assert set(expected) == set(BASELINES)
    for name, rows in expected.items():
        np.testing.assert_allclose(baseline(name, pair).encode(TEXTS), torch.stack(rows).numpy(), atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_saved_folder_gives_the_same_vectors_and_still_generates(
    attention: Any, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    made = embedder(
        (tiny_model(), tiny_tokenizer()),
        "last-token",
        attention=attention,
        layer=1,
        template=Template("[", "]"),
        append=["<|im_end|>"],
        prompts={"query": "q: ", "document": ""},
        normalize=True,
        max_seq_length=50,
    )
    made.save(str(tmp_path / "saved"), create_model_card=False)
    back = load(tmp_path / "saved")
    np.testing.assert_allclose(back.encode(TEXTS), made.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(back.encode_query(TEXTS), made.encode_query(TEXTS), atol=1e-6)
    assert not np.allclose(back.encode_query(TEXTS), back.encode_document(TEXTS), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(back.encode(TEXTS), axis=1), 1, atol=1e-5)
    assert back.encoder.get_config_dict() == made.encoder.get_config_dict()

    import transformers

    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="sdpa").eval()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again(ids).logits, made.encoder.logits(ids), atol=1e-6, rtol=0)
    assert "is_causal" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_sentence_transformers_alone_reads_the_folder_in_a_fresh_process(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    made = embedder((tiny_model(), tiny_tokenizer()), "mean", attention="bidirectional")
    made.save(str(tmp_path / "saved"), create_model_card=False)
    program = (
        "import sys, numpy; from sentence_transformers import SentenceTransformer as S; "
        "numpy.save(sys.argv[2], S(sys.argv[1], trust_remote_code=True, device='cpu').encode(['hello world', 'a']))"
    )
    read = python(program, tmp_path / "saved", tmp_path / "v.npy")
    assert read.returncode == 0, read.stderr
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), made.encode(["hello world", "a"]), atol=1e-5)


def test_what_is_no_embedder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        load(tmp_path / "nothing" / "here" / "at all")
    file = tmp_path / "file.txt"
    file.write_text("x")
    with pytest.raises(InputError, match="is a file"):
        load(file)


def test_encode_keeps_sentence_transformers_forms(tiny_model: Any, tiny_tokenizer: Any) -> None:
    made = embedder((tiny_model(), tiny_tokenizer()))
    one, many = made.encode("abc"), made.encode(["abc", "d"])
    assert one.shape == (32,)
    assert many.shape == (2, 32)
    np.testing.assert_allclose(one, many[0], atol=1e-5)
    tensor = made.encode(["abc"], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert made.encode(["abc"], truncate_dim=8).shape == (1, 8)
    assert made.encode([]).shape[0] == 0
    tokens = made.encode(["abc", "longer text"], output_value="token_embeddings")
    assert len(tokens) == 2
    np.testing.assert_allclose(tokens[0].mean(0), many[0], atol=1e-5)
    with pytest.raises(ValueError, match="not found in the configured prompts"):
        made.encode(["abc"], prompt_name="nonsense")


def test_texts_that_were_cut_are_counted_aloud(
    tiny_model: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = embedder((tiny_model(), tiny_tokenizer()), max_seq_length=10)
    made.encode(["x" * 100, "abc", "y" * 20])
    assert "2 of 3 texts were cut to 10 tokens" in capsys.readouterr().err
