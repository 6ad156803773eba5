"""CLEAR: what confidence, the filter, the judge and the rule of replacement must be, and that no row is lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset
from datatrove.executor import LocalPipelineExecutor
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, scripted

from broadsheet.console import InputError
from broadsheet.curate import Clear, ClearFilter, ClearScores, ExchangeReader, Ranks, ShardReader, ShardWriter
from broadsheet.curate.clear import auto_correct, auto_filter, combined
from broadsheet.curate.files import in_order
from broadsheet.curate.targets.confidence import consistency, letters
from broadsheet.curate.targets.steps import threshold
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local

SHARES = st.floats(0, 1, allow_subnormal=False)  # the mean of the smallest and 0 is 0
CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Peru": "Lima", "Egypt": "Cairo", "Kenya": "Nairobi"}
WRONG = {"Italy": "Oslo", "Kenya": "Bern"}
ROWS = [
    {"prompt": f"The capital of {name}?", "completion": WRONG.get(name, capital), "n": i}
    for i, (name, capital) in enumerate(CAPITALS.items())
]


def knows(messages, sample=0) -> str:
    """Answers with the capital; calls a proposed one right where it is."""
    text = messages[0]["content"]
    name = next((name for name in CAPITALS if name in text), "Peru")
    if "Compare two answers" in text and "proposed" not in text:
        better = "A" if f"Answer A: {CAPITALS[name]}" in text else "B" if f"Answer B: {CAPITALS[name]}" in text else "C"
        return f"explanation: I know it.\nanswer: [{better}]"
    if "proposed" in text:
        right = f"Proposed answer: {CAPITALS[name]}\n" in text or "Compare two answers" in text
        return f"explanation: I know it.\nanswer: [{'A' if right else 'B'}]"
    return f"explanation: I know it.\nanswer: {CAPITALS[name]}"


def shares(messages, choice: str) -> float:
    """The same by letters."""
    return 0.98 if knows(messages).endswith(f"[{choice}]") else 0.01


@pytest.fixture
def teacher(home) -> Teacher:
    return scripted(knows, shares)


def actions(rows) -> list[str]:
    return [row["action"] for row in rows]


# Confidence


@given(st.lists(st.tuples(SHARES, SHARES, st.booleans()), min_size=1), st.tuples(SHARES, SHARES), SHARES, SHARES)
def test_confidence_is_a_share_whatever_it_is_made_of(answers, reflected, alpha, beta):
    contradicted, match = [row[:2] for row in answers], [row[2] for row in answers]
    found = float(combined(consistency(contradicted, match, alpha), reflected, beta))
    assert -1e-12 <= found <= 1 + 1e-12


def test_it_is_1_where_all_agrees_and_0_where_all_contradicts():
    assert combined(consistency(np.zeros((1, 5, 2)), np.ones((1, 5))), [[1.0, 1.0]]) == pytest.approx([1.0])
    assert combined(consistency(np.ones((1, 5, 2)), np.zeros((1, 5))), [[0.0, 0.0]]) == pytest.approx([0.0])


@given(st.lists(st.tuples(SHARES, SHARES, st.booleans()), min_size=1, max_size=6), SHARES, st.randoms())
def test_each_part_counts_by_its_weight_and_samples_in_any_order(answers, reflected, random):
    contradicted, match = np.array([row[:2] for row in answers]), np.array([float(row[2]) for row in answers])
    whole = consistency(contradicted, match, 0.8)
    assert combined(whole, [reflected, 0.3], 1.0) == pytest.approx(float(whole)), "β = 1: no reflection"
    assert combined(whole, [reflected, 0.3], 0.0) == pytest.approx((reflected + 0.3) / 2)
    assert consistency(contradicted, match, 0.0) == pytest.approx(match.mean()), "α = 0: equal texts alone"
    assert consistency(contradicted, match, 1.0) == pytest.approx(1 - contradicted.mean())
    order = random.sample(range(len(answers)), len(answers))
    assert consistency(contradicted[order], match[order], 0.8) == pytest.approx(float(whole))


@pytest.mark.parametrize("asks", ["text", "letters"])
def test_what_is_planted_is_doubted_and_dropped_and_no_row_is_lost(teacher, asks):
    found = Clear(teacher, asks=asks, filter=0.5).fit_transform(ROWS)
    assert actions(found) == ["dropped" if row["completion"] in WRONG.values() else "kept" for row in ROWS]
    sure = 1.0 if asks == "text" else 0.7 + 0.3 * (0.98 + 0.005)
    unsure = 0.0 if asks == "text" else 0.3 * (0.01 + 0.005)
    expected = [unsure if row["completion"] in WRONG.values() else sure for row in ROWS]
    assert [row["confidence"] for row in found] == pytest.approx(expected)
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS, "in their order, and not changed"
    assert ROWS[0].keys() == {"prompt", "completion", "n"}, "nor the rows that were given"


def test_the_given_target_is_scored_and_not_what_the_model_would_say(home):
    sure_of_another = scripted(lambda messages, n: "answer: [C]" if "proposed" in messages[0]["content"] else "Rome")
    [row] = Clear(sure_of_another, filter=None).fit_transform([{"prompt": "Where?", "completion": "Oslo"}])
    assert (row["consistency"], row["reflection"]) == (0.0, 0.5), "five equal samples agree, but not with the target"


def test_an_answer_is_read_behind_the_reasoning_that_was_asked_for(home):
    asked = Scripted(knows)
    row = [{"prompt": "The capital of France?", "completion": "Paris"}]
    [found] = Clear(Teacher(asked, cache=False), filter=None).fit_transform(row)
    assert found["consistency"] == 1.0
    assert any("explanation" in text and "The capital of France?" in text for text in asked.asked)
    plain = Clear(scripted(lambda messages, n: "Paris"), reasoning=False, filter=None).fit_transform(row)
    assert plain[0]["consistency"] == 1.0


def test_the_second_question_follows_on_the_first_answer_and_both_count(home):
    def says(messages, n):
        if len(messages) == 1:
            return "answer: A" if "proposed" in messages[0]["content"] else "x"
        assert messages[1] == {"role": "assistant", "content": "answer: A"}
        return "answer: B"

    [row] = Clear(scripted(says), beta=0.0, filter=None).fit_transform([{"prompt": "?", "completion": "x"}])
    assert row["confidence"] == row["reflection"] == 0.5


def test_letters_are_exact_shares_of_the_models_own_probabilities(home, tiny_model, tiny_tokenizer):
    teacher = Teacher(Local(tiny_model(max_position_embeddings=512), tiny_tokenizer()), cache=False)
    found = letters(teacher, ["Is it so?", "Or not at all?"])
    raw = np.exp(teacher.score(["Is it so?", "Or not at all?"], ["A", "B", "C"]))
    np.testing.assert_allclose(found, raw / raw.sum(1, keepdims=True), rtol=1e-6)
    assert len(letters(teacher, [])) == 0


def test_a_rerun_asks_nothing_and_another_seed_does(home):
    def run(**fields) -> tuple[list[dict], int]:
        backend = Scripted(knows)
        return Clear(Teacher(backend), filter=None, **fields).fit_transform(ROWS), len(backend.asked)

    first, asked = run()
    again, none = run()
    assert asked > 0
    assert none == 0
    assert again == first
    assert run(seed=1)[1] == len(ROWS), "what is sampled; reflections are greedy"


def test_what_stands_beside_a_row_changes_nothing(home, tiny_model, tiny_tokenizer):
    teacher = Teacher(Local(tiny_model(max_position_embeddings=2048), tiny_tokenizer()), cache=False)
    for fields in ({"asks": "letters"}, {"by": "PMI"}, {"by": "log-probability"}):
        clear = Clear(teacher, max_tokens=8, k=2, filter=None, **fields)
        together = clear.fit_transform(ROWS[:3])
        alone = [clear.fit_transform([row])[0] for row in ROWS[:3]]
        for one, other in zip(together, alone, strict=True):
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)


def test_our_scores_ask_for_no_text_and_have_no_parts(home):
    backend = Scripted(
        lambda *_: pytest.fail("it generates"), lambda messages, choice: 0.25 if messages[0]["content"] else 0.5
    )
    found = Clear(Teacher(backend, cache=False), by="PMI").fit_transform(ROWS)
    assert [row["confidence"] for row in found] == pytest.approx([np.log(0.25) - np.log(0.5)] * 6)
    assert all(row["consistency"] is None and row["reflection"] is None for row in found)
    alone = Clear(Teacher(backend, cache=False), by="log-probability").fit_transform(ROWS)
    assert [row["confidence"] for row in alone] == pytest.approx([np.log(0.25)] * 6)


# The filter


@given(st.lists(SHARES, min_size=1, unique=True))
def test_the_median_keeps_half_rounded_up_and_the_surest(confidence):
    gamma, kept = auto_filter(confidence)
    assert len(kept) == -(-len(confidence) // 2)
    assert min(confidence[i] for i in kept) >= gamma
    assert all(confidence[i] < gamma for i in set(range(len(confidence))) - set(kept))


def test_ties_at_the_threshold_are_kept_and_none_of_it_keeps_all():
    assert auto_filter([0.5, 0.5, 0.1]) == (0.5, [0, 1])
    assert auto_filter([0.2, 0.9], None)[1] == [0, 1]
    assert auto_filter([0.2, 0.9], -np.inf)[1] == [0, 1]
    assert auto_filter([0.2, 0.9], 0.9)[1] == [1]
    with pytest.raises(InputError, match="1 of 2 rows have no confidence"):
        auto_filter([0.2, np.nan])


def test_without_a_threshold_all_rows_are_trained_on_as_they_are(teacher):
    found = Clear(teacher, filter=None).fit_transform(ROWS)
    assert set(actions(found)) == {"kept"}
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS


# Auto-Correct


def test_a_target_is_replaced_by_what_is_preferred_with_confidence_alone():
    preferred = ["candidate", "target", "tie", "candidate"]
    assert auto_correct(preferred, [0.9, 0.9, 0.9, 0.8], 0.8) == [True, False, False, False], "above η, not at it"
    assert not any(auto_correct(preferred, [1.0] * 4, 1.0))
    assert auto_correct(["candidate"] * 3, [0.0, 0.5, 1.0], -1.0) == [True] * 3


@pytest.mark.parametrize("asks", ["text", "letters"])
def test_wrong_targets_are_corrected_in_each_format(teacher, asks):
    tuned = scripted(lambda messages, n: CAPITALS[next(name for name in CAPITALS if name in messages[-1]["content"])])
    rows = [
        {"prompt": "The capital of Italy?", "completion": "Oslo"},
        {"messages": [{"role": "user", "content": "The capital of Kenya?"}, {"role": "assistant", "content": "Bern"}]},
        {
            "prompt": [{"role": "user", "content": "The capital of Peru?"}],
            "completion": [{"role": "assistant", "content": "Paris"}],
        },
    ]
    found = Clear(teacher, asks=asks, filter=0.5).fit_transform(rows, tuned=tuned)
    assert actions(found) == ["corrected"] * 3
    assert found[0]["completion"] == "Rome"
    assert found[1]["messages"] == [rows[1]["messages"][0], {"role": "assistant", "content": "Nairobi"}]
    assert found[2]["completion"] == [{"role": "assistant", "content": "Lima"}]
    kept = Clear(teacher, asks=asks, filter=0.5, eta=1.0).fit_transform(rows, tuned=tuned)
    assert actions(kept) == ["dropped"] * 3
    assert [row.get("completion", row.get("messages")) for row in kept] == [
        row.get("completion", row.get("messages")) for row in rows
    ]


@pytest.mark.parametrize("asks", ["text", "letters"])
@pytest.mark.parametrize("letter", ["A", "B", "C"])
def test_a_judge_that_looks_at_places_alone_decides_nothing(home, asks, letter):
    stubborn = scripted(lambda *_: f"answer: {letter}", lambda _, choice: 0.98 if choice == letter else 0.01)
    clear = Clear(stubborn, asks=asks)
    verdicts = clear.judge(exchanges_of(ROWS[:2]), ["Rome", "Lima"])
    assert verdicts.preferences == ["tie", "tie"]


@pytest.mark.parametrize("asks", ["text", "letters"])
def test_a_judge_is_asked_in_both_orders_and_is_sure_of_what_it_says_again(home, asks):
    def half(messages, n):
        text = messages[0]["content"]
        if "proposed" in text:
            return "answer: A"
        # Another verdict in two samples of five, where target and candidate are turned round.
        turned = "Answer A: Rome" in text
        return "answer: " + ("AB"[not turned] if n < 3 or not turned else "C")

    def parts(messages, choice):
        text = messages[0]["content"]
        if "proposed" in text:
            return 0.98 if choice == "A" else 0.01
        turned = "Answer A: Rome" in text
        return {True: {"A": 0.6, "B": 0.2, "C": 0.2}, False: {"A": 0.01, "B": 0.98, "C": 0.01}}[turned][choice]

    clear = Clear(scripted(half, parts), asks=asks)
    verdicts = clear.judge(exchanges_of([ROWS[0]]), ["Rome"])
    assert verdicts.preferences == ["candidate"]
    agreed, sure = (0.8, 1.0) if asks == "text" else ((0.98 + 0.6) / 2, 0.98 + 0.005)
    assert verdicts.confidence == pytest.approx([0.7 * agreed + 0.3 * sure])


def test_an_empty_candidate_or_the_target_itself_is_a_tie_that_is_not_asked_about(home):
    asked = Scripted()
    verdicts = Clear(Teacher(asked, cache=False)).judge(exchanges_of(ROWS[:2]), ["", ROWS[1]["completion"]])
    assert verdicts.preferences == ["tie", "tie"]
    assert not asked.asked


def exchanges_of(rows):
    from broadsheet.curate.targets.exchanges import exchanges

    return exchanges(rows)


# Rows


def test_a_dataset_comes_back_as_one_with_its_features(teacher):
    data = Dataset.from_list(ROWS)
    found = Clear(teacher, filter=0.5).fit_transform(data)
    assert isinstance(found, Dataset)
    assert {name: found.features[name] for name in data.features} == data.features
    assert found["action"] == actions(Clear(teacher, filter=0.5).fit_transform(ROWS))
    assert found.column_names == [*data.column_names, "confidence", "consistency", "reflection", "action"]
    again = Clear(teacher, by="PMI").fit_transform(found)
    assert again["consistency"][0] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "row 1: neither messages, nor prompt and completion: the row has text"),
        ({"prompt": "x", "completion": " "}, "no answer"),
        ({"prompt": "x", "completion": 3}, "field 'completion' is not a list of messages or a text"),
        ({"messages": "x"}, "field 'messages' is not a list of messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "nothing that is answered"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing that is answered"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "another role than system, user, assistant"),
        ({"prompt": "\ud800", "completion": "y"}, "half a surrogate pair"),
    ],
)
def test_rows_that_are_none_are_named(home, row, message):
    with pytest.raises(InputError, match=message):
        Clear(scripted()).fit_transform([ROWS[0], row])


@pytest.mark.parametrize(
    "fields",
    [{"by": "x"}, {"asks": "x"}, {"alpha": 2}, {"beta": -1}, {"k": 0}, {"filter": "mean"}, {"max_tokens": 0}],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match="expected"):
        Clear(**fields)


# As datatrove steps


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def piped(clear, spec, folder, ranks: int, run=Ranks, **fields) -> list[dict]:
    scores, scored, done = folder / "scores", folder / "scored", folder / "done"
    run(
        [ExchangeReader(spec), ClearScores(clear, scores, batch_size=2), ShardWriter(scored)], folder / "1", ranks
    ).run()
    run(
        [ShardReader(scored), ClearFilter(clear, scores, ranks, **fields), ShardWriter(done)], folder / "2", ranks
    ).run()
    return [document.metadata for document in in_order(done)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_find_the_median_of_all_rows(teacher, rows_file, tmp_path, ranks):
    clear = Clear(teacher, asks="letters", by="PMI")
    order = ["Egypt", "France", "Kenya", "Italy", "Spain", "Peru"]  # the surer, the later
    teacher.backend.scores = lambda messages, choice: (
        0.1 + 0.1 * sum(order.index(n) for n in order if n in str(messages))
    )
    whole = Clear(teacher, by="PMI").fit_transform(ROWS)
    kept = [row for row in whole if row["action"] == "kept"]
    found = piped(clear, rows_file, tmp_path, ranks)
    assert [row["row"] for row in found] == [{name: row[name] for name in ROWS[0]} for row in kept]
    assert [row["confidence"] for row in found] == [row["confidence"] for row in kept]
    assert threshold(clear, tmp_path / "scores", ranks) == np.median([row["confidence"] for row in whole])


def test_ranks_correct_pass_on_and_count_by_reason(teacher, rows_file, tmp_path):
    tuned = scripted(lambda messages, n: {"Italy": "Rome"}.get(next(n for n in CAPITALS if n in str(messages)), ""))
    found = piped(Clear(teacher, filter=0.5), rows_file, tmp_path, 2, tuned=tuned, drop=False)
    assert [row["action"] for row in found] == ["kept", "kept", "corrected", "kept", "kept", "dropped"]
    assert found[2]["row"]["completion"] == "Rome"
    [documents] = [each for each in in_order(tmp_path / "done") if each.text == "Rome"]
    assert documents.metadata["row"]["completion"] == "Rome"
    counts = Ranks([ShardReader(""), ClearFilter(Clear(), "", 2), ShardWriter("")], tmp_path / "2", 2).counts()[1]
    assert counts.by_reason("changed") == {"corrected": 1, "doubted": 1}


def test_datatroves_own_executor_runs_the_same_steps(teacher, rows_file, tmp_path):
    def executor(steps, folder, tasks):
        return LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(folder))

    clear = Clear(teacher, filter=0.5)
    ours = piped(clear, rows_file, tmp_path / "a", 2)
    assert piped(clear, rows_file, tmp_path / "b", 2, executor) == ours
    (tmp_path / "b" / "scores" / "00001.json").unlink()
    with pytest.raises(InputError, match="run rank 1 of 2 again"):
        threshold(clear, tmp_path / "b" / "scores", 2)


# On the default model


@pytest.mark.real
def test_the_default_model_finds_most_planted_targets(default_model):
    names = {
        "json.dumps": "Serialize an object to a string in JSON format.",
        "math.sqrt": "Return the square root of a number.",
        "os.path.exists": "Test whether a path exists.",
        "random.shuffle": "Shuffle a list in place.",
        "base64.b64encode": "Encode bytes using Base64.",
        "gzip.compress": "Compress data and return the compressed bytes.",
        "time.sleep": "Delay execution for a number of seconds.",
        "html.escape": "Replace special characters with HTML-safe sequences.",
    }
    targets = list(names.values())
    wrong = targets[1:] + targets[:1]
    asked = [f"In one line, what does Python's {name} do?" for name in names]
    rows = [{"prompt": p, "completion": t} for p, t in zip(asked * 2, targets + wrong, strict=True)]
    found = Clear(Teacher(Local(*default_model)), by="PMI").fit_transform(rows)
    scores = np.array([row["confidence"] for row in found])
    assert (scores[:8, None] > scores[8:]).mean() > 0.85
