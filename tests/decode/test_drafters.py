"""Drafters from a table inside `generate`: greedy decoding's output, scores and cache, whatever the table says."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LogitsProcessor,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
    StoppingCriteria,
    StopStringCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from broadsheet.console import InputError
from broadsheet.decode import ADED, DecodeStats, NgramDrafter, TrigramTable
from broadsheet.decode.draft import Draft
from broadsheet.decode.step_cost import SIZES
from broadsheet.decode.target import TargetModel


def streams() -> bool:
    """Whether torch can make a stream here: a build for CUDA cannot where there is no driver."""
    try:
        torch.Stream()
    except RuntimeError:
        return False
    return True


OFFLOADS = pytest.mark.skipif(not streams(), reason="transformers' offloaded cache needs a stream")
FREE = dict.fromkeys(SIZES, 1.0)  # more tokens cost nothing, so that as much as possible is drafted
VOCABULARY = 40
TOKENS = 24  # written in a test, unless it says otherwise
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def build(kind: type, config: Any, attention: str = "sdpa", seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = attention
        return kind(config).eval()


def gpt2(attention: str = "sdpa", **changes: Any) -> Any:
    settings = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    ends = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.3}
    return build(GPT2LMHeadModel, GPT2Config(**settings | ends | changes), attention)


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(vocab_size=VOCABULARY, eos_token_id=None, pad_token_id=0, max_position_embeddings=512)


@pytest.fixture(scope="module")
def models(llama: Any) -> dict[str, Any]:
    neox = GPTNeoXConfig(**{k: v for k, v in SIZE.items() if k not in ("num_key_value_heads", "head_dim")})
    return {
        "llama": llama,
        "llama, eager": build(type(llama), copy.deepcopy(llama.config), "eager"),
        "qwen2": build(Qwen2ForCausalLM, Qwen2Config(**SIZE)),
        "gemma": build(GemmaForCausalLM, GemmaConfig(**SIZE)),
        "neox": build(GPTNeoXForCausalLM, neox),
        "gpt2": gpt2(),
        "gpt2, eager": gpt2("eager"),
    }


MODELS = ("llama", "llama, eager", "qwen2", "gemma", "neox", "gpt2", "gpt2, eager")


def prompt(n: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(seed))


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(ids, do_sample=False, **{"max_new_tokens": TOKENS, **options})


def reference(model: Any, ids: torch.Tensor, tokens: int = TOKENS) -> torch.Tensor:
    """Greedy decoding's text by transformers alone."""
    return torch.tensor([_written(model, tuple(ids[0].tolist()), tokens)])


@functools.cache
def _written(model: Any, ids: tuple[int, ...], tokens: int) -> list[int]:
    return greedy(model, torch.tensor([ids]), max_new_tokens=tokens)[0].tolist()


def own_text(model: Any, ids: torch.Tensor, tokens: int = TOKENS) -> TrigramTable:
    """A table that knows what the model will write."""
    return TrigramTable.from_sequences([reference(model, ids, tokens)[0].tolist()])


def wrong(ids: torch.Tensor) -> TrigramTable:
    """A table full of tri-grams that have nothing to do with the model."""
    noise = torch.randint(1, VOCABULARY, (40, 50), generator=torch.Generator().manual_seed(9)).tolist()
    return TrigramTable.from_sequences([*noise, ids[0].tolist()])


VARIANTS: dict[str, Callable[[TrigramTable], Any]] = {
    "ADED": lambda table: ADED(table, iterations=20),
    "ADED, measured": lambda table: ADED(table, tree_size="auto", iterations=20, step_seconds=FREE),
    "ADED, chain": lambda table: ADED(table, chain=True, iterations=20),
    "n-grams": lambda table: NgramDrafter(table, step_seconds=FREE),
    "n-grams, chain": lambda table: NgramDrafter(table, chain=True, step_seconds=FREE),
    "n-grams, fixed": lambda table: NgramDrafter(table, tree_size=9, depth=3, recency=False),
}


