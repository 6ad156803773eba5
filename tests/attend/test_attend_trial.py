"""The trial of the stage: every arm on the same tokens, notes follow from what was read, claims are the paper's."""

from __future__ import annotations

import doctest
import json
import optparse
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_peers
from rich.console import Console
from shown import reasons, shown
from torch.nn.functional import cross_entropy

from broadsheet import models, report
from broadsheet.attend import Attention, FlexPrefill, InfLLM, LMInfinite, LongHeads
from broadsheet.attend.trials import attend, peers, reader, streaming
from broadsheet.attend.trials.attend import AttendTrial
from broadsheet.attend.trials.flexprefill import AUTHORS_ROUNDING, FlexPrefillTrial
from broadsheet.attend.trials.infllm import InfLLMTrial
from broadsheet.attend.trials.lm_infinite import NO_CEILING, NO_FIRST_TOKENS, LMInfiniteTrial
from broadsheet.attend.trials.longheads import LongHeadsTrial
from broadsheet.attend.trials.longtexts import WORDS, long_texts
from broadsheet.attend.trials.metrics import FULL, ONE_PIECE, TRUNCATION, LengthMetrics, Plan, looked_up, outputs
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.options import construct
from broadsheet.page import discovery
from broadsheet.page.evidence import finite
from broadsheet.trial.results import ArmResult, TrialResult

# The tiny model was trained on 256 positions, as it says: 200 lies within them, 300 and 360 beyond.
OPTIONS = {"lengths": (200, 300, 360), "window": 64, "scored": 32, "texts": 2, "questions": 3}
LENGTHS, WINDOW, SCORED = (200, 300, 360), 64, 32


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A tiny model and a small corpus, as a trial's options."""
    folder = tmp_path_factory.mktemp("made")
    tiny_model(pad_token_id=0).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = np.random.default_rng(0).choice(["the", "cat", "and", "a", "dog", "sat", "on", "red", "mats"], (60, 40))
    data = folder / "corpus.jsonl"
    data.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words))
    return OPTIONS | {"model": str(folder / "model"), "data": str(data)}


@pytest.fixture
def setting(made, tmp_path, monkeypatch):
    """The options, in a cache folder of this test's own."""
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    return dict(made)


@pytest.fixture(scope="session")
def texts(made, tiny_tokenizer):
    clear = [range(length - SCORED, length + reader.DECODED) for length in LENGTHS]
    corpus = corpora.load(made["data"])
    return long_texts(corpus, tiny_tokenizer(), 2, LENGTHS[-1] + reader.DECODED, questions=3, clear=clear)


