"""GRL: every term's gradient whatever the chunks, two kinds of attention over one model, and what is left after it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from broadsheet.console import InputError
from broadsheet.embed.base import embedder, load
from broadsheet.embed.data.writing import PROMPT, PassageWriter, mean_log_probs, read_written
from broadsheet.embed.fitting import fit
from broadsheet.embed.losses.contrastive import info_nce
from broadsheet.embed.losses.ntxent import minus_distances, nt_xent
from broadsheet.embed.ullme import GRL, keep_scores
from broadsheet.models import adapters
from broadsheet.training import memory

ITEMS = [
    {"query": "sort a list", "positive": "list.sort orders items in place.", "negatives": ["A tree grows.", "Rain."]},
    {"query": "the wind", "positive": "Wind is moving air.", "negatives": ["A stone, heavy and grey, lies there."]},
    {"query": "a", "positive": "The first letter.", "negatives": ["The second letter.", "Words", "b"]},
]
TERMS = {"contrastive": (1.0, 0.0, 0.0), "generation": (0.0, 1.0, 0.0), "consistency": (0.0, 0.0, 1.0)}


@pytest.fixture
def made(tiny_model, tiny_tokenizer):
    """`made(adapter=True, config={}, **settings)`: a bidirectional mean-pooling embedder, its adapter not at zero."""

    def make(adapter: bool = True, dropout: float = 0.0, prompts: dict[str, str] | None = None, **settings: Any):
        config = settings.pop("config", {})
        model = tiny_model(**config).double()
        made = embedder((model, tiny_tokenizer()), attention="bidirectional", prompts=prompts, **settings)
        if adapter:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                adapters.add(model, 4, dropout=dropout)
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.normal_(weight, std=0.2)
            model.double()
        return made

    return make


def gradients(objective: GRL, model: Any, items: Any = ITEMS, seed: int = 0) -> tuple[dict[str, float], torch.Tensor]:
    """The terms, and all gradients in one row."""
    weights = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    for weight in weights:
        weight.grad = None
    torch.manual_seed(seed)
    terms = objective.loss(model, objective.collate(list(enumerate(items))), torch.Generator())
    terms["loss"].backward()
    row = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
    return {name: float(value.detach()) for name, value in terms.items()}, row


# Attention


def test_reading_both_ways_leaves_the_writer_as_it_was(tiny_model, tiny_tokenizer):
    model = tiny_model()
    ids = torch.tensor([tiny_tokenizer()("A stone lies in the rain.")["input_ids"]])
    before = model(input_ids=ids).logits
    made = embedder((model, tiny_tokenizer()), attention="bidirectional")
    torch.testing.assert_close(made.encoder.logits(ids), before, atol=1e-5, rtol=0)
    made.encode(["Something else.", "More of it, and longer."])
    torch.testing.assert_close(made.encoder.logits(ids), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=0, rtol=0)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_the_first_token_knows_of_the_last_one_in_one_mode_alone(made, attention):
    encoder = made(adapter=False).encoder
    one, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    same = torch.allclose(*(encoder.states(ids, attention=attention)[0, 0] for ids in (one, other)))
    assert same == (attention == "causal")


def test_padding_changes_nothing_in_either_mode(made):
    model = made(adapter=False)
    rows = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15]]
    batch = model.encoder.pad(rows)
    for attention in ("causal", "bidirectional"):
        together = model.encoder.states(**batch, attention=attention)
        for row, states in zip(rows, together, strict=True):
            alone = model.encoder.states(torch.tensor([row]), attention=attention)[0]
            torch.testing.assert_close(states[: len(row)], alone, atol=1e-9, rtol=0)
    writer = PassageWriter(model.encoder)
    pairs = [("a query", "A passage that goes on for a while."), ("q", "P")]
    together = read_written(model.encoder.model, *writer.batch(pairs))
    alone = torch.cat([read_written(model.encoder.model, *writer.batch([pair])) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)


# Chunks


@pytest.fixture
def full(monkeypatch):
    """A machine whose memory is full: chunks are read again."""
    monkeypatch.setattr(memory, "free", lambda device: 0)


@pytest.mark.parametrize("term", [*TERMS, "all"])
def test_every_term_has_the_gradients_of_the_whole_batch_in_chunks_of_any_size(made, full, term):
    settings = {"weights": TERMS.get(term, (0.7, 1.3, 0.9)), "detach_generator": False}
    results = []
    for size in (None, 1, 2, 3):
        model = made()
        objective = GRL(model, chunk_size=size, **settings).double()
        results.append(gradients(objective, model))
    (terms, whole), *chunks = results
    assert whole.abs().max() > 1e-3
    for chunked_terms, chunked in chunks:
        assert chunked_terms == pytest.approx(terms, abs=1e-9)
        torch.testing.assert_close(chunked, whole, atol=1e-8, rtol=1e-7)


# They are two terms of one sum, each read off the same likelihoods: every kind of the one, and every kind of the other.
@pytest.mark.parametrize(
    ("generation", "consistency"),
    [
        *(("sft", consistency) for consistency in ("gen-rt", "rt-gen", None)),
        *(("hinge", "gen-rt"), ("ipo", "rt-gen"), ("kto_pair", None), ("kto_pair", "gen-rt")),
    ],
)
def test_so_have_the_other_kinds_of_generation_and_agreement(made, full, generation, consistency):
    results = []
    for size in (None, 1):
        model = made()
        objective = GRL(
            model, generation=generation, consistency=consistency, contrastive="infonce", chunk_size=size
        ).double()
        results.append(gradients(objective, model))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-9)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_fits_in_memory_is_read_once_and_no_bit_of_a_gradient_depends_on_it(made, monkeypatch, share):
    """Against the same chunks, all kept; what is read again draws the same dropout."""
    results, reads = [], []
    for most in (1.0, share):
        model = made(dropout=0.3, config={"attention_dropout": 0.2}).train()
        model.encoder.model.register_forward_hook(lambda *_, most=most: reads.append(most))
        objective = GRL(model, chunk_size=1, detach_generator=False).double()
        batch = objective.collate(ITEMS)
        tokens = most * sum(batch[f"{kind}_input_ids"].numel() for kind in ("query", "passage", "written"))
        monkeypatch.setattr(objective, "_most_tokens", lambda *_, tokens=tokens: tokens)
        results.append(gradients(objective, model, seed=7)[1])
    assert torch.equal(*results)
    once = 2 * len(ITEMS)  # what is written, by the model and by its reference
    assert reads.count(1.0) == once
    again = reads.count(share) - once
    assert again == len(ITEMS) if share == 0 else 0 < again < len(ITEMS)
    still = made(config={"attention_dropout": 0.0})
    calm = gradients(GRL(still, chunk_size=1, detach_generator=False).double(), still)[1]
    assert (results[0] - calm).abs().max() > 1e-3, "dropout draws"


def test_what_fits_is_seen_once_and_nothing_is_drawn_for_it(made, monkeypatch):
    model = made(dropout=0.3).train()
    objective = GRL(model, chunk_size=1, detach_generator=False).double()
    batch = objective.collate(ITEMS)
    monkeypatch.setattr(memory, "free", lambda device: 10**9)
    torch.manual_seed(3)
    first = objective.loss(model, batch)["loss"]
    tokens = objective._fitting
    monkeypatch.setattr(memory, "free", lambda device: 0)
    torch.manual_seed(3)
    assert objective.loss(model, batch)["loss"] == first
    assert objective._fitting == tokens > 0
    another = GRL(model, chunk_size=1).double()
    another.loss(model, batch)
    assert another._fitting == 0


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_what_is_kept_stays_within_half_of_the_memory_that_is_free(made, monkeypatch, share):
    """What autograd holds after the forward pass; at 0 it does not grow with the model's depth."""
    held = {}
    for size in (None, 1):
        model = made(config={"num_hidden_layers": 4})
        objective = GRL(model, chunk_size=size).double()
        batch = objective.collate(ITEMS)
        work = partial(objective.loss, model, batch)
        if size is not None:
            monkeypatch.setattr(memory, "free", lambda device: 2 * share * held[None])
            work()  # what fits is seen
        held[size] = memory.for_backward(work, model.parameters())
    assert held[1] < (share + 0.1) * held[None]
    assert share == 0 or held[1] > 0.1 * held[None]


