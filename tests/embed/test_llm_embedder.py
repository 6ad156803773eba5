"""LLM-Embedder: its losses' identities, its groups, its one-task batches, and a training from end to end."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize
from two_processes import both, leave

from broadsheet.console import InputError
from broadsheet.embed.base import embedder
from broadsheet.embed.data.groups import GroupConfig, build_group, build_groups
from broadsheet.embed.data.task_sampler import OneTaskBatchSampler, one_task_batches
from broadsheet.embed.llm_embedder import (
    TASK_PROMPTS,
    TASKS,
    GradedDistillLoss,
    LLMEmbedder,
    graded_distillation,
    kl_distillation,
    task_prompts,
)

B, G, WIDTH = 3, 4, 6
OWN = torch.arange(B * G).view(B, G)  # columns of each query's own keys


@pytest.fixture
def batch():
    """Unit vectors of queries and keys, and teacher scores; float64."""
    generator = torch.Generator().manual_seed(3)
    query, keys = (
        normalize(torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
        for shape in ((B,), (B, G))
    )
    return query, keys, torch.randn(B, G, generator=generator, dtype=torch.float64)


def loss(batch, distill="graded", **settings):
    query, keys, teacher = batch
    made = GradedDistillLoss(torch.nn.Identity(), distill, **{"contrastive_weight": 0.0, "temperature": 0.1} | settings)
    return made.from_unit_vectors(query, keys, teacher)


def scores_of(batch, temperature=0.1):
    query, keys, _ = batch
    return query @ keys.reshape(-1, WIDTH).T / temperature


# The losses


def test_graded_loss_is_the_weighted_sum_of_the_cards_equation(batch):
    scores, teacher = scores_of(batch), batch[2]
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        for g in range(G):
            left = [j for j in range(B * G) if not i * G <= j < i * G + g]
            expected -= teacher[i].softmax(0)[g] * scores[i, left].log_softmax(0)[left.index(i * G + g)] / B
    assert loss(batch).item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_teacher_sure_of_the_first_key_makes_the_graded_loss_infonce(batch):
    query, keys, teacher = batch
    sure = torch.full_like(teacher, -1e4)
    sure[:, 0] = 0
    expected = cross_entropy(scores_of(batch), torch.arange(B) * G)
    assert loss((query, keys, sure)).item() == pytest.approx(expected.item(), abs=1e-12)
    alone = loss(batch, "none", contrastive_weight=0.2)
    assert alone.item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_temperature_sharpens_the_grades(batch):
    query, keys, teacher = batch
    assert loss(batch, teacher_temperature=0.1).item() == pytest.approx(loss((query, keys, teacher * 10)).item())
    assert loss(batch, teacher_temperature=0.1).item() != pytest.approx(loss(batch).item())


def test_one_key_a_query_makes_the_graded_loss_infonce_and_kl_zero(batch):
    query, keys, teacher = batch
    one = (query, keys[:, :1], teacher[:, :1])
    expected = cross_entropy(query @ keys[:, 0].T / 0.1, torch.arange(B))
    assert loss(one).item() == pytest.approx(expected.item(), abs=1e-12)
    assert loss(one, "kl").item() == pytest.approx(0, abs=1e-12)


def test_one_query_alone_has_nothing_to_set_its_last_key_against(batch):
    query, keys, teacher = (part[:1] for part in batch)
    last = torch.full_like(teacher, -1e4)
    last[:, -1] = 0
    assert loss((query, keys, last)).item() == pytest.approx(0, abs=1e-12)


def test_gradients_are_finite_when_all_earlier_keys_are_removed(batch):
    query, keys, teacher = (part[:1].clone() for part in batch)
    query.requires_grad_()
    loss((query, keys, teacher)).backward()
    assert torch.isfinite(query.grad).all()


def test_a_querys_term_ignores_the_order_of_other_queries_keys(batch):
    query, keys, teacher = batch
    moved = keys.clone()
    moved[1] = keys[1].flip(0)
    before = graded_distillation(scores_of(batch), OWN, teacher)
    after = graded_distillation(scores_of((query, moved, teacher)), OWN, teacher)
    assert torch.allclose(before[[0, 2]], after[[0, 2]], atol=1e-12)
    assert not torch.allclose(before[1], after[1], atol=1e-3)


@pytest.mark.parametrize("distill", ["graded", "kl"])
def test_a_constant_on_a_querys_teacher_scores_changes_nothing(batch, distill):
    query, keys, teacher = batch
    raised = teacher + torch.tensor([[5.0], [-3.0], [0.5]], dtype=torch.float64)
    assert loss(batch, distill).item() == pytest.approx(loss((query, keys, raised), distill).item(), abs=1e-12)


def test_kl_is_zero_when_the_student_repeats_the_teacher(batch):
    teacher = batch[2]
    scores = 0.7 * teacher / 0.1 + 2
    found = kl_distillation(scores, teacher, student_temperature=0.7, teacher_temperature=0.1)
    assert found.abs().max() < 1e-12
    assert kl_distillation(scores, teacher, teacher_temperature=0.1).max() > 1e-2


def test_kl_does_not_see_other_queries(batch):
    query, keys, teacher = batch
    changed = keys.clone()
    changed[1:] = keys[1:].flip(-1)
    alone = loss((query[:1], keys[:1], teacher[:1]), "kl")
    for others in (keys, changed):
        rest = loss((query[1:], others[1:], teacher[1:]), "kl")
        both = loss((query, others, teacher), "kl")
        assert both.item() == pytest.approx((alone.item() + (B - 1) * rest.item()) / B, abs=1e-12)


def test_two_terms_are_weighted_and_one_is_not(batch):
    graded, hard = loss(batch), loss(batch, "none", contrastive_weight=0.2)
    both = loss(batch, contrastive_weight=0.2, distill_weight=3.0)
    assert both.item() == pytest.approx(3 * graded.item() + 0.2 * hard.item(), abs=1e-12)
    assert hard.item() == pytest.approx(cross_entropy(scores_of(batch), OWN[:, 0]).item(), abs=1e-12)


def test_half_precision_is_computed_in_float32(batch):
    # at a temperature of 0.01 bfloat16's cosines are off by more than the answer
    made = GradedDistillLoss(torch.nn.Identity(), contrastive_weight=0.2)
    rough = [batch[0].bfloat16(), *batch[1].bfloat16().unbind(1)]
    exact = made.compute_loss_from_embeddings([vectors.double() for vectors in rough], batch[2])
    with torch.autocast("cpu", torch.bfloat16):
        found = made.compute_loss_from_embeddings(rough, batch[2].float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"distill": "best"},
        {"temperature": 0.0},
        {"contrastive_weight": 0.0, "distill": "none"},
        {"contrastive_weight": 0.0, "distill_weight": 0.0},
        {"contrastive_weight": -1.0},
    ],
)
def test_impossible_losses_are_refused(wrong):
    with pytest.raises(InputError):
        GradedDistillLoss(torch.nn.Identity(), **wrong)


def test_scores_of_another_shape_are_refused(batch):
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        loss((batch[0], batch[1], batch[2][:, :2]))
    with pytest.raises(InputError, match="got teacher scores None"):
        loss((batch[0], batch[1], None))


# Several processes


def _loss_and_gradient(data, rows, distill, gather):
    weight = data["weight"].clone().requires_grad_()
    made = GradedDistillLoss(torch.nn.Identity(), distill, contrastive_weight=0.2, gather_across_devices=gather)
    vectors = [data["query"][rows] @ weight, *(data["keys"][rows] @ weight).unbind(1)]
    value = made.compute_loss_from_embeddings(vectors, data["teacher"][rows])
    value.backward()
    return value.detach(), weight.grad


def _one_process(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = torch.load(f"{folder}/data.pt", weights_only=True)
    found = {}
    for distill in ("graded", "kl"):
        value, gradient = _loss_and_gradient(data, slice(2 * rank, 2 * rank + 2), distill, True)
        dist.all_reduce(value)
        dist.all_reduce(gradient)  # what data-parallel training does, with the division
        found[distill] = [value / 2, gradient / 2]
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path):
    generator = torch.Generator().manual_seed(5)
    shapes = {"query": (4, WIDTH), "keys": (4, G, WIDTH), "teacher": (4, G), "weight": (WIDTH, WIDTH)}
    data = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    torch.save(data, tmp_path / "data.pt")
    both(_one_process, str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for distill in ("graded", "kl"):
            value, gradient = _loss_and_gradient(data, slice(0, 4), distill, False)
            assert found[distill][0].item() == pytest.approx(value.item(), rel=1e-12)
            assert torch.allclose(found[distill][1], gradient, atol=1e-10)


# Groups

EXAMPLE = {
    "query": "q",
    "task": "qa",
    "pos": ["p0", "p1"],
    "neg": ["n0", "n1", "n2"],
    "teacher_scores": [0.5, 0.9, -1.0, 2.0, 0.1],
}


def group(example=None, seed=0, **config):
    return build_group({**EXAMPLE, **(example or {})}, GroupConfig(**config), random.Random(seed))


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"select_positive": "teacher-pos", "select_negative": "teacher+"}, ["p1", "n1", "n2"]),
        ({"select_positive": "teacher", "select_negative": "teacher-"}, ["n1", "n0", "n2"]),
        ({"select_positive": "first", "select_negative": "first"}, ["p0", "n0", "n1"]),
        ({"select_positive": "first", "select_negative": "first", "stable_distill": True}, ["p0", "n1", "n0"]),
    ],
)
def test_keys_are_chosen_by_rule(config, keys):
    made = group(train_group_size=3, **config)
    assert made["key"] == keys
    names = [*EXAMPLE["pos"], *EXAMPLE["neg"]]
    assert made["teacher_scores"] == [EXAMPLE["teacher_scores"][names.index(key)] for key in keys]


def test_sorting_undoes_the_order_that_negatives_came_in():
    shuffled = {"neg": ["n2", "n0", "n1"], "teacher_scores": [0.5, 0.9, 0.1, -1.0, 2.0]}
    config = {"train_group_size": 4, "select_negative": "first", "stable_distill": True}
    assert group(**config) == group(shuffled, **config)


def test_few_negatives_are_repeated_and_none_is_dropped():
    made = group({"neg": ["n0"], "teacher_scores": [1.0, 2.0, 0.0]}, train_group_size=4)
    assert made["key"] == ["p0", "n0", "n0", "n0"]
    assert made["teacher_scores"] == [1.0, 0.0, 0.0, 0.0]
    assert group({"neg": [], "teacher_scores": [1.0, 2.0]}) == "no negatives"


@given(scores=st.lists(st.floats(-5, 5), min_size=4, max_size=4), margin=st.floats(0, 4))
def test_margin_keeps_exactly_the_queries_with_that_spread(scores, margin):
    made = group({"pos": ["p"], "neg": ["a", "b", "c"], "teacher_scores": scores}, teacher_scores_margin=margin)
    assert isinstance(made, dict) == (max(scores) - min(scores) >= margin)


def test_minimum_drops_queries_that_nothing_helps():
    assert group(teacher_scores_min=2.1) == "best score below the minimum"
    assert isinstance(group(teacher_scores_min=2.0), dict)


def test_random_choices_follow_the_seed_and_come_from_the_right_lists():
    config = {"train_group_size": 3, "select_positive": "random", "select_negative": "random"}
    made = [group(seed=seed, **config)["key"] for seed in range(40)]
    assert made == [group(seed=seed, **config)["key"] for seed in range(40)]
    assert {keys[0] for keys in made} == {"p0", "p1"}
    assert {key for keys in made for key in keys[1:]} == {"n0", "n1", "n2"}
    assert all(len(set(keys)) == 3 for keys in made)


def test_the_row_given_is_left_as_it_was():
    example = json.loads(json.dumps(EXAMPLE))
    build_group(example, GroupConfig(select_positive="teacher", stable_distill=True))
    assert example == EXAMPLE


def test_an_instruction_goes_before_every_text():
    made = group(train_group_size=2, select_negative="first", instruction={"query": "Q: ", "key": "K: "})
    assert (made["query"], made["key"]) == ("Q: q", ["K: p0", "K: n0"])


@pytest.mark.parametrize(
    ("example", "config", "message"),
    [
        ({"teacher_scores": [1.0]}, {}, "got 1 teacher_scores for 5"),
        ({"teacher_scores": [1.0, 2.0, None, 1.0, 1.0]}, {}, "finite numbers"),
        ({"teacher_scores": None}, {"stable_distill": True}, "stable_distill needs"),
        ({"teacher_scores": None}, {"select_negative": "teacher+"}, "select_negative needs"),
        ({"history": ["a", "b"], "teacher_scores": [1.0, 2.0]}, {}, "choose 'teacher'"),
        ({}, {"select_positive": "best"}, "expected one of first"),
        ({}, {"train_group_size": 0}, "expected 1 or more"),
    ],
)
def test_rows_that_cannot_be_grouped_are_refused(example, config, message):
    with pytest.raises(InputError, match=message):
        group(example, **config)


def test_dropped_rows_are_counted_and_samples_limited():
    rows = [{**EXAMPLE, "query": str(i)} for i in range(10)] + [{**EXAMPLE, "neg": [], "teacher_scores": [1.0, 2.0]}]
    made = build_groups(rows, GroupConfig(), max_samples=4)
    assert made.dropped == Counter({"over max_samples": 6, "no negatives": 1})
    order = [int(row["query"]) for row in made.rows]
    assert len(order) == 4
    assert order == sorted(order)
    assert order != [6, 7, 8, 9]  # not the last ones


# Batches of one task


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    batch_size=st.integers(1, 6),
    processes=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_batches_hold_one_task_and_cover_all_but_the_tails(sizes, batch_size, processes, epoch):
    batches = one_task_batches(sizes, batch_size, processes=processes, epoch=epoch)
    assert batches == one_task_batches(sizes, batch_size, processes=processes, epoch=epoch)
    task_of = [task for task, size in enumerate(sizes) for _ in range(size)]
    assert all(len(batch) == batch_size for batch in batches)
    for start in range(0, len(batches), processes):  # what the processes see at once
        assert len({task_of[i] for batch in batches[start : start + processes] for i in batch}) == 1
    seen = Counter(i for batch in batches for i in batch)
    assert set(seen.values()) <= {1}
    counts = Counter(task_of[i] for i in seen)
    block = batch_size * processes
    assert [counts[task] for task in range(len(sizes))] == [size - size % block for size in sizes]


def test_epochs_and_seeds_differ():
    orders = [one_task_batches([9, 9], 3, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({json.dumps(order) for order in orders}) == 4


# Training


def rows(task, count, scores=True):
    made = []
    for i in range(count):
        row = {"query": f"{task} query {i}", "task": task, "pos": [f"{task} good {i}"], "neg": [f"{task} bad {i}", "b"]}
        made.append(row | {"teacher_scores": [-1.0, -3.0 + 0.1 * i, -2.0]} if scores else row)
    return made


@pytest.fixture
def tiny(tiny_model, tiny_tokenizer):
    return LLMEmbedder().embedder((tiny_model(), tiny_tokenizer()))


def test_every_task_has_prompts_and_they_reach_the_model(tiny):
    assert set(TASKS) == set(TASK_PROMPTS)
    assert set(task_prompts()) == {f"{task}-{side}" for task in TASKS for side in ("query", "key")}
    said = tiny.encode("a", prompt_name="qa-query")
    assert said == pytest.approx(tiny.encode(TASK_PROMPTS["qa"][0] + "a"), abs=1e-5)
    assert abs(float((said**2).sum()) - 1) < 1e-5


def test_training_takes_each_task_in_its_own_batches_with_its_prompts(tiny, monkeypatch):
    seen = []
    forward = GradedDistillLoss.forward

    def watching(self, features, labels=None):
        features = list(features)
        texts = [tiny.tokenizer.decode(row, skip_special_tokens=True) for row in features[0]["input_ids"]]
        keys = [tiny.tokenizer.decode(row, skip_special_tokens=True) for row in features[1]["input_ids"]]
        seen.append((self.distill, self.teacher_temperature, texts, keys))
        return forward(self, features, labels)

    monkeypatch.setattr(GradedDistillLoss, "forward", watching)
    method = LLMEmbedder(group_size=3)
    data = rows("qa", 9) + rows("chat", 4) + rows("tool", 5, scores=False)
    fitted = method.fit(tiny, data, batch_size=4, epochs=1, method="full", learning_rate=1e-3, autocast="none")
    assert fitted.steps == 4  # 2 of qa, 1 of chat, 1 of tool; tails of 1, 0 and 1 left out
    kinds = {"qa": ("graded", 1.0), "chat": ("kl", 0.1), "tool": ("none", 1.0)}
    for distill, temperature, texts, keys in seen:
        task = next(name for name, (query, _) in TASK_PROMPTS.items() if texts[0].startswith(query))
        assert kinds[task] == (distill, temperature)
        assert all(text.startswith(f"{TASK_PROMPTS[task][0]}{task} query") for text in texts)
        assert all(key.startswith(TASK_PROMPTS[task][1]) for key in keys)


def test_training_learns_the_teachers_order_and_is_saved(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    data = [
        {"query": f"w{i}", "task": "qa", "pos": ["xx"], "neg": ["yy", "zz"], "teacher_scores": [0.0, -1.0, -2.0]}
        for i in range(8)
    ]

    def order(model):
        query = model.encode("w3", prompt_name="qa-query")
        return (model.encode(["xx", "yy", "zz"], prompt_name="qa-key") @ query).tolist()

    method = LLMEmbedder(group_size=3, temperature=0.1)
    out = tmp_path / "trained"
    method.fit(tiny, data, out, batch_size=4, steps=30, method="full", learning_rate=3e-3, autocast="none")
    best = order(tiny)
    assert best == sorted(best, reverse=True)
    again = SentenceTransformer(str(out), trust_remote_code=True)
    assert order(again) == pytest.approx(best, abs=1e-5)


def test_any_sentence_transformer_takes_the_prompts(tiny_model, tiny_tokenizer):
    other = embedder((tiny_model(), tiny_tokenizer()), prompts={"mine": "M: "})
    adopted = LLMEmbedder().adopt(other)
    assert adopted is other
    assert adopted.prompts["mine"] == "M: "
    assert adopted.prompts["icl-key"] == TASK_PROMPTS["icl"][1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows("poetry", 8), "got task 'poetry'"),
        (rows("qa", 3), r"qa \(3\): fewer queries than a batch of 4"),
        ([{**row, "teacher_scores": [0.0, 0.01, 0.02]} for row in rows("lrlm", 5)], "5 × scores within the margin"),
        (rows("qa", 5, scores=False), "row 1: no teacher_scores"),
    ],
)
def test_data_that_trains_nothing_is_refused(tiny, data, message):
    with pytest.raises(InputError, match=message):
        LLMEmbedder(group_size=3).fit(tiny, data, batch_size=4, steps=1)


def test_sampler_says_what_it_drops(capsys):
    from torch.utils.data import BatchSampler, ConcatDataset, SequentialSampler

    whole = ConcatDataset([list(range(5)), list(range(3))])
    children = [BatchSampler(SequentialSampler(each), 2, True) for each in whole.datasets]
    sampler = OneTaskBatchSampler(whole, children, seed=1)
    assert sampler.dropped_ == [1, 1]
    assert len(sampler) == len(list(sampler)) == 3
    assert "2 of 8 rows" in capsys.readouterr().err
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_processes_work_on_one_task_at_a_time(monkeypatch):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, ConcatDataset, SequentialSampler

    monkeypatch.setattr("broadsheet.embed.data.task_sampler.get_world_size", lambda: 2)
    whole = ConcatDataset([list(range(13)), list(range(9)), list(range(8))])
    children = [BatchSampler(SequentialSampler(each), 2, True) for each in whole.datasets]
    task_of = [task for task, size in enumerate((13, 9, 8)) for _ in range(size)]
    shards = [list(BatchSamplerShard(OneTaskBatchSampler(whole, children), 2, rank)) for rank in range(2)]
    assert [len(shard) for shard in shards] == [7, 7]  # blocks of four rows: 3, 2 and 2
    assert not {i for batch in shards[0] for i in batch} & {i for batch in shards[1] for i in batch}
    for batches in zip(*shards, strict=True):
        assert len({task_of[i] for batch in batches for i in batch}) == 1


def test_fit_reads_what_the_scorer_writes(tiny, tiny_model, tiny_tokenizer, tmp_path: Path):
    from broadsheet.embed.data.feedback import LikelihoodScorer, open_requests, read_examples, score_corpus

    asked = [{**row, "answers": ["the end"]} for row in rows("qa", 4, scores=False)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    scored = tmp_path / "scored.jsonl"
    score_corpus(open_requests(str(tmp_path / "asked.jsonl")), scored, LikelihoodScorer(tiny_model(), tiny_tokenizer()))
    data = read_examples(open_requests(str(scored)))
    assert LLMEmbedder(group_size=3).fit(tiny, data, batch_size=4, steps=1).steps == 1
