"""What must be true of reading a document for several questions at once: it changes nothing but the work."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from broadsheet.attend import FlexPrefill, InfLLM, LMInfinite, LongHeads
from broadsheet.console import InputError
from broadsheet.evaluate import LooGLE, Question, Route, answers
from broadsheet.evaluate.answering import MAX_NEW_TOKENS, DocumentReader, Passages, gold_tokens

DOCUMENT = "The red one is ant. " * 4 + "The old one is bee. " * 3


def ask(question="Who?", answer="the ant", task="shortdep_qa", document=DOCUMENT):
    return Question(task, document, question, answer)


QUESTIONS = [
    ask(),
    ask("Which one is the old one, then?", "bee"),
    ask("", "Ants and bees.", "longdep_summarization"),
    ask("<mask-0> is red", {"<mask-0>": "ant"}, "shortdep_cloze"),
    ask("In what order do they stand in the text?", "the ant and then the bee", "longdep_qa"),
    ask("And here?", "no one", document="Another text."),
]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(max_position_embeddings=512, pad_token_id=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def one_by_one(question, model, tokenizer, max_length=None, limit=12):
    """The plain way: one prompt, no cache shared, no padding."""
    begins = LooGLE().instruction
    group = [each for each in QUESTIONS if each.document == question.document and begins(each) == begins(question)]
    ids = LooGLE(max_length=max_length).encode_together(group, tokenizer)[group.index(question)].ids
    gold = gold_tokens(question.gold, tokenizer)
    with torch.no_grad():
        logits = model(torch.tensor([ids + gold])).logits[0].log_softmax(-1)
    scores = [float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(gold)]
    written = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=limit, do_sample=False
    )
    text = tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip(), sum(scores) / len(scores)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("max_length", [None, 90, 40, 1])
def test_sharing_and_padding_change_no_answer_and_no_likelihood(model, tokenizer, batch_size, max_length):
    route = Route("any", max_length=max_length)
    found = answers(QUESTIONS, model, tokenizer, route=route, max_new_tokens=12, batch_size=batch_size)
    for question, answer in zip(QUESTIONS, found, strict=True):
        text, likelihood = one_by_one(question, model, tokenizer, max_length)
        assert answer.text == text
        assert answer.log_likelihood == pytest.approx(likelihood, abs=1e-5)


def test_a_document_is_read_once_for_all_questions_with_one_instruction(model, tokenizer):
    asked = [ask(f"Is {i} the one?") for i in range(4)]
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        DocumentReader(model, tokenizer, max_new_tokens=1, batch_size=2).answers(asked)
    finally:
        hook.remove()
    assert sum(size > len(tokenizer(DOCUMENT).input_ids) for size in read) == 1


def test_prompts_that_are_cut_are_counted_and_said(model, tokenizer, capsys):
    found = answers(QUESTIONS, model, tokenizer, route=Route("two ends", max_length=100), max_new_tokens=1)
    whole = [len(LooGLE().encode(question, tokenizer).ids) for question in QUESTIONS]
    less = [max(whole[i] for i in (0, 1, 4)) - n if i in (0, 1, 4) else 0 for i, n in enumerate(whole)]
    less = [n if n <= 10 else 0 for n in less]  # those of one instruction are cut at one place, but for a tenth
    assert [answer.prompt_tokens for answer in found] == [min(n, 100) - m for n, m in zip(whole, less, strict=True)]
    assert [answer.cut for answer in found] == [max(0, n - 100) + m for n, m in zip(whole, less, strict=True)]
    lost = sum(max(0, length - 100) for length in whole) + sum(less)
    assert any(less)
    assert f"two ends: {sum(n > 100 for n in whole)} of 6 prompts lost their middle, {lost:,} tokens" in (
        capsys.readouterr().err
    )
    answers(QUESTIONS[:1], model, tokenizer, max_new_tokens=1)
    assert capsys.readouterr().err == ""


def test_prompts_that_are_cut_begin_their_ends_at_one_place(model, tokenizer):
    short, long = ask("Who?"), ask("Who was that?")
    own = [LooGLE(max_length=100).encode(each, tokenizer) for each in (short, long)]
    cut = LooGLE(max_length=100).encode_together([short, long], tokenizer)
    whole = [len(each.ids) + each.cut for each in own]
    assert whole[0] < whole[1]
    assert cut[1] == own[1], "the longest as alone"
    assert [len(each.ids) + each.cut for each in cut] == whole
    lost = whole[1] - whole[0]
    assert (len(cut[0].ids), cut[0].ids[:50]) == (100 - lost, own[0].ids[:50])
    assert cut[0].ids[50:] == own[0].ids[50 + lost :], "its question is whole"
    assert [len(each.ids) for each in LooGLE(max_length=60).encode_together([short, long], tokenizer)] == [60, 60]
    assert LooGLE().encode_together([short], tokenizer) == [LooGLE().encode(short, tokenizer)]
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    try:
        answers([short, long], model, tokenizer, route=Route("any", max_length=100), max_new_tokens=1)
    finally:
        hook.remove()
    assert read[0] > (1, 60), "the document's end is read once too"


def test_a_prompt_that_is_too_long_can_be_an_error(model, tokenizer):
    with pytest.raises(InputError, match="at most 100"):
        answers(QUESTIONS, model, tokenizer, loogle=LooGLE(max_length=100, truncate="error"), max_new_tokens=1)


def test_answers_have_the_papers_lengths_by_default(model, tokenizer):
    seen = []

    class Watched(type(model)):
        def generate(self, **kwargs):
            seen.append(kwargs["max_new_tokens"])
            return kwargs["input_ids"]

    watched = Watched(model.config).eval()
    watched.load_state_dict(model.state_dict())
    answers(QUESTIONS[:5], watched, tokenizer, batch_size=1)
    assert sorted(seen) == sorted(MAX_NEW_TOKENS[question.task] for question in QUESTIONS[:5])
    assert MAX_NEW_TOKENS == {
        "shortdep_qa": 300,
        "longdep_qa": 500,
        "longdep_summarization": 500,
        "shortdep_cloze": 50,
    }


def test_answers_can_end_with_their_first_line(model, tokenizer):
    """A model whose every next token is one more than the last writes the alphabet, line breaks and all."""
    line = tokenizer("\n\nab\nc", add_special_tokens=False).input_ids
    script = [*line, *line]

    class Scripted(type(model)):
        def generate(self, input_ids, stopping_criteria=None, max_new_tokens=0, **_):
            ids = input_ids
            for token in script[:max_new_tokens]:
                ids = torch.cat([ids, torch.full((len(ids), 1), token)], dim=1)
                if stopping_criteria and all(bool(stop(ids, None).all()) for stop in stopping_criteria):
                    break
            seen.append(ids.shape[1] - input_ids.shape[1])
            return ids

    seen = []
    scripted = Scripted(model.config).eval()
    [first] = answers([ask()], scripted, tokenizer, first_line=True, max_new_tokens=12)
    [whole] = answers([ask()], scripted, tokenizer, max_new_tokens=12)
    assert (first.text, whole.text) == ("ab", "ab\nc\n\nab\nc")
    assert seen == [5, 12]  # the blank lines it began with did not end it


def test_the_repetition_penalty_is_off_unless_asked_for(model, tokenizer):
    plain, penalised = (
        [answer.text for answer in answers(QUESTIONS, model, tokenizer, max_new_tokens=16, **options)]
        for options in ({}, {"repetition_penalty": 2.0})
    )
    assert plain != penalised
    alone = [answers([q], model, tokenizer, max_new_tokens=16, repetition_penalty=2.0)[0].text for q in QUESTIONS]
    assert alone == penalised  # padding is not repetition


class Doubled:
    """A method: while it is installed, the model's logits are doubled."""

    installed = 0

    @contextmanager
    def __call__(self, model):
        hook = model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
        self.installed += 1
        try:
            yield model
        finally:
            hook.remove()