@pytest.fixture(scope="session")
def result(made, tmp_path_factory):
    """An undisturbed trial of LM-Infinite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(tmp_path_factory.mktemp("home")))
        return LMInfiniteTrial(**made, method="lm_infinite(n_global=2)").run()


@pytest.fixture
def unread(monkeypatch):
    """Texts are not read, and methods change nothing: what is reported follows from the numbers of `looked`."""

    @contextmanager
    def install(self, model):
        yield model

    def reading(by_position):
        return lambda self, text, lengths, *_, **__: (looked(text, lengths), by_position * (lengths[-1] // SCORED))

    monkeypatch.setattr(Attention, "__call__", install)
    for name, by_position in {"chunks": [1.0], "one_piece": [], "truncated": []}.items():
        monkeypatch.setattr(reader.LongTextReader, name, reading(by_position))


def looked(text, lengths, loss=2.0):
    """Every password found, and the same loss at every length."""
    found = [1.0] * len(text.questions)
    return [LengthMetrics(loss, n / 1000, 0.01, n, found, found) for n in lengths]


def tail_loss(model, ids):
    """The mean loss of the last `SCORED` of these tokens, from one forward pass over them."""
    text = torch.tensor([ids])
    with torch.no_grad():
        losses = cross_entropy(model(text).logits[0, :-1], text[0, 1:], reduction="none")
    return float(losses[-SCORED:].mean())


def test_every_arm_is_scored_on_the_same_tokens(result, texts, tiny_model):
    arms = {arm.name: arm for arm in result.arms}
    model = tiny_model(pad_token_id=0)
    expected = {
        FULL: [[tail_loss(model, text.ids[:n]) for n in LENGTHS] for text in texts],
        TRUNCATION: [[tail_loss(model, text.ids[n - SCORED - WINDOW : n]) for n in LENGTHS] for text in texts],
    }
    with LMInfinite(n_global=2, n_local=WINDOW)(model):
        expected["LM-Infinite"] = [[tail_loss(model, text.ids[:n]) for n in LENGTHS] for text in texts]
    with LMInfinite(n_global=0, n_local=WINDOW)(model):
        expected[NO_FIRST_TOKENS] = [[tail_loss(model, text.ids[:n]) for n in LENGTHS] for text in texts]
    method = LMInfinite(n_global=2, n_local=WINDOW, max_distance=1000)
    method.check = lambda layout: None  # distances beyond the trained ones are what that arm is about
    with method(model):
        expected[NO_CEILING] = [[tail_loss(model, text.ids[:n]) for n in LENGTHS] for text in texts]
    for name, losses in expected.items():
        np.testing.assert_allclose(arms[name].samples["losses"], losses, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(arms[name].samples["loss"], np.array(losses)[:, 0], atol=2e-5)
        np.testing.assert_allclose(arms[name].samples["loss beyond 256"], np.array(losses)[:, 1:].mean(1), atol=2e-5)
    assert len(expected) == len(arms)
    for i, name in enumerate(expected):
        for other in list(expected)[:i]:
            assert not np.allclose(expected[name], expected[other], atol=1e-5), (name, other)
    by_position = np.array(arms[FULL].samples["by position"])
    assert by_position.shape == (2, LENGTHS[-1] // SCORED)


def test_cost_is_that_at_the_last_length(result, tiny_model):
    arms = {arm.name: arm for arm in result.arms}
    config = tiny_model().config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4 / 2**20
    assert arms[FULL].samples["cache MiB"] == pytest.approx([360 * token] * 2)
    assert arms[FULL].samples["held"] == [pytest.approx([n * token for n in LENGTHS])] * 2
    assert arms[TRUNCATION].samples["cache MiB"] == pytest.approx([(WINDOW + SCORED) * token] * 2)
    for arm in arms.values():
        seconds = np.array(arm.samples["seconds"])
        np.testing.assert_array_equal(seconds[:, -1], arm.samples["prefill seconds"])
        np.testing.assert_array_equal(np.array(arm.samples["decode"])[:, -1], arm.samples["decode ms/token"])
        assert arm.items_per_second.estimate == pytest.approx(2 / seconds[:, -1].sum())
    assert (np.diff(arms[FULL].samples["seconds"]) > 0).all()  # one pass: time adds up


def test_a_password_counts_once_it_is_told_and_its_word_comes_first(texts, tiny_model, monkeypatch):
    asked, begun = [], []

    def answer(model, cache, questions, told):
        """Knows the text's first password only, and would never say it."""
        asked.append(questions)
        [text] = [text for text in texts if text.questions[0].ids == questions[0]]
        logits = torch.zeros(len(questions), 272)
        logits[:, text.answers[0]] = 1
        logits[:, 0] = 2
        places = [question.position + len(question.ids) for question in text.questions[: len(told)]]
        assert [text.ids[place] for place in places] == text.answers[: len(told)]
        begun.append({place - token for place, token in zip(places, told, strict=True)})
        return logits, torch.full((len(questions),), torch.nan)

    monkeypatch.setattr(streaming, "ask", answer)
    reads = reader.LongTextReader(tiny_model(pad_token_id=0), Plan(LENGTHS, WINDOW, SCORED, 256))
    for reading in (reads.chunks, reads.truncated):
        for text in texts:
            row = outputs(reads.plan, *reading(text, LENGTHS))
            told = [[q.position < n for q in text.questions] for n in LENGTHS]
            np.testing.assert_array_equal(~np.isnan(row["right"]), told)
            known = np.where(told, [1.0, 0.0, 0.0], np.nan)
            np.testing.assert_array_equal(row["right"], known)
            np.testing.assert_array_equal(row["said"], known * 0)
            assert row["retrieval beyond 256"] == pytest.approx(np.nanmean(known[1:]))
    assert begun == [{0}] * 6 + [{n - WINDOW - SCORED} for n in LENGTHS] * 2, "counted from where reading begins"
    assert {len(questions) for questions in asked} == {2, 3}  # what is told behind the length is not asked for


