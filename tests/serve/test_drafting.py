"""Drafts for an answer that is alone: the same tokens, in fewer steps; with others beside it, plain steps."""

from __future__ import annotations

import pytest
import torch

from broadsheet.attend import LMInfinite
from broadsheet.console import InputError
from broadsheet.decode import NgramDrafter, TrigramTable
from broadsheet.page.papers import stage_methods
from broadsheet.serve.models.drafting import Drafting
from broadsheet.serve.models.named import Models
from broadsheet.teacher.base import Sampling
from broadsheet.teacher.live import GrowingAnswer, LiveBatch, Row, TokenReader

GREEDY = Sampling(0, 1, 40, (), 0, False)
COST = {1: 1.0, 16: 1.1}  # a step over many tokens costs hardly more, so that much is drafted


@pytest.fixture
def reader(tiny_model, tiny_tokenizer) -> TokenReader:
    made = TokenReader(tiny_model(), tiny_tokenizer())
    made.ends = set()
    return made


def row(tokens: int = 12, sampling: Sampling = GREEDY, limit: int = 40) -> Row:
    return Row(tuple(range(20, 20 + tokens)), limit, "0", sampling)


def written(live: LiveBatch, *rows: Row) -> tuple[list[GrowingAnswer], int]:
    """The answers, and the steps that they took."""
    answers, steps = live.join(rows), 0
    while live:
        live.step()
        steps += 1
    return answers, steps


def table_of(reader: TokenReader, tokens: list[int]) -> TrigramTable:
    """A table that knows what comes after each pair of these."""
    table = TrigramTable()
    table.adapt(tokens, increment=1.0, cap=3.0)
    return table


def test_a_greedy_answer_that_is_alone_is_the_same_in_fewer_steps(reader):
    [plain], steps = written(LiveBatch(reader), row())
    table = table_of(reader, [*row().prompt, *plain.tokens])
    drafting = Drafting(reader, NgramDrafter(table, step_seconds=COST))
    [drafted], fewer = written(LiveBatch(reader, drafting), row())
    assert drafted.tokens == plain.tokens
    assert len(drafted.tokens) == 40, "not one more than was asked for"
    assert fewer < steps
    assert drafting.stats.accepted == steps - fewer
    assert drafted.completion == plain.completion


def test_every_drafter_of_a_paper_writes_the_same(reader):
    [plain], _ = written(LiveBatch(reader), row())
    for kind in stage_methods("decode").values():
        table = table_of(reader, [*row().prompt, *plain.tokens])
        [drafted], steps = written(LiveBatch(reader, Drafting(reader, kind(table))), row())
        assert drafted.tokens == plain.tokens
        assert steps < 40


def test_others_may_join_and_leave_meanwhile(reader):
    [plain], _ = written(LiveBatch(reader), row())
    [short], _ = written(LiveBatch(reader), row(5, limit=6))
    table = table_of(reader, [*row().prompt, *plain.tokens])
    live = LiveBatch(reader, Drafting(reader, NgramDrafter(table, step_seconds=COST)))
    [long] = live.join([row()])
    live.step()
    [late] = live.join([row(5, limit=6)])
    steps = 1
    while live:
        live.step()
        steps += 1
    assert (long.tokens, late.tokens) == (plain.tokens, short.tokens)
    assert steps < 40, "once it is alone again it is drafted"


def test_what_is_drawn_or_asks_for_log_probabilities_takes_plain_steps(reader):
    drafting = Drafting(reader, NgramDrafter(step_seconds=COST))
    drawn, noted = Sampling(1.0, 1, 20, (), 0, False), Sampling(0, 1, 20, (), 0, True)
    for sampling in (drawn, noted):
        [expected], _ = written(LiveBatch(reader), row(sampling=sampling))
        [answer], steps = written(LiveBatch(reader, drafting), row(sampling=sampling))
        assert answer.tokens == expected.tokens
        assert steps == 40
    assert drafting.stats.drafted == 0


def test_a_stop_string_and_an_end_of_text_inside_a_draft_end_the_answer(reader):
    [plain], _ = written(LiveBatch(reader), row())
    table = table_of(reader, [*row().prompt, *plain.tokens])
    reader.ends = {plain.tokens[20]}
    [expected], _ = written(LiveBatch(reader), row())
    drafting = Drafting(reader, NgramDrafter(table, step_seconds=COST))
    [answer], _ = written(LiveBatch(reader, drafting), row())
    assert answer.completion == expected.completion
    assert answer.tokens == expected.tokens
    reader.ends = set()
    stop = Sampling(0, 1, 40, (plain.completion.text[10:13],), 0, False)
    [expected], _ = written(LiveBatch(reader), row(sampling=stop))
    [answer], _ = written(LiveBatch(reader, drafting), row(sampling=stop))
    assert answer.completion == expected.completion


def test_answers_learn_from_no_other(reader):
    drafter = NgramDrafter(step_seconds=COST)
    drafting = Drafting(reader, drafter)
    written(LiveBatch(reader, drafting), row())
    assert len(drafter.table) == 0


def test_costs_are_measured_before_the_first_answer(reader):
    drafter = NgramDrafter()
    drafting = Drafting(reader, drafter)
    drafting.warm_up()
    known = dict(drafter.step_costs_[reader.model])
    written(LiveBatch(reader, drafting), row())
    assert drafter.step_costs_[reader.model] == known
    assert len(known) == 1


def test_it_is_named_with_a_table_from_a_file(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model().save_pretrained(tmp_path / "tiny")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tiny")
    TrigramTable.from_texts(["the hat on the mat"], tokenizer).save(tmp_path / "hat.table")
    models = Models([str(tmp_path / "tiny")], draft=f"ngramdrafter(table='{tmp_path / 'hat.table'}', chain=True)")
    [served] = models
    assert served.about["draft"].startswith("ngramdrafter(")
    models.close()
    for draft, told in {
        "nobody": "ADED(",
        "aded(table='nowhere')": "no table nowhere",
        "aded(tree_size=0)": "tree_size 0",
    }.items():
        with pytest.raises(InputError, match=told.replace("(", r"\(")):
            Models([str(tmp_path / "tiny")], draft=draft)
    with pytest.raises(InputError, match="--attend and --draft"):
        Models([str(tmp_path / "tiny")], draft="aded", attend="lm_infinite")


def test_a_cache_that_cannot_drop_tokens_is_refused(reader):
    with LMInfinite(n_global=2, n_local=16)(reader.model), torch.inference_mode():
        drafting = Drafting(reader, NgramDrafter(chain=True, step_seconds=COST))
        with pytest.raises(InputError, match="cannot drop rejected tokens"):
            written(LiveBatch(reader, drafting), row())