def test_a_method_is_installed_for_the_answers_and_taken_off_again(model, tokenizer):
    before = answers(QUESTIONS, model, tokenizer, max_new_tokens=1)
    method = Doubled()
    under = answers(QUESTIONS, model, tokenizer, route=Route("doubled", method=method), max_new_tokens=1)
    assert method.installed == 1
    assert all(a.log_likelihood != b.log_likelihood for a, b in zip(before, under, strict=True))
    with pytest.raises(InputError):
        answers(
            QUESTIONS, model, tokenizer, route=Route("d", method=method), loogle=LooGLE(max_length=9, truncate="error")
        )
    assert answers(QUESTIONS, model, tokenizer, max_new_tokens=1) == before


@pytest.mark.parametrize(
    ("method", "exact"),
    [
        (LMInfinite(n_global=2, n_local=24), True),
        (InfLLM(n_local=512, n_init=4), True),  # a window that holds the whole prompt
        (LongHeads(chunk_size=16, attention_length=64), False),
        (FlexPrefill(), False),
        (InfLLM(n_local=24, n_init=4, block_size=8, top_k=2, execution_block=16), False),
    ],
    ids=["LMInfinite", "InfLLM, all", "LongHeads", "FlexPrefill", "InfLLM"],
)
def test_the_methods_of_attend_answer_and_leave_the_model_as_it_was(model, tokenizer, method, exact):
    plain = answers(QUESTIONS, model, tokenizer, max_new_tokens=6)
    found = answers(QUESTIONS, model, tokenizer, route=Route("m", method=method), max_new_tokens=6, batch_size=3)
    if exact:  # those for which it does not matter where one forward pass ends and the next begins
        for question, answer in zip(QUESTIONS, found, strict=True):
            with method(model):
                text, likelihood = one_by_one(question, model, tokenizer, limit=6)
            assert answer.text == text
            assert answer.log_likelihood == pytest.approx(likelihood, abs=1e-5)
    assert all(-100 < answer.log_likelihood < 0 for answer in found)
    assert answers(QUESTIONS, model, tokenizer, max_new_tokens=6) == plain


