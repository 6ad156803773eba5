"""The retrieval test made from documentation: fair candidates, splits that share nothing."""

from __future__ import annotations

import random

import pytest

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.data.retrieval.documentation import Documentation

NOUNS = ["path", "list", "file", "graph", "matrix", "token", "socket", "queue", "image", "model", "tree", "lock"]
VERBS = ["join", "sort", "close", "draw", "invert", "read", "open", "drain", "crop", "fit", "walk", "hold"]


def rows(n: int = 600, packages: int = 12) -> list[Document]:
    """Docstrings with a summary of their own and a body that shares some of its words."""
    generator = random.Random(0)
    found = []
    for i in range(n):
        verb, noun = generator.choice(VERBS), generator.choice(NOUNS)
        summary = f"{verb.title()} the {noun} number{i} of {generator.choice(NOUNS)} twice."
        filler = [f"{generator.choice(VERBS)}{generator.randrange(9)}" for _ in range(14)]
        body = " ".join([*([verb, noun, f"number{i}"] if i % 3 else [f"word{i}"]), *filler])
        package = f"package{i % packages}"
        metadata = {
            "kind": "function", "package": package, "module": f"{package}.m", "title": f"{package}.m.f{i}",
            "summary": summary, "body": body,
        }  # fmt: skip
        found.append(Document(f"{package}.m.f{i}", f"{summary}\n\n{body}", metadata))
    return found


def row(name: str, summary: str, body: str, package: str = "p") -> Document:
    metadata = {
        "kind": "function", "package": package, "module": package, "title": name, "summary": summary, "body": body
    }  # fmt: skip
    return Document(name, f"{summary}\n\n{body}", metadata)


BODY = "Every part after the first one is joined by a slash, and what is empty is left out of the result."


def test_candidates_are_never_shown_with_the_right_one_first_by_construction():
    """Bodies that say less about their own number than others do: BM25 puts them second, and there they stay."""
    words = [f"filler{i}" for i in range(12)]
    given = [
        row(
            f"r{i}",
            f"Ask for thing{i} here now.",
            " ".join([f"thing{i}", *words[i % 12 :], f"x{i} y{i} z{i} u{i}", *words]),
        )
        for i in range(40)
    ]
    loud = [row(f"l{i}", "Nothing asks for this.", " ".join([f"thing{i} here"] * 8 + [f"v{i}"])) for i in range(40)]
    seed = next(s for s in range(50) if Documentation(given, seed=s).held_out("p"))
    lists = Documentation([*given, *loud], seed=seed).test(40, candidates=5)
    assert {each.labels.index(1) for each in lists} == {1}


def test_a_test_list_holds_bm25s_order_and_keeps_queries_that_bm25_missed():
    docs = Documentation(rows())
    lists = docs.test(60, candidates=10)
    assert len(lists) == 60
    missed = [each for each in lists if not each.found]
    assert 0 < len(missed) < 60
    first = 0
    for each in lists:
        assert len(set(each.ids)) == 10 == len(each.documents)
        assert list(each.scores) == sorted(each.scores, reverse=True)
        assert each.judged == {each.id: 1}
        assert sum(each.labels) == each.found
        first += each.labels[0]
    assert 0 < first <= 60 - len(missed)


def test_lists_that_can_be_answered_are_those_of_the_test_that_bm25_found():
    docs = Documentation(rows())
    lists, asked = docs.answerable(20, candidates=10)
    assert len(lists) == 20 < asked
    assert all(each.found for each in lists)
    whole = {each.id: each for each in docs.test(60, candidates=10)}
    assert all(each == whole[each.id] for each in lists if each.id in whole)
    assert any(each.id in whole for each in lists)
    with pytest.raises(InputError, match="expected 5000: ask for fewer"):
        docs.answerable(5000, candidates=10)


def test_test_and_training_share_no_package_and_no_training_passage_is_of_the_test():
    docs = Documentation(rows())
    test, train = docs.test(60), docs.train(60)
    assert {each.group for each in test}.isdisjoint({each.group for each in train})
    assert all(docs.held_out(each.group) for each in test)
    shown = {identifier.split(".")[0] for each in train for identifier in each.ids}
    assert not any(docs.held_out(package) for package in shown)
    assert any(not docs.held_out(i.split(".")[0]) for each in test for i in each.ids)  # candidates are of everything


def test_pairs_are_the_queries_of_the_test_or_come_from_packages_that_it_does_not_have():
    docs = Documentation(rows())
    test, train = docs.pairs(60, held_out=True), docs.pairs(90, held_out=False)
    assert [(each.id, each.summary) for each in test] == [(each.id, each.query) for each in docs.test(60)]
    assert {entry.package for entry in test}.isdisjoint({entry.package for entry in train})
    assert all(entry.unique and entry in docs.entries for entry in test + train)
    assert len({entry.id for entry in train}) == 90
    assert docs.pairs(90, held_out=False) == train != Documentation(rows(), seed=1).pairs(90, held_out=False)
    able = sum(entry.unique and not docs.held_out(entry.package) for entry in docs.entries)
    assert len(docs.pairs(100_000, held_out=False)) == able
    with pytest.raises(InputError, match="expected 100000: ask for fewer"):
        docs.pairs(100_000, held_out=True)
    with pytest.raises(InputError, match="got 0 pairs"):
        docs.pairs(0, held_out=True)


