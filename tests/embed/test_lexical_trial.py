"""The trial of BabelBERT: words of the test are seen nowhere before, layers are read as they are, and it runs."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from shown import reasons, shown
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.embed.data.lexicon import WordPair
from broadsheet.embed.data.word_splits import held, shuffled, split_lexicon
from broadsheet.embed.lexical_specialization import LexicalSpecialization
from broadsheet.embed.modules.word_layers import cut_behind, depth, layer_vectors
from broadsheet.embed.trials import lexical_specialization
from broadsheet.embed.trials.lexical_specialization import (
    LAST,
    PEER,
    RATES,
    SHUFFLED,
    SPECIALISED,
    START,
    UNTOUCHED,
    LexicalTrial,
    words_arm,
)
from broadsheet.embed.trials.peers import both_ways
from broadsheet.trial.base import ModelArm
from broadsheet.trial.lazy import LazyModel


def synonyms(count):
    """Sets of three words, in all pairs; every fourth set shares a word with the next."""
    pairs = []
    for i in range(count):
        words = [f"w{i}a", f"w{i}b", f"w{i + 1}a" if i % 4 == 0 else f"w{i}c"]
        pairs += [WordPair(one, other, f"s{i}", ("en", "en")) for one in words for other in words if one < other]
    return pairs


def test_no_word_of_the_test_is_seen_before_it():
    pairs = synonyms(60)
    split = split_lexicon(pairs, 12, 8, 1000, 100, seed=1)
    test, dev = split.test.words, split.dev.words
    trained = {word for pair in split.train for word in (pair.first, pair.second)}
    assert not test & dev
    assert not test & trained
    assert not dev & trained
    assert len({query for query, _ in split.test.pairs}) == 12
    assert split_lexicon(pairs, 12, 8, 1000, 100, seed=1) == split != split_lexicon(pairs, 12, 8, 1000, 100, seed=2)


def test_every_right_answer_is_known_and_in_the_vocabulary():
    pairs = synonyms(60)
    split = split_lexicon(pairs, 12, 8, 30, 60)
    partners = Counter()
    for pair in pairs:
        partners[pair.first] += 1
        partners[pair.second] += 1
    task = split.test.task()
    assert len(split.train) == 30
    assert task.missing_ == 0
    assert [len(gold) for gold in task.gold] == [partners[query] for query in task.queries]
    assert len(task.vocabulary) == 60
    own = [task.vocabulary.index(query) for query in task.queries if query in task.vocabulary]
    assert own
    assert [place for excluded in task.excluded for place in excluded] == own


def test_translations_are_searched_in_the_other_language():
    pairs = [WordPair(f"e{i}", f"f{i % 30}", f"e{i}", ("eng", "fra")) for i in range(40)]
    pairs += [WordPair("f1", "e1x", "back", ("fra", "eng"))]
    split = split_lexicon(pairs, 5, 5, 100, 20)
    assert all(word.startswith("f") for word in split.test.vocabulary)
    assert all(query.startswith("e") for query, _ in split.test.pairs)
    assert not split.test.same_language


def test_a_small_list_is_refused():
    with pytest.raises(InputError, match="10 sets; 8 \\+ 4 queries need more"):
        split_lexicon(synonyms(10), 8, 4, 10, 10)


@pytest.fixture
def words(tiny_model, tiny_tokenizer):
    return LexicalSpecialization().embedder((tiny_model(num_hidden_layers=3), tiny_tokenizer()))


def test_layers_are_read_in_one_pass_as_cutting_reads_them(words):
    texts = ["the", "there and here", "x"]
    found = layer_vectors(words, texts, batch_size=2)
    assert len(found) == depth(words) + 1 == 4
    assert found[3] == pytest.approx(words.encode(texts), abs=1e-5)
    embedded = words.encoder.model.get_input_embeddings()
    ids = words.tokenizer("<|endoftext|> the")["input_ids"][1:]
    with torch.no_grad():
        assert found[0][0] == pytest.approx(embedded(torch.tensor(ids)).mean(0).numpy(), abs=1e-6)
    for layer in (0, 1, 2, 3):
        assert cut_behind(words, layer).encode(texts) == pytest.approx(found[layer], abs=1e-5)
    with pytest.raises(InputError, match="expected one of 0 to 3"):
        cut_behind(words, 4)


def test_layers_of_another_transformer_are_cut_off(tmp_path, tiny_tokenizer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=272, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    plain = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16, "mean")])
    made = LexicalSpecialization().adopt(plain)
    texts = ["the", "there and here"]
    found = layer_vectors(made, texts)
    assert made.encode(texts) == pytest.approx(found[3], abs=1e-5)
    cut = cut_behind(made, 2)
    assert cut.encode(texts) == pytest.approx(found[2], abs=1e-5)
    cut.save(str(tmp_path / "cut"))
    again = SentenceTransformer(str(tmp_path / "cut"), trust_remote_code=True)
    assert again.encode(texts) == pytest.approx(found[2], abs=1e-5)


def test_arm_ranks_and_tells_how_near_unlike_words_are():
    task = split_lexicon(synonyms(40), 6, 4, 10, 20).test.task()

    class Same:
        def eval(self):
            return self

        def encode(self, words, **others):
            return np.ones((len(words), 3))

    class Exact(Same):
        def encode(self, words, **others):
            return np.array([[float(word[1:-1]), 1.0] for word in words])

    for model, cosine in ((Same(), 1.0), (Exact(), None)):
        arm = words_arm(ModelArm.of("x", model), LazyModel(lambda model=model: model), task)
        arm.prepare()
        made = arm.run(range(len(task.queries)))
        assert len(made["RR"]) == len(made["P@1"]) == 6
        assert all(near not in out for near, out in zip(made["nearest"], task.excluded, strict=True))
        firsts = [near in gold for near, gold in zip(made["nearest"], task.gold, strict=True)]
        assert firsts == [rank == 1 for rank in made["P@1"]] or cosine, "the nearest is right where P@1 says so"
        if cosine:
            assert made["cosine"] == pytest.approx([1.0] * 6)
            assert max(made["RR"]) < 0.1  # not the first, as all words are alike
        else:
            assert np.mean(made["P@1"]) > 0.5


def test_trial_runs_on_a_word_list(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    lines = [f"{pair.first}\t{pair.second}\t{pair.label}" for pair in synonyms(30)]
    (tmp_path / "words.tsv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "sts.tsv").write_text("score\tsentence1\tsentence2\n1\ta b\ta c\n3\tb\tb\n2\tc\td d\n0\te\tf\n")
    trial = LexicalTrial(
        model=str(tiny_folder),
        quick=True,
        words=(str(tmp_path / "words.tsv"),),
        queries=6,
        steps=2,
        runs=2,
        layer=1,
        sts=str(tmp_path / "sts.tsv"),
    )
    result = trial.run()
    beside = [] if trial._best == 1 else [START]
    assert [arm.name for arm in result.arms] == [UNTOUCHED, SPECIALISED, SHUFFLED, PEER, *beside, LAST]
    assert result.comparison("MRR", PEER, SPECIALISED)
    assert [arm.role for arm in result.arms[:4]] == ["baseline", "method", "sibling", "peer"]
    assert all(arm.status == "ok" for arm in result.arms), [arm.error for arm in result.arms]
    assert {"MRR", "P@1", "cosine of unlike words", "Spearman"} <= set(result.arms[1].values)
    assert set(result.claims) == {("MRR", baseline, SPECIALISED) for baseline in (UNTOUCHED, SHUFFLED)}
    cosines = [arm.samples["cosine"] for arm in result.arms]
    assert cosines[0] != cosines[1] != cosines[2] != cosines[-1]  # the untouched arms have weights of their own
    found, *_ = shown(result)
    nearest = result.arms[0].samples["nearest"]
    assert found.answers[UNTOUCHED][2:] in {next(iter(trial._asked.values())).vocabulary[i] for i in nearest}
    assert found.answers[UNTOUCHED].startswith("✓") == (found.answers[UNTOUCHED][2:] in found.expected)
    assert len(result.figures[0].x) == 3
    assert differ(trial, SPECIALISED, SHUFFLED)
    assert differ(trial, SPECIALISED, PEER)
    kept = [json.loads((trial.folder(n) / "training.json").read_text())["settings"] for n in (SPECIALISED, PEER)]
    ours, theirs = (each.pop("objective") for each in kept)
    assert kept[0] == kept[1], "the same training"
    assert "LabelNTXentLoss" in json.dumps(ours)
    assert "MultipleNegativesRankingLoss" in json.dumps(theirs)
    trial.finish()


def test_each_trained_arm_has_the_rate_that_finds_most_of_other_words(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    lines = [f"{pair.first}\t{pair.second}\t{pair.label}" for pair in synonyms(30)]
    (tmp_path / "words.tsv").write_text("\n".join(lines), encoding="utf-8")
    told = {
        SPECIALISED: (0.2, 0.9, 0.5),
        SHUFFLED: (0.2, 0.3, 0.5, 0.4),
        PEER: (0.6, 0.3, 0.5, 0.1),
    }  # the last of four beyond
    tuned = iter([score for scores in told.values() for score in scores])
    layers, asked = lexical_specialization._found, []

    def found(dev, vectors):
        asked.append(dev)
        return layers(dev, vectors) if len(asked) == 1 else [next(tuned)]

    monkeypatch.setattr(lexical_specialization, "_found", found)
    words = (str(tmp_path / "words.tsv"),)
    trial = LexicalTrial(model=str(tiny_folder), words=words, queries=6, steps=2, batch=4, runs=1, layer=1)
    result = trial.run()
    assert next(tuned, None) is None
    assert asked == 12 * [next(iter(trial._splits.values())).dev], "not on what the test asks"
    best = {SPECIALISED: RATES["full"][1], SHUFFLED: RATES["full"][2], PEER: RATES["full"][0]}
    assert trial._rates == best
    for name, rate in best.items():
        made = json.loads((trial.folder(name) / "training.json").read_text())
        assert made["settings"]["learning_rate"] == rate, "the arm is the run that was best"
        assert f"{rate:g} ({name})" in result.setting["training"]
    trial.finish()


def test_several_lists_train_one_model_and_are_asked_apart(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    lines = [f"{pair.first}\t{pair.second}\t{pair.label}" for pair in synonyms(30)]
    (tmp_path / "words.tsv").write_text("\n".join(lines), encoding="utf-8")
    translated = [f"w{i}a\teng\tf{i}\tfra\tt{i}" for i in range(30)]
    (tmp_path / "french.tsv").write_text("\n".join(translated), encoding="utf-8")
    lists = (str(tmp_path / "words.tsv"), str(tmp_path / "french.tsv"))
    chosen_on: list[Any] = []
    found = lexical_specialization._found
    monkeypatch.setattr(
        lexical_specialization,
        "_found",
        lambda asked, vectors: (chosen_on.append(asked), found(asked, vectors))[1],
    )
    trial = LexicalTrial(model=str(tiny_folder), quick=True, words=lists, queries=4, steps=2, runs=1)
    result = trial.run()
    assert chosen_on == [split.dev for split in trial._splits.values()], "not on what the test asks"
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert {claim.metric for claim in result.judged} == {"MRR of words", "MRR of french"}
    asked = held(trial._splits)
    trained = {word for split in trial._splits.values() for pair in split.train for word in (pair.first, pair.second)}
    assert not {word.casefold() for word in asked} & {word.casefold() for word in trained}
    assert all(split.train for split in trial._splits.values())
    assert sum("right answers on average" in note for note in result.notes) == 2
    why = reasons(result)
    assert why.keys() == {"MRR of words", "MRR of french"}, "one run decides nothing"
    pairs = sum(len(split.train) for split in trial._splits.values())
    assert all(f"draws {2 * trial.batch} times from {pairs} pairs." in each for each in why.values())
    trial.finish()


def test_the_peer_sees_both_words_of_each_pair_as_the_paper_does(words):
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(6, 8, generator=generator) for _ in range(2)]
    loss = both_ways(words, 0.1)
    first, second = (float(loss.compute_loss_from_embeddings(each, None)) for each in (vectors, vectors[::-1]))
    similar = torch.nn.functional.normalize(torch.cat(vectors), dim=-1)
    similar = similar @ similar.T / 0.1
    own = torch.eye(6, dtype=torch.bool).repeat(2, 2)
    wrong = similar.masked_fill(own, -torch.inf)
    for found, start in ((first, 0), (second, 6)):
        right = similar[range(start, start + 6), range(6 - start, 12 - start)]
        every = torch.cat([wrong[:6], wrong[6:]], 1)
        # Each word of a pair stands beside all words of the others; the right one counts in both directions.
        expected = (torch.logsumexp(torch.cat([every, right[:, None], right[:, None]], 1), 1) - right).mean()
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_shuffled_pairs_keep_their_words_and_languages_and_mean_nothing():
    pairs = [WordPair(f"e{i}", f"f{i}", f"s{i // 2}", ("eng", "fra")) for i in range(40)]
    pairs += [WordPair(f"d{i}", f"g{i}", f"d{i}", ("deu", "eng")) for i in range(40)]
    made = shuffled(pairs, 1)
    for languages in (("eng", "fra"), ("deu", "eng")):
        before, after = ([pair for pair in some if pair.languages == languages] for some in (pairs, made))
        for side in ("first", "second"):
            assert sorted(getattr(p, side) for p in before) == sorted(getattr(p, side) for p in after)
    assert len({pair.label for pair in made}) == 80
    same = {(pair.first, pair.second) for pair in pairs} & {(pair.first, pair.second) for pair in made}
    assert len(same) < 10
    assert shuffled(pairs, 1) == made != shuffled(pairs, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": ("abbreviations",), "data": "texts.jsonl"}, "spells out no abbreviations"),
        ({"words": ("wordnet:/nowhere",)}, "apt install wordnet-base"),
        ({"words": ("a.tsv",), "data": "mine.jsonl"}, "the data gives abbreviations alone"),
        ({"words": ("a.tsv", "a.tsv")}, "expected each value once"),
        ({"words": ()}, "expected one list at least"),
        ({"batch": 1}, "got --batch 1; expected 2 or more"),
    ],
)
def test_options_that_cannot_be_are_said(tmp_path, tiny_folder, monkeypatch, options, message):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    (tmp_path / "texts.jsonl").write_text('{"text": "nothing here"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        LexicalTrial(model=str(tiny_folder), **options).run()