# A model sees a tree or a chain; where its size and its tokens came from, one model tells.
SHAPES = ("ADED", "n-grams", "n-grams, chain")


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in MODELS for variant in VARIANTS if variant in SHAPES or name == "llama"],
)
def test_the_output_is_greedy_decodings_whatever_the_table(models, name, variant):
    model, ids = models[name], prompt()
    expected = reference(model, ids)
    for table in (TrigramTable(), own_text(model, ids), wrong(ids)):
        drafter = VARIANTS[variant](table)
        assert greedy(model, ids, custom_generate=drafter).tolist() == expected.tolist()
        stats = drafter.stats_
        assert stats.tokens == TOKENS
        assert stats.forwards <= TOKENS
        assert stats.tokens == 1 + stats.steps + stats.accepted
        assert sum(stats.accepted_from.values()) == stats.accepted


@pytest.mark.parametrize("variant", ["ADED", "n-grams"])
def test_a_table_that_knows_the_text_saves_most_passes(llama, variant):
    ids = prompt()
    drafter = VARIANTS[variant](own_text(llama, ids))
    greedy(llama, ids, custom_generate=drafter)
    assert drafter.stats_.tokens_per_forward > 3


@pytest.mark.parametrize("kind", [ADED, NgramDrafter])
def test_a_draft_token_is_credited_to_what_proposed_it(kind):
    """One tri-gram is as it was counted, one was counted and raised, one is new."""
    table = TrigramTable.from_sequences([[10, 11, 12], [11, 12, 13]])
    table.adapt([11, 12, 13, 14])
    drafter = kind(table, tree_size=8)
    drafter.stats_ = DecodeStats()
    drafter.begin([9, 10])
    drafter.wrote([11], 0)
    draft = drafter.draft(10)
    assert draft.tokens == [12, 13, 14]
    assert draft.sources == ["corpus", "raised", "adapted"]


def test_accepted_tokens_are_counted_by_what_proposed_them(llama):
    ids = prompt()
    counts = {}
    for name, table in {"corpus": own_text(llama, ids), "none": TrigramTable(), "wrong": wrong(ids)}.items():
        drafter = NgramDrafter(table, step_seconds=FREE, recency=name != "corpus", feed_prompt=False)
        greedy(llama, ids, custom_generate=drafter)
        assert sum(drafter.stats_.accepted_from.values()) == drafter.stats_.accepted
        counts[name] = drafter.stats_.accepted_from
    assert counts["corpus"]["corpus"] > 12
    assert not counts["none"].keys() & {"corpus", "raised"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [0, 3])