# Terms


def test_the_loss_is_the_weighted_sum_of_its_terms_and_so_is_its_gradient(made):
    """The authors' first trainer summed three losses and followed the gradient of one."""
    alone = {}
    for term, weights in TERMS.items():
        model = made()
        alone[term] = gradients(GRL(model, weights=weights).double(), model)
        assert alone[term][1].abs().max() > 1e-4
    model = made()
    terms, row = gradients(GRL(model, weights=(0.5, 2.0, 3.0)).double(), model)
    values = [terms[name] for name in TERMS]
    assert [alone[name][0][name] for name in TERMS] == pytest.approx(values, abs=1e-9)
    assert terms["loss"] == pytest.approx(0.5 * values[0] + 2 * values[1] + 3 * values[2], abs=1e-9)
    expected = 0.5 * alone["contrastive"][1] + 2 * alone["generation"][1] + 3 * alone["consistency"][1]
    torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)  # norms inside the model are in single precision


def test_nt_xent_is_taken_over_queries_and_passages_together(made):
    model = made()
    objective = GRL(model, weights=TERMS["contrastive"], projector=False).double()
    texts = [[item["query"] for item in ITEMS], *([i["positive"], *i["negatives"]] for i in ITEMS)]
    vectors = torch.cat([model.encode(group, convert_to_tensor=True) for group in texts])
    labels = torch.tensor([0, 1, 2, 0, 10, 11, 1, 12, 2, 13, 14, 15])
    terms, _ = gradients(objective, model)
    assert terms["contrastive"] == pytest.approx(nt_xent(minus_distances(vectors) / 0.05, labels).item(), abs=1e-4)