def test_a_prefill_in_one_piece_gives_what_reading_in_chunks_gives(result, texts, tiny_model):
    reads = reader.LongTextReader(tiny_model(pad_token_id=0), Plan(LENGTHS, WINDOW, SCORED, 256))
    losses = {arm.name: arm.samples["losses"] for arm in result.arms}
    for following in (5, 128):
        looks, by_position = reads.one_piece(texts[0], LENGTHS, following)
        np.testing.assert_allclose([look.loss for look in looks], losses[FULL][0], atol=2e-5)
        assert by_position == []  # not every token was scored


def test_what_follows_a_sparse_prompt_attends_in_full(texts, tiny_model):
    model, text = tiny_model(pad_token_id=0), texts[0]
    reads = reader.LongTextReader(model, Plan(LENGTHS, WINDOW, SCORED, 256))
    method = FlexPrefill(gamma=0.3, block_size=8, min_budget=8)
    losses = {}
    for length in LENGTHS:
        ids = torch.tensor([text.ids[:length]])
        cut = length - SCORED - 1  # the token whose prediction is scored first is read behind the prompt
        with torch.no_grad():
            with method(model):
                cache = model(ids[:, :cut], use_cache=True).cache
            found = model(ids[:, cut:], cache=cache).logits[0, :-1]
        losses[length] = float(cross_entropy(found, ids[0, cut + 1 :]))
    with method(model):
        sparse = [look.loss for look in reads.one_piece(text, LENGTHS, following=8)[0]]
        whole = [look.loss for look in reads.one_piece(text, LENGTHS, following=SCORED + 1)[0]]
    np.testing.assert_allclose(sparse, list(losses.values()), atol=2e-5)
    assert not np.allclose(sparse, whole, atol=1e-4)  # more at once would be read sparsely too
    full = [look.loss for look in reads.one_piece(text, LENGTHS)[0]]
    assert not np.allclose(sparse, full, atol=1e-4)


def test_what_is_reported_of_a_papers_trial(result, tmp_path):
    assert [(arm.name, arm.role, arm.status) for arm in result.arms] == [
        (FULL, "baseline", "ok"),
        (TRUNCATION, "sibling", "ok"),
        ("LM-Infinite", "method", "ok"),
        (NO_FIRST_TOKENS, "sibling", "ok"),
        (NO_CEILING, "sibling", "ok"),
    ]
    assert list(result.arms[0].values) == [
        "loss",
        "loss beyond 256",
        "retrieval",
        "retrieval beyond 256",
        "prefill seconds",
        "decode ms/token",
        "cache MiB",
    ]
    assert result.arms[2].description == "LMInfinite(n_global=2, n_local=64)"
    assert result.paper == "lm_infinite"
    assert result.claims == [("loss beyond 256", each, "LM-Infinite") for each in (FULL, NO_FIRST_TOKENS, NO_CEILING)]
    assert [claim.target for claim in result.judged] == [7.85, 5.41, None]
    pairs = {(c.baseline, c.arm) for c in result.comparisons}
    ablations = {NO_FIRST_TOKENS, NO_CEILING}
    assert pairs == {(FULL, arm.name) for arm in result.arms[1:]} | {
        (other, "LM-Infinite") for other in {TRUNCATION, *ablations}
    }
    assert all(c.counted == "texts" and c.n == 2 for c in result.comparisons if c.metric != "texts/s")
    costs = ("prefill seconds", "decode ms/token", "cache MiB", "texts/s")
    assert all((c.scale == "ratio") == (c.metric in costs) for c in result.comparisons)
    assert all(
        c.higher_is_better == (c.metric.startswith("retrieval") or c.metric == "texts/s") for c in result.comparisons
    )
    assert all(figure.x == list(LENGTHS) for figure in result.figures[:5])
    assert {figure.title for figure in result.figures[5:]} == {
        "Passwords found at 200 tokens",
        "Passwords found at 360 tokens",
        "Loss by position, 32 tokens a point",
    }
    for example in shown(result):
        word = example.expected.removeprefix("Right: ")
        assert word in WORDS.split()
        assert f"={word}" in example.item.replace(" ", "")
        assert example.item.endswith("asked for at 360]")
        assert all((mark == "✓") == (said == word) for mark, said in (a.split() for a in example.answers.values()))
    assert any(note.startswith("From 200 tokens, within") for note in result.notes)
    assert result.setting["trained positions"] == "256"
    assert list(result.provenance["data"]["fingerprint"]) == ["texts"]

    read = TrialResult.from_dict(json.loads(json.dumps(finite(result.to_dict()), allow_nan=False)))
    report.write(read, tmp_path)
    assert "Loss by position" in (tmp_path / "lm_infinite.html").read_text(encoding="utf-8")
    console = Console(file=StringIO(), width=100)
    report.terminal(result, console)
    assert "LM-Infinite" in console.file.getvalue()