def test_the_same_seed_gives_the_same_lists_and_another_seed_others():
    test = Documentation(rows(), seed=1).test(30)
    assert test == Documentation(rows(), seed=1).test(30)
    assert [each.id for each in test] != [each.id for each in Documentation(rows(), seed=2).test(30)]
    assert Documentation(rows(), seed=1).fingerprint() == Documentation(rows(), seed=2).fingerprint()
    assert Documentation(rows(), words=5).fingerprint() != Documentation(rows()).fingerprint()


def test_no_package_has_more_than_its_share_while_others_have_queries():
    given = rows(600, packages=40)
    for document in given[:300]:
        document.metadata["package"] = "huge"
    seeds = [s for s in range(50) if Documentation(given[:5], seed=s).held_out("huge")]
    for seed in seeds[:3]:
        groups = [each.group for each in Documentation(given, seed=seed).test(40)]
        others = len(set(groups)) - 1
        assert others > 5
        assert groups.count("huge") == max(4, 40 - 4 * others), others


def test_training_lists_hold_the_right_passage_and_draw_others_from_the_depth():
    docs = Documentation(rows())
    near, far = docs.train(40, 5), docs.train(40, 5, depth=300)
    assert all(each.found and len(each.ids) == 5 for each in near + far)
    found = {each.id: each for each in near}
    assert any(each.id not in found for each in far)  # what stood below the fifth place can be learned from
    assert any(set(each.ids) - set(found[each.id].ids) for each in far if each.id in found)
    assert all(list(each.scores) == sorted(each.scores, reverse=True) for each in far)


def test_passages_leave_the_summary_out_and_are_cut():
    docs = Documentation([row("f", "Join two paths here.", f"Note: Join two paths here. {BODY}")], words=15)
    assert docs.entries[0].text == "Note: Every part after the first one is joined by a slash, and what is"
    assert len(Documentation([row("f", "Join two paths here.", BODY)], words=0).entries[0].text.split()) == 21


def test_titles_are_shown_and_searched_when_asked_for():
    given = [*rows(), *(row(f"zz{i}.walrus", f"Feed the walrus some fish{i}.", BODY + f" w{i}") for i in range(1))]
    for document in given:
        document.metadata["package"] = "p"
    seed = next(s for s in range(50) if Documentation(given[:5], seed=s).held_out("p"))
    plain, titled = Documentation(given, seed=seed), Documentation(given, titles=True, seed=seed)
    n = sum(entry.unique for entry in plain.entries)
    ranked = {docs.titles: {each.id: each for each in docs.test(n, 1)} for docs in (plain, titled)}
    assert ranked[True]["zz0.walrus"].documents[0]["title"] == "zz0.walrus"
    assert ranked[True]["zz0.walrus"].found
    assert not ranked[False]["zz0.walrus"].found


def test_duplicates_and_ambiguous_summaries_ask_nothing():
    other = "The queue is drained into a list before the socket closes, unless it was drained by another thread."
    docs = Documentation(
        [
            row("a", "Join two paths here.", BODY),
            row("b", "Join two paths there.", BODY.replace("slash", "dash")),
            row("c", "Close the socket now.", other),
            row("d", "close the socket now", f"{BODY} {other[:40]} and then something else altogether happens to it."),
            row("e", "f(a, b) -> Tensor of things", f"{other[30:]} A signature is not what people type into a box."),
            row(
                "f", "Too short.", f"Nobody asks in two words. {BODY[50:]} So this passage can be found but not asked."
            ),
            row("g", "Body too short here.", "only five words are here"),
        ]
    )
    assert {entry.id: entry.unique for entry in docs.entries} == {
        "a": True, "c": False, "d": False, "e": False, "f": False
    }  # fmt: skip
    assert docs.dropped == {"near-duplicate": 1, "body shorter than 12 words": 1}


def test_a_corpus_without_docstrings_and_too_many_queries_are_refused():
    with pytest.raises(InputError, match="no docstrings with a summary"):
        Documentation([Document("a", "text", {})])
    with pytest.raises(InputError, match=r"queries from held-out packages; expected 100000"):
        Documentation(rows()).test(100_000)
    with pytest.raises(InputError, match="0 candidates"):
        Documentation(rows()).test(5, candidates=0)
    with pytest.raises(InputError, match="-1 words"):
        Documentation(rows(), words=-1)