def test_infonce_takes_all_passages_and_own_takes_the_query_s(made):
    model = made()
    items = [{**item, "negatives": item["negatives"][:1]} for item in ITEMS]
    queries = model.encode([item["query"] for item in items], convert_to_tensor=True)
    passages = model.encode([t for i in items for t in (i["positive"], *i["negatives"])], convert_to_tensor=True)
    settings = {"weights": TERMS["contrastive"], "projector": False, "temperature": 0.1}
    terms, _ = gradients(GRL(model, contrastive="infonce", **settings).double(), model, items)
    assert terms["contrastive"] == pytest.approx(
        info_nce(queries, passages, torch.tensor([0, 2, 4]), 0.1).item(), abs=1e-4
    )
    terms, _ = gradients(GRL(model, contrastive="own", **settings).double(), model, items)
    own = [info_nce(q[None], p, torch.tensor([0]), 0.1).item() for q, p in zip(queries, passages.split(2), strict=True)]
    assert terms["contrastive"] == pytest.approx(sum(own) / 3, abs=1e-4)


@pytest.mark.parametrize("contrastive", ["ntxent-l2", "ntxent-cos", "infonce"])
def test_a_passage_that_answers_two_queries_is_no_negative_of_either(made, contrastive):
    model = made()
    settings: dict[str, Any] = {"weights": TERMS["contrastive"], "contrastive": contrastive, "projector": False}
    twice = [{"query": "one", "positive": "Both."}, {"query": "one", "positive": "Both."}]
    terms, row = gradients(GRL(model, **settings).double(), model, twice)
    assert terms["contrastive"] == pytest.approx(0, abs=1e-9)
    assert not row.abs().max() > 1e-9


def test_dpo_starts_at_log_two_with_a_new_adapter_and_its_gradient_raises_the_chosen(made):
    model = made(adapter=False)
    adapters.add(model.encoder.model, 4)
    model.encoder.model.double()
    objective = GRL(model, weights=TERMS["generation"]).double()
    terms, row = gradients(objective, model)
    assert terms["generation"] == pytest.approx(math.log(2), abs=1e-9)
    assert row.abs().max() > 1e-4
    pairs = [(item["query"], text) for item in ITEMS for text in (item["positive"], item["negatives"][0])]
    before = mean_log_probs(model.encoder, pairs)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        objective.loss(model, objective.collate(ITEMS))["loss"].backward()
        optimizer.step()
    rise = (mean_log_probs(model.encoder, pairs) - before).reshape(-1, 2)
    assert (rise[:, 0] > rise[:, 1]).all()


def test_beta_and_label_smoothing_reach_the_preference_loss(made):
    model = made()
    for beta, smoothing in ((0.1, 0.0), (0.5, 0.2)):
        objective = GRL(model, weights=TERMS["generation"], beta=beta, label_smoothing=smoothing).double()
        batch = objective.collate(ITEMS)
        read = objective.read(model, batch)
        ratios = (read["sums"] - read["reference"]).detach()
        chosen = batch["written"].cumsum(0) - batch["written"]
        margin = beta * (ratios[chosen] - ratios[chosen + 1])
        logsigmoid = torch.nn.functional.logsigmoid
        expected = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
        assert objective.loss(model, batch)["generation"].item() == pytest.approx(expected.mean().item(), abs=1e-9)