def test_within_the_trained_positions_nothing_is_claimed_and_that_is_reported(setting, unread):
    result = LMInfiniteTrial(**setting | {"lengths": (100, 200)}).run()
    assert "loss beyond 256" not in result.arms[0].values
    assert result.claims == []
    assert any("shows with a length of at least 288" in note for note in result.notes)


def test_without_questions_only_losses_and_costs_are_measured(setting, unread):
    result = LMInfiniteTrial(**setting | {"questions": 0}).run()
    assert not any(name.startswith("retrieval") for name in result.arms[0].values)
    assert not any("Passwords" in figure.title for figure in result.figures)


def test_the_stage_reads_all_methods_and_a_prefill_in_one_piece_beside_flexprefill(setting, unread):
    result = AttendTrial(**setting).run()
    roles = {arm.name: arm.role for arm in result.arms}
    assert roles == {
        FULL: "baseline",
        TRUNCATION: "sibling",
        ONE_PIECE: "sibling",
        "LM-Infinite": "method",
        "InfLLM": "method",
        "LongHeads": "method",
        "FlexPrefill": "method",
    }
    assert result.paper == "attend"
    # What the other claims are measured against takes part in the papers' own trials alone.
    assert result.claims == [
        ("loss beyond 256", FULL, "LM-Infinite"),
        *((metric, ONE_PIECE, "FlexPrefill") for metric in ("prefill seconds", "loss", "loss beyond 256")),
    ]
    compared = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert set(result.claims) <= compared
    [by_position] = [figure for figure in result.figures if figure.title.startswith("Loss by position")]
    assert list(by_position.lines) == [FULL, "LM-Infinite", "InfLLM", "LongHeads"]


def test_methods_can_be_chosen(setting, unread):
    result = AttendTrial(**setting, methods=("longheads", "infllm")).run()
    assert [arm.name for arm in result.arms] == [FULL, TRUNCATION, "LongHeads", "InfLLM"]
    assert result.claims == []  # both are measured against what stands beside them in their own trials
    for methods in (("transnormer",), ()):
        with pytest.raises(InputError, match="expected some of lm_infinite,infllm,longheads,flexprefill"):
            AttendTrial(**setting, methods=methods).run()


def test_a_papers_trial_measures_against_what_stands_beside_its_method(setting, unread):
    rival = "LM-Infinite with as many keys"
    result = InfLLMTrial(**setting).run()
    assert {arm.name: arm.role for arm in result.arms[2:]} == {"InfLLM": "method", rival: "sibling"}
    assert result.claims == [(metric, rival, "InfLLM") for metric in ("retrieval", "retrieval beyond 256")]
    pairs = {(c.baseline, c.arm) for c in result.comparisons}
    assert {(rival, "InfLLM"), (TRUNCATION, "InfLLM")} <= pairs

    result = LongHeadsTrial(**setting).run()
    assert {arm.name: arm.role for arm in result.arms[2:]} == {"LongHeads": "method", rival: "sibling"}
    assert result.claims == [(f"{metric} beyond 256", rival, "LongHeads") for metric in ("loss", "retrieval")]


