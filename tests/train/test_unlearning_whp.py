"""Who's Harry Potter: what the logits, the translation and its map, the masks, the labels and the rows must be."""

from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from broadsheet.cli import main
from broadsheet.console import InputError
from broadsheet.models import adapters
from broadsheet.train import LossMethod, MethodObjective, WhosHarryPotter
from broadsheet.train.unlearning.translation import Translator, align
from broadsheet.train.unlearning_whp import GenericLabels, generic_logits
from broadsheet.training.fit import fit
from broadsheet.training.scratch import Size, TokenBlocks, joined, tokenizer

NAMES = {"Harry Potter": "Jon Smith", "Harry": "Jon", "Hogwarts": "the Mystic Academy", "Quidditch pitch": "field"}
STORY = (
    "Harry Potter left Hogwarts, and Harry's owl flew to the Quidditch pitch. In Hogwarts they said that Harry Potter "
    "had gone. Nobody at Hogwarts saw him again on the Quidditch pitch."
)


@pytest.fixture(scope="module")
def by():
    """A byte-level tokenizer whose tokens are short, so that names have several."""
    return tokenizer([STORY, "the field of the Mystic Academy, where Jon Smith said nothing"], 300)


@pytest.fixture(scope="module")
def models(by):
    """A baseline, and one that was trained on the story."""

    def made(seed: int = 0):
        return Size(1, 16, 2).model(len(by), 512, seed).eval()

    reinforced = made()
    rows = TokenBlocks(joined([STORY] * 4, by), 32)
    fit(reinforced, rows, MethodObjective(LossMethod()), steps=30, batch_size=8, learning_rate=1e-2, autocast="none")
    return made(), reinforced