def test_the_reference_is_the_model_without_its_adapter(made):
    model = made()
    ids, labels = PassageWriter(model.encoder).batch([("a", "b c d")])
    adapted = read_written(model.encoder.model, ids, labels)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with adapters.disabled(model.encoder.model):
        plain = read_written(model.encoder.model, ids, labels)
    base = made(adapter=False)
    torch.testing.assert_close(plain, read_written(base.encoder.model, ids, labels), atol=1e-9, rtol=0)
    assert (adapted - plain).abs() > 1e-3
    torch.testing.assert_close(read_written(model.encoder.model, ids, labels), adapted, atol=0, rtol=0)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    frozen = GRL(model, reference=base.encoder.model, weights=TERMS["generation"]).double()
    switched = GRL(model, weights=TERMS["generation"]).double()
    assert gradients(frozen, model)[0] == pytest.approx(gradients(switched, model)[0], abs=1e-9)
    free = GRL(model, reference="free", weights=TERMS["generation"]).double()
    assert gradients(free, model)[0]["generation"] != pytest.approx(gradients(switched, model)[0]["generation"])


def test_only_the_passage_is_scored_unless_the_prompt_is_asked_for(made):
    encoder = made(adapter=False).encoder
    ids, labels = PassageWriter(encoder).row("a query", "A passage.")
    written = [i for i, label in enumerate(labels) if label != -100]
    assert encoder.tokenizer.decode(ids[: written[0]]) == PROMPT.format(query="a query")
    assert encoder.tokenizer.decode([labels[i] for i in written]) == " A passage.<|im_end|>"
    assert ids[written[0] :] == labels[written[0] :]
    assert PassageWriter(encoder, score_prompt=True).row("a query", "A passage.")[1] == ids


def test_a_query_with_one_candidate_has_nothing_to_agree_about(made):
    model = made()
    alone = [{"query": item["query"], "positive": item["positive"]} for item in ITEMS]
    objective = GRL(model, generation="sft", weights=TERMS["consistency"]).double()
    terms, row = gradients(objective, model, alone)
    assert terms["consistency"] == 0
    assert not row.any()


@pytest.mark.parametrize(("temperature", "generation_temperature"), [(0.05, 1.0), (0.5, 0.1)])
@pytest.mark.parametrize("direction", ["gen-rt", "rt-gen"])
def test_agreement_is_the_kl_of_both_rankings_each_at_its_temperature(
    made, temperature, generation_temperature, direction
):
    model = made()
    settings: dict[str, Any] = {"temperature": temperature, "generation_temperature": generation_temperature}
    objective = GRL(model, weights=TERMS["consistency"], consistency=direction, **settings).double()
    read = objective.read(model, objective.collate(ITEMS))
    passages = read["passage"].split([3, 2, 4])
    expected = 0.0
    for item, query, vectors in zip(ITEMS, read["query"], passages, strict=True):
        pairs = [(item["query"], text) for text in (item["positive"], *item["negatives"])]
        embedded = (torch.cosine_similarity(query[None], vectors) / temperature).softmax(0)
        generated = (torch.tensor(mean_log_probs(model.encoder, pairs)) / generation_temperature).softmax(0)
        left, right = (generated, embedded) if direction == "gen-rt" else (embedded, generated)
        expected += (left * (left / right).log()).sum().item() / len(ITEMS)
    terms, _ = gradients(objective, model)
    assert terms["consistency"] == pytest.approx(expected, rel=1e-5)


