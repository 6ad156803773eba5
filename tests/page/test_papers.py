"""The page, its search and its rungs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module

import pytest

from broadsheet.console import InputError
from broadsheet.page import evidence, papers


def test_the_page_has_its_79_papers_in_order_and_whole():
    page = papers.page()
    assert len(page) == 79
    assert (page[0].id, page[-1].id) == ("salmonn", "label_supervised")
    assert len({paper.id for paper in page}) == len({paper.arxiv for paper in page}) == 79
    stages = {stage.id for stage in papers.stages()}
    assert {paper.stage for paper in page} == stages
    assert {paper.kind for paper in page} == {"method", "benchmark", "study", "survey"}
    assert sum(len(stage.papers) for stage in papers.stages()) == 79


@pytest.mark.parametrize("paper", [paper for paper in papers.page() if paper.entry], ids=lambda paper: paper.id)
def test_what_is_listed_can_be_imported_from_its_stage_and_is_documented(paper):
    for entry in paper.entry:
        name = entry.split(":")[1]
        home = f"broadsheet.{paper.stage}" if paper.in_stage else entry.split(":")[0]
        assert getattr(import_module(home), name) is papers.load(entry)
        text = papers.docstring(entry)
        assert all(word in text for word in ("Use when", "Inputs:", "Relation:", "Example:", "Source:")), entry
    # A survey's rules may be one function, and its tree another.
    assert any(paper.arxiv in papers.docstring(entry) for entry in paper.entry)
    if paper.in_stage:
        assert all(paper.arxiv in papers.docstring(entry) for entry in paper.entry)
    for entry in filter(None, (paper.trial, paper.apply)):
        assert papers.docstring(entry)
        assert callable(papers.load(entry).run)


@pytest.mark.parametrize("paper", [paper for paper in papers.ours() if paper.entry], ids=lambda paper: paper.id)
def test_a_built_paper_says_what_of_it_is_here_and_what_is_not(paper):
    assert paper.implements
    assert paper.leaves_out or paper.stands_in
    said = [phrase for phrases in paper.scope.values() for phrase in phrases]
    assert len(said) == len(set(said)) == len(paper.implements) + len(paper.leaves_out) + len(paper.stands_in)
    assert all(len(phrase) <= 160 and not phrase.endswith(".") for phrase in said), "short phrases"
    told = paper.to_dict()
    assert (told["implements"], told["leaves_out"]) == (list(paper.implements), list(paper.leaves_out))
    assert told["stands_in"] == paper.stands_in


def test_what_is_said_of_a_paper_is_printed_by_heading_and_a_heading_without_phrases_is_left_out():
    paper = papers.Paper("x", "1", "method", "detect", "X", implements=("a", "b"), stands_in={"their model": "ours"})
    assert paper.scope == {"implements": ("a", "b"), "stands in": ("their model → ours",)}
    assert papers.get("a_llmrec").scope == {}, "not built"


@pytest.mark.parametrize("paper", papers.ours(), ids=lambda paper: paper.id)
def test_a_paper_says_what_it_does_and_what_it_finds_and_what_it_is_about(paper):
    sentences = re.split(r"(?<=[.?!])\s+", paper.summary)
    assert len(sentences) == 2
    assert all(sentence[0].isupper() and sentence.endswith((".", "?")) for sentence in sentences)
    assert 120 <= len(paper.summary) <= 300
    assert "  " not in paper.summary
    assert "\n" not in paper.summary
    assert 3 <= len(paper.topics) == len(set(paper.topics)) <= 6
    assert all(topic == topic.lower().strip() for topic in paper.topics)
    assert not _runs(paper.summary) & _runs(paper.title), "in words of ours"
    told = paper.to_dict()
    assert (told["summary"], told["topics"]) == (paper.summary, list(paper.topics))


def _runs(text: str, of: int = 8) -> set[tuple[str, ...]]:
    """Every run of so many words."""
    said = re.findall(r"\w+", text.lower())
    return set(zip(*(said[i:] for i in range(of)), strict=False))


def test_runs_of_words_are_found_whatever_their_case_and_stops():
    assert _runs("One, two: three", of=2) == {("one", "two"), ("two", "three")}
    assert not _runs("one two", of=3)


def test_papers_share_topics_and_a_topic_has_one_spelling():
    held = Counter(topic for paper in papers.ours() for topic in paper.topics)
    assert 2 * sum(count > 1 for count in held.values()) >= len(held)
    spelled = Counter(re.sub(r"[^a-z]", "", topic).removesuffix("s") for topic in held)
    assert [topic for topic, count in spelled.items() if count > 1] == []
    assert len({paper.summary for paper in papers.ours()}) == 79


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("rerank", "pg_rank fullrank first"),
        ("rag", "internet_augmented llm_embedder long_context_survey domain_knowledge_survey"),
        ("kv cache", "lm_infinite infllm longheads long_context_survey"),
        (
            "synthetic data",
            "llm2llm self_guide text_augmentation transformllm artifactuality health_classification "
            "embedding_meets_llm unsupervised_mt_icl linguistically_diverse_prompts",
        ),
        ("unlearning", "unlearning_whp"),
        ("watermark", ""),
        ("detection", "cudrt stochastic_parrots lastde"),
        ("hallucination", "prior multimodal_review contract_ner supercontext"),
        ("tokenizer", "diachronic multilingual_survey"),
        ("pruning", "llm_pruner peak_performance"),
        ("speculative decoding", "aded"),
        ("lora", "salmonn llm_pruner label_supervised"),
        ("named entity recognition", "contract_ner neretrieve label_supervised"),
        ("recommendation", "a_llmrec rec_survey"),
        ("summarization", "summarization_eval loogle scale_legal"),
        ("mixture of experts", "moe_survey token_crisis peak_performance"),
    ],
)
def test_words_that_one_would_search_for_find_the_papers_on_it_and_no_others(query, found):
    assert {paper.id for paper in papers.search(query) if paper.ours} == set(found.split())


def test_search_finds_words_anywhere_and_filters():
    assert [paper.id for paper in papers.search("lastdepp")] == ["lastde"]
    assert [paper.id for paper in papers.search("2410.06072")] == ["lastde"]
    assert {paper.id for paper in papers.search(stage="detect")} == {"cudrt", "stochastic_parrots", "lastde"}
    assert all(paper.kind == "survey" for paper in papers.search(kind="survey"))
    assert papers.search("no such words anywhere") == []
    with pytest.raises(InputError, match="no stage 'detekt'"):
        papers.search(stage="detekt")


def test_search_looks_for_words_and_not_for_letters_within_them():
    assert not [
        p for p in papers.search("rag") if "rag" not in papers._words(f"{p.title} {p.summary} {' '.join(p.topics)}")
    ]
    assert [paper.id for paper in papers.search("rerank")] != [], "begins reranking"
    assert [paper.id for paper in papers.search("lm infinite")] == ["lm_infinite"], (
        "a class's name is read by its parts"
    )
    assert papers._words("LMInfinite of vLLM-like 3.5B") >= {"lm", "infinite", "lminfinite", "vllm-like", "3.5b"}


@pytest.mark.parametrize(
    "name",
    ["lastde", "LASTDE", "2410.06072", "https://arxiv.org/abs/2410.06072v2", "arxiv.org/pdf/2410.06072", "LastdePP"],
)
def test_ids_are_forgiven(name):
    assert papers.get(name).id == "lastde"
    assert papers.get_trial(name)[0] == "lastde"
    assert papers.get("lm-infinite").id == "lm_infinite"


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(InputError, match="did you mean lastde"):
        papers.get("lastd")
    with pytest.raises(InputError, match="listed but not built"):
        papers.get_trial("a_llmrec")
    with pytest.raises(InputError, match="nothing to try in the stage"):
        papers.get_trial("see")
    assert papers.get("2410.06072").id == "lastde"
    assert papers.get_trial("detect")[0] == "detect"
    assert papers.get_trial("decode") == papers.get_trial("aded")  # the only paper of a stage without a trial


def trial(verdict: str, role: str = "baseline", metric: str = "bits", no_worse: bool | None = None) -> dict:
    claim = {"metric": "AUROC", "baseline": "plain", "arm": "new"}
    came = {"helps": "shown", "hurts": "refuted here"}.get(verdict, "open")
    return {
        "arms": [{"name": "plain", "role": role}, {"name": "new", "role": "method"}],
        "comparisons": [
            {"metric": "AUROC", "baseline": "plain", "arm": "new", "verdict": verdict, "no_worse": no_worse},
            {"metric": metric, "baseline": "plain", "arm": "new", "verdict": "helps"},
        ],
        "judged": [claim | {"kind": "claim", "verdict": came}],
    }


def judged(*verdicts: str) -> dict:
    """A trial with claims that were judged so, and a control that came to nothing."""
    [claim] = trial("helps")["judged"]
    claims = [claim | {"verdict": verdict} for verdict in verdicts]
    return trial("helps") | {"judged": [*claims, claim | {"kind": "control", "verdict": "open"}]}


def before(verdict: str) -> dict:
    """A trial of before schema 2, whose claims no rule has judged."""
    rest = {key: value for key, value in trial(verdict).items() if key != "judged"}
    return rest | {"claims": [["AUROC", "plain", "new"]]}


@pytest.mark.parametrize(
    ("recorded", "oracles", "rung"),
    [
        (None, {"passed": 3, "failed": 0}, 0),
        (trial("helps") | {"judged": []}, {"passed": 3, "failed": 0}, 0),
        (trial("helps"), None, 1),
        (trial("helps"), {"passed": 3, "failed": 1}, 1),
        (trial("hurts"), {"passed": 3, "failed": 0}, 2),
        (trial("no measurable difference"), {"passed": 3, "failed": 0}, 2),
        (trial("helps"), {"passed": 3, "failed": 0}, 3),
        (trial("helps", "peer", "texts/s", True), {"passed": 3, "failed": 0}, 4),
        (trial("helps", "peer", "peak bytes", True), {"passed": 3, "failed": 0}, 4),
        (trial("helps", "peer", "texts/s", False), {"passed": 3, "failed": 0}, 3),  # not shown to be no worse
        (trial("helps", "peer", "texts/s"), {"passed": 3, "failed": 0}, 3),  # without a margin
        (trial("helps", "peer", "bits", True), {"passed": 3, "failed": 0}, 3),  # no cost
        (trial("helps") | {"demonstration": "made-up features"}, {"passed": 3, "failed": 0}, 0),
        (judged("shown"), {"passed": 3, "failed": 0}, 3),
        (judged("shown", "open"), {"passed": 3, "failed": 0}, 2),
        (before("helps"), {"passed": 3, "failed": 0}, 2),
        (trial("helps", "baseline", "texts/s"), {"passed": 3, "failed": 0}, 3),
    ],
)
def test_each_rung_rests_on_the_one_below(monkeypatch, tmp_path, recorded, oracles, rung):
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    if recorded:
        (tmp_path / "lastde.json").write_text(json.dumps(recorded))
    if oracles:
        (tmp_path / "oracles.json").write_text(json.dumps({"slugs": {"lastde": oracles}}))
    assert papers.get("lastde").rung == rung
    assert ("lastde" in [paper.id for paper in papers.search(rung=2)]) == (rung >= 2)


@pytest.mark.parametrize(
    ("recorded", "verdict"),
    [
        (None, ""),
        (judged(), ""),
        (judged("shown", "shown"), "shown"),
        (judged("shown", "open"), "open"),
        (judged("open", "refuted here"), "refuted here"),
        (trial("helps"), "shown"),
        (trial("hurts"), "refuted here"),
        (trial("no measurable difference"), "open"),
        (before("helps"), "open"),
        (before("hurts"), "open"),
    ],
)
def test_the_verdict_is_that_of_the_recorded_claims_controls_aside(monkeypatch, tmp_path, recorded, verdict):
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    if recorded:
        evidence.record("lastde", recorded, tmp_path)
    assert papers.get("lastde").verdict == verdict
    assert papers.get("lastde").to_dict()["verdict"] == verdict


def test_the_page_imports_nothing_heavy():
    code = "import sys; from broadsheet.page import papers; "
    code += "papers.search('x'); papers.docstring(papers.get('lastde').trial)"
    check = "; heavy = {'torch', 'numpy', 'transformers', 'rich', 'scipy'} & set(sys.modules); print(sorted(heavy))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
