"""The audio model: it hears through its audio tokens alone, batches equal single clips, and nothing frozen moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_zoo
import pytest
import torch
from hearing import Blocks, noise, tiny
from huggingface_hub import ModelCard

from broadsheet import hear
from broadsheet.console import InputError
from broadsheet.hear.configuration import SalmonnConfig
from broadsheet.hear.processing import AUDIO, MAX_ANSWER, assemble
from broadsheet.hear.prompts import AudioPrompt, instruction
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

pytestmark = pytest.mark.usefixtures("home")

Make = Callable[..., SalmonnForConditionalGeneration]


@pytest.fixture
def make(tiny_model: Callable, tiny_tokenizer: Callable) -> Make:
    def made(llm: Any = None, **settings: Any) -> SalmonnForConditionalGeneration:
        return tiny(llm or tiny_model(max_position_embeddings=512), tiny_tokenizer(), **settings)

    return made


def test_a_prompt_is_bos_text_audio_text_and_the_answer_with_its_end(make: Make) -> None:
    model = make()
    batch = model.processor("What is said?", noise(16_000), "the red fox")
    ids = batch["input_ids"][0].tolist()
    places = [place for place, each in enumerate(ids) if each == model.processor.audio_token_id]
    assert places == list(range(places[0], places[0] + 10))  # one second, windows of 5 frames
    decode = model.processor.tokenizer.decode
    assert decode(ids[: places[0]]) == "<|im_start|>USER: <Speech>"
    assert decode(ids[places[-1] + 1 :]) == "</Speech> What is said?\nASSISTANT: the red fox<|im_end|>"
    labels = batch["labels"][0].tolist()
    first = next(place for place, each in enumerate(labels) if each != -100)
    assert decode(ids[:first]).endswith("ASSISTANT:")
    assert labels[first:] == ids[first:]
    assert labels[-1] == model.processor.tokenizer.eos_token_id


def test_several_clips_stand_first_or_where_the_instruction_marks_them() -> None:
    prompt = AudioPrompt()
    assert prompt.parts("Same?", 2) == ["USER: <Speech>", "</Speech> <Speech>", "</Speech> Same?\nASSISTANT:"]
    assert prompt.parts("Is <audio> before <audio>?", 2)[0] == "USER: Is <Speech>"
    with pytest.raises(InputError, match="3 clips for an instruction with 1"):
        prompt.parts("Is <audio> loud?", 3)
    with pytest.raises(InputError, match="empty instruction"):
        prompt.parts(" ", 1)
    with pytest.raises(InputError, match="has no instructions"):
        instruction("unheard of")


def test_the_loss_is_the_mean_over_answers_alone(make: Make) -> None:
    model = make()
    requests = [(noise(16_000, 1), "What is said?"), (noise(24_000, 2), "Which sound is this?")]
    batch = model.prepared(requests, ["one", "a longer answer"])
    output = model(**batch)
    plain = {name: value for name, value in batch.items() if name != "labels"}
    logits, labels = model(**plain).logits.log_softmax(-1), batch["labels"]
    by_hand = [
        -logits[row, place - 1, labels[row, place]]
        for row in range(2)
        for place in range(labels.shape[1])
        if labels[row, place] != -100
    ]
    torch.testing.assert_close(output.loss, torch.stack(by_hand).mean())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_a_batch_equals_single_clips_on_either_side_of_padding(make: Make, positions: str, side: str) -> None:
    model = make() if positions == "rotary" else make(lm_zoo.make("gpt2"), lora_modules=["c_attn"])
    requests = [
        (noise(16_000, 1), "What is said?"),
        ([noise(30_000, 2), noise(8_000, 3)], "Are these two the same sound, or another one?"),
        (noise(40_000, 4), "Name it."),
    ]
    batch = model.prepared(requests, padding_side=side)
    logits = model(**batch).logits
    last = batch["attention_mask"].shape[1] - 1 - batch["attention_mask"].flip(1).argmax(1)
    for row, request in enumerate(requests):
        alone = model(**model.prepared([request])).logits[0, -1]
        torch.testing.assert_close(logits[row, last[row]], alone, rtol=1e-4, atol=1e-5)
    written = model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    for row, request in enumerate(requests):
        alone = model.generate(**model.prepared([request]), max_new_tokens=6, min_new_tokens=6)
        assert written[row].tolist() == alone[0].tolist()


def test_generation_goes_on_greedily_with_beams_and_with_draws(make: Make) -> None:
    model = make()
    batch = model.prepared([(noise(16_000), "What is said?")])
    greedy = model.generate(**batch, max_new_tokens=4, min_new_tokens=4)[0].tolist()
    embeddings = model.embed(batch["input_ids"], batch["features"], batch["lengths"])
    for token in greedy:
        logits = model.llm(inputs_embeds=embeddings).logits[0, -1]
        logits[model.processor.tokenizer.eos_token_id] = -torch.inf
        assert int(logits.argmax()) == token
        step = model.get_input_embeddings()(torch.tensor([[token]]))
        embeddings = torch.cat([embeddings, step], dim=1)
    beams = model.generate(**batch, max_new_tokens=4, num_beams=4, num_return_sequences=2)
    assert len(beams) == 2
    torch.manual_seed(0)
    drawn = {tuple(model.generate(**batch, max_new_tokens=4, do_sample=True)[0].tolist()) for _ in range(5)}
    assert len(drawn) > 1


def test_a_repetition_is_penalised_whatever_stands_beside_it(make: Make) -> None:
    model = make()
    requests = [(noise(16_000), "Who?"), (noise(16_000), "Who sings in the old house by the river, and to whom?")]
    told = {"max_new_tokens": 12, "min_new_tokens": 12, "repetition_penalty": 5.0}
    assert model.answers(requests, **told) == [model.answers([each], **told)[0] for each in requests]
    once = model.generate(**model.prepared(requests[:1]), **told)[0].tolist()
    assert len(set(once)) == 12
    assert len(set(model.generate(**model.prepared(requests[:1]), max_new_tokens=12)[0].tolist())) < 12


def test_it_hears_through_its_audio_tokens_alone(make: Make) -> None:
    model = make()
    batch = model.prepared([(noise(16_000, 1), "What is said?")])
    other = model.prepared([(noise(16_000, 2), "What is said?")])
    assert torch.equal(batch["input_ids"], other["input_ids"])  # nothing of the clip is in the text
    assert not torch.allclose(model(**batch).logits, model(**other).logits)
    with pytest.raises(InputError, match="places"):
        model(batch["input_ids"], features=other["features"], lengths=other["lengths"] * 0 + 9)


def test_a_tuple_of_clips_is_heard_as_one_with_silence_between(make: Make) -> None:
    model = make()
    first, second = noise(16_000, 1) / 10, noise(20_000, 2) / 10
    joined = torch.cat([first, torch.zeros(1_600), second])
    pair, whole = (model.prepared([([clip], "Same speaker?")]) for clip in ((first, second), joined))
    assert torch.equal(pair["input_ids"], whole["input_ids"])
    assert torch.equal(model(**pair).logits, model(**whole).logits)
    assert torch.equal(model.processor("Same speaker?", [(first, second)])["waves"][0], joined)
    apart = model.prepared([([first, second], "Same speaker?")])
    assert apart["lengths"].shape[0] == 2


def test_waves_and_cached_features_are_the_same(make: Make) -> None:
    model = make()
    batch = model.processor("What is said?", noise(20_000))
    assert torch.equal(model(**batch).logits, model(**model.prepared([(noise(20_000), "What is said?")])).logits)


def test_long_audio_is_heard_in_pieces_of_thirty_seconds(make: Make) -> None:
    model = make()
    wave = noise(16_000 * 40)
    batch = model.prepared([(wave, "What is said?")])
    assert len(batch["lengths"]) == 2
    assert int((batch["input_ids"] == model.processor.audio_token_id).sum()) == 300 + 100
    whole = model.audio_tokens(batch["features"], batch["lengths"])
    second = model.prepared([(wave[16_000 * 30 :], "What is said?")])
    torch.testing.assert_close(whole[300:], model.audio_tokens(second["features"], second["lengths"]))


def test_scaling_zero_is_the_frozen_model_and_coming_back_is_exact(make: Make, tiny_model: Callable) -> None:
    model = make()
    batch = model.prepared([(noise(16_000), "What is said?")])
    full = model(**batch).logits
    frozen = tiny_model(max_position_embeddings=512)
    embeddings = model.embed(batch["input_ids"], batch["features"], batch["lengths"])
    with model.scale_lora(0.0):
        torch.testing.assert_close(model(**batch).logits, frozen(inputs_embeds=embeddings).logits, rtol=0, atol=0)
    assert torch.equal(model(**batch).logits, full)
    layer = model.llm.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 4.0
    states = torch.randn(3, 32)
    added = layer(states) - layer.base_layer(states)
    with model.scale_lora(0.5):
        assert layer.scaling["default"] == 2.0
        torch.testing.assert_close(layer(states) - layer.base_layer(states), added / 2, rtol=1e-4, atol=1e-6)
    assert torch.equal(model(**batch).logits, full)


def test_only_norms_connector_and_adapter_are_trained_and_encoders_stay_in_eval(make: Make) -> None:
    model = make(num_queries=2)  # with one query self-attention has nothing to choose
    names = model.trained_parameters()
    assert {name.split(".")[0] for name in names} == {"synchronised", "connector", "llm"}
    assert all("lora_" in name for name in names if name.startswith("llm"))
    assert {name.split(".")[-4] for name in names if name.startswith("llm")} == {"q_proj", "v_proj"}
    model.train()
    assert model.llm.training
    assert not any(part.training for encoder in model.encoders for part in encoder.modules())
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(names.values(), lr=0.1)
    model(**model.prepared([(noise(16_000), "What is said?")], ["one two"])).loss.backward()
    optimizer.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved <= set(names)
    assert {
        name for name in names if not name.endswith("key.bias")
    } <= moved  # that bias has no gradient but rounding's


def test_the_papers_sizes_have_the_papers_trained_weights() -> None:
    with torch.device("meta"):
        from broadsheet.hear.salmonn import Synchronised, WindowQFormer
        from broadsheet.hear.windows import Windows

        parts = [Synchronised([1280, 768], [50.0, 50.0]), WindowQFormer(2048, 5120, Windows())]
    ours = sum(weight.numel() for part in parts for weight in part.parameters())
    adapter = 40 * 2 * 2 * 8 * 5120  # layers, q and v, two matrices of rank 8, Vicuna-13B's width
    assert ours + adapter == 33_332_992


def test_one_encoder_is_the_same_model_with_fewer_features(make: Make) -> None:
    model = make(encoders=[Blocks()])
    assert model.connector.qformer.config.encoder_hidden_size == 6
    assert model.answer(noise(16_000), "What is said?", max_new_tokens=3) is not None


def test_a_saved_folder_has_a_model_card(tmp_path: Path, tiny_folder: Path) -> None:
    settings = {"qformer_hidden": 16, "qformer_heads": 2, "qformer_ffn": 32, "window_seconds": 0.1}
    encoders = [{"kind": "blocks"}]
    model = SalmonnForConditionalGeneration.build(str(tiny_folder), encoders, device="cpu", dtype="float32", **settings)
    model.save_pretrained(tmp_path / "ears")
    path = tmp_path / "ears/README.md"
    found = ModelCard(path.read_text("utf-8"))
    assert found.data.library_name == "broadsheet"
    assert found.data.pipeline_tag == "audio-text-to-text"
    assert "arxiv:2310.13289" in found.data.tags
    assert f"made from `{tiny_folder.name}`" in found.text
    path.write_text("mine")
    model.save_pretrained(tmp_path / "ears")
    assert path.read_text() == "mine"


def test_a_saved_folder_gives_the_same_model_and_holds_only_what_was_trained(tmp_path: Path, tiny_folder: Path) -> None:
    settings = {"qformer_hidden": 16, "qformer_heads": 2, "qformer_ffn": 32, "window_seconds": 0.1}
    encoders = [{"kind": "blocks"}, {"kind": "blocks", "width": 4, "rate": 25.0, "seed": 1}]
    model = SalmonnForConditionalGeneration.build(str(tiny_folder), encoders, device="cpu", dtype="float32", **settings)
    model.save_pretrained(tmp_path / "ears")
    requests = [(noise(16_000), "What is said?")]
    again = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears", device="cpu", dtype="float32")
    assert torch.equal(model(**model.prepared(requests)).logits, again(**again.prepared(requests)).logits)
    assert set(again.trained_parameters()) == set(model.trained_parameters())
    weights = sum(file.stat().st_size for file in (tmp_path / "ears").glob("*.safetensors"))
    assert weights < 5 * sum(each.numel() for each in model.trained_parameters().values())

    config = json.loads((tmp_path / "ears/config.json").read_text())
    (tmp_path / "ears/config.json").write_text(json.dumps(config | {"encoder_identities": ["other", "weights"]}))
    with pytest.raises(InputError, match="other weights of blocks, blocks"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears")
    (tmp_path / "ears/config.json").write_text(json.dumps(config | {"qformer_ffn": 64}))
    with pytest.raises(InputError, match="does not fit its config"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears")
    tiny_folder.rename(tmp_path / "gone")
    (tmp_path / "ears/config.json").write_text(json.dumps(config))
    with pytest.raises((InputError, FileNotFoundError), match="tiny"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears")
    (tmp_path / "ears/connector.safetensors").unlink()
    with pytest.raises(InputError, match=r"no connector\.safetensors"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears")


def test_audio_tokens_start_as_long_as_the_embeddings_of_words(make: Make) -> None:
    def ratio(**settings: Any) -> float:
        model = make(**settings)
        batch = model.prepared([(noise(32_000), "What is said?")])
        tokens = model.audio_tokens(batch["features"], batch["lengths"])
        return float(
            tokens.detach().norm(dim=-1).mean() / model.get_input_embeddings().weight.detach().norm(dim=-1).mean()
        )

    assert 0.7 < ratio() < 1.4
    assert not 0.7 < ratio(match_norm=False) < 1.4


def test_every_public_name_is_found() -> None:
    assert all(callable(getattr(hear, name)) for name in hear.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Ears'"):
        _ = hear.Ears


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="connector 'mlp'"):
        SalmonnConfig("tiny", ["speech-embedding"], connector="mlp")
    with pytest.raises(InputError, match="audio encoder 'ears'"):
        SalmonnConfig("tiny", ["ears"])
    with pytest.raises(InputError, match="no audio encoders"):
        SalmonnForConditionalGeneration(SalmonnConfig("tiny"))


def test_the_vocabulary_of_the_language_model_is_not_touched(make: Make) -> None:
    model = make()
    assert model.processor.audio_token_id >= model.get_input_embeddings().weight.shape[0]
    assert model.processor.tokenizer.convert_ids_to_tokens(model.processor.audio_token_id) == AUDIO


def test_a_given_tokenizer_is_not_touched(tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    given = tiny_tokenizer()
    before = given.get_vocab()
    assert tiny(tiny_model(), given).processor.audio_token_id == len(before)
    assert given.get_vocab() == before


def test_a_long_answer_is_cut_and_that_is_said(make: Make, capsys: pytest.CaptureFixture) -> None:
    _, answer = make().processor.example("Say.", [[1]], "word " * 400)
    assert len(answer) == MAX_ANSWER + 1
    assert "is cut at 300" in capsys.readouterr().err


def test_answers_begin_in_one_column_when_prompts_are_filled_up_on_the_left() -> None:
    batch = assemble([([5, 6, 7], [8, 9]), ([5], [8])], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [0, 0, 5, 8, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 9], [-100, -100, -100, 8, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]
    with pytest.raises(ValueError, match="middle"):
        assemble([([5], [])], 0, "middle")
