"""BabelBERT: the loss over sets of words, subword means, language pairs, lexicon induction, word lists."""

import gzip
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import cross_entropy, normalize
from two_processes import both, leave

from broadsheet.console import InputError
from broadsheet.embed import lexical_specialization
from broadsheet.embed.data import lexicon
from broadsheet.embed.data.induction import BilingualLexiconInduction, gold_ranks, induction_scores
from broadsheet.embed.data.lexicon import WordPair
from broadsheet.embed.lexical_specialization import (
    LabelNTXentLoss,
    LanguagePairSampler,
    LexicalSpecialization,
    SubwordMean,
    csls,
    pair_weights,
    word_template,
)

PAIRS = 5


@pytest.fixture
def words():
    """(2 · PAIRS, 6) vectors: first words, then second ones; float64."""
    return torch.randn(2 * PAIRS, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(vectors, labels, **settings):
    made = LabelNTXentLoss(torch.nn.Identity(), **settings)
    return made.compute_loss_from_embeddings(list(vectors.split(len(vectors) // 2)), labels)


# The loss


def test_sets_that_differ_make_the_loss_two_infonce_losses(words):
    first, second = normalize(words, dim=-1).split(PAIRS)

    def infonce(query, right):
        """Against the other column's words and the other words of its own."""
        own = (query @ query.T).masked_fill(torch.eye(PAIRS, dtype=torch.bool), -torch.inf)
        return cross_entropy(torch.cat([query @ right.T, own], 1) / 0.07, torch.arange(PAIRS))

    expected = (infonce(first, second) + infonce(second, first)) / 2
    assert loss_of(words, torch.arange(PAIRS)).item() == pytest.approx(expected.item(), abs=1e-12)


def test_words_of_one_set_are_never_each_others_negatives(words):
    labels = torch.tensor([0, 0, 1, 2, 3])
    both = torch.cat([labels, labels])
    cosines = normalize(words, dim=-1) @ normalize(words, dim=-1).T / 0.07
    terms = []
    for i in range(2 * PAIRS):
        others = [k for k in range(2 * PAIRS) if both[k] != both[i]]
        same = [j for j in range(2 * PAIRS) if j != i and both[j] == both[i]]
        terms += [-cosines[i, [j, *others]].log_softmax(0)[0] for j in same]
    assert len(terms) == 12 + 6  # every ordered pair of a set, not every word once
    assert loss_of(words, labels).item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-12)


def test_one_pair_alone_has_no_loss(words):
    pair = words[[0, PAIRS]].clone().requires_grad_()
    value = loss_of(pair, torch.tensor([7]))
    value.backward()
    assert value.item() == 0
    assert pair.grad.abs().max() == 0


def test_a_high_temperature_leaves_the_number_of_negatives(words):
    value = loss_of(words, torch.arange(PAIRS), temperature=1e9)
    assert value.item() == pytest.approx(math.log(1 + 2 * PAIRS - 2), abs=1e-6)


@pytest.mark.parametrize("similarity", ["cos", "csls"])
def test_lengths_of_vectors_change_nothing(words, similarity):
    scaled = words * torch.rand(len(words), 1, generator=torch.Generator().manual_seed(2)).add(0.1)
    before, after = (loss_of(each, torch.arange(PAIRS), similarity=similarity) for each in (words, scaled))
    assert before.item() == pytest.approx(after.item(), abs=1e-10)


def test_csls_takes_away_what_a_word_has_with_all_others(words):
    cosines = normalize(words, dim=-1) @ normalize(words, dim=-1).T
    found = csls(cosines)
    means = [sum(row[j] for j in range(len(row)) if j != i) / (len(row) - 1) for i, row in enumerate(cosines)]
    assert found[1, 4].item() == pytest.approx((2 * cosines[1, 4] - means[1] - means[4]).item(), abs=1e-12)
    scores, labels = found / 0.07, torch.arange(PAIRS).repeat(2)
    expected = [
        -scores[i, [j, *(k for k in range(2 * PAIRS) if labels[k] != labels[i])]].log_softmax(0)[0]
        for i, j in ((i, (i + PAIRS) % (2 * PAIRS)) for i in range(2 * PAIRS))
    ]
    value = loss_of(words, torch.arange(PAIRS), similarity="csls").item()
    assert value == pytest.approx(torch.stack(expected).mean().item(), abs=1e-10)
    assert value != pytest.approx(loss_of(words, torch.arange(PAIRS)).item(), abs=1e-3)


def test_missing_labels_and_temperatures_are_refused(words):
    with pytest.raises(InputError, match=r"got labels None; expected \(5,\)"):
        loss_of(words, None)
    with pytest.raises(InputError, match="expected a positive number"):
        LabelNTXentLoss(torch.nn.Identity(), temperature=0)
    with pytest.raises(InputError, match="expected one of cos, csls"):
        LabelNTXentLoss(torch.nn.Identity(), similarity="dot")


def _loss_and_gradient(data, rows, gather):
    weight = data["weight"].clone().requires_grad_()
    made = LabelNTXentLoss(torch.nn.Identity(), gather_across_devices=gather)
    value = made.compute_loss_from_embeddings([part[rows] @ weight for part in data["words"]], data["labels"][rows])
    value.backward()
    return value.detach(), weight.grad


def _one_process(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = torch.load(f"{folder}/data.pt", weights_only=True)
    value, gradient = _loss_and_gradient(data, slice(3 * rank, 3 * rank + 3), True)
    dist.all_reduce(gradient)  # what data-parallel training does, with the division
    torch.save([value, gradient / 2], f"{folder}/{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path):
    generator = torch.Generator().manual_seed(5)
    data = {
        "words": torch.randn(2, 6, 4, generator=generator, dtype=torch.float64),
        "weight": torch.randn(4, 4, generator=generator, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 2, 1, 3, 3]),  # a set on both sides of the cut
    }
    torch.save(data, tmp_path / "data.pt")
    both(_one_process, str(tmp_path))
    expected = _loss_and_gradient(data, slice(0, 6), False)
    for rank in range(2):
        value, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert value.item() == pytest.approx(expected[0].item(), rel=1e-12)
        assert torch.allclose(gradient, expected[1], atol=1e-10)


# Subword means


def pooled(states, mask, before, after):
    features = {"token_embeddings": states, "attention_mask": torch.tensor(mask)}
    return SubwordMean(states.shape[-1], before, after)(features)["sentence_embedding"]


@given(
    lengths=st.lists(st.integers(3, 6), min_size=1, max_size=4),
    edges=st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    left=st.booleans(),
    extra=st.integers(0, 3),
)
def test_special_tokens_and_padding_are_left_out(lengths, edges, left, extra):
    before, after = edges
    width = max(lengths) + extra
    states = torch.full((len(lengths), width, 2), float("nan"))
    mask, expected = [], []
    for row, length in enumerate(lengths):
        real = torch.randn(length, 2, generator=torch.Generator().manual_seed(row))
        start = width - length if left else 0
        states[row, start : start + length] = real
        mask.append([int(start <= i < start + length) for i in range(width)])
        expected.append(real[before : length - after].mean(0))
    assert torch.allclose(pooled(states, mask, before, after), torch.stack(expected), atol=1e-6)


def test_a_word_of_one_subword_is_that_state_exactly():
    states = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooled(states, [[1, 1, 1]], 1, 1)[0], states[0, 1])
    assert torch.equal(pooled(states, [[1, 1, 0]], 1, 0)[0], states[0, 1])


def test_a_word_without_subwords_is_refused():
    with pytest.raises(InputError, match="no subword"):
        pooled(torch.zeros(1, 2, 4), [[1, 1]], 1, 1)


def test_edges_are_read_off_the_tokenizer(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    plain, bert = tiny_tokenizer(), tiny_tokenizer()
    special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    bert.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=special
    )
    assert (SubwordMean.of(plain, 8).before, SubwordMean.of(plain, 8).after) == (0, 0)
    assert (SubwordMean.of(bert, 8).before, SubwordMean.of(bert, 8).after) == (1, 1)
    with_start = SubwordMean.of(plain, 8, prefix="<|im_start|> ")
    assert (with_start.before, with_start.after) == (1, 0)
    assert word_template(plain).prefix == "<|endoftext|> "  # not the token that begins a turn
    assert word_template(bert).prefix == " "


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_are_embedded_without_the_first_token_whatever_the_padding(tiny_model, tiny_tokenizer, side, tmp_path):
    from sentence_transformers import SentenceTransformer

    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.padding_side = side
    made = LexicalSpecialization().embedder((model, tokenizer))
    found = made.encode(["the", "there and here"])
    ids = torch.tensor([tokenizer("<|endoftext|> the")["input_ids"]])
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state[0, 1:].mean(0)
    assert ids.shape[1] == 2
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-5)
    made.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
    assert again.encode(["the", "there and here"]) == pytest.approx(found, abs=1e-5)


# Language pairs


@given(
    languages=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30),
    alpha=st.floats(0, 2),
)
def test_weights_sum_to_one_and_follow_alpha(languages, alpha):
    weights = pair_weights(languages, alpha)
    assert weights.sum() == pytest.approx(1)
    assert pair_weights(languages, 1) == pytest.approx(1 / len(languages))
    totals = Counter()
    for pair, weight in zip(languages, pair_weights(languages, 0), strict=True):
        totals[tuple(sorted(pair))] += weight
    assert list(totals.values()) == pytest.approx([1 / len(totals)] * len(totals))


def test_small_language_pairs_come_more_often_than_their_share():
    languages = (("en", "de"),) * 90 + (("de", "en"),) * 10 + (("ka", "th"),) * 4
    sampler = LanguagePairSampler(languages)(range(104), 8, drop_last=False, seed=3)
    drawn = []
    for epoch in range(60):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 13
        drawn += [i for batch in batches for i in batch]
    assert len(drawn) == 60 * 104
    rare = sum(i >= 100 for i in drawn) / len(drawn)
    expected = math.sqrt(4) / (math.sqrt(4) + math.sqrt(100))
    assert rare == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 1 / 2), (1.0, 1 / 10), (2.0, 1 / 82)])