def test_retrieval_reads_the_nearest_passages_in_the_documents_order(tokenizer):
    pytest.importorskip("bm25s")
    sentences = ["Zebras wear stripes. ", "Violins are made of wood. ", "Islands end at water. ", "Kettles boil. "] * 2
    document = "".join(f"{i}: {sentence}" for i, sentence in enumerate(sentences))
    size = len(tokenizer(document, add_special_tokens=False).input_ids) // 8
    passages = Passages(document, tokenizer, size)
    assert "".join(passages.texts) == document
    found = passages.nearest(ask("What are violins made of?"), 2)
    assert found.count("iolin") >= 2
    assert "Zebra" not in found
    assert found.index("1") < found.index("5")
    assert passages.nearest(ask("", task="longdep_summarization"), 1) == passages.texts[0].strip()
    assert passages.nearest(ask("Anything"), 99) == document
    assert len(passages.nearest(ask("qwertz"), 2).split(" … ")) == 2  # no word in common: any two will do


@pytest.mark.parametrize("document", ["", " ", "…", "a b c", "漢字かな交じり文" * 20])
def test_retrieval_from_odd_documents_gives_some_of_them(document, tokenizer):
    pytest.importorskip("bm25s")
    passages = Passages(document, tokenizer, 4)
    assert "".join(passages.texts) == document
    passages.nearest(ask("Who is it?"), 1)


def test_the_retrieval_route_shortens_prompts(model, tokenizer):
    pytest.importorskip("bm25s")
    route = Route("retrieved", passages=1, passage_tokens=16)
    short = answers(QUESTIONS[:2], model, tokenizer, route=route, max_new_tokens=1)
    whole = answers(QUESTIONS[:2], model, tokenizer, max_new_tokens=1)
    assert all(a.prompt_tokens < b.prompt_tokens for a, b in zip(short, whole, strict=True))
    assert all(answer.cut == 0 for answer in short)


def test_retrieval_without_bm25s_names_the_remedy(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[evaluate\]'"):
        Passages(DOCUMENT, tokenizer, 8)


def test_a_recurrent_model_is_refused(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="recurrent"):
        answers(QUESTIONS, model, tokenizer)


def test_gold_tokens_are_those_behind_a_colon(tokenizer):
    for gold in ("the ant", "Ünï", "1,2"):
        assert tokenizer.decode(gold_tokens(gold, tokenizer), clean_up_tokenization_spaces=False) == f" {gold}"


def test_memory_that_runs_out_halves_the_batch(model, tokenizer, monkeypatch, capsys):
    real = DocumentReader._generate

    def scarce(self, ids, *rest):
        if len(ids) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, ids, *rest)

    plenty = answers(QUESTIONS, model, tokenizer, max_new_tokens=4)
    monkeypatch.setattr(DocumentReader, "_generate", scarce)
    found = answers(QUESTIONS, model, tokenizer, max_new_tokens=4)
    assert [answer.text for answer in found] == [answer.text for answer in plenty]
    assert [a.log_likelihood for a in found] == pytest.approx([a.log_likelihood for a in plenty], abs=1e-5)
    assert "halving" in capsys.readouterr().err


def test_the_documents_of_neighbours_are_kept_apart(model, tokenizer):
    mixed = [QUESTIONS[0], QUESTIONS[5], replace(QUESTIONS[0], question="Which?"), QUESTIONS[5]]
    found = answers(mixed, model, tokenizer, max_new_tokens=6)
    alone = [answers([question], model, tokenizer, max_new_tokens=6)[0] for question in mixed]
    assert [answer.text for answer in found] == [answer.text for answer in alone]