@pytest.mark.parametrize(
    ("trial", "method"),
    [
        (InfLLMTrial, "infllm(top_k=3)"),
        (LongHeadsTrial, "longheads(chunk_size=8)"),
        (FlexPrefillTrial, "flexprefill(block_size=16, min_budget=16, gamma=0.5)"),
    ],
)
def test_every_arm_of_a_papers_trial_reads_in_its_own_way(setting, trial, method):
    result = trial(**setting | {"lengths": (200, 300), "questions": 1}, method=method).run()
    assert [arm.error for arm in result.arms] == [""] * len(result.arms)
    assert all(result.comparison(*claim) for claim in result.claims)
    losses = {arm.name: arm.samples["losses"] for arm in result.arms}
    for i, name in enumerate(losses):
        for other in list(losses)[:i]:
            assert not np.allclose(losses[name], losses[other], atol=1e-6), (name, other)
    looking = {arm.name for arm in result.arms if np.isfinite(np.array(arm.samples["attended"], dtype=float)).any()}
    assert looking == ({trial.arm} if trial is not FlexPrefillTrial else set())
    told = [note for note in result.notes if note.startswith("Asked for a password at")]
    assert len(told) == 2 * len(looking)
    assert all("of its lookups, one a layer or head: " in note for note in told)
    assert all(why.startswith(trial.scale) for why in reasons(result).values())


def test_what_was_looked_up_is_told_apart_by_whether_it_was_found():
    plan = Plan(LENGTHS, WINDOW, SCORED, 256)
    nan = np.nan
    arm = ArmResult("InfLLM", "method")
    arm.samples = {
        "right": [[[1, nan], [1, 0], [0, 0]], [[0, 1], [1, 1], [0, 1]]],
        "attended": [[[0.5, nan], [0.9, 0.1], [0.1, 0.1]], [[0.0, 1.0], [0.7, 0.7], [0.1, 0.9]]],
    }
    assert looked_up(arm, plan) == {"all": 0.5, "where it was found": 0.75, "where it was missed": 0.0}
    beyond = {"all": 0.45, "where it was found": 0.8, "where it was missed": 0.1}
    assert looked_up(arm, plan, "retrieval beyond 256") == pytest.approx(beyond)
    arm.samples["attended"] = [[[nan, nan]] * 3] * 2
    assert looked_up(arm, plan) == {}, "full attention looks nothing up"
    arm.samples["attended"] = [[[], [], []]] * 2
    assert looked_up(arm, plan) == {}, "a peer does not say"
    del arm.samples["attended"]
    assert looked_up(arm, plan) == {}, "as in what was recorded before"


def test_in_another_papers_trial_a_method_brings_nothing_along(setting, unread):
    result = InfLLMTrial(**setting, methods=("lm_infinite", "infllm")).run()
    assert [arm.name for arm in result.arms[2:]] == ["LM-Infinite", "InfLLM", "LM-Infinite with as many keys"]


@pytest.mark.parametrize("trial", [InfLLMTrial(), LongHeadsTrial(), InfLLMTrial(window=48), LongHeadsTrial(window=64)])
def test_the_rival_attends_to_as_many_keys(trial):
    method, rival = (each.method for each in trial._chosen())
    assert isinstance(rival, LMInfinite)
    assert rival.most_keys == method.most_keys
    assert method.most_keys == {512: 832, 4096: 4096, 48: 3 + 48 + 24 + 3, 64: 64}[trial.window]