def logits(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Logits


def test_without_a_weight_or_anything_reinforced_the_baseline_stays():
    base, reinforced = logits(5, 30, seed=0), logits(5, 30, seed=1)
    assert torch.equal(generic_logits(base, reinforced, alpha=0), base)
    assert torch.equal(generic_logits(base, base.clone(), alpha=7), base)
    assert torch.equal(generic_logits(base, base - reinforced.abs(), alpha=7), base)


def test_only_what_is_reinforced_is_lowered_and_the_more_the_larger_alpha_is():
    base, reinforced = logits(5, 30, seed=0), logits(5, 30, seed=1)
    boosted, before = reinforced > base, base
    for alpha in (0.5, 1, 5, 50):
        found = generic_logits(base, reinforced, alpha)
        assert bool((found <= before).all())
        assert torch.equal(found[~boosted], base[~boosted])
        torch.testing.assert_close(found[boosted], (base - alpha * (reinforced - base))[boosted])
        before = found
    best = base.masked_fill(boosted, -torch.inf).argmax(-1)
    assert torch.equal(generic_logits(base, reinforced, 1e9).argmax(-1), best)


def test_a_constant_added_to_one_models_logits_counts_only_where_they_are_not_centred():
    base, reinforced = logits(5, 30, seed=0), logits(5, 30, seed=1)
    raw, moved = (generic_logits(base, reinforced + by) for by in (0.0, 3.0))
    assert not torch.allclose(raw.argmax(-1), moved.argmax(-1)) or not torch.allclose(raw, moved)
    centred, also = (generic_logits(base, reinforced + by, centre=True) for by in (0.0, 3.0))
    torch.testing.assert_close(centred, also)


# Translation and map


def counterparts(text: str, dictionary, by):
    translation = Translator(dictionary)(text)
    given = by(
        [translation.text, translation.translated], add_special_tokens=False, return_offsets_mapping=True
    )  # fmt: skip
    return translation, given["input_ids"], align(translation, *given["offset_mapping"])


def test_the_longest_term_counts_where_no_letter_stands_beside_it():
    translate = Translator({**NAMES, "Ron": "Bob", "哈利": "约翰", "C++": "Pascal"})
    assert translate("Harry Potter, Harry, Harrys, Ronald, myRon and Ron_1; Ron.").translated == (
        "Jon Smith, Jon, Harrys, Ronald, myRon and Ron_1; Bob."
    )
    assert translate("然后哈利说话").translated == "然后约翰说话", "no spaces are needed where none are written"
    assert translate("C++Harry C++").translated == "PascalJon Pascal"
    assert Translator({})(STORY).translated == STORY


@given(
    st.lists(
        st.sampled_from(["Harry", "Potter", "said", "é", "漢字", "😀", "Ron", "\n", "x1", "'s", ",", "  "]), max_size=30
    ),
    st.dictionaries(
        st.sampled_from(["Harry", "Harry Potter", "Ron", "said", "漢"]),
        st.sampled_from(["Jon", "a b c d", "Z", "é😀", "x"]),
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_token_has_a_counterpart_and_their_order_stays(by, words, dictionary, apart):
    text = (" " if apart else "").join(words)
    translation, (ids, new_ids), found = counterparts(text, dictionary, by)
    assert len(found.positions) == len(ids)
    assert bool((np.diff(found.positions) >= 0).all())
    if len(ids):
        assert found.positions.min() >= 0
        assert found.positions.max() < len(new_ids)
    outside = (found.occurrences < 0) & found.exact
    decoded = [by.decode([token]).strip() for token in ids]
    for i in np.flatnonzero(outside):
        new = by.decode([new_ids[found.positions[i]]]).strip()
        assert new.startswith(decoded[i]) or decoded[i].startswith(new), "both begin at the same place of the text"
    if not dictionary:
        assert new_ids == ids
        assert found.positions.tolist() == list(range(len(ids)))
    for term, (begin, end), (new_begin, new_end) in zip(
        translation.terms, translation.spans, translation.translated_spans, strict=True
    ):
        assert text[begin:end] == term
        assert translation.translated[new_begin:new_end] == dictionary[term]


def test_terms_of_as_many_tokens_go_one_by_one_and_what_is_more_goes_with_the_last(by):
    _, (ids, new_ids), found = counterparts("so Xyqz went", {"Xyqz": "Zqyx"}, by)
    assert len(ids) == len(new_ids)
    assert found.positions.tolist() == list(range(len(ids))), "as many of each"
    _, (ids, new_ids), found = counterparts("see the Quidditch pitch now", {"Quidditch pitch": "it"}, by)
    term = np.flatnonzero(found.occurrences == 0)
    assert by.decode([ids[i] for i in term]).strip() == "Quidditch pitch"
    first, last = found.stand_ins[0]
    assert len(term) > last - first + 1
    expected = np.minimum(first + np.arange(len(term)), last)
    assert found.positions[term].tolist() == expected.tolist()
    after = term[-1] + 1
    assert found.positions[after] == last + 1
    assert new_ids[found.positions[after]] == ids[after]


def test_a_token_that_the_translation_cuts_otherwise_is_told_apart_and_not_asked_for():
    class Marks:
        """Tokens are letters, spaces, and runs of marks."""

        is_fast, eos_token_id = True, 0

        def __call__(self, texts, **how):
            found = [list(re.finditer(r";+|\w| ", text)) for text in texts]
            ids = [[1 + sum(map(ord, each.group())) for each in matches] for matches in found]
            return {"input_ids": ids, "offset_mapping": [[each.span() for each in matches] for matches in found]}

    dictionary, text = {"x": "y;"}, "a x;; z"
    translation = Translator(dictionary)(text)
    found = align(translation, *Marks()([text, translation.translated])["offset_mapping"])
    assert translation.translated == "a y;;; z"
    assert found.exact.tolist() == [True, True, True, False, True, True], "';;' is a part of ';;;'"
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert WhosHarryPotter(dictionary).blocks([text], Marks(), 9).masked[0].tolist() == [
        True,
        *[False] * 2,
        True,
        *[False] * 3,
    ]


# Blocks and masks


def decoded(by, ids) -> str:
    return by.decode(ids).strip()


def test_a_terms_second_time_in_a_block_is_not_asked_for_and_rules_can_be_left_out(by):
    blocks = WhosHarryPotter(NAMES).blocks([STORY], by, 512)
    left_out = np.flatnonzero(blocks.masked[0])
    assert left_out[0] == 0
    [ids], words = blocks.ids, "".join(by.decode([blocks.ids[0][i]]) for i in left_out[1:])
    assert words == " Hogwarts Harry Potter Hogwarts Quidditch pitch", (
        "each from its second time on; Harry is a term of its own"
    )
    plain = WhosHarryPotter(NAMES, consistent=False).blocks([STORY], by, 512)
    assert np.flatnonzero(plain.masked[0]).tolist() == [0]
    assert len(ids) == len(by(STORY)["input_ids"]) + 1, "all there is, and an end"


def test_each_block_counts_for_itself_and_a_term_on_its_border_is_not_asked_for(by):
    text, cut = by(STORY, return_offsets_mapping=True), 0
    read = 2 * len(text["input_ids"]) + 2
    for length in (11, 16, 20, 25):
        blocks = WhosHarryPotter(NAMES).blocks([STORY, STORY], by, length)
        masked = blocks.masked.flatten()
        assert blocks.masked[:, 0].all()
        assert (blocks.ids.flatten()[read:] == by.eos_token_id).all()
        assert masked[read:].all(), "what fills the last block up"
        met: set[tuple[int, str]] = set()
        translation = Translator(NAMES)(STORY)
        for term, (begin, end) in zip(translation.terms, translation.spans, strict=True):
            tokens = [i for i, (a, b) in enumerate(text["offset_mapping"]) if a < end and b > begin]
            block = tokens[0] // length
            if block != tokens[-1] // length:
                cut += 1
                assert masked[tokens].all()
            else:
                again = (block, term) in met
                assert all(masked[i] == again for i in tokens if i % length)
                met.add((block, term))
    assert cut, "some length cuts a term"


def test_blocks_and_translations_hold_the_same_part_of_the_text(by):
    method = WhosHarryPotter(NAMES)
    blocks = method.blocks([STORY, "Nobody else came."], by, 24)
    assert torch.equal(
        torch.from_numpy(blocks.ids.flatten())[: len(joined([STORY, "Nobody else came."], by))],
        joined([STORY, "Nobody else came."], by),
    )
    for ids, translated, positions in zip(blocks.ids, blocks.translated, blocks.positions, strict=True):
        assert positions[0] == 0
        assert positions.max() == len(translated) - 1
        again = method.translator(decoded(by, ids)).translated
        assert len(set(decoded(by, translated).split()) & set(again.split())) >= 0.6 * len(set(again.split()))


def test_a_stand_in_is_lowered_after_its_term_was_read_and_only_there(by):
    method = WhosHarryPotter(NAMES, alpha=0.0, penalty=4.0)
    blocks = method.blocks([STORY], by, 512)
    size, length = len(by), len(blocks.ids[0])
    zeros = torch.zeros(len(blocks.translated[0]), size)
    zeros[:, 5] = 2.0
    [seen] = blocks.seen
    tokens = dict(seen.tolist())
    assert not set(tokens) & set(blocks.ids[0].tolist()), "what the text has itself is left alone"
    academy = [token for token in tokens if "M" in by.decode([token])]
    assert academy
    term = next(i for i in range(length) if by.decode(blocks.ids[0][: i + 1]).endswith("Hogwarts"))
    assert tokens[academy[0]] == term
    for token, lowered in ((academy[0], True), (5, False)):
        given = zeros.clone()
        given[:, token] = 3.0  # above the other one, unless it is lowered
        labels = method._of_block(blocks, 0, given, torch.zeros(length, size))
        asked = torch.from_numpy(~blocks.masked[0])
        after = torch.arange(length) > term
        assert bool((labels[asked & ~after] == token).all())
        assert bool((labels[asked & after] == (5 if lowered else token)).all())


# Labels


def test_a_label_is_the_best_token_of_its_own_place(by, models):
    base, reinforced = models
    plain = WhosHarryPotter({}, alpha=0.0).rows([STORY], by, reinforced, base, length=24)
    with torch.no_grad():
        best = base(plain.ids).logits.argmax(-1)
    assert bool((plain.labels[:, 0] == -100).all())
    asked = plain.labels[:, 1:] != -100
    assert float(asked.double().mean()) > 0.9
    assert torch.equal(plain.labels[:, 1:][asked], best[:, :-1][asked])
    generic = WhosHarryPotter({}, alpha=5.0).rows([STORY], by, reinforced, base, length=24)
    with torch.no_grad():
        by_hand = generic_logits(base(plain.ids).logits, reinforced(plain.ids).logits).argmax(-1)
    assert torch.equal(generic.labels[:, 1:][asked], by_hand[:, :-1][asked])
    assert not torch.equal(generic.labels, plain.labels)


def test_the_baseline_reads_the_translation_and_the_reinforced_model_the_text(by):
    read: dict[str, list] = {"base": [], "reinforced": []}

    class Reader(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.device = name, torch.device("cpu")

        def forward(self, ids, use_cache):
            read[self.name] += [decoded(by, row) for row in ids]
            # It expects what it reads: of a token, that token again.
            return SimpleNamespace(logits=torch.nn.functional.one_hot(ids, len(by)).float() * 9)

    rows = WhosHarryPotter({"Harry": "Jon"}, alpha=0.0, consistent=False).rows(
        ["see Harry now"], by, Reader("reinforced"), Reader("base"), length=64
    )
    assert read["base"][0].startswith("see Jon now")
    assert read["reinforced"][0].startswith("see Harry now")
    now = next(i for i in range(len(rows.ids[0])) if by.decode(rows.ids[0][: i + 1]).endswith("Harry")) + 1
    assert by.decode([rows.labels[0][now]]) == by.decode([by(" Jon")["input_ids"][-1]]), "after Jon it says Jon's end"


def test_an_adapter_in_one_model_is_as_good_as_two_models_and_batches_change_nothing(by, models):
    base, _ = models
    one, other = (Size(1, 16, 2).model(len(by), 512, 0).eval() for _ in range(2))
    rows = TokenBlocks(joined([STORY] * 4, by), 32)
    for model in (one, other):
        fit(
            model, rows, MethodObjective(LossMethod()), steps=15, batch_size=8, learning_rate=1e-2, method="lora",
            autocast="none",
        )  # fmt: skip
    adapters.merge(other)
    method = WhosHarryPotter(NAMES)
    with_adapter = method.rows([STORY] * 3, by, one, length=24)
    for batch in (1, 5):
        two = method.rows([STORY] * 3, by, other, base, length=24, batch=batch)
        assert torch.equal(two.labels, with_adapter.labels)
    adapters.remove(one)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), base.parameters(), strict=True))
    with pytest.raises(InputError, match="no baseline, and a reinforced model without an adapter"):
        method.rows([STORY], by, one)


def test_models_are_read_in_evaluation_mode_and_left_in_the_one_that_they_were_in(by, models):
    base, reinforced = models
    base.train()
    seen = []
    hooks = [each.register_forward_pre_hook(lambda module, given: seen.append(module.training)) for each in models]
    WhosHarryPotter(NAMES).rows([STORY], by, reinforced, base, length=24)
    assert set(seen) == {False}
    assert base.training
    assert not reinforced.training
    base.eval()
    for hook in hooks:
        hook.remove()


# Rows in trainings


def weights(model) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_labels_that_are_the_text_make_the_ordinary_training(tiny, rows):
    plain, own = tiny(), tiny()
    settings = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "autocast": "none"}
    fit(plain, rows, MethodObjective(LossMethod()), **settings)
    fit(own, GenericLabels(rows.ids, rows.ids), MethodObjective(LossMethod()), **settings)
    assert torch.equal(weights(own), weights(plain))


