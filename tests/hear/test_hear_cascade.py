"""The cascade reads what was said and hears nothing else; silence has a clip's length and nothing more of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hearing import Blocks, noise, tiny
from torch import Tensor

from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.trials.cascade import Cascade, PrecomputedFeatures, ZeroFeatures

pytestmark = pytest.mark.usefixtures("home")

ASKED = "Write a story about the audio."


class Talker:
    """Writes the number of samples of each piece, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        self.given += [len(wave) for wave in waves]
        return [f"{len(wave)}" if float(wave.abs().max()) else "" for wave in waves]


@pytest.fixture
def cascade(tiny_model: Callable, tiny_tokenizer: Callable) -> Cascade:
    return Cascade(Talker(), (tiny_model(max_position_embeddings=512), tiny_tokenizer()))


def test_a_request_for_the_words_is_answered_by_the_transcript(cascade: Cascade) -> None:
    assert cascade.answers([(noise(16_000), "What is said?"), (noise(20_000), "Transcribe the speech.")]) == [
        "16000",
        "20000",
    ]
    own = Cascade(Talker(), (cascade.model, cascade.tokenizer), transcribes=["Words?"])
    assert own.answers([(noise(16_000), "Words?")]) == ["16000"]
    assert own.answers([(noise(16_000), "What is said?")], max_new_tokens=4) != ["16000"]


def test_long_and_several_clips_are_written_down_piece_by_piece(cascade: Cascade) -> None:
    requests = [([noise(490_000), noise(16_000)], "What is said?"), ([torch.zeros(16_000)], "What is said?")]
    assert cascade.transcripts(requests) == ["480000 16000 16000", ""]
    assert cascade.encoder.given == [480_000, 16_000, 16_000, 16_000]  # type: ignore[attr-defined]


def test_the_language_model_reads_transcript_and_instruction(cascade: Cascade) -> None:
    requests = [(noise(16_000), ASKED), (noise(17_000), "Name it."), (noise(18_000), "What is said?")]
    written = cascade.answers(requests, max_new_tokens=8, min_new_tokens=8)
    assert written[2] == "18000"
    for place, (transcript, instruction) in enumerate((("16000", ASKED), ("17000", "Name it."))):
        chat = [{"role": "user", "content": f"Transcript: {transcript}\n{instruction}"}]
        prompt = cascade.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = cascade.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        alone = cascade.model.generate(ids, do_sample=False, max_new_tokens=8, min_new_tokens=8)[0, ids.shape[1] :]
        assert written[place] == cascade.tokenizer.decode(alone, skip_special_tokens=True).strip()
    assert cascade.answers(requests, batch_size=1, max_new_tokens=8, min_new_tokens=8) == written


@torch.no_grad()
def test_among_choices_it_takes_the_likeliest(cascade: Cascade) -> None:
    labels = ["bell", "a horn", "two drums"]
    requests = [(noise(16_000 + i), "Name it.") for i in range(3)] + [(noise(16_000), "What is said?")]
    chosen = cascade.answers(requests, choices=[labels, labels[:2], (), labels], max_new_tokens=3)
    assert chosen[3] == "16000"
    assert chosen[2] == cascade.answers(requests[2:3], max_new_tokens=3)[0]
    for place, among in ((0, labels), (1, labels[:2])):
        chat = [{"role": "user", "content": f"Transcript: {16_000 + place}\nName it."}]
        prompt = cascade.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        before = cascade.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        likelihoods = []
        for label in among:
            after = cascade.tokenizer(label, add_special_tokens=False)["input_ids"]
            logits = cascade.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            likelihoods.append(float(logits.gather(1, torch.tensor(after)[:, None]).sum()))
        assert chosen[place] == among[likelihoods.index(max(likelihoods))]


@torch.no_grad()
def test_given_answers_are_weighed_after_the_transcript(cascade: Cascade) -> None:
    texts = [("once upon a time", "a bell"), ("a horn blows", "the queen slept")]
    found = cascade.nats([(noise(16_000 + i), ASKED) for i in range(2)], texts)
    for place, pair in enumerate(texts):
        chat = [{"role": "user", "content": f"Transcript: {16_000 + place}\n{ASKED}"}]
        prompt = cascade.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        before = cascade.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for text, lost in zip(pair, found[place], strict=True):
            after = cascade.tokenizer(text, add_special_tokens=False)["input_ids"]
            logits = cascade.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            assert lost == pytest.approx(-float(logits.gather(1, torch.tensor(after)[:, None]).mean()), abs=1e-4)


def test_silence_has_the_length_of_a_clip_and_nothing_else(tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    model = tiny(tiny_model(max_position_embeddings=512), tiny_tokenizer())
    one, other = [(noise(16_000, seed), ASKED) for seed in (1, 2)]
    assert not torch.equal(model(**model.prepared([one])).logits, model(**model.prepared([other])).logits)
    heard = model.audio_features
    model.audio_features = ZeroFeatures(heard)  # type: ignore[assignment]
    assert torch.equal(model(**model.prepared([one])).logits, model(**model.prepared([other])).logits)
    assert model.audio_features.encoders == heard.encoders
    [[speech, sound]] = model.audio_features.features(noise(16_000))
    assert (tuple(speech.shape), tuple(sound.shape)) == ((50, 6), (25, 4))
    assert not speech.any()


def test_given_frames_are_those_of_the_clip() -> None:
    heard = AudioFeatures([Blocks()], keep=False)
    frames = {"a": heard.features(noise(16_000, 1)), "b": heard.features(noise(16_000, 2))}
    [second, first] = PrecomputedFeatures(frames).features_all(["b", "a"])
    assert torch.equal(first[0][0], frames["a"][0][0])
    assert torch.equal(second[0][0], frames["b"][0][0])