def test_a_trial_takes_as_many_texts_as_the_claims_need(setting, unread, monkeypatch):
    del setting["texts"]
    # Six would show the effect, but no p-value of six is beyond chance where three claims are tested together.
    read = LMInfiniteTrial(**setting).run()
    assert {arm.n_items for arm in read.arms} == {7}
    assert read.setting["texts"].startswith("at most 8, joined of ")
    assert read.setting["power"].startswith(
        "after a pilot: 7 would show 7.85 in loss beyond 256 of LM-Infinite over full"
    )
    assert any("n counts 7 texts, not their 21 passwords" in note for note in read.notes)
    # Of the two texts it is asked for, it reads both, and no pilot decides.
    read = LMInfiniteTrial(**setting, texts=2).run()
    assert {arm.n_items for arm in read.arms} == {2}
    assert "power" not in read.setting
    # Fewer texts than there might be are no lack where the claims need no more of them.
    monkeypatch.setattr(LMInfiniteTrial, "most", 400)
    read = LMInfiniteTrial(**setting).run()
    assert {arm.n_items for arm in read.arms} == {7}
    assert not any("were wanted" in note for note in read.notes)


def test_figures_and_notes_are_of_the_texts_that_were_read(setting, unread, monkeypatch):
    del setting["texts"]
    seen = []

    def watched(made):
        def make(arms, texts, *rest):
            seen.append(len(texts))
            return made(arms, texts, *rest)

        return make

    for name in ("figures", "notes"):
        monkeypatch.setattr(attend, name, watched(getattr(attend, name)))
    LMInfiniteTrial(**setting).run()
    assert seen == [7, 7]


def test_the_stages_trial_serves_a_paper_that_has_none(setting, unread, monkeypatch):
    found = discovery.trial
    monkeypatch.setattr(discovery, "trial", lambda paper: "" if paper == "infllm" else found(paper))
    result = AttendTrial(**setting).for_paper("infllm").run()
    assert (result.paper, [arm.role for arm in result.arms]) == ("infllm", ["baseline", "sibling", "method"])
    assert result.claims == [("loss beyond 256", FULL, "InfLLM")]
    assert result.arms[2].description == "InfLLM(n_local=64)"


def test_flexprefill_is_compared_with_full_attention_in_one_piece(setting, unread):
    result = FlexPrefillTrial(**setting).run()
    assert [(arm.name, arm.role) for arm in result.arms[1:]] == [
        (TRUNCATION, "sibling"),
        ("FlexPrefill", "method"),
        (AUTHORS_ROUNDING, "method"),
    ]
    assert result.arms[0].description == "each length anew, in one piece"
    assert result.arms[3].description == "FlexPrefill(rounding='code')"
    faster = [("prefill seconds", FULL, name) for name in ("FlexPrefill", AUTHORS_ROUNDING)]
    losses = ("loss", "loss beyond 256")
    assert result.claims == [*faster, *((loss, *win[1:]) for win in faster for loss in losses)]
    assert {(c.baseline, c.arm) for c in result.comparisons} == {(FULL, arm.name) for arm in result.arms[1:]}
    assert "FlexPrefill changes the loss by +0.00 % (of 2 texts) against full attention." in result.notes
    margins = {c.metric: c.margin for c in result.comparisons}
    assert margins["loss"] == margins["loss beyond 256"] == 0.02
    assert margins["retrieval"] is None
    assert margins["prefill seconds"] is None
    six = FlexPrefillTrial(**setting | {"texts": 6}).run()
    kept = [note for note in six.notes if note.startswith("Quality: ")]
    assert len(kept) == 4  # two losses of each rounding
    assert [claim.verdict for claim in six.judged[2:]] == ["shown"] * 4
    assert kept[0].startswith("Quality: loss: no measurable difference between FlexPrefill and full attention")
    assert "; equal within 0.02 nats" in kept[0]
    given = FlexPrefillTrial(**setting, margin=("loss=0.5",)).run()
    assert {c.metric: c.margin for c in given.comparisons}["loss"] == 0.5
    without = FlexPrefillTrial(**setting, method="flexprefill(rounding=code)").run()
    assert [arm.name for arm in without.arms[2:]] == ["FlexPrefill"]