def test_logits_at_every_node_are_those_of_its_path_alone(models, name, padded):
    model = models[name]
    ids = prompt(9)
    mask = torch.ones_like(ids)
    mask[:, :padded] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    root, draft = 5, Draft.from_paths([[1, 2, 3], [1, 2, 4], [6, 7], [8], [1, 9]])
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids, attention_mask=mask, position_ids=positions, cache=cache)
        target = TargetModel(model, cache, mask if padded else None, 9 - padded, tree=True)
        logits = target.read(root, draft)
        for node in range(-1, len(draft)):
            line = torch.cat([ids, torch.tensor([[root, *draft.path(node)]])], 1)
            whole = torch.cat([mask, mask.new_ones(1, line.shape[1] - 9)], 1)
            alone = model(line, attention_mask=whole, position_ids=(whole.cumsum(-1) - 1).clamp(min=0)).logits[0, -1]
            torch.testing.assert_close(logits[node + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", [[], [1], [1, 4], [1, 4, 5]])
def test_the_cache_after_a_step_is_that_of_a_plain_run(llama, path):
    ids, root = prompt(9), 5
    draft = Draft.from_paths([[6, 7], [1, 2, 3], [1, 4, 5], [8]])
    nodes = []
    for token in path:
        nodes.append(draft.child(nodes[-1] if nodes else -1, token))
    with torch.no_grad():
        cache, plain = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
        llama(ids, cache=cache)
        target = TargetModel(llama, cache, None, 9, tree=True)
        target.read(root, draft)
        target.keep(nodes, len(draft))
        llama(torch.cat([ids, torch.tensor([[root, *path]])], 1), cache=plain)
    assert (target.length, target.position) == (10 + len(path), 10 + len(path))
    for mine, other in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.values, other.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_that_generate_returns_is_the_same(llama, variant):
    ids = prompt()
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.2}
    expected = greedy(llama, ids, **wanted)
    got = greedy(llama, ids, custom_generate=VARIANTS[variant](own_text(llama, ids)), **wanted)
    assert type(got) is type(expected)
    assert got.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(got[name]) == len(expected[name]) == TOKENS
        torch.testing.assert_close(torch.cat(got[name]), torch.cat(expected[name]), atol=1e-4, rtol=1e-4)
    lengths = [cache.get_seq_length() for cache in (got.cache, expected.cache)]
    assert lengths == [ids.shape[1] + TOKENS - 1] * 2
    for mine, other in zip(got.cache.layers, expected.cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("chain", [False, True])
def test_an_end_inside_an_accepted_draft_ends_the_text_there(llama, n, chain):
    ids = prompt()
    text = reference(llama, ids)[0, ids.shape[1] :].tolist()
    ends = {"eos_token_id": [text[n], 39], "return_dict_in_generate": True}
    expected = greedy(llama, ids, **ends)
    drafter = NgramDrafter(own_text(llama, ids), step_seconds=FREE, chain=chain)
    got = greedy(llama, ids, custom_generate=drafter, **ends)
    assert got.sequences.tolist() == expected.sequences.tolist()
    assert got.cache.get_seq_length() == expected.cache.get_seq_length()


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 17])
def test_the_length_is_kept_to(llama, tokens):
    ids = prompt()
    for options in ({"max_new_tokens": tokens}, {"max_new_tokens": None, "max_length": ids.shape[1] + tokens}):
        drafter = NgramDrafter(own_text(llama, ids), step_seconds=FREE)
        got = greedy(llama, ids, custom_generate=drafter, **options)
        assert got.tolist() == greedy(llama, ids, **options).tolist()
        assert drafter.stats_.tokens == tokens


def test_the_last_position_a_model_has_can_be_written():
    for n in (10, 21, 22, 23):
        model, ids, room = gpt2(n_positions=24), prompt(n), {"max_new_tokens": 24 - n}
        expected = greedy(model, ids, **room)
        known = own_text(model, ids, 24 - n)
        for drafter in (NgramDrafter(), NgramDrafter(known, tree_size=30), ADED(known), ADED(wrong(ids))):
            assert greedy(model, ids, custom_generate=drafter, **room).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["llama", "llama, eager", "gpt2", "qwen2"])
@pytest.mark.parametrize("chain", [False, True])
def test_left_padding_changes_nothing(models, name, chain):
    model, ids = models[name], prompt()
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    drafter = NgramDrafter(own_text(model, ids), step_seconds=FREE, chain=chain)
    got = greedy(model, padded, attention_mask=mask, custom_generate=drafter)
    assert got.tolist() == greedy(model, padded, attention_mask=mask).tolist()
    assert got[0, 5:].tolist() == reference(model, ids)[0].tolist()


@pytest.mark.parametrize("size", [1, 4, 5, 12, 50])
def test_a_prompt_read_in_chunks(llama, size):
    ids = prompt()
    got = greedy(llama, ids, custom_generate=NgramDrafter(step_seconds=FREE), prefill_chunk_size=size)
    assert got.tolist() == reference(llama, ids).tolist()


@pytest.mark.parametrize("whole", [True, False])
def test_a_finished_cache_goes_on(llama, whole):
    first = prompt()
    done = greedy(llama, first, max_new_tokens=7, return_dict_in_generate=True)
    text = torch.cat([done.sequences, prompt(4, seed=5)], 1)
    given = text if whole else text[:, done.cache.get_seq_length() :]
    results = []
    for drafter in (None, NgramDrafter(step_seconds=FREE), NgramDrafter(step_seconds=FREE, chain=True)):
        cache = copy.deepcopy(done.cache)
        options = {"cache": cache, "attention_mask": torch.ones_like(text), "custom_generate": drafter}
        results.append((greedy(llama, given, **options).tolist(), cache.get_seq_length()))
    assert results[0] == results[1] == results[2]
    assert results[0][0][0][-TOKENS:] == greedy(llama, text)[0, -TOKENS:].tolist()