def test_training_draws_language_pairs_by_its_alpha(monkeypatch, tiny_model, tiny_tokenizer, alpha, share):
    pairs = [WordPair(f"a{i}", f"b{i}", f"s{i}", ("en", "de")) for i in range(45)]
    pairs += [WordPair(f"c{i}", f"d{i}", f"t{i}", ("ka", "th")) for i in range(5)]
    given = {}
    monkeypatch.setattr(
        lexical_specialization, "fit", lambda model, rows, loss, out, **settings: given.update(settings)
    )
    method = LexicalSpecialization(alpha=alpha)
    method.fit(method.embedder((tiny_model(), tiny_tokenizer())), pairs)
    sampler = given["batch_sampler"](range(50), 10, drop_last=False, seed=0)
    drawn = []
    for epoch in range(100):
        sampler.set_epoch(epoch)
        drawn += [i >= 45 for batch in sampler for i in batch]
    assert np.mean(drawn) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 5000))


def test_sampling_follows_seed_and_epoch_and_minus_one_shuffles():
    languages = (("a", "b"),) * 20
    made = LanguagePairSampler(languages, alpha=-1)
    one, other = made(range(20), 6, drop_last=True, seed=1), made(range(20), 6, drop_last=True, seed=1)
    assert list(one) == list(other)
    assert len(list(one)) == len(one) == 3
    assert len({i for batch in one for i in batch}) == 18
    before = list(one)
    one.set_epoch(1)
    assert list(one) != before
    assert repr(made) == repr(LanguagePairSampler(languages, alpha=-1))
    with pytest.raises(InputError, match="expected 0 or more, or -1"):
        LanguagePairSampler(languages, alpha=-0.5)