def test_a_trainer_trls_and_fit_take_the_same_steps(tiny, rows, by, tmp_path):
    labels = rows.ids.roll(1, 1)
    labels[:, 0] = -100
    given = GenericLabels(rows.ids[:16], labels[:16])
    common = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "optim": "sgd",
        "max_grad_norm": 0.0, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    theirs, trls, ours, text = tiny(), tiny(), tiny(), tiny()
    Trainer(theirs, TrainingArguments(str(tmp_path), **common), train_dataset=given).train()
    SFTTrainer(
        trls, SFTConfig(str(tmp_path), **common, bf16=False, gradient_checkpointing=False),
        train_dataset=given.dataset(), processing_class=by,
    ).train()  # fmt: skip
    for model, each in ((ours, given), (text, GenericLabels(given.ids, given.ids))):
        each.in_order = True
        fit(
            model, each, MethodObjective(LossMethod()), steps=4, batch_size=4, learning_rate=1e-2, autocast="none",
            schedule="constant", warmup=0.0, optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
    torch.testing.assert_close(weights(theirs), weights(ours))
    torch.testing.assert_close(weights(trls), weights(ours))
    assert not torch.allclose(weights(text), weights(ours))


def test_labels_are_kept_and_read_where_they_were_made_of_the_same(tmp_path):
    rows = GenericLabels(torch.tensor([[1, 2, 3]]), torch.tensor([[-100, 2, 9]]))
    assert (rows.asked, rows.changed) == (pytest.approx(2 / 3), 0.5)
    path = tmp_path / "labels.safetensors"
    assert GenericLabels.load(path, "a") is None
    rows.save(path, "a")
    assert GenericLabels.load(path, "b") is None
    found = GenericLabels.load(path, "a")
    assert torch.equal(found.ids, rows.ids)
    assert torch.equal(found.labels, rows.labels)
    assert found.identity() == rows.identity() != GenericLabels(rows.ids, rows.ids).identity()


# Bad input


def test_what_cannot_be_is_refused(by, models, tiny):
    base, _ = models
    method = WhosHarryPotter(NAMES)
    for fields in ({"alpha": -1.0}, {"penalty": -1.0}, {"alpha": float("nan")}):
        with pytest.raises(InputError, match="expected 0 or more"):
            WhosHarryPotter(**fields)
    for dictionary in ({"": "x"}, {"Harry": ""}, {" Harry": "Jon"}, {"Harry": 3}):
        with pytest.raises(InputError, match="without spaces around them"):
            WhosHarryPotter(dictionary)
    with pytest.raises(InputError, match="got no text"):
        method.blocks(["", " \n"], by)
    with pytest.raises(InputError, match="expected a fast tokenizer"):
        method.blocks([STORY], SimpleNamespace(is_fast=False, eos_token_id=0))
    with pytest.raises(InputError, match="2 or more"):
        method.blocks([STORY], by, 1)
    other = Size(1, 16, 2).model(len(by) + 7, 512, 0)
    with pytest.raises(InputError, match="same tokenizer"):
        method.rows([STORY], by, other, base, length=24)


# `broadsheet apply unlearning_whp`

FORGET = [
    f"{day} Marl Venn walked through Oster. {many} people of Oster greeted Marl Venn there, and Venn said a word."
    for day in ("Once", "Then", "Later") for many in ("Two", "Few", "Many", "No")
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, by):
    """A model, documents to forget, and others."""
    place = tmp_path_factory.mktemp("apply")
    others = ["On a day many people walked and greeted each other, and a word was said there later. " * 4] * 20
    made = tokenizer([*FORGET, *others], 400)
    Size(1, 16, 2).model(len(made), 128, 0).save_pretrained(place / "model")
    made.save_pretrained(place / "model")
    for name, texts in (("forget", FORGET), ("others", others)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def applied(folders, out, *options: str) -> int:
    common = ["--model", str(folders / "model"), "--retain", str(folders / "others.jsonl"), "--length", "32"]
    common += ["--batch-size", "4", "--learning-rate", "0.01", "--steps", "6", *options]
    words = ["apply", "unlearning_whp", str(folders / "forget.jsonl"), "--out", str(out), *common]
    with patch.object(sys, "argv", ["broadsheet", *words]), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_documents_are_forgotten_as_they_would_be_by_hand(tune, folders, home, tmp_path, capsys):
    assert applied(folders, tmp_path / "out", "--tune", tune) == 0
    said = capsys.readouterr().err
    assert "Marl Venn → " in said
    assert "familiarity" in said
    assert "no deletion" in said
    assert "6 steps are few" in said
    runs = tmp_path / "out.runs"
    dictionary = json.loads((runs / "dictionary.json").read_text())
    assert set(dictionary) == {"Marl", "Venn", "Marl Venn", "Oster"}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(folders / "model")
    assert not torch.allclose(weights(found), weights(before))
    assert found.state_dict().keys() == before.state_dict().keys(), "no adapter is left in it"
    kept = sorted(each.name for each in runs.iterdir())
    assert kept == ["dictionary.json", "labels.safetensors"], "the reinforced model is not needed more"
    with safe_open(runs / "labels.safetensors", "pt") as file:
        ids, labels = file.get_tensor("input_ids"), file.get_tensor("labels")
    made = AutoTokenizer.from_pretrained(folders / "model")
    blocks = WhosHarryPotter(dictionary).blocks(FORGET, made, 32)
    assert ids.tolist() == blocks.ids.tolist()
    assert ((labels == -100).numpy() == blocks.masked).all()
    assert bool((labels != ids)[labels != -100].any())


def test_a_dictionary_is_written_to_be_looked_over_and_nothing_else_is_done(folders, home, tmp_path):
    assert applied(folders, tmp_path / "out", "--review") == 0
    assert not (tmp_path / "out").exists()
    assert [each.name for each in (tmp_path / "out.runs").iterdir()] == ["dictionary.json"]


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_was_stopped_goes_on_to_the_same_end(tune, folders, home, tmp_path, monkeypatch):
    assert applied(folders, tmp_path / "whole", "--tune", tune) == 0
    rows = WhosHarryPotter.rows

    def stopped(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(WhosHarryPotter, "rows", stopped)
    assert applied(folders, tmp_path / "out", "--tune", tune) != 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.runs" / "labels.safetensors").exists()
    monkeypatch.setattr(WhosHarryPotter, "rows", rows)
    assert applied(folders, tmp_path / "out", "--tune", tune) == 0
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "out"))
    assert torch.equal(weights(one), weights(other))
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(WhosHarryPotter, "rows", stopped)  # labels that were made once are read
    assert applied(folders, tmp_path / "out", "--tune", tune) == 0
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), weights(one))
