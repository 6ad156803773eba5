"""The first layers of a model as a model of its own: in memory, in numbers, and in a folder."""

from __future__ import annotations

import lm_zoo
import numpy as np
import pytest
import torch

from broadsheet.console import InputError
from broadsheet.embed.base import embedder, load
from broadsheet.embed.fitting import fit
from broadsheet.embed.modules.shallow import FirstLayers, keep_layers, parameters
from broadsheet.embed.ullme import GRL

TEXTS = ["A stone.", "The wind, and the rain that comes with it.", "x"]


@pytest.mark.parametrize("name", lm_zoo.CONFIGS)
def test_the_layers_kept_compute_what_they_did_and_the_final_norm_follows(name):
    model, whole = lm_zoo.make(name), lm_zoo.make(name)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    middle = whole(input_ids=ids, output_hidden_states=True).hidden_states[2]
    keep_layers(model, 2)
    output = model.base_model(input_ids=ids, output_hidden_states=True)
    norm = next(part for part in list(model.base_model.children())[::-1] if "norm" in type(part).__name__.lower())
    torch.testing.assert_close(output.last_hidden_state, norm(middle), atol=1e-5, rtol=0)
    model.generate(ids, max_new_tokens=2, do_sample=False)


def test_parameters_are_those_of_what_is_left(tiny_model, tiny_tokenizer):
    model = tiny_model(num_hidden_layers=4)
    before, beyond = parameters(model)
    assert before == sum(p.numel() for p in model.parameters())
    assert before - beyond == 2 * model.config.vocab_size * 32  # embeddings and head, not tied
    one_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    made = embedder((model, tiny_tokenizer()), encoder=FirstLayers, keep=1)
    assert parameters(made.encoder.model) == (before - 3 * one_layer, beyond - 3 * one_layer)
    tied = tiny_model(tie_word_embeddings=True)
    assert parameters(tied)[0] - parameters(tied)[1] == tied.config.vocab_size * 32


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trained_shallow_model_is_read_back_as_it_was(tiny_folder, tmp_path, method):
    model = embedder(str(tiny_folder), encoder=FirstLayers, keep=1, device="cpu", dtype="float32")
    items = [{"query": text, "positive": f"{text} again", "negatives": [text[::-1]]} for text in TEXTS]
    objective = GRL(model, generation=None, consistency=None, projector=False)
    fit(model, items, objective, tmp_path / "out", steps=2, batch_size=3, method=method, learning_rate=1e-2)
    again = load(tmp_path / "out")
    assert len(again.encoder.layers) == 1
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    assert parameters(again.encoder.model) == parameters(model.encoder.model)
    plain = embedder(str(tiny_folder), encoder=FirstLayers, keep=1, device="cpu", dtype="float32")
    assert np.abs(plain.encode(TEXTS) - again.encode(TEXTS)).max() > 1e-4
    again.save(str(tmp_path / "third"))
    np.testing.assert_allclose(load(tmp_path / "third").encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_an_adapter_of_many_layers_is_read_back_too(tiny_model, tiny_tokenizer, tmp_path):
    # peft names the layers of an adapter one by one where they are few, and by their ends, such as q_proj, from 20 on
    tiny_model(num_hidden_layers=6).save_pretrained(tmp_path / "deep")
    tiny_tokenizer().save_pretrained(tmp_path / "deep")
    model = embedder(str(tmp_path / "deep"), encoder=FirstLayers, keep=4, device="cpu", dtype="float32")
    items = [{"query": text, "positive": f"{text} again", "negatives": [text[::-1]]} for text in TEXTS]
    objective = GRL(model, generation=None, consistency=None, projector=False)
    fit(model, items, objective, tmp_path / "out", steps=2, batch_size=3, learning_rate=1e-2)
    np.testing.assert_allclose(load(tmp_path / "out").encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_more_layers_than_there_are_is_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(InputError, match="got 3 layers to keep; the model has 2"):
        embedder((tiny_model(), tiny_tokenizer()), encoder=FirstLayers, keep=3)
    same = embedder((tiny_model(), tiny_tokenizer()), encoder=FirstLayers, keep=0)
    np.testing.assert_array_equal(
        same.encode(TEXTS), embedder((tiny_model(), tiny_tokenizer()), encoder=FirstLayers, keep=2).encode(TEXTS)
    )