# Induction


@given(arrays(np.float64, (7, 3), elements=st.floats(-1, 1)), st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_scores_lie_in_their_range(vectors, gold):
    scores = induction_scores(gold_ranks(vectors[:3], vectors, [[g] for g in gold]))
    assert 0 < scores["mrr"] <= 1
    assert scores["p@1"] <= scores["mrr"]


def test_nearest_gold_words_score_one_and_others_by_their_rank():
    target = np.eye(4)
    source = np.array([[1, 0.5, 0.1, 0], [0, 0, 1, 0.2]])
    assert induction_scores(gold_ranks(source, target, [[0], [2]])) == {"mrr": 1.0, "p@1": 1.0}
    assert gold_ranks(source, target, [[2], [3]]).tolist() == [3, 2]
    assert gold_ranks(source, target, [[1, 2], [3]]).tolist() == [2, 2]
    assert gold_ranks(source, target, [[2], [3]], [[0], []]).tolist() == [2, 2]


def test_other_gold_words_do_not_stand_in_the_way():
    assert gold_ranks([[1.0, 0, 0]], np.eye(3), [[0]]).tolist() == [1]
    target = np.array([[1, 0.1, 0], [1, 0, 0], [0, 1, 0]])
    assert gold_ranks([[1.0, 0, 0]], target, [[0, 1]]).tolist() == [1]


def test_a_collapsed_encoder_ranks_last():
    assert gold_ranks(np.ones((1, 3)), np.ones((5, 3)), [[2]]).tolist() == [5]


class Spelled:
    """An encoder by letters."""

    def encode(self, words, **others):
        return np.array([[word.lower().count(letter) for letter in "abcdefgh"] for word in words], dtype=float)


def test_case_is_a_fallback_and_missing_words_are_counted():
    task = BilingualLexiconInduction(
        [("aab", "AAB"), ("c", "C"), ("c", "cc"), ("d", "nowhere"), ("zz", "c")], ["aab", "AAB", "CC", "d", "c"]
    )
    assert task.missing_ == 1
    assert task.queries == ["aab", "c", "zz"]
    assert [[task.vocabulary[i] for i in gold] for gold in task.gold] == [["AAB"], ["CC", "c"], ["c"]]
    known = BilingualLexiconInduction([("AAB", "d"), ("x", "d")], ["d"], source_vocabulary=["aab"])
    assert (known.queries, known.missing_) == (["aab"], 1)
    with pytest.raises(InputError, match="none of the 1 pairs"):
        BilingualLexiconInduction([("a", "b")], ["c"])


def test_evaluator_leaves_the_query_out_of_its_own_list():
    pairs, vocabulary = [("ab", "aab"), ("cd", "cdd")], ["ab", "aab", "cd", "cdd", "ef"]
    alone = BilingualLexiconInduction(pairs, vocabulary, exclude_query=True, name="bli")
    assert alone(Spelled()) == {"bli_mrr": 1.0, "bli_p@1": 1.0, "bli_missing": 0.0}
    assert alone.primary_metric == "bli_mrr"
    assert BilingualLexiconInduction(pairs, vocabulary)(Spelled())["mrr"] == 0.5


# Word lists


def test_null_and_quotes_are_words(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text('null\tnan\nNA\t"quoted"\n\nNone\ttrue\n', encoding="utf-8")
    assert [(p.first, p.second, p.label) for p in lexicon.load(str(path))] == [
        ("null", "nan", "null"),
        ("NA", '"quoted"', "NA"),
        ("None", "true", "None"),
    ]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a\tb\tset1\n", WordPair("a", "b", "set1")),
        ("a\ten\tb\tde\n", WordPair("a", "b", "a", ("en", "de"))),
        ("a\ten\tb\tde\ts\n", WordPair("a", "b", "s", ("en", "de"))),
        ("lang1\tword2\tsynsetID\tword1\tlang2\nen\tb\ts\ta\tde\n", WordPair("a", "b", "s", ("en", "de"))),
        ("word1\tword2\tlabel\na\tb\t\n", WordPair("a", "b", "a")),
    ],
)
def test_columns_are_told_by_header_or_number(tmp_path, text, pair):
    (tmp_path / "words.tsv").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "words.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    assert lexicon.load(str(tmp_path / "words.tsv")) == [pair] == lexicon.load(str(tmp_path / "words.tsv.gz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\tb\nc\t\n", r"words\.tsv:2: an empty word2"),
        (b"a\n", r"words\.tsv:1: columns: 1; expected some called word1, word2, or without names 2"),
        (b"\xff\xfea\tb\n", "not UTF-8"),
        (b"\n\n", "holds no word pairs"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "words.tsv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        lexicon.load(str(tmp_path / "words.tsv"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wordnet:/nowhere", "apt install wordnet-base"),
        ("freedict:xxx-yyy", "apt install dict-freedict-xxx-yyy"),
        ("/nowhere.tsv", "give rows of word pairs"),
    ],
)
def test_what_is_missing_is_named(name, message):
    with pytest.raises(InputError, match=message):
        lexicon.load(name)