def test_methods_follow_the_window_and_what_method_says_of_their_fields():
    def made(trial):
        return [each.method for each in trial._chosen()]

    assert made(AttendTrial(window=512)) == [
        LMInfinite(n_local=512),
        InfLLM(n_local=512, n_init=32, block_size=32, top_k=8),
        LongHeads(chunk_size=32, attention_length=512),
        FlexPrefill(),
    ]
    assert made(FlexPrefillTrial(quick=True)) == [
        FlexPrefill(min_budget=256),
        FlexPrefill(min_budget=256, rounding="code"),
    ]
    assert made(LongHeadsTrial())[0] == LongHeads()
    calls = "longheads(chunk_size=64), LMInfinite(n_local=64, n_global=3)"
    longheads, infinite = made(LongHeadsTrial(window=512, method=calls))
    assert longheads == LongHeads(chunk_size=64, attention_length=512)
    assert infinite == LMInfinite(n_local=64, n_global=3)


def test_each_paper_is_tried_in_its_own_regime():
    trained = 8192  # of the default model
    for trial in (LMInfiniteTrial(), LongHeadsTrial(), InfLLMTrial()):
        plan = Plan(trial.lengths, trial.window, trial.scored, trained)
        assert list(plan.groups) == ["", " beyond 8,192"]
        assert 6 <= trial.pilot <= trial.most <= 40
        assert "idle cores" in " ".join(str(type(trial).__doc__).split())
    one_piece = FlexPrefillTrial()
    assert list(Plan(one_piece.lengths, one_piece.window, one_piece.scored, trained).groups) == [""]
    assert 8 <= one_piece.pilot <= one_piece.most
    assert LMInfiniteTrial().lengths[-1] == 2 * trained
    assert InfLLMTrial().window == 512
    assert LongHeadsTrial().window == 4096
    assert LMInfiniteTrial(quick=True).lengths == (1024, 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": "400,200"}, "--lengths 400,200; expected ascending whole numbers, such as 1024,2048,4096"),
        ({"lengths": "1k,2k"}, "--lengths '1k,2k'; expected whole numbers separated by commas"),
        ({"lengths": "0,200"}, "expected ascending whole numbers"),
        ({"lengths": "200,210"}, "expected the lengths to lie at least --scored apart"),
        ({"scored": 8}, "got --scored 8; expected 9 or more"),
        ({"texts": 1}, "got --texts 1"),
        ({"window": 0}, "got --window 0"),
        ({"questions": -1}, "got --questions -1"),
        ({"window": 300}, "got --window 300; expected at most the model's 256 trained positions"),
        ({"window": 190, "lengths": "100,200"}, "lengths up to 200; expected one of at least 222"),
        ({"lengths": "200,90000"}, "fewer than 90,008 tokens of text; give more documents, or shorter --lengths"),
        ({"questions": 26}, "at most 25"),
        ({"method": "infllm(n_local=3)"}, "got --method infllm; expected LMInfinite(n_global=10, n_local=2048"),
        ({"method": "lm_infinite(n_near=3)"}, "LMInfinite has no field 'n_near'; expected LMInfinite(n_global=10,"),
    ],
)
def test_bad_options_are_one_line(setting, options, message):
    with pytest.raises(InputError) as caught:
        construct(LMInfiniteTrial, setting | options).run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_without_text_is_refused(setting, tmp_path):
    for name, rows in {"empty": "", "blank": '{"text": " "}\n'}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(rows)
        with pytest.raises(InputError, match=r"holds no documents|fewer than"):
            LMInfiniteTrial(**setting | {"data": str(path)}).run()


def test_a_model_that_a_method_refuses_is_refused_before_it_reads(setting, tmp_path, tiny_tokenizer, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=272, n_positions=256, n_embd=32, n_layer=2, n_head=4)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(streaming, "read", None)
    with pytest.raises(InputError, match="rotary"):
        LMInfiniteTrial(**setting | {"model": str(folder)}).run()


def test_losses_that_are_not_numbers_fail_the_arms_and_are_told(setting, unread, monkeypatch):
    broken = lambda self, text, lengths: (looked(text, lengths, np.nan), [])  # noqa: E731
    monkeypatch.setattr(reader.LongTextReader, "chunks", broken)
    result = LMInfiniteTrial(**setting).run()
    assert [arm.status for arm in result.arms] == ["failed", "ok", "failed", "failed", "failed"]
    assert "2 of 2 values of 'loss' are NaN" in result.arms[0].error
    assert result.comparisons == []
    assert list(result.figures[0].lines) == [TRUNCATION]


