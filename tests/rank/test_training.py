"""Training on lists: what a batch holds, what its losses are, and that draws are the same after a stop."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.rank.base import ListwiseReranker
from broadsheet.rank.first import FIRST, weighted_ranknet
from broadsheet.rank.fullrank import FullRank
from broadsheet.rank.pg_rank import PGRank
from broadsheet.rank.prompts.prompt import Prompt, Prompter
from broadsheet.rank.training.fitting import fit
from broadsheet.rank.training.lists import ListwiseCollator, read_lists
from broadsheet.rank.training.rows import ListDataset, ListItem, read_rows
from broadsheet.training.trainer import ObjectiveTrainer

WORDING = Prompt(system="R", intro="{query}\n", outro="{query}")
WORDS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"]
QUICK = {"minutes": None, "epochs": 2, "learning_rate": 1e-3, "autocast": "none", "lists_per_step": 4}


class StopError(Exception):
    pass


def make_rows(count=16, n=4, seed=0):
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        documents = draw.sample(WORDS, n)
        best = draw.randrange(n)
        rows.append({"query": documents[best], "documents": documents, "labels": [int(i == best) for i in range(n)]})
    return rows


@pytest.fixture
def reranker(tiny_model, tiny_tokenizer):
    def make(**config):
        model = tiny_model(initializer_range=0.1, **config)
        return ListwiseReranker(model, tiny_tokenizer(), window=4, step=2, prompt=WORDING, spec="tiny")

    return make


@pytest.fixture(scope="module")
def prompter(tiny_tokenizer):
    return Prompter(tiny_tokenizer(), prompt=WORDING)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


LISTS = [
    {"query": "ab", "documents": ["cd", "ab", "a longer one"], "ranking": [1, 2]},
    {"query": "gh", "documents": ["gh", "kl"], "labels": [2, 0.5]},
]


def test_a_batch_holds_prompt_answer_and_labels(prompter):
    batch = ListwiseCollator(prompter, FullRank("authors"))(LISTS)
    for i, (written, row) in enumerate(zip(("[B] > [C] > [A]", "[A] > [B]"), LISTS, strict=True)):
        built = prompter.build(row["query"], row["documents"])
        size = int(batch["attention_mask"][i].sum())
        ids = batch["input_ids"][i, :size].tolist()
        assert ids[: len(built.ids)] == built.ids
        assert prompter.tokenizer.decode(ids[len(built.ids) :]) == f"{written}<|im_end|>"
        labels = batch["labels"][i]
        assert labels[len(built.ids) : size].tolist() == ids[len(built.ids) :]
        assert set(labels[: len(built.ids)].tolist() + labels[size:].tolist()) <= {-100}
        assert prompter.tokenizer.decode(ids[int(batch["score_position"][i])]) == "["
        assert int(batch["score_position"][i]) == len(built.ids)
        assert torch.equal(batch["loss_weights"][i] > 0, labels != -100)
        assert batch["loss_weights"][i].max() == 2
    assert batch["label_ranks"].tolist() == [[2, 0, 1], [0, 1, 0]]
    assert batch["relevance"].tolist() == [[0, 2, 1], [2, 0.5, 0]]
    assert batch["list_mask"].tolist() == [[True] * 3, [True, True, False]]
    letters = prompter.identifier_ids(3)
    assert ListwiseCollator(prompter, FIRST())(LISTS)["identifier_ids"].tolist() == [letters, [*letters[:2], 0]]


def test_without_an_answer_a_batch_ends_with_the_open_bracket(prompter):
    batch = ListwiseCollator(prompter, FIRST(lm=False))(LISTS)
    assert set(batch["labels"].flatten().tolist()) == {-100}
    assert batch["score_position"].tolist() == (batch["attention_mask"].sum(1) - 1).tolist()
    longer = ListwiseCollator(prompter, FIRST())(LISTS)
    assert longer["input_ids"].shape[1] > batch["input_ids"].shape[1]


def test_padding_that_is_the_end_of_text_moves_no_position(prompter):
    assert prompter.tokenizer.pad_token_id == prompter.tokenizer.eos_token_id
    batch = ListwiseCollator(prompter, FIRST())(LISTS)
    assert all(
        batch["input_ids"][i, position] == prompter.opening[-1] for i, position in enumerate(batch["score_position"])
    )
    assert (batch["labels"] == prompter.tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_a_reading_is_what_the_whole_logits_say(prompter, tiny_model):
    model = tiny_model()
    batch = ListwiseCollator(prompter, FIRST())(LISTS)
    found = read_lists(model, batch)
    for i in range(2):
        size = int(batch["attention_mask"][i].sum())
        logits = model(input_ids=batch["input_ids"][i : i + 1, :size]).logits[0].float()
        n = int(batch["list_mask"][i].sum())
        wanted = logits[batch["score_position"][i], batch["identifier_ids"][i, :n]]
        assert torch.allclose(found.scores[i, :n], wanted, atol=1e-5)
        labels = batch["labels"][i, :size]
        nll = cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="none")[labels[1:] != -100]
        assert torch.allclose(found.nll[i][found.written[i]], nll, atol=1e-5)
    hugging = model(input_ids=batch["input_ids"][:1], labels=batch["labels"][:1]).loss
    alone = read_lists(model, ListwiseCollator(prompter, FIRST())(LISTS[:1]))
    assert FIRST(weight=0).terms(alone)["loss"].item() == pytest.approx(hugging.item(), abs=1e-5)


@pytest.mark.parametrize("objective", [FIRST(), FIRST(lm=False), FullRank(), FIRST(importance=FullRank())])
def test_losses_do_not_depend_on_the_batch(prompter, tiny_model, objective):
    model, collate = tiny_model(), ListwiseCollator(prompter, objective)
    together = objective.terms(read_lists(model, collate(LISTS)))["loss"].item()
    apart = [objective.terms(read_lists(model, collate([row])))["loss"].item() for row in LISTS]
    assert together == pytest.approx(sum(apart) / 2, abs=1e-5)


def test_a_model_that_computes_all_logits_reads_the_same(prompter, tiny_model):
    model = tiny_model()

    class Plain(torch.nn.Module):
        def forward(self, input_ids, use_cache=None):
            return model(input_ids=input_ids)

    batch = ListwiseCollator(prompter, FIRST())(LISTS)
    one, other = read_lists(model, batch), read_lists(Plain(), batch)
    assert torch.allclose(one.scores, other.scores, atol=1e-5)
    assert torch.allclose(one.nll, other.nll, atol=1e-5)


def test_lists_take_order_and_shape_from_the_seed():
    rows = make_rows(12, n=8)
    options = {"epochs": 3, "sizes": (3, 5), "seed": 1}
    dataset, again = ListDataset(rows, **options), ListDataset(rows, **options)
    items = [dataset[i] for i in range(len(dataset))]
    assert len(items) == 36
    assert [again[i] for i in reversed(range(36))] == items[::-1]
    assert {len(item.documents) for item in items} == {3, 4, 5}
    assert all(sum(item.relevance) == 1 for item in items)
    assert all(item.documents[item.ranks.index(0)] == item.query for item in items)
    for epoch in range(3):
        queries = sorted(item.query for item in items[12 * epoch : 12 * (epoch + 1)])
        assert queries == sorted(row["query"] for row in rows)
    assert [item.documents for item in items[:12]] != [item.documents for item in items[12:24]]
    assert [ListDataset(rows, seed=2)[i] for i in range(12)] != [ListDataset(rows, seed=1)[i] for i in range(12)]


def test_lists_that_keep_their_order_keep_it():
    rows = [
        {"query": f"q{best}", "documents": WORDS, "labels": [int(i == best) for i in range(8)]} for best in range(8)
    ]
    for item in (ListDataset(rows, shuffle=0, sizes=(4, 4))[i] for i in range(8)):
        indices = [WORDS.index(document) for document in item.documents]
        assert indices == sorted(indices)
    assert any(
        [WORDS.index(document) for document in item.documents] != list(range(8))
        for item in (ListDataset(rows)[i] for i in range(8))
    )
    hardest = ListDataset(rows, shuffle=0, sizes=(4, 4), negatives="first")
    for item in (hardest[i] for i in range(8)):
        best = int(item.query[1])
        first = [i for i in range(8) if i != best][:3]
        assert [WORDS.index(document) for document in item.documents] == sorted([*first, best])


def test_ranks_of_a_part_are_its_own():
    row = {"query": "q", "documents": WORDS, "ranking": [7, 6, 5, 4, 3, 2, 1, 0]}
    item = ListDataset([row], sizes=(3, 3), shuffle=0)[0]
    assert item.ranks == [2, 1, 0]
    assert item.order == [2, 1, 0]
    unnamed = ListDataset([{"query": "q", "documents": WORDS[:4], "ranking": [2]}], shuffle=0)[0]
    assert unnamed.ranks == [1, 1, 0, 1]


def test_a_part_of_a_whole_ranking_holds_its_best_as_often_as_any_other():
    row = {"query": "q", "documents": WORDS, "ranking": [*range(8)]}
    parts = ListDataset([row], sizes=(4, 4), shuffle=0, epochs=400)
    held = Counter(document for i in range(400) for document in parts[i].documents)
    assert all(150 < held[word] < 250 for word in WORDS)


def test_lists_without_a_difference_are_left_out(capsys):
    rows = [*make_rows(2), {"query": "x", "documents": ["a", "b"], "labels": [0, 0]}]
    assert len(ListDataset(rows)) == 2
    assert "1 of 3 lists" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing to train on"):
        ListDataset(rows[2:])


BAD = [
    ({"documents": ["a", "b"], "labels": [0, 1]}, "no field 'query'"),
    ({"query": "  ", "documents": ["a", "b"], "labels": [0, 1]}, "an empty query"),
    ({"query": "q", "documents": ["a"], "labels": [0]}, "at least two"),
    ({"query": "q", "documents": "ab", "labels": [0, 1]}, "field 'documents' is not a list .got 'ab'."),
    ({"query": "q", "documents": ["a", "b"], "labels": [0]}, "expected 2 finite"),
    ({"query": "q", "documents": ["a", "b"], "labels": [0, float("nan")]}, "field 'labels' is not a list of numbers"),
    ({"query": "q", "documents": ["a", "b"], "ranking": [1, 2]}, "indices 0 to 1"),
    ({"query": "q", "documents": ["a", "b"], "ranking": [1, 1]}, "each once"),
    ({"query": "q", "documents": ["a", "b"], "ranking": []}, "indices 0 to 1"),
    ({"query": "q", "documents": ["a", "b"]}, "neither ranking nor labels"),
    (["q"], "not a JSON object .got list."),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_rows_that_are_no_lists(row, message):
    with pytest.raises(InputError, match=message):
        ListDataset([*make_rows(1), row])


def test_files_of_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = make_rows(3)
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(path) == rows
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists.parquet")
    assert read_rows(tmp_path / "lists.parquet") == rows
    path.write_bytes(b'{"query": "\xff"}\n')
    with pytest.raises(InputError, match=r"lists\.jsonl:1: not UTF-8"):
        read_rows(path)
    path.write_text(json.dumps({"query": "q"}) + "\n")
    with pytest.raises(
        InputError, match=r"lists\.jsonl:1: no field 'documents'; the row has query; expected documents"
    ):
        read_rows(path)
    (tmp_path / "lists.parquet").write_text("x")
    with pytest.raises(InputError, match="not Parquet"):
        read_rows(tmp_path / "lists.parquet")
    with pytest.raises(InputError, match="no file"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("objective", [FIRST(), FIRST("softmax", lm=False), FullRank(), PGRank("mrr@10")])
def test_every_objective_learns(reranker, objective):
    ranker = reranker()
    rows = make_rows(8)
    before = weights_of(ranker.model)
    epochs, rate = (30, 5e-3) if isinstance(objective, PGRank) else (12, 1e-2)  # samples are noisy
    done = fit(ranker, rows, objective, shuffle=0, **QUICK | {"epochs": epochs, "learning_rate": rate})
    assert done.steps == 8 * epochs // 4
    assert done.examples == 8 * epochs
    name = {"FIRST": "loss_rank", "FullRank": "loss_lm", "PGRank": "loss_utility"}[type(objective).__name__]
    first, last = (sum(step[name] for step in part) / 4 for part in (done.history[:4], done.history[-4:]))
    assert last > first + 0.05 if name == "loss_utility" else last < 0.8 * first
    assert not same(before, weights_of(ranker.model))
    assert not ranker.model.training


def test_training_on_one_list_makes_the_reranker_rank_it(reranker):
    ranker = reranker()
    row = {"query": "ab", "documents": ["cd", "ef", "ab", "gh"], "ranking": [2, 0, 3, 1]}
    eighty = {"epochs": 80, "lists_per_step": 1, "learning_rate": 3e-3}
    fit(ranker, [row], FIRST(lm=False), shuffle=0, **QUICK | eighty)
    assert [hit["corpus_id"] for hit in ranker.rank(row["query"], row["documents"])] == [2, 0, 3, 1]
    written = reranker()
    fit(written, [row], FIRST(), shuffle=0, **QUICK | eighty)
    written.decode = "permutation"
    assert [hit["corpus_id"] for hit in written.rank(row["query"], row["documents"])] == [2, 0, 3, 1]
    assert written.stats_.invalid_outputs == 0


def test_both_terms_are_logged_and_gradients_accumulate_over_lists(reranker):
    rows = make_rows(4)
    one = fit(reranker(), rows, FIRST(), **QUICK | {"epochs": 1, "lists_per_pass": 1})
    four = fit(reranker(), rows, FIRST(), **QUICK | {"epochs": 1, "lists_per_pass": 4})
    [step], [whole] = one.history, four.history
    assert step["loss"] == pytest.approx(step["loss_lm"] + 10 * step["loss_rank"], rel=1e-5)
    for name in ("loss", "loss_lm", "loss_rank"):
        assert step[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_saved_reranker_comes_back(reranker, tmp_path):
    ranker = reranker()
    rows = make_rows(8)
    done = fit(ranker, rows, FIRST(), out=tmp_path / "out", **QUICK)
    assert done.folder == tmp_path / "out"
    back = ListwiseReranker.load(tmp_path / "out", device="cpu", dtype="float32")
    assert same(weights_of(back.model), weights_of(ranker.model))
    assert back.rank("ab", WORDS) == ranker.rank("ab", WORDS)
    assert not (tmp_path / "out.partial").exists()
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["settings"]["objective"]["name"] == "FIRST"
    assert record["steps"] == done.steps == len(record["history"]) == 4
    with pytest.raises(InputError, match="is finished"):
        fit(reranker(), rows, FIRST(), out=tmp_path / "out", **QUICK)
    fit(reranker(), rows, FIRST(), out=tmp_path / "out", force=True, **QUICK | {"epochs": 1})
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 2


def test_an_adapter_is_trained_and_comes_back(tiny_folder, tmp_path):
    ranker = ListwiseReranker.load(tiny_folder, device="cpu", dtype="float32", window=4, step=2, prompt=WORDING)
    base = weights_of(ranker.model)
    fit(ranker, make_rows(8), FIRST(), out=tmp_path / "lora", method="lora", lora_rank=4, **QUICK)
    back = ListwiseReranker.load(tmp_path / "lora", device="cpu", dtype="float32")
    documents = WORDS[:4]
    assert back.rank("ab", documents) == ranker.rank("ab", documents)
    plain = ListwiseReranker.load(tiny_folder, device="cpu", dtype="float32", window=4, step=2, prompt=WORDING)
    assert plain.rank("ab", documents) != ranker.rank("ab", documents)
    assert same(base, weights_of(plain.model))
    with pytest.raises(InputError, match="has an adapter"):
        fit(back, make_rows(8), FIRST(), method="full", **QUICK)
    before = weights_of(back.model)
    fit(back, make_rows(8), FIRST(), method="lora", **QUICK)
    changed = {name for name, value in weights_of(back.model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_forward_passes_may_run_in_bfloat16_but_weights_stay(reranker):
    narrow, wide = reranker(), reranker()
    one = fit(narrow, make_rows(8), FIRST(), **QUICK | {"autocast": "bfloat16"})
    other = fit(wide, make_rows(8), FIRST(), **QUICK)
    assert narrow.model.dtype == torch.float32
    assert one.history[0]["loss"] == pytest.approx(other.history[0]["loss"], rel=0.02)
    assert one.history[0]["loss"] != other.history[0]["loss"]
    moved = (narrow.model.lm_head.weight - wide.model.lm_head.weight).abs().max()
    assert 0 < moved < 0.01
    with torch.no_grad():  # nothing of it is left behind in the model
        assert narrow.model(torch.tensor([[5, 6]])).logits.dtype == torch.float32


RESUMED = QUICK | {"epochs": 3, "neftune": 5.0, "checkpoint_minutes": 1e-9}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sampled_rankings_are_drawn_on_after_a_stop(reranker, tmp_path, monkeypatch, method):
    rows, objective = make_rows(12), PGRank(n_samples=4)
    options = RESUMED | {"method": method, "lora_rank": 4, "sizes": (2, 4)}
    whole = reranker()
    fit(whole, rows, objective, out=tmp_path / "whole", **options)
    save = ObjectiveTrainer._save_checkpoint

    def save_or_fail(self, *arguments):
        if self.state.global_step == 6:
            raise StopError
        save(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(ObjectiveTrainer, "_save_checkpoint", save_or_fail)
        fit(reranker(), rows, objective, out=tmp_path / "cut", **options)
    resumed = reranker()
    assert fit(resumed, rows, objective, out=tmp_path / "cut", **options).resumed_from == 5
    assert same(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lists_per_step": 4, "lists_per_pass": 3}, "lists_per_pass 3"),
        ({"sizes": (1, 3)}, r"sizes \(1, 3\)"),
        ({"shuffle": 2}, "shuffle 2"),
        ({"negatives": "last"}, "negatives 'last'"),
    ],
)
def test_parameters_that_cannot_be(reranker, options, message):
    with pytest.raises(InputError, match=message):
        fit(reranker(), make_rows(4), **options)


def test_an_adapter_of_a_base_without_a_name_is_refused_before_it_is_trained(reranker, tmp_path):
    ranker = reranker()
    ranker.spec = ""
    with pytest.raises(InputError, match="set the reranker's spec"):
        fit(ranker, make_rows(4), out=tmp_path / "out", method="lora", **QUICK)


def test_a_run_resumes_with_the_same_lists_and_prompt_alone(reranker, tmp_path, monkeypatch):
    def stop(self, *arguments):
        raise StopError

    options = QUICK | {"out": tmp_path / "out", "checkpoint_minutes": 1e-9}
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(ObjectiveTrainer, "_save_checkpoint", stop)
        fit(reranker(), make_rows(8), **options)
    with pytest.raises(InputError, match=r"objective\.lists\.sizes None, now \[2, 3\]"):
        fit(reranker(), make_rows(8), sizes=(2, 3), **options)
    with pytest.raises(InputError, match="other rows:"):
        fit(reranker(), make_rows(8, seed=1), **options)
    other = reranker()
    other.window = 3
    with pytest.raises(InputError, match="other model:"):
        fit(other, make_rows(8), **options)


def test_the_rank_loss_is_the_one_of_the_identifiers(prompter, tiny_model):
    model, objective = tiny_model(), FIRST(lm=False, weight=1)
    item = ListItem("ab", ["cd", "ab", "ef"], [1, 0, 2], [1.0, 2.0, 0.0])
    reading = read_lists(model, ListwiseCollator(prompter, objective)([item]))
    ranker = ListwiseReranker(model, prompter.tokenizer, window=4, step=2, prompt=WORDING)
    hits = sorted(ranker.rank(item.query, item.documents), key=lambda hit: hit["corpus_id"])
    logits = torch.tensor([[hit["logit"] for hit in hits]])
    assert torch.allclose(reading.scores, logits, atol=1e-5)
    expected = weighted_ranknet(logits, torch.tensor([item.ranks])).item()
    assert objective.terms(reading)["loss"].item() == pytest.approx(expected, abs=1e-5)