def test_wordnet_gives_synonyms_in_use_most_used_first(tmp_path):
    (tmp_path / "data.noun").write_text(
        "  1 a licence\n"
        "00000001 06 n 02 car 0 auto 1 001 @ 00000002 n 0000 | a motor vehicle  \n"
        "00000002 06 n 03 big_house 0 mansion 0 hall 2 000 | a large house  \n"
        "00000003 06 n 02 .22-caliber 0 .22_caliber 0 000 | spellings  \n"
    )
    (tmp_path / "data.adj").write_text("00000004 00 s 02 asleep(p) 0 dormant(a) 1 000 | resting  \n")
    for kind in ("verb", "adv"):
        (tmp_path / f"data.{kind}").write_text("")
    (tmp_path / "cntlist.rev").write_text(
        "car%1:06:00:: 1 9\nauto%1:06:01:: 1 2\nbig_house%1:06:00:: 1 7\nmansion%1:06:00:: 1 5\n"
        "asleep%5:00:00:resting:00 1 3\ndormant%5:00:01:resting:00 1 3\n.22-caliber%1:06:00:: 1 9\n"
    )
    found = lexicon.wordnet(tmp_path)
    assert [(p.first, p.second) for p in found] == [("big house", "mansion"), ("asleep", "dormant"), ("car", "auto")]
    assert found[0].languages == ("en", "en")
    assert len({p.label for p in found}) == 3