def test_agreement_trains_the_embedding_alone_while_the_generator_is_detached(made):
    """With the embedding taken away, nothing is left to learn."""
    model = made()
    for detach, moved in ((True, False), (False, True)):
        objective = GRL(model, weights=TERMS["consistency"], detach_generator=detach).double()
        read = objective.read(model, batch := objective.collate(ITEMS))
        read |= {name: read[name].detach() for name in ("query", "passage")}
        means = read["sums"] / read["tokens"]
        assert objective._consistency(read, means, batch["counts"]).requires_grad == moved


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("generation", ["sigmoid", "ipo", "sft", None])
def test_candidates_that_teach_and_do_not_learn_are_read_without_a_gradient(made, monkeypatch, generation, chunk_size):
    """And the gradients are those of reading all with one."""
    model = made()
    objective = GRL(model, generation=generation, chunk_size=chunk_size).double()
    gradients(objective, model)  # the first step sees how much memory a chunk takes
    learnt: list[int] = []
    through = objective._through

    def watched(function: Any, ids: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        learnt.append(len(ids) if getattr(function, "func", None) is read_written else 0)
        return through(function, ids, other)

    monkeypatch.setattr(objective, "_through", watched)
    terms, row = gradients(objective, model)
    assert sum(learnt) == {None: 0, "sft": 3}.get(generation, 6), "of nine candidates"
    monkeypatch.setattr(objective, "_learnt", torch.ones_like)
    again, whole = gradients(objective, model)
    assert terms == pytest.approx(again, abs=1e-9)
    torch.testing.assert_close(row, whole, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_the_reference_reads_the_two_passages_that_are_compared(made, monkeypatch, kind):
    model = made()
    objective = GRL(model, generation=kind).double()
    read: list[int] = []
    referred = objective._referred
    monkeypatch.setattr(objective, "_referred", lambda *given: (read.append(len(given[1])), referred(*given))[1])
    value = gradients(objective, model)[0]["generation"]
    assert read == [6], "of nine candidates"

    def sums(item: dict[str, Any]) -> torch.Tensor:
        pairs = [(item["query"], text) for text in (item["positive"], item["negatives"][0])]
        ids, labels = PassageWriter(model.encoder).batch(pairs)
        found = read_written(model.encoder.model, ids, labels)
        return (found / (labels != -100).sum(1) if kind == "ipo" else found).detach()

    margins = []
    for item in ITEMS:
        policy = sums(item)
        with adapters.disabled(model.encoder.model):
            known = sums(item)
        margins.append((policy[0] - policy[1]) - (known[0] - known[1]))
    h = torch.stack(margins)
    expected = -torch.nn.functional.logsigmoid(0.1 * h) if kind == "sigmoid" else (h - 5) ** 2
    assert value == pytest.approx(expected.mean().item(), abs=1e-9)


def test_kept_scores_teach_what_the_model_itself_would_and_cost_no_reading(made, monkeypatch):
    model = made()
    settings: dict[str, Any] = {"generation": None, "weights": (0.7, 1.0, 1.3)}
    live, live_row = gradients(GRL(model, **settings).double(), model)
    items = keep_scores(model, ITEMS)
    kept = GRL(model, generator="kept", **settings).double()
    monkeypatch.setattr("broadsheet.embed.ullme.read_written", None)
    terms, row = gradients(kept, model, items)
    assert terms == pytest.approx(live, rel=1e-5)
    torch.testing.assert_close(row, live_row, atol=1e-5, rtol=1e-4)
    other = [{**item, "teacher_scores": item["teacher_scores"][::-1]} for item in items]
    assert gradients(kept, model, other)[0]["consistency"] != pytest.approx(terms["consistency"])
    assert gradients(GRL(model, generator="kept", chunk_size=1, **settings).double(), model, items)[0] == pytest.approx(
        terms, abs=1e-6
    )
    for wrong in (ITEMS, [{**ITEMS[0], "teacher_scores": [1.0]}]):
        with pytest.raises(InputError, match="expected a score for each"):
            kept.collate(wrong)


# What is evaluated


def test_the_vector_that_is_evaluated_is_the_one_before_the_projector(made):
    model = made()
    objective = GRL(model).double()
    read = objective.read(model, objective.collate(ITEMS))
    vectors = model.encode([item["query"] for item in ITEMS], convert_to_tensor=True)
    torch.testing.assert_close(read["query"].detach(), vectors, atol=1e-4, rtol=0)
    normal = torch.nn.functional.normalize
    rankings = []
    for project in (torch.nn.Identity(), objective.projector):
        queries, passages = normal(project(read["query"]), dim=-1), normal(project(read["passage"]), dim=-1)
        rankings.append((queries @ passages.T).flatten().detach().numpy())
    agreement = float(spearmanr(*rankings).statistic)
    print(f"rank correlation of similarities before and after the projector: {agreement:.3f}")
    assert agreement < 0.999
    assert all(part is not objective.projector for part in model.modules())


def test_the_instruction_is_seen_but_not_pooled(made):
    prompts = {"query": "Find it: ", "document": "Passage: "}
    pooled, spared = (made(prompts=prompts, include_prompt=flag) for flag in (True, False))
    reads = []
    for model in (pooled, spared):
        objective = GRL(model, chunk_size=2).double()
        reads.append(objective.read(model, objective.collate(ITEMS)))
        queries = model.encode_query([item["query"] for item in ITEMS], convert_to_tensor=True)
        documents = model.encode_document([item["positive"] for item in ITEMS], convert_to_tensor=True)
        torch.testing.assert_close(reads[-1]["query"].detach(), queries, atol=1e-4, rtol=0)
        torch.testing.assert_close(reads[-1]["passage"].detach()[[0, 3, 5]], documents, atol=1e-4, rtol=0)
    assert (reads[0]["query"] - reads[1]["query"]).abs().max() > 1e-2
    other = made(prompts={**prompts, "query": "Lose it: "}, include_prompt=False)
    objective = GRL(other).double()
    assert (objective.read(other, objective.collate(ITEMS))["query"] - reads[1]["query"]).abs().max() > 1e-3


def test_fit_trains_model_and_projector_and_the_folder_embeds_and_writes(made, tiny_folder, tmp_path):
    model = embedder(str(tiny_folder), attention="bidirectional", device="cpu", dtype="float32")
    objective = GRL(model, chunk_size=2)
    start = [weight.clone() for weight in objective.projector.parameters()]
    fitted = fit(model, ITEMS, objective, tmp_path / "grl", steps=3, batch_size=3, learning_rate=1e-2, autocast="none")
    assert fitted.finished
    assert fitted.steps == 3
    assert {"loss_contrastive", "loss_generation", "loss_consistency"} <= set(fitted.history[0])
    assert fitted.history[0]["loss_generation"] == pytest.approx(math.log(2), abs=1e-4)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert all((a != b).any() for a, b in zip(start, objective.projector.parameters(), strict=True))
    again = load(tmp_path / "grl")
    texts = [item["query"] for item in ITEMS]
    torch.testing.assert_close(torch.tensor(again.encode(texts)), torch.tensor(model.encode(texts)), atol=1e-5, rtol=0)
    pairs = [(item["query"], item["positive"]) for item in ITEMS]
    assert mean_log_probs(again.encoder, pairs) == pytest.approx(mean_log_probs(model.encoder, pairs), abs=1e-5)


# Bad input


def test_what_cannot_be_is_refused_in_one_line(made):
    model = made(adapter=False)
    for settings, said in (
        ({"generation": "dpo"}, "got generation 'dpo'"),
        ({"consistency": "both"}, "got consistency 'both'"),
        ({"contrastive": "triplet"}, "got contrastive 'triplet'"),
        ({"reference": "base"}, "got reference 'base'"),
        ({"generator": "none"}, "got generator 'none'"),
        ({"generator": "kept", "detach_generator": False}, "trains none"),
        ({"generation": "kto_pair", "reference": "free"}, "kto_pair compares with a reference"),
        ({"weights": (0, 0, 0)}, "got weights"),
        ({"temperature": 0}, "got temperature 0"),
        ({"chunk_size": 0}, "got chunk_size 0"),
        ({"prompt": "Answer:"}, "got prompt 'Answer:'"),
        ({"prompt": "word " * 300 + "{query}"}, "takes the model's context"),
    ):
        with pytest.raises(InputError, match=said):
            GRL(model, **settings)
    objective = GRL(model)
    with pytest.raises(InputError, match="compares with a negative"):
        objective.collate([{"query": "a", "positive": "b"}])
    with pytest.raises(InputError, match="expected 'query', 'positive'"):
        objective.collate([{"question": "a", "positive": "b"}])
    with pytest.raises(InputError, match="without its adapter, and it has none"):
        objective.loss(model, objective.collate(ITEMS))


def test_texts_over_the_limit_leave_room_for_each_other(made):
    encoder = made(adapter=False, config={"max_position_embeddings": 96}, max_seq_length=None).encoder
    ids, labels = PassageWriter(encoder).row("long " * 200, "text " * 200)
    assert len(ids) == 96
    assert sum(label != -100 for label in labels) >= 5
    short = made(adapter=False, max_seq_length=7).encoder
    ids, labels = PassageWriter(short).row("long " * 200, "text " * 200)
    assert sum(label != -100 for label in labels) == 8