def test_embeddings_instead_of_tokens(llama):
    embeddings = llama.get_input_embeddings()(prompt())
    drafter = NgramDrafter(own_text(llama, prompt()), step_seconds=FREE)
    got = llama.generate(inputs_embeds=embeddings, custom_generate=drafter, max_new_tokens=30, do_sample=False)
    expected = llama.generate(inputs_embeds=embeddings, max_new_tokens=30, do_sample=False)
    assert got.tolist() == expected.tolist()
    assert drafter.stats_.accepted > 0


class Recorder(LogitsProcessor):
    """Forbids the token written last but one, and keeps the prefixes it is shown."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids[0].tolist())
        return scores.index_fill(-1, input_ids[0, -2:-1], -float("inf"))


def test_logits_processors_see_each_prefix_once_and_in_turn(llama):
    ids = prompt()
    mine, plain = Recorder(), Recorder()
    expected = greedy(llama, ids, logits_processor=[plain])
    drafter = NgramDrafter(TrigramTable.from_sequences([expected[0].tolist()]), step_seconds=FREE)
    assert greedy(llama, ids, logits_processor=[mine], custom_generate=drafter).tolist() == expected.tolist()
    assert mine.seen == plain.seen
    assert drafter.stats_.accepted > 5


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [4, 5]]},
        {"min_new_tokens": 12, "eos_token_id": [2, 7, 9]},
        {"forced_eos_token_id": 3},
        {"suppress_tokens": [8, 9, 10]},
        {"exponential_decay_length_penalty": (5, 1.5), "eos_token_id": 6},
    ],
)
def test_processors_of_transformers_work_as_in_greedy_decoding(llama, options):
    ids = prompt()
    expected = greedy(llama, ids, **options)
    drafter = NgramDrafter(TrigramTable.from_sequences([expected[0].tolist()]), step_seconds=FREE)
    assert greedy(llama, ids, custom_generate=drafter, **options).tolist() == expected.tolist()


class StopAfter(StoppingCriteria):
    """Stops when a token was written for the second time, and counts how often it is asked."""

    def __init__(self, token: int) -> None:
        self.token, self.asked = token, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.asked += 1
        return torch.tensor([(input_ids[0] == self.token).sum() >= 2])


def test_stopping_criteria_are_asked_after_each_token(llama):
    ids = prompt()
    token = int(reference(llama, ids)[0, -3])
    mine, plain = StopAfter(token), StopAfter(token)
    expected = greedy(llama, ids, stopping_criteria=[plain])
    drafter = NgramDrafter(own_text(llama, ids), step_seconds=FREE)
    assert greedy(llama, ids, stopping_criteria=[mine], custom_generate=drafter).tolist() == expected.tolist()
    assert mine.asked == plain.asked
    assert expected.shape[1] < ids.shape[1] + TOKENS


def test_stop_strings_end_the_text(tiny_model, tiny_tokenizer):
    model, tokenizer = tiny_model(eos_token_id=None), tiny_tokenizer()
    ids = prompt()
    text = reference(model, ids)[0, ids.shape[1] :].tolist()
    strings = [tokenizer.decode(text[i : i + 2]) for i in range(5, TOKENS - 2)]
    string = next(string for string in strings if string.isascii() and len(string) > 1)
    results = []
    for drafter in (None, NgramDrafter(own_text(model, ids), step_seconds=FREE)):
        criteria = [StopStringCriteria(tokenizer, [string])]
        results.append(greedy(model, ids, stopping_criteria=criteria, custom_generate=drafter).tolist())
    assert results[0] == results[1]
    assert len(results[0][0]) < ids.shape[1] + TOKENS


class Stream:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.events.append(tokens.tolist())

    def end(self) -> None:
        self.events.append("end")


def test_a_streamer_gets_every_token_in_turn(llama):
    ids, mine, plain = prompt(), Stream(), Stream()
    greedy(llama, ids, streamer=plain)
    greedy(llama, ids, streamer=mine, custom_generate=NgramDrafter(own_text(llama, ids), step_seconds=FREE))
    assert mine.events == plain.events


@pytest.mark.parametrize("make", [lambda: ADED(iterations=20), lambda: NgramDrafter(step_seconds=FREE, recency=False)])
def test_repeating_a_text_raises_acceptance(llama, make):
    ids = prompt()
    drafter = make()
    forwards = []
    for _ in range(6):
        greedy(llama, ids, custom_generate=drafter)
        forwards.append(drafter.stats_.forwards)
    assert forwards[0] > forwards[1] >= max(forwards[2:])
    assert sum(forwards[3:]) < sum(forwards[:3])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fork_leaves_the_original_as_it_was(llama, variant):
    drafter = VARIANTS[variant](TrigramTable())
    fork = drafter.fork()
    greedy(llama, prompt(), custom_generate=fork)
    assert len(drafter.table) == len(drafter.acceptance_._counts) == 0
    assert len(fork.table) > 15
    assert fork.acceptance_._counts
    if isinstance(drafter, NgramDrafter) and drafter.recency:
        assert drafter.history_.tokens == []
        assert fork.history_.tokens == [*prompt()[0].tolist(), *reference(llama, prompt())[0, 12:].tolist()]


@pytest.mark.parametrize("kind", [ADED, NgramDrafter])
def test_where_drafting_does_not_pay_nothing_is_drafted(llama, kind):
    ids = prompt()
    drafter = kind(own_text(llama, ids), tree_size="auto", step_seconds={n: n**2 for n in SIZES})
    greedy(llama, ids, custom_generate=drafter)
    assert drafter.stats_.sizes == {0: TOKENS - 1}
    assert drafter.stats_.drafted == 0


@pytest.mark.parametrize("kind", [ADED, NgramDrafter])
def test_steps_are_measured_once_for_a_model_and_leave_its_cache_alone(llama, monkeypatch, kind):
    ids, calls = prompt(), []

    def timed(step: Callable[[int], None]) -> Any:
        from broadsheet.decode.step_cost import StepCost

        calls.append(1)
        for size in SIZES:
            step(size)
        return StepCost(FREE)

    monkeypatch.setattr("broadsheet.decode.table_drafter.measure", timed)
    drafter = kind(tree_size="auto")
    expected = greedy(llama, ids, return_dict_in_generate=True)
    for _ in range(2):
        got = greedy(llama, ids, custom_generate=drafter, return_dict_in_generate=True)
        assert got.sequences.tolist() == expected.sequences.tolist()
        assert got.cache.get_seq_length() == expected.cache.get_seq_length()
    assert calls == [1]


def test_half_precision_writes_what_its_own_logits_say(tiny_model):
    model = tiny_model(vocab_size=VOCABULARY, eos_token_id=None, pad_token_id=0).to(torch.bfloat16)
    ids = prompt()
    got = greedy(model, ids, custom_generate=NgramDrafter(own_text(model, ids), step_seconds=FREE))[0, ids.shape[1] :]
    again = torch.cat([ids, got[None]], 1)
    with torch.no_grad():
        logits = model(again).logits[0, ids.shape[1] - 1 : -1].float()
    chosen = logits.gather(1, got[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() <= 0.05 * logits.abs().max()  # a near-tie at worst


# What cannot be done is said in one line, before anything is computed.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True}, "greedy decoding.*got settings for sample"),
        ({"num_beams": 3}, "greedy decoding.*beam search"),
        ({"prompt_lookup_num_tokens": 5}, "greedy decoding.*assisted"),
        ({"use_cache": False}, "without a cache"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "hidden states"),
        ({"cache_implementation": "static"}, "StaticLayer.*cannot drop rejected tokens"),
        pytest.param({"cache_implementation": "offloaded"}, "offloaded", marks=OFFLOADS),
    ],
)
def test_what_is_not_greedy_decoding_of_one_sequence_is_refused(llama, options, message):
    with pytest.raises(InputError, match=message) as raised:
        llama.generate(prompt(), custom_generate=NgramDrafter(), max_new_tokens=4, **options)
    assert "\n" not in str(raised.value)


def test_batches_and_empty_prompts_are_refused(llama):
    with pytest.raises(InputError, match="one sequence at a time; got 2"):
        greedy(llama, prompt().repeat(2, 1), custom_generate=NgramDrafter())
    with pytest.raises(InputError, match="empty prompt"):
        greedy(llama, torch.zeros(1, 0, dtype=torch.long), custom_generate=NgramDrafter())


def test_caches_that_cannot_drop_tokens_are_refused(llama):
    static = StaticCache(config=llama.config, max_cache_len=64)
    with pytest.raises(InputError, match=r"StaticLayer.*expected a DynamicCache"):
        greedy(llama, prompt(), custom_generate=NgramDrafter(), cache=static)
    sliding = build(MistralForCausalLM, MistralConfig(**SIZE, sliding_window=8))
    for cache in (None, DynamicCache()):
        with pytest.raises(InputError, match=r"MistralForCausalLM.*SlidingWindow"):
            greedy(sliding, prompt(), custom_generate=NgramDrafter(), cache=cache)
    recurrent = build(
        MambaForCausalLM, MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1), "eager"
    )
    with pytest.raises(InputError, match="cannot drop rejected tokens"):
        greedy(recurrent, prompt(), custom_generate=NgramDrafter(), pad_token_id=0)


def test_models_that_cannot_verify_a_tree_are_refused_and_can_draft_a_chain():
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    bloom = build(BloomForCausalLM, config, "eager")
    ids = prompt()
    options = {"eos_token_id": None, "pad_token_id": 0}
    with pytest.raises(InputError, match=r"position_ids.*chain=True"):
        greedy(bloom, ids, custom_generate=NgramDrafter(), **options)
    drafter = NgramDrafter(own_text(bloom, ids), chain=True, step_seconds=FREE)
    assert greedy(bloom, ids, custom_generate=drafter, **options).tolist() == greedy(bloom, ids, **options).tolist()
    assert drafter.stats_.accepted > 0
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, num_layers=1, d_kv=8))
    with pytest.raises(InputError, match="encoder-decoder"):
        greedy(t5, ids, custom_generate=NgramDrafter(), decoder_start_token_id=0)


def test_attention_that_takes_no_tree_mask_is_refused(tiny_model):
    model = tiny_model(vocab_size=VOCABULARY, eos_token_id=None, pad_token_id=0)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r"'flash_attention_2', which cannot take a tree mask.*'sdpa'.*chain=True"):
        greedy(model, prompt(), custom_generate=NgramDrafter())


def test_attention_that_ignores_a_tree_mask_is_found_out(tiny_model, monkeypatch):
    model = tiny_model(vocab_size=VOCABULARY, eos_token_id=None, pad_token_id=0)
    read = TargetModel.read

    def as_a_chain(self: TargetModel, root: int, draft: Draft) -> torch.Tensor:
        return read(self, root, Draft(draft.tokens, list(range(-1, len(draft) - 1)), draft.chances))

    monkeypatch.setattr(TargetModel, "read", as_a_chain)
    with pytest.raises(InputError, match=r"does not honour a tree mask.*chain=True"):
        greedy(model, prompt(), custom_generate=NgramDrafter(tree_size=4))


def test_a_table_beyond_the_vocabulary_is_refused(llama):
    with pytest.raises(InputError, match="table has token 99, the model 40 tokens"):
        greedy(llama, prompt(), custom_generate=NgramDrafter(TrigramTable.from_sequences([[97, 98, 99]])))


@pytest.mark.parametrize("kind", [ADED, NgramDrafter])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tree_size": 0}, "got tree_size 0; expected 'auto' or a whole number from 1"),
        ({"depth": "deep"}, "got depth 'deep'; expected .*a whole number from 1"),
        ({"step_seconds": {}}, "expected positive ones by step size"),
        ({"window": 0}, "got window 0; expected a whole number from 1"),
        ({"increment": -0.1}, "got increment -0.1, cap 3.0; expected 0 or more, and more than 0"),
        ({"cap": 0.0}, "got increment 0.04, cap 0.0; expected"),
    ],
)
def test_impossible_parameters_are_refused(kind, parameters, message):
    with pytest.raises(InputError, match=message):
        kind(**parameters)