def test_freedict_gives_the_first_translation_of_each_meaning(tmp_path):
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def coded(number):
        return (digits[number // 64] if number >= 64 else "") + digits[number % 64]

    entries = {
        "00databaseinfo": "English-French dictionary\n  of many words\n",
        "frog": "frog /fr\u0252g/\ngrenouille\n",
        "frivolous": "frivolous /friv@l@s/\n1. frivole, vaniteux\n2. vain\n",
        "front": "front <masc> [geo.]\nfront <masc> [mil.]\n   Synonym: {fore}\n see: {back}\n",
        "long": "long phrase of many words\nlongue phrase\n",
    }
    text, index = "", []
    for word, entry in entries.items():
        index.append(f"{word}\t{coded(len(text.encode()))}\t{coded(len(entry.encode()))}")
        text += entry
    index.append(index[1])  # a headword may be listed twice
    (tmp_path / "freedict-eng-fra.index").write_text("\n".join(index), encoding="utf-8")
    (tmp_path / "freedict-eng-fra.dict.dz").write_bytes(gzip.compress(text.encode()))
    found = lexicon.freedict("eng-fra", tmp_path)
    assert [(p.first, p.second) for p in found] == [
        ("frog", "grenouille"),
        ("frivolous", "frivole"),
        ("frivolous", "vain"),
        ("front", "front"),
    ]
    assert found[1].label == found[2].label
    assert found[0].languages == ("eng", "fra")
    (tmp_path / "freedict-eng-fra.dict.dz").write_bytes(b"broken")
    with pytest.raises(InputError, match="damaged"):
        lexicon.freedict("eng-fra", tmp_path)


def test_abbreviations_are_what_texts_spell_out():
    texts = [
        "Uses an abstract syntax tree (AST) and the mean of squares (MS). Then a fast thing (FFT).",
        "Abstract Syntax Tree (AST); an automatic something test (AST).",
    ]
    found = lexicon.abbreviations(texts)
    assert [(p.first, p.second) for p in found] == [("AST", "abstract syntax tree"), ("MS", "mean of squares")]


def test_words_of_the_test_are_trained_on_in_no_pair():
    pairs = [WordPair("House", "maison", "h"), WordPair("home", "Maison", "h"), WordPair("tree", "arbre", "t")]
    kept, taken = lexicon.without(pairs, ["house", "MAISON"])
    assert (kept, taken) == ([pairs[2]], 2)


def test_words_without_tokens_are_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    lexicon.check_words(["a", "é", "null"], tokenizer)
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(InputError, match="1 words have no token"):
        lexicon.check_words(["a", "\u2003"], tokenizer)


# Training


def test_specialising_brings_sets_together_and_does_not_collapse(tiny_model, tiny_tokenizer, capsys):
    method = LexicalSpecialization()
    words = method.embedder((tiny_model(), tiny_tokenizer()))
    pairs = [WordPair(f"left{c}{c}", f"{c}right", c, ("x", "y")) for c in "abcdefghijkl"]
    pairs.append(WordPair("leftaa", "secret", "s", ("x", "y")))

    def cosines():
        one, other = (
            normalize(torch.tensor(words.encode([getattr(pair, side) for pair in pairs[:-1]])), dim=-1)
            for side in ("first", "second")
        )
        across = one @ other.T
        return across.diagonal().mean().item(), across[~torch.eye(12, dtype=torch.bool)].mean().item()

    before = cosines()
    fitted = method.fit(words, pairs, held_out=["SECRET"], batch_size=6, epochs=12, learning_rate=2e-3, autocast="none")
    after = cosines()
    assert "1 of 13 pairs hold a word of the test" in capsys.readouterr().err
    assert fitted.examples == 12 * 12
    assert after[0] - after[1] > before[0] - before[1] + 0.2  # sets nearer, other words not as near
    assert after[1] < 0.9


def test_nothing_left_to_train_on_is_said(tiny_model, tiny_tokenizer):
    method = LexicalSpecialization()
    words = method.embedder((tiny_model(), tiny_tokenizer()))
    with pytest.raises(InputError, match="no word pair is left"):
        method.fit(words, [WordPair("a", "b", "a")], held_out=["a"])


@pytest.mark.real
def test_real_model_embeds_words_by_their_subwords(default_model):
    words = LexicalSpecialization().embedder(default_model, layer=12)
    found = words.encode(["big", "large", "photosynthesis", "Tuesday"])
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[0, 1] > max(cosines[0, 2], cosines[0, 3])
    assert cosines[0, 3] < 0.99  # the first token's large state is not pooled