def test_groups_of_lengths():
    plan = Plan((1024, 2048, 4096, 8192, 8448, 12288, 16384), 2048, 512, 8192)
    # 8,448 straddles the border with its scored tokens and is of neither.
    assert plan.groups == {"": [2, 3], " beyond 8,192": [5, 6]}
    assert Plan((512, 1024), 256, 128, None).groups == {"": [0, 1]}
    assert Plan((16384,), 2048, 512, 8192).groups == {" beyond 8,192": [0]}


@pytest.mark.real
def test_full_attention_knows_more_than_truncation(home, tmp_path, monkeypatch, default_model):
    texts = [Path(module.__file__).read_text("utf-8") for module in (doctest, optparse)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr(models, "load", lambda *_, **__: default_model)
    monkeypatch.setattr(reader, "DECODED", 2)
    monkeypatch.setattr(attend, "DECODED", 2)
    options = {"lengths": (192,), "window": 48, "scored": 32, "texts": 2, "questions": 0}
    options |= {"method": "lm_infinite(backend=chunked)", "data": str(tmp_path / "texts.jsonl")}
    monkeypatch.setattr(LMInfiniteTrial, "beside", lambda self, method: {})  # its controls are read on a tiny model
    full, truncated, infinite = LMInfiniteTrial(**options).run().arms
    assert full.values["loss"].estimate < truncated.values["loss"].estimate < full.values["loss"].estimate + 2
    assert full.values["loss"].estimate < infinite.values["loss"].estimate < full.values["loss"].estimate + 2
    assert full.values["cache MiB"].estimate == pytest.approx(192 * 30 * 2 * 3 * 64 * 4 / 2**20)
    assert infinite.values["cache MiB"].estimate < full.values["cache MiB"].estimate / 2


READS = """
def load(model, dtype, threads, loss):
    def row(item, place):
        known = [float(question["position"] < item["lengths"][place]) or None for question in item["questions"]]
        return {
            "loss": loss + len(item["ids"]) - item["lengths"][-1] - item["decoded"],
            "seconds": 2.0 * (place + 1),
            "decode_seconds": 0.25,
            "held": 2**20 * item["lengths"][place],
            "right": known,
            "said": known,
        }

    def run(items):
        rows = [[row(item, place) for place in range(len(item["lengths"]))] for item in items]
        names = [name for name in rows[0][0] if name != "MISSING"]
        return {name: [[each[name] for each in lengths] for lengths in rows] for name in names}

    return run
"""


@pytest.mark.parametrize("missing", ["", "held"])
def test_a_peer_reads_the_same_texts_at_the_same_lengths(setting, unread, tmp_path, monkeypatch, missing):
    runner = READS.replace("MISSING", missing)
    toy_peers.ready(monkeypatch, tmp_path / "toy", runner, stage="attend", options={"loss": 4.5})
    arm = LMInfiniteTrial(**setting, peer="counter(loss=1.5)").run().arms[-1]
    assert (arm.name, arm.role) == ("peer: counter(loss=1.5)", "peer")
    if missing:
        assert "expected `held` with 3 values, one a length, for each text" in arm.error
        return
    assert arm.status == "ok", arm.error
    assert arm.samples["losses"] == [[1.5] * 3] * 2
    assert arm.samples["held"] == [[200.0, 300.0, 360.0]] * 2
    assert arm.values["prefill seconds"].estimate == 6.0
    assert arm.values["retrieval"].estimate == 1.0  # of what is told by then; the others are not asked for
    assert np.isnan(np.array(arm.samples["right"], dtype=float)[:, 0]).any()
    assert arm.items_per_second.estimate == pytest.approx(2 / 12.0)


def test_a_peer_of_another_kind_of_model_is_refused(monkeypatch, tmp_path, home):
    toy_peers.ready(monkeypatch, tmp_path / "toy", READS, stage="attend")
    with pytest.raises(InputError, match=r"got --peer counter and --model x\.gguf; it reads a Hugging Face folder"):
        peers.command(LMInfiniteTrial(peer="counter")._peer, "x.gguf", "float32")
