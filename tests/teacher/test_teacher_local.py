"""The teacher on models in this process: a tiny random one, and for one check the default model."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from broadsheet.console import InputError
from broadsheet.teacher import Budget, BudgetExhausted, Teacher
from broadsheet.teacher.local import Local

CHARACTERS = "abcdefghijklmnop .:\nAsUrSytmi"
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)
PROMPTS = ["a", "hello mad dog", "bad cab", "a deep old gold mine. a blind man fell", "no", "he fed a cold lion"]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character."""
    letters = ["<s>", "</s>", "<unk>", *dict.fromkeys(CHARACTERS + "elodwvcfnghijkbu")]
    backend = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.fixture
def model(tiny_model, tokenizer):
    """A random model of that vocabulary."""
    return tiny_model(
        vocab_size=len(tokenizer), max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=0
    )


@pytest.fixture
def plain(tokenizer):
    """The tokenizer without its chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def teach(model, tokenizer, cache=False, budget=None, **options):
    return Teacher(Local(model, tokenizer, **options), cache=cache, budget=budget)


def rows_per_step(model):
    """A list that grows by the number of rows of each forward pass, and how many tokens each row had."""
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return rows


def recite(model, tokenizer, text):
    """Make the model write `text`, whatever it is asked (one row)."""
    ids = iter(tokenizer(text)["input_ids"])

    def force(module, args, output):
        output.logits[..., :] = -100.0
        output.logits[..., next(ids)] = 100.0
        return output

    model.register_forward_hook(force)


# Generation


def test_greedy_is_generate_token_for_token(model, tokenizer):
    answers = teach(model, tokenizer).chat(PROMPTS, temperature=0, max_tokens=40)
    for prompt, [answer] in zip(PROMPTS, answers, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, length:]
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.tokens == len(expected)
        assert answer.prompt_tokens == length
        assert answer.finish_reason == ("stop" if expected[-1] == 1 else "length")


def test_padding_does_not_shift_the_positions_of_a_model_that_counts_them(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=1)).eval()
    together, alone = teach(model, tokenizer), teach(model, tokenizer, batch_tokens=1)
    assert together.chat(PROMPTS, max_tokens=20) == alone.chat(PROMPTS, max_tokens=20)
    choices = ["bad", "a gold mine"]
    np.testing.assert_allclose(together.score(PROMPTS, choices), alone.score(PROMPTS, choices), atol=1e-5)
    expected = direct_score(model, tokenizer, "a", choices[1])
    assert together.score(["a", *PROMPTS], choices, raw=True)[0, 1] == pytest.approx(expected, abs=1e-5)


def test_answers_do_not_depend_on_batch_or_order(model, tokenizer):
    settings = {"n": 3, "max_tokens": 30, "top_p": 0.9, "logprobs": True}
    together = teach(model, tokenizer).chat(PROMPTS, **settings)
    alone = teach(model, tokenizer, batch_tokens=1).chat(PROMPTS, **settings)
    order = random.Random(0).sample(range(len(PROMPTS)), len(PROMPTS))
    shuffled = teach(model, tokenizer, batch_tokens=200).chat([PROMPTS[i] for i in order], **settings)
    back = [shuffled[order.index(i)] for i in range(len(PROMPTS))]
    for other in (alone, back):
        assert [[a.text for a in row] for row in other] == [[a.text for a in row] for row in together]
        for row, other_row in zip(together, other, strict=True):
            for a, b in zip(row, other_row, strict=True):
                np.testing.assert_allclose([t.logprob for t in a.logprobs], [t.logprob for t in b.logprobs], atol=1e-5)
    assert len({a.text for row in together for a in row}) == 3 * len(PROMPTS)


def test_seeds_decide_and_the_global_generator_is_left_alone(model, tokenizer):
    def ask(**settings):
        return [a.text for a in teach(model, tokenizer).chat(["a"], max_tokens=20, **settings)[0]]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ask(seed=3, n=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert ask(seed=3, n=2) == first
    assert ask(seed=3, n=4)[:2] == first
    assert ask(seed=4, n=2) != first


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8)])
def test_samples_follow_the_softmax(model, tokenizer, temperature, top_p):
    count = 4000
    [answers] = teach(model, tokenizer, batch_tokens=10**6).complete(
        ["a bad"], n=count, max_tokens=1, temperature=temperature, top_p=top_p, logprobs=True
    )
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer("a bad")["input_ids"]])).logits[0, -1]
    shares = (logits.double() / temperature).softmax(-1).numpy()
    if top_p < 1:
        ranked = np.sort(shares)[::-1]
        smallest = ranked[np.searchsorted(np.cumsum(ranked), top_p)]  # the share that makes the sum reach top_p
        assert 3 < (shares >= smallest).sum() < len(shares) - 3, "the cut is a real one"
        shares = np.where(shares >= smallest, shares, 0.0)
    shares /= shares.sum()
    letters = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(shares))]
    drawn = np.zeros(len(shares))
    for answer in answers:
        drawn[letters.index(answer.text) if answer.text else 0] += 1
    special = [i for i, letter in enumerate(letters) if not letter]
    expected = shares.copy()
    expected[0], expected[special[1:]] = shares[special].sum(), 0.0
    assert drawn[expected == 0].sum() == 0, "nothing outside top_p"
    large = expected * count >= 5
    observed = [*drawn[large], drawn[~large].sum()]
    wanted = [*(expected[large] * count), expected[~large].sum() * count]
    kept = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    assert chisquare(*zip(*kept, strict=True)).pvalue > 0.001


def test_logprobs_are_the_models_own(model, tokenizer):
    [[answer]] = teach(model, tokenizer).complete(["a bad"], temperature=0.6, top_p=0.7, max_tokens=25, logprobs=True)
    assert "".join(token.token for token in answer.logprobs) == answer.text
    ids = torch.tensor([tokenizer("a bad" + answer.text)["input_ids"]])
    with torch.inference_mode():
        logprobs = model(ids).logits.float().log_softmax(-1)
    direct = logprobs[0, 4:-1].gather(-1, ids[0, 5:, None])[:, 0]
    np.testing.assert_allclose([token.logprob for token in answer.logprobs], direct[: len(answer.logprobs)], atol=1e-5)


def test_stop_strings_cut_exactly(model, tokenizer):
    recite(model, tokenizer, "hello world, and more")
    [[answer]] = teach(model, tokenizer).chat(["a"], stop=["wo", "lo wo", "nothing"], logprobs=True, temperature=0)
    assert (answer.text, answer.finish_reason, answer.tokens) == ("hel", "stop", len("hello wo"))
    assert [token.token for token in answer.logprobs] == list("hel")


def test_finished_answers_leave_the_batch_and_prompts_are_read_once(model, tokenizer):
    steps = rows_per_step(model)
    teacher = teach(model, tokenizer, batch_tokens=10**6)
    answers = teacher.complete(["a bad", "he fed a dog"], n=8, max_tokens=60, stop=["a", "e"])
    lengths = [answer.tokens for row in answers for answer in row]
    assert steps[0] == (2, len("he fed a dog"))
    assert [rows for rows, _ in steps[1:]] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert len(set(lengths)) > 3
    assert teacher.usage.requests == 16
    assert teacher.usage.prompt_tokens == len("a bad") + len("he fed a dog")
    assert teacher.usage.completion_tokens == sum(lengths)


def test_the_end_of_text_token_ends_an_answer(model, tokenizer):
    recite(model, tokenizer, "ab</s>")
    tokenizer_ids = tokenizer("ab</s>")["input_ids"]
    assert tokenizer_ids[-1] == 1
    [[answer]] = teach(model, tokenizer).chat(["a"], logprobs=True)
    assert (answer.text, answer.finish_reason, answer.tokens, len(answer.logprobs)) == ("ab", "stop", 3, 2)


def test_a_batch_that_does_not_fit_is_halved(model, tokenizer, capsys):
    expected = teach(model, tokenizer).chat(PROMPTS, n=2, max_tokens=10)
    scores = teach(model, tokenizer).score(PROMPTS, ["a", "bad"])

    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert teach(model, tokenizer).chat(PROMPTS, n=2, max_tokens=10) == expected
    assert "halving" in capsys.readouterr().err
    np.testing.assert_allclose(teach(model, tokenizer).score(PROMPTS, ["a", "bad"]), scores, atol=1e-5)


# Prompts


def test_a_model_without_template_reads_a_transcript(model, plain, capsys):
    teacher = teach(model, plain)
    recite(model, plain, " sure\nUser: again")
    chat = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    [[answer]] = teacher.chat([chat], temperature=0)
    assert (answer.text, answer.finish_reason) == ("sure", "stop")
    assert answer.prompt_tokens == len("System: Be.\nUser: Hi\nAssistant:")
    assert capsys.readouterr().err.count("no chat template") == 1


def test_a_template_that_refuses_is_one_line(model, tokenizer, plain):
    plain.chat_template = "{{ raise_exception('no system turn here') }}"
    with pytest.raises(InputError, match="no system turn here"):
        teach(model, plain).chat(["a"])


def test_a_prompt_longer_than_the_context(model, tokenizer, capsys):
    long = "bad " * 100
    with pytest.raises(InputError, match=r"400 tokens with 1 .* 128 .*truncate='left'"):
        teach(model, tokenizer).complete(["a", long])
    with pytest.raises(InputError, match="leave no room"):
        teach(model, tokenizer, truncate="left").complete([long], max_tokens=128)
    capsys.readouterr()
    [_, [cut]] = teach(model, tokenizer, truncate="left").complete(["a", long], max_tokens=8, temperature=0)
    assert "cut 1 of 2 prompts from the left to 120 tokens" in capsys.readouterr().err
    assert cut.prompt_tokens == 120
    assert cut == teach(model, tokenizer).complete([long[-120:]], max_tokens=8, temperature=0)[0][0]
    with pytest.raises(InputError, match="126 tokens with 3"):
        teach(model, tokenizer).score([long[:126]], ["abc"], raw=True)


def test_an_answer_that_meets_the_end_of_the_context_ends_there(model, tokenizer):
    [[answer]] = teach(model, tokenizer).complete(["ab" * 60], max_tokens=50, stop=["</s>"])
    assert answer.tokens <= 8
    assert answer.finish_reason == "length"


def test_an_empty_text_begins_with_the_beginning_of_text(model, tokenizer, plain):
    teacher = teach(model, tokenizer)
    empty, begun = teacher.complete(["", "<s>"], temperature=0, max_tokens=5)
    assert empty == begun
    plain.bos_token = None
    with pytest.raises(InputError, match="empty prompt"):
        teach(model, plain).complete([""])


def test_a_recurrent_model_is_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "_is_stateful", True)
    with pytest.raises(InputError, match="recurrent"):
        Local(model, tokenizer)


# Scores


def direct_score(model, tokenizer, prompt, choice):
    ids = torch.tensor([tokenizer(prompt)["input_ids"] + tokenizer(choice)["input_ids"]])
    with torch.inference_mode():
        logprobs = model(ids).logits.float().log_softmax(-1)
    count = len(tokenizer(choice)["input_ids"])
    return logprobs[0, -count - 1 : -1].gather(-1, ids[0, -count:, None]).double().sum().item()


@pytest.mark.parametrize("choices", [["a", "b"], ["a", "gold mine", "bad"], ["dog", "cat"]], ids=str)
@pytest.mark.parametrize("batch_tokens", [1, 300, 8192])
def test_scores_are_sums_over_the_choices_tokens(model, tokenizer, choices, batch_tokens):
    teacher = teach(model, tokenizer, batch_tokens=batch_tokens)
    expected = [[direct_score(model, tokenizer, prompt, choice) for choice in choices] for prompt in PROMPTS]
    scores = teacher.score(PROMPTS, choices, raw=True)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    per_token = teacher.score(PROMPTS, choices, raw=True, per_token=True)
    np.testing.assert_allclose(per_token, np.array(expected) / [len(choice) for choice in choices], atol=1e-5)
    chat = teacher.score(PROMPTS[:1], choices)
    np.testing.assert_allclose(chat, [[direct_score(model, tokenizer, "<s>u:a<s>a:", c) for c in choices]], atol=1e-5)


def test_a_transcripts_choices_begin_with_a_space(model, plain):
    scores = teach(model, plain).score(["Hi"], ["bad"])
    assert scores[0, 0] == pytest.approx(direct_score(model, plain, "User: Hi\nAssistant:", " bad"), abs=1e-5)


def test_choices_may_differ_by_prompt(model, tokenizer):
    teacher = teach(model, tokenizer)
    scores = teacher.score(["a", "b"], [["dog", "cab"], ["mine", "no"]], raw=True)
    np.testing.assert_allclose(scores[1], teacher.score(["b"], ["mine", "no"], raw=True)[0], atol=1e-5)
    assert teacher.score([], ["a", "b"]).shape == (0, 2)


def test_calibration_works_on_the_scores(model, tokenizer):
    teacher = teach(model, tokenizer)
    median = teacher.score(PROMPTS, ["a", "bad", "c"], calibration="batch_median")
    np.testing.assert_allclose(np.median(median, axis=0), 0, atol=1e-9)
    free = teacher.score(["N/A", *PROMPTS], ["a", "bad"], calibration="content_free", content_free_prompts=["N/A"])
    assert free.shape == (1 + len(PROMPTS), 2)
    np.testing.assert_allclose(free[0], 0, atol=1e-5)
    assert np.abs(free[1:]).max(axis=1).min() > 1e-2


def test_a_prompts_choices_share_its_reading(model, tokenizer):
    steps = rows_per_step(model)
    teach(model, tokenizer).score(["a bad dog"], ["a", "bad", "gold"], raw=True)
    assert steps == [(1, len("a bad dog")), (3, len("gold") - 1)]


# Cache and budget


def test_a_second_run_computes_nothing_and_a_trained_model_is_another(model, tokenizer):
    first = teach(model, tokenizer, cache=True).chat(PROMPTS, n=2, max_tokens=5, logprobs=True)
    scores = teach(model, tokenizer, cache=True).score(PROMPTS, ["a", "b"])
    steps = rows_per_step(model)
    teacher = teach(model, tokenizer, cache=True)
    assert teacher.chat(PROMPTS, n=2, max_tokens=5, logprobs=True) == first
    np.testing.assert_array_equal(teacher.score(PROMPTS, ["a", "b"]), scores)
    assert not steps
    assert (teacher.usage.requests, teacher.usage.cache_hits) == (0, 3 * len(PROMPTS))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    teacher.chat(PROMPTS, max_tokens=5)
    assert steps


def test_a_request_budget_is_exact(model, tokenizer):
    with pytest.raises(BudgetExhausted, match="7 of 12") as caught:
        teach(model, tokenizer, cache=True, budget=Budget(requests=7)).chat(PROMPTS, n=2, max_tokens=5)
    assert (caught.value.finished, caught.value.wanted) == (7, 12)
    teacher = teach(model, tokenizer, cache=True, budget=Budget(requests=5))
    assert teacher.chat(PROMPTS, n=2, max_tokens=5) == teach(model, tokenizer).chat(PROMPTS, n=2, max_tokens=5)
    with pytest.raises(BudgetExhausted):
        teacher.score(PROMPTS, ["a", "b"])


def test_a_token_budget_passes_by_a_batch_at_most(model, tokenizer):
    budget = Budget(tokens=20)
    with pytest.raises(BudgetExhausted):
        teach(model, tokenizer, batch_tokens=1, budget=budget).complete(PROMPTS, max_tokens=4)
    assert 20 <= budget.spent_tokens < 20 + max(map(len, PROMPTS)) + 4


# The default model

POSITIVE = ["a joy from start to finish", "the best meal I ever had", "she sings like an angel", "I loved every minute"]
NEGATIVE = ["a waste of two hours", "the food was cold and stale", "he cannot act at all", "I want my money back"]


@pytest.mark.real
def test_scores_label_sentiment(default_model):
    teacher = teach(*default_model)
    prompts = [f"Review: {text}.\nIs this review positive or negative?" for text in POSITIVE + NEGATIVE]
    scores = teacher.score(prompts, ["Positive", "Negative"], calibration="batch_median")
    assert (scores.argmax(axis=1) == [0] * 4 + [1] * 4).sum() >= 7
