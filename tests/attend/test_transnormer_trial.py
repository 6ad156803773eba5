"""TransNormer's trial: both models train on the same bytes, texts are held out whole, what fails is reported."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from shown import reasons, shown

from broadsheet.attend.trials import bytetexts, decoding, pace, transnormer
from broadsheet.attend.trials.bytetexts import BEGIN, read, split
from broadsheet.attend.trials.pace import PACE
from broadsheet.attend.trials.transnormer import LLAMA, NO_DECAY, OURS, PLAIN, Shape, TransNormerTrial
from broadsheet.cache import home as cache_home
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.options import construct, describe
from broadsheet.training import weights
from broadsheet.trial.base import ModelArm
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TRAINING

SHAPE = {"texts": 6, "steps": 4, "length": 16, "batch": 2, "width": 16, "layers": 2, "heads": 2, "device": "cpu"}
SHAPE |= {"runs": 2, "lr": 2e-3, "decoded": 3}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "corpus.jsonl"
    lines = [{"id": str(i), "text": " ".join(f"{i * j % 97}" for j in range(60 if i % 2 else 9))} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, [*lines, *lines[:9]])), encoding="utf-8")
    return str(path)


@pytest.fixture
def trial(corpus, home, monkeypatch):
    """A trial of seconds: `trial(**options)`."""
    for name, value in (("SHORT", 8), ("MIDDLE", 12), ("LONG", (20, 40)), ("STEPS", 3)):
        monkeypatch.setattr(decoding, name, value)
    return lambda **changes: TransNormerTrial(data=corpus, **SHAPE | changes)


def test_both_are_trained_on_the_same_and_compared(trial, monkeypatch):
    first = trial()
    result = first.run()
    arms = {arm.name: arm for arm in result.arms}
    assert list(arms) == [LLAMA, OURS, NO_DECAY, PLAIN]
    assert [arm.error for arm in result.arms] == [""] * 4
    assert [arm.role for arm in result.arms] == ["baseline", "method", *["sibling"] * 2]
    assert [arm.runs for arm in result.arms] == [2] * 4
    assert result.paper == "transnormer"
    assert result.claims == [
        ("loss", LLAMA, OURS),
        (PACE.name, LLAMA, OURS),
        ("kept of a text", LLAMA, OURS),
        ("growth of decode time", LLAMA, OURS),
        ("loss", NO_DECAY, OURS),
    ]
    assert {c.arm for c in result.comparisons if c.baseline == "Llama" and c.metric == "loss"} == set(arms) - {"Llama"}
    pairs = {(c.baseline, c.arm) for c in result.comparisons if c.baseline != "Llama"}
    assert pairs == {(NO_DECAY, OURS), (PLAIN, OURS)}
    losses_compared = [c for c in result.comparisons if c.metric.startswith("loss")]
    assert {(c.runs, c.scale) for c in losses_compared} == {((2, 2), "ratio")}
    once = {PACE.name, "decode ms/token", "kept of a text", "growth of decode time"}
    found = [(c.metric, c.baseline, c.arm, c.runs) for c in result.comparisons if c.metric in once]
    assert sorted(found) == sorted((name, LLAMA, OURS, (1, 1)) for name in once)
    assert {name for name, arm in arms.items() if once & set(arm.values)} == {LLAMA, OURS}
    assert not any(claim.trained_once for claim in result.judged)
    assert all(np.asarray(arm.samples["parts"]).shape == (6, 8) for arm in result.arms)
    losses = [arm.values["loss"].estimate for arm in result.arms]
    assert len(set(losses)) == 4
    learned, along, milliseconds, held = result.figures
    assert (list(learned.lines), learned.x) == (list(arms), [1, 2, 3, 4])
    assert list(along.lines) == list(arms)
    assert held.x == milliseconds.x == [8, 12, 20, 30, 40]
    assert held.lines[OURS] == [2 * (16 + 8) * 8 * 4] * 5
    assert held.lines[LLAMA] == [2 * 2 * 16 * 4 * n for n in held.x]
    assert list(held.lines) == list(milliseconds.lines) == [LLAMA, OURS]
    assert all(value > 0 for line in milliseconds.lines.values() for value in line)
    growth = arms[LLAMA].samples["growth of decode time"]
    milliseconds_of = np.asarray(arms[LLAMA].samples["milliseconds"])
    assert growth == pytest.approx(milliseconds_of[:, -1] / milliseconds_of[:, 0])
    assert arms[LLAMA].samples["kept of a text"] == [2 * 2 * 16 * 4 * n / 2**20 for n in (20, 30, 40)]
    share = (arms[PLAIN].values["loss"].estimate - losses[1]) / (losses[0] - losses[1])
    note = f"Of TransNormer's gain over Llama, {100 * share:.0f} % is lost"
    assert any(note in each for each in result.notes) == (losses[0] > losses[1])
    why = reasons(result)
    assert "385 million weights and more, this one 13,872; it has read 128 bytes" in why["loss"], (
        "two runs of four steps"
    )
    assert result.setting["model"] == "2 layers, width 16, 2 heads, from scratch"
    told = shown(result)[0].answers["TransNormer"]
    loss = math.log(float(told.removeprefix("each byte as one of ").partition(" ")[0]))
    assert min(abs(loss - each) for each in arms["TransNormer"].samples["loss"]) < 0.01
    sizes = [int(part.split()[-1].replace(",", "")) for part in result.setting["weights"].split(", ")]
    assert max(sizes) < 1.02 * min(sizes)

    # Killed after the first block: what was trained is not trained again, and the rest is as before.
    monkeypatch.setattr(TransNormerTrial, "_train", lambda *_: pytest.fail("trained again"))
    (journal,) = first.workdir.glob("held*.jsonl")
    journal.write_text(journal.read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    again = trial()
    rerun = again.run()
    assert [arm.samples["loss"] for arm in rerun.arms] == [arm.samples["loss"] for arm in result.arms]
    again.finish()
    assert not list((cache_home() / "trials").iterdir())


def test_each_arms_learning_rate_is_chosen_on_other_texts(trial, monkeypatch):
    asked = []
    whole = TransNormerTrial._train

    def train(self, name, rate, steps, seed, out):
        asked.append((name, rate, steps))
        return whole(self, name, rate, steps, seed, out)

    monkeypatch.setattr(TransNormerTrial, "_train", train)
    made = trial(lr=None, steps=36)
    result = made.run()
    names = [LLAMA, OURS, NO_DECAY, PLAIN]
    tuned = [(name, rate, 12) for name in names for rate in made.settings_tried(name)]
    assert asked == tuned + [(name, made._rates[name], 36) for _ in range(2) for name in names]
    for name in names:
        assert made.settings_tried(name)[:4] == [*transnormer.RATES]
        assert result.setting[f"tuning of {name}"].startswith(f"{made._rates[name]}, the best ")
    texts = made._texts
    for tuned in texts.tuning:
        assert not any(torch.equal(tuned, held[: len(tuned)]) for held in texts.held_out)
    times = [c for c in result.comparisons if c.metric == TRAINING]
    assert [(c.arm, c.n) for c in times] == [(arm.name, 20) for arm in result.arms[1:]]


def test_whole_documents_are_held_out(corpus, home):
    texts = split(corpora.load(corpus), corpus, 6, 16, 128, 0)
    assert texts.held_out.shape == (6, 129)
    assert (texts.held_out[:, 0] == BEGIN).all()
    stream = bytes(texts.stream[texts.stream != BEGIN].tolist())
    for text in texts.held_out:
        assert bytes(text[1:].tolist()) not in stream
    first, second = (texts.batch(step, 0, 2, 16) for step in (0, 1))
    torch.manual_seed(9)
    assert torch.equal(texts.batch(0, 0, 2, 16), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, texts.batch(0, 1, 2, 16))
    assert first.shape == (2, 17)


def test_nothing_like_what_is_read_of_a_held_out_text_is_learnt_or_held_out_too(tmp_path, home):
    def words(name, count):
        return " ".join(f"{name}{i}" for i in range(count))

    # Of a long text the first 128 bytes are read. Each of these shares them, or most of them, with one other.
    texts = [f"{words(name, 30)} {words(name + 'x', 300)}" for name in "abcdef"]
    again = [f"{words(name, 30)} {words(name + 'y', 3000)}" for name in "abc"]
    short = [words(name, 20) for name in "def"]
    others = [words(name, 20) for name in "ghij"]
    path = tmp_path / "like.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [*texts, *again, *short, *others]))
    made = split(corpora.load(str(path)), str(path), 4, 16, 128, 0)
    read_of = [bytes(text[1:].tolist()).decode() for text in [*made.held_out, *made.tuning]]
    assert (len(made.held_out), len(made.tuning), made.dropped) == (4, 2, 6)
    assert {text[0] for text in read_of} == set("abcdef"), "none is held out in two forms"
    learnt = bytes(10 if each == BEGIN else each for each in made.stream.tolist()).decode().split("\n")[1:]
    assert sorted(learnt) == others


def test_rates_are_not_chosen_on_the_texts_that_are_asked_where_documents_are_few(corpus, home):
    texts = split(corpora.load(corpus), corpus, 1000, 16, 128, 0)
    held = {tuple(text.tolist()) for text in texts.held_out}
    tuning = [tuple(text.tolist()) for text in texts.tuning]
    assert tuning
    assert len(held) >= 2 * len(tuning)
    assert not any(text[: len(tuned)] == tuned for tuned in tuning for text in held)


def test_training_computes_in_bfloat16_where_the_device_does_and_reading_in_float32(trial, monkeypatch):
    for module in (weights, transnormer):
        monkeypatch.setattr(module, "autocast_dtype", lambda name, device: torch.bfloat16 if name == "auto" else None)
    seen = set()

    def spied(model, *given, whole, **more):
        seen.add((whole.__name__, torch.is_autocast_enabled("cpu")))
        return whole(model, *given, **more)

    for module, name in ((bytetexts, "next_byte_loss"), (bytetexts, "read"), (transnormer, "read")):
        monkeypatch.setattr(module, name, partial(spied, whole=getattr(module, name)))
    result = trial(quick=True, lr=None, steps=1).run()
    assert seen == {("next_byte_loss", True), ("read", False)}
    assert result.setting["device"] == "cpu; trained in bfloat16, read in float32"


def test_steps_are_timed_on_new_models_and_long_texts_in_turns(monkeypatch):
    monkeypatch.setattr(pace, "STEPS", 3)
    texts, made, stepped = torch.arange(4 * 9).view(4, 9) % 257, [], []

    def new(name):
        made.append(name)
        return name

    def stepper(model, loss):
        return lambda batch: stepped.append((model, batch["input_ids"].tolist()))

    monkeypatch.setattr(pace, "stepper", stepper)
    task = pace.pace_task(texts, new, ("one", "other"))
    one, two, again = (texts[i : i + 2].tolist() for i in (0, 2, 0))
    assert [item.tolist() for item in task.items] == [one, two, again]
    assert (task.once, task.block_size) == (("one", "other"), 1)
    assert "3 steps of training on 2 × 8 bytes" in task.about
    arm = task.arm(ModelArm("one", lambda: pytest.fail("trained")), LazyModel(lambda: pytest.fail("trained")), None)
    arm.prepare()
    assert all(value >= 0 for value in arm.run(task.items)[PACE.name])
    assert (made, stepped) == (["one"], [("one", one), ("one", two), ("one", again)])


def test_loss_is_read_by_stretch(tiny_model):
    model = tiny_model()
    ids = torch.randint(3, 270, (2, 13), generator=torch.Generator().manual_seed(0))
    logits = model(ids[:, :-1]).logits.detach()
    by_hand = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert read(model, ids, 3) == pytest.approx(by_hand.reshape(2, 3, 4).mean(-1).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt2"}, "got --model; TransNormerTrial has no such option"),
        ({"dtype": "bfloat16"}, "got --dtype; TransNormerTrial has no such option"),
        ({"length": 500}, "make --length smaller"),
        ({"steps": 0}, "--steps 0"),
        ({"width": 18, "heads": 3, "lr": 0.0}, "--lr 0"),
        ({"width": 15}, "--width 15"),
        ({"device": "tpu9"}, "--device tpu9 cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused(trial, changes, message):
    with pytest.raises(InputError, match=message):
        trial(**changes).run()


def test_what_both_models_do_not_have_is_not_offered():
    offered = {row.name for row in describe(TransNormerTrial)}
    assert {"--data", "--steps", "--device"} <= offered
    assert not {"--model", "--dtype", "--method"} & offered
    with pytest.raises(InputError, match="no option --model; expected one of --data"):
        construct(TransNormerTrial, {"model": "gpt2"})


def test_an_arm_whose_loss_is_lost_is_reported(trial, monkeypatch):
    kept = transnormer.Shape.transnormer

    def broken(shape, decay, scale_embedding=True):
        model = kept(shape, decay, scale_embedding)
        model.lm_head.weight.data.fill_(math.nan)
        return model

    monkeypatch.setattr(transnormer.Shape, "transnormer", broken)
    result = trial(quick=True, steps=1).run()
    failed = {arm.name: arm.error for arm in result.arms if arm.status == "failed"}
    assert list(failed) == ["TransNormer"]
    assert "the loss is nan at step 0" in failed["TransNormer"]
    assert list(result.figures[0].lines) == list(result.figures[2].lines) == ["Llama"]


def into_the_first_layer(model, ids):
    seen = []
    with_hook = model.model.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(ids)
    with_hook.remove()
    return seen[0]


def test_embeddings_are_multiplied_where_that_is_said_and_nowhere_else():
    shape = Shape(16, 2, 2, block_size=8)
    ids = torch.tensor([[1, 2, 3]])
    made = [shape.transnormer("code"), shape.transnormer("code", scale_embedding=False), shape.llama(64)]
    for factor, model in zip((4, 1, 1), made, strict=True):
        first = model.get_input_embeddings().weight[ids]
        torch.testing.assert_close(into_the_first_layer(model.eval(), ids), factor * first)


def test_texts_to_decode_after_are_of_lengths_and_places_evenly_apart(monkeypatch):
    monkeypatch.setattr(decoding, "LONG", (20, 40))
    monkeypatch.setattr(decoding, "STEPS", 3)
    whole = torch.arange(30)
    first, second, third = decoding.cut(whole, 3)
    assert first.tolist() == list(range(23))
    assert second.tolist() == [*range(10, 30), *range(10), *range(10, 13)]
    assert third.tolist() == [*range(20, 30), *range(20), *range(20, 30), *range(3)]
    assert [decoding.contexts(each)[-1] for each in (first, second, third)] == [20, 30, 40]


def test_what_is_decoded_after_a_text_is_what_a_whole_reading_says(tiny_model, monkeypatch):
    for name, value in (("SHORT", 8), ("MIDDLE", 12), ("LONG", (20, 20)), ("STEPS", 3)):
        monkeypatch.setattr(decoding, name, value)
    model, seen = tiny_model(), []
    text = torch.randint(3, 200, (23,), generator=torch.Generator().manual_seed(0))
    model.register_forward_hook(
        lambda module, given, options, output: seen.append(output.logits[0, -1]), with_kwargs=True
    )
    seconds, held = decoding.decoded(model, text)
    places = [7, 8, 9, 10, 11, 12, 13, 14, 19, 20, 21, 22]
    assert len(seconds) == len(held) == 3
    logits = torch.stack(seen)
    expected = model(text[None]).logits[0, places]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    config = model.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert held == [row * n for n in (8, 12, 20)]
