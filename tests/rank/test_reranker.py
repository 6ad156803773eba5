"""`ListwiseReranker`: what it returns whatever the model says, batches, files, and input that cannot be ranked."""

from __future__ import annotations

import copy
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.rank.base import ListwiseReranker
from broadsheet.rank.order import label_text
from broadsheet.rank.prompts import decoding
from broadsheet.rank.prompts.prompt import Prompt

WORDS = ["red", "green", "blue", "sky", "tree", "stone", "water", "fire", "list", "sort"]


class Scripted(torch.nn.Module):
    """Stands for a model that reads a number at the start of each passage: its logit, and its place in what is written.

    `says` replaces what is written; `shift` and `scale` change all logits.
    """

    def __init__(self, tokenizer: Any, says: str | None = None, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.says, self.shift, self.scale = says, shift, scale
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        text = SimpleNamespace(max_position_embeddings=8192)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.forwards: list[int] = []

    def read(self, ids: list[int]) -> dict[str, float]:
        text = self.tokenizer.decode(ids)
        return {name: float(value) for name, value in re.findall(r"\[(\w+)\] (-?\d+)", text)}

    def forward(self, input_ids, logits_to_keep=None, use_cache=None):
        self.forwards.append(len(input_ids))
        logits = torch.zeros(*input_ids.shape, 272)
        for row, ids in enumerate(input_ids.tolist()):
            for name, value in self.read(ids).items():
                logits[row, :, self.tokenizer.convert_tokens_to_ids(name)] = value * self.scale + self.shift
        kept = slice(None) if logits_to_keep is None else logits_to_keep
        return SimpleNamespace(logits=logits[:, kept])

    def generate(self, ids, attention_mask, generation_config):
        rows = []
        for row, mask in zip(ids.tolist(), attention_mask.tolist(), strict=True):
            values = self.read([one for one, real in zip(row, mask, strict=True) if real])
            best = sorted(values, key=values.__getitem__, reverse=True)
            text = " > ".join(f"[{name}]" for name in best)[1:] if self.says is None else self.says
            rows.append([*self.tokenizer(text).input_ids, self.tokenizer.eos_token_id])
        width = max(map(len, rows))
        end = self.tokenizer.eos_token_id
        written = torch.tensor([row + [end] * (width - len(row)) for row in rows])[
            :, : generation_config.max_new_tokens
        ]
        return torch.cat([ids, written], 1)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(max_position_embeddings=4096)


def documents_of(values):
    return [f"{value} is its worth" for value in values]


def ids(hits):
    return [hit["corpus_id"] for hit in hits]


VALUES = [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 93, 23, 84, 62]


@pytest.mark.parametrize("decode", ["first_token", "permutation"])
@pytest.mark.parametrize(
    ("strategy", "window", "step", "calls", "sure"),
    [("sliding", 6, 3, 4, 3), ("sliding", 20, 10, 1, 15), ("full", 4, 2, 1, 15), ("multipass", 6, 3, 10, 15)],
)
def test_documents_come_out_in_the_model_s_order(tokenizer, decode, strategy, window, step, calls, sure):
    model = Scripted(tokenizer)
    reranker = ListwiseReranker(model, tokenizer, strategy=strategy, window=window, step=step, decode=decode)
    hits = reranker.rank("q", documents_of(VALUES))
    best = sorted(range(len(VALUES)), key=lambda item: -VALUES[item])
    assert ids(hits)[:sure] == best[:sure]
    assert sorted(ids(hits)) == list(range(len(VALUES)))
    assert reranker.stats_.calls == calls
    assert sum(model.forwards) == (calls if decode == "first_token" else 0)
    assert reranker.stats_.invalid_outputs == 0


def test_hits_have_the_shape_of_a_cross_encoder_s_and_strictly_falling_scores(tokenizer):
    reranker = ListwiseReranker(Scripted(tokenizer), tokenizer)
    documents = [{"title": "T", "text": "not read as a number"}, "7 x", "7 y", "9 z"]
    hits = reranker.rank("q", documents, return_documents=True)
    assert ids(hits) == [3, 1, 2, 0]  # equal logits keep their order
    assert [hit["score"] for hit in hits] == [4.0, 3.0, 2.0, 1.0]
    assert [hit["logit"] for hit in hits] == [9.0, 7.0, 7.0, 0.0]
    assert [hit["text"] for hit in hits] == ["9 z", "7 x", "7 y", "not read as a number"]
    assert reranker.rank("q", documents, top_k=2) == [
        {"corpus_id": 3, "score": 4.0, "logit": 9.0},
        {"corpus_id": 1, "score": 3.0, "logit": 7.0},
    ]
    assert (
        "logit" not in ListwiseReranker(Scripted(tokenizer), tokenizer, decode="permutation").rank("q", ["1", "2"])[0]
    )


def test_a_logit_is_that_of_the_last_window_a_document_was_in(tokenizer):
    class Drifting(Scripted):
        def forward(self, *args, **kwargs):
            self.shift = 100.0 * len(self.forwards)
            return super().forward(*args, **kwargs)

    reranker = ListwiseReranker(Drifting(tokenizer), tokenizer, window=3, step=1)
    hits = reranker.rank("q", documents_of([1, 2, 3, 4]))
    assert [(hit["corpus_id"], hit["logit"]) for hit in hits] == [(3, 104.0), (2, 103.0), (0, 101.0), (1, 2.0)]


@pytest.mark.parametrize(("shift", "scale"), [(50.0, 1.0), (-3.0, 0.01), (0.0, 10.0)])
def test_the_order_does_not_depend_on_a_constant_or_a_temperature(tokenizer, shift, scale):
    plain, other = (
        ListwiseReranker(Scripted(tokenizer, shift=a, scale=b), tokenizer, window=5, step=2)
        for a, b in ((0.0, 1.0), (shift, scale))
    )
    assert ids(plain.rank("q", documents_of(VALUES))) == ids(other.rank("q", documents_of(VALUES)))


@given(st.text(alphabet="ABCDEZ[]> 1\n", max_size=40), st.integers(1, 9))
@settings(max_examples=50)
def test_whatever_the_model_writes_every_document_comes_once(tokenizer, says, n):
    reranker = ListwiseReranker(Scripted(tokenizer, says), tokenizer, decode="permutation", window=4, step=2)
    hits = reranker.rank("q", documents_of(range(n)))
    assert sorted(ids(hits)) == list(range(n))
    assert [hit["score"] for hit in hits] == list(range(n, 0, -1))


@pytest.mark.parametrize(
    ("says", "order", "invalid"),
    [
        ("C] > [A] > [B]", [2, 0, 1], 0),
        ("C] > [A]", [2, 0, 1], 1),
        ("C] > [C] > [A] > [B]", [2, 0, 1], 1),
        ("D] > [C] > [A]", [2, 0, 1], 1),
        ("I think passage A", [0, 1, 2], 1),
        ("", [0, 1, 2], 1),
    ],
)
def test_invalid_outputs_are_completed_and_counted(tokenizer, says, order, invalid):
    reranker = ListwiseReranker(Scripted(tokenizer, says), tokenizer, decode="permutation")
    assert ids(reranker.rank("q", ["x", "y", "z"])) == order
    assert reranker.stats_.invalid_outputs == invalid
    longest = reranker.prompter.answer_length(3) - 1
    assert reranker.stats_.output_tokens == min(longest, len(tokenizer(says).input_ids))


def test_an_answer_is_read_no_further_than_a_ranking_is_long(tokenizer):
    reranker = ListwiseReranker(Scripted(tokenizer, "B] > [A] " + "and so on " * 50), tokenizer, decode="permutation")
    assert ids(reranker.rank("q", ["x", "y"])) == [1, 0]
    assert reranker.stats_.output_tokens == reranker.prompter.answer_length(2) - 1


def test_stats_count_what_was_read(tokenizer):
    sliding = ListwiseReranker(Scripted(tokenizer), tokenizer, window=6, step=3)
    sliding.rank("q", documents_of(VALUES))
    assert sliding.stats_.passages == 6 * 4
    full = ListwiseReranker(Scripted(tokenizer), tokenizer, strategy="full")
    full.rank("q", documents_of(VALUES))
    assert full.stats_.passages == len(VALUES)
    built = full.prompter.build("q", documents_of(VALUES))
    assert full.stats_.prompt_tokens == len(built.ids) + 1
    assert full.stats_.output_tokens == 0


def test_one_document_needs_no_call(tokenizer):
    model = Scripted(tokenizer)
    reranker = ListwiseReranker(model, tokenizer)
    assert reranker.rank("q", ["only"]) == [{"corpus_id": 0, "score": 1.0, "logit": None}]
    assert model.forwards == []


def test_duplicates_stay_apart(tokenizer):
    hits = ListwiseReranker(Scripted(tokenizer), tokenizer).rank("q", ["5 x", "9 y", "5 x", "9 y"])
    assert ids(hits) == [1, 3, 0, 2]


def texts(seed, n):
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (1 + 3 * (k % 4),), generator=generator))
        for k in range(n)
    ]


def test_batches_and_neighbours_do_not_change_a_ranking(tokenizer, model):
    queries = ["red sky", "how to sort a list of stones", "tree"]
    lists = [texts(1, 9), texts(2, 4), texts(3, 1)]
    results = []
    for batch_tokens in (1, 700, 100_000):
        reranker = ListwiseReranker(model, tokenizer, window=4, step=2, batch_tokens=batch_tokens)
        results.append(reranker.rank_batch(queries, lists))
    alone = [reranker.rank(query, listed) for query, listed in zip(queries, lists, strict=True)]
    for found in results:
        for mine, other in zip(found, alone, strict=True):
            assert ids(mine) == ids(other)
            for one, two in zip(mine, other, strict=True):
                assert one["logit"] == pytest.approx(two["logit"], abs=1e-5)


def test_windows_of_many_queries_share_a_batch(tokenizer):
    model = Scripted(tokenizer)
    reranker = ListwiseReranker(model, tokenizer, window=4, step=2, batch_tokens=100_000)
    reranker.rank_batch(["a", "b", "c"], [documents_of(range(6)), documents_of(range(6)), documents_of(range(3))])
    assert model.forwards == [3, 2]


def test_logits_are_those_of_a_plain_forward_pass(tokenizer, model):
    reranker = ListwiseReranker(model, tokenizer)
    documents = texts(4, 5)
    hits = reranker.rank("red", documents)
    prompt = reranker.prompter.build("red", documents).ids + reranker.prompter.opening
    logits = model(torch.tensor([prompt])).logits[0, -1]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCDE"]
    for hit in hits:
        assert hit["logit"] == pytest.approx(logits[letters[hit["corpus_id"]]].item(), abs=1e-5)


def test_identifiers_are_told_apart_in_bfloat16(tokenizer, tiny_model):
    model = tiny_model(max_position_embeddings=4096).bfloat16()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 100)  # logits as large as trained models'
    prompts, letters = [[5, 6, 7], [9, 8, 7, 6]], [65, 66, 67, 68]
    found = torch.tensor(decoding.read_next(model, prompts, [letters] * 2))
    for prompt, row in zip(prompts, found, strict=True):
        hidden = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        torch.testing.assert_close(row, model.lm_head.weight[letters].float() @ hidden.float(), atol=1e-4, rtol=1e-5)
        assert not torch.equal(row, row.bfloat16().float())
        plain = model(torch.tensor([prompt])).logits[0, -1]
        assert plain.dtype == torch.bfloat16, "the model is as it was"
        torch.testing.assert_close(row, plain[letters].float(), atol=0, rtol=0.01)
    assert found.abs().max() > 8


def test_a_model_that_cannot_keep_some_logits_only_is_read_whole(tokenizer, model):
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.device = model.device

        def forward(self, input_ids, use_cache=None):
            return model(input_ids)

    padded = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    last = torch.tensor([2, 3])
    torch.testing.assert_close(decoding.last_logits(Whole(), padded, last), decoding.last_logits(model, padded, last))


SIZE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "bloom": lambda: hf.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "gemma2": lambda: hf.Gemma2Config(**SIZE, head_dim=8, sliding_window=4),
    "gpt2": lambda: hf.GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mamba": lambda: hf.MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=8),
    "mistral, sliding": lambda: hf.MistralConfig(**SIZE, sliding_window=4),
    "qwen3": lambda: hf.Qwen3Config(**SIZE, head_dim=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_logit_in_any_architecture(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation="eager").eval()
    prompts = [[5, 6, 7], list(range(3, 21)), [9, 9, 8, 7, 6, 5, 4]]
    names = [[3, 4], [5, 6, 7], [8]]
    together = decoding.read_next(model, prompts, names, batch_tokens=1000)
    for prompt, letters, row in zip(prompts, names, together, strict=True):
        plain = model(torch.tensor([prompt])).logits[0, -1, letters]
        torch.testing.assert_close(torch.tensor(row), plain, atol=1e-5, rtol=0)


def test_both_decodings_agree_on_the_first_when_the_likeliest_token_is_an_identifier(tokenizer, model):
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCDE"]
    lettered = copy.deepcopy(model)
    with torch.no_grad():  # an output layer of its own, that prefers letters
        lettered.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 0.01)
        lettered.lm_head.weight[letters] = model.lm_head.weight[letters]
    tried = 0
    for seed in range(12):
        documents = texts(seed, 5)
        first, written = (
            ids(ListwiseReranker(lettered, tokenizer, decode=decode).rank("red", documents))
            for decode in ("first_token", "permutation")
        )
        prompter = ListwiseReranker(lettered, tokenizer).prompter
        prompt = prompter.build("red", documents).ids + prompter.opening
        top = int(lettered(torch.tensor([prompt])).logits[0, -1].argmax())
        # The scripted continuation must close the bracket, which a random model does not: compare what it wrote first.
        if top in letters:
            tried += 1
            assert letters[first[0]] == top
            generated = decoding.permutation(lettered, [prompt], [1], end=None)[0]
            assert generated == [top]
            assert sorted(written) == sorted(first)
    assert tried


def test_what_is_written_does_not_depend_on_the_batch(tokenizer, model):
    prompts = [tokenizer(text).input_ids for text in ("red sky and [", "a much longer prompt about stones [", "x [")]
    together = decoding.permutation(model, prompts, [6, 9, 3], end=tokenizer.eos_token_id)
    alone = [
        decoding.permutation(model, [prompt], [length], end=tokenizer.eos_token_id)[0]
        for prompt, length in zip(prompts, [6, 9, 3], strict=True)
    ]
    assert together == alone
    plain = model.generate(torch.tensor([prompts[1]]), max_new_tokens=9, do_sample=False)[0, len(prompts[1]) :].tolist()
    assert together[1] == plain[: len(together[1])]
    assert all(len(one) <= length for one, length in zip(together, [6, 9, 3], strict=True))


def test_a_model_in_training_ranks_in_eval_mode_and_trains_on(tokenizer, tiny_model):
    model = tiny_model(max_position_embeddings=4096, attention_dropout=0.5)
    expected = ListwiseReranker(model, tokenizer).rank("red", texts(5, 6))
    model.train()
    assert ListwiseReranker(model, tokenizer).rank("red", texts(5, 6)) == expected
    assert model.training


def test_documents_that_do_not_fit_are_shortened_and_it_is_said_once(tokenizer, model, capsys):
    reranker = ListwiseReranker(model, tokenizer, max_length=900)
    long = ["red " * 200, "blue " * 100, "sky"]
    reranker.rank("q", long)
    said = capsys.readouterr().err
    assert "2 of 3 passages were read without" in said
    assert reranker.stats_.cut_passages == 2
    assert reranker.stats_.prompt_tokens <= 900
    reranker.rank("q", long)
    assert reranker.stats_.cut_passages == 2
    assert capsys.readouterr().err == ""


def test_the_context_of_the_model_is_the_limit(tokenizer, tiny_model):
    reranker = ListwiseReranker(tiny_model(max_position_embeddings=700), tokenizer)
    reranker.rank("q", ["red " * 300] * 3)
    assert reranker.stats_.cut_passages == 3
    assert reranker.stats_.prompt_tokens <= 700


@pytest.mark.parametrize("decode", ["first_token", "permutation"])
def test_prompt_and_answer_fill_the_context_to_the_last_token(tokenizer, decode):
    documents = documents_of([1, 2, 3])
    whole = ListwiseReranker(Scripted(tokenizer), tokenizer).prompter
    answer = len(whole.opening) if decode == "first_token" else whole.answer_length(3)
    length = len(whole.build("q", documents).ids) + answer
    for limit, cut in ((length, False), (length - 1, True)):
        reranker = ListwiseReranker(Scripted(tokenizer), tokenizer, decode=decode, max_length=limit)
        reranker.rank("q", documents)
        assert bool(reranker.stats_.cut_passages) == cut


def test_a_model_without_a_chat_template_ranks(tiny_tokenizer):
    tokenizer = tiny_tokenizer(chat=False)
    assert ids(ListwiseReranker(Scripted(tokenizer), tokenizer).rank("q", documents_of([1, 3, 2]))) == [1, 2, 0]


def test_documents_with_brackets_and_control_characters_rank(tokenizer):
    documents = ["3 [A]\x00[B]", "9 <|im_end|>\x1b", "\ud800", "5 ]["]
    assert ids(ListwiseReranker(Scripted(tokenizer), tokenizer).rank("q [C]", documents)) == [1, 3, 0, 2]


def test_nan_logits_are_said(tokenizer, tiny_model):
    broken = tiny_model(max_position_embeddings=4096)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"logits are NaN \(float32\)"):
        ListwiseReranker(broken, tokenizer).rank("q", ["x", "y"])


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        ("", ["x"], "query is empty"),
        ("  ", ["x"], "query is empty"),
        ("q", [], "no documents to rank"),
        ("q", "one text", "give a list"),
        ("q", ["x", None], "a document is None"),
    ],
)
def test_input_that_cannot_be_ranked_is_refused_before_any_call(tokenizer, query, documents, message):
    model = Scripted(tokenizer)
    reranker = ListwiseReranker(model, tokenizer)
    with pytest.raises(InputError, match=message):
        reranker.rank_batch(["fine", query], [["a", "b"], documents])
    assert model.forwards == []


def test_settings_that_cannot_be_are_refused(tokenizer, model):
    for setting, message in [
        ({"strategy": "bubble"}, "strategy"),
        ({"decode": "beam"}, "decode"),
        ({"window": 1}, "window"),
        ({"step": 30}, "step"),
        ({"window": 27, "step": 5}, "at most 26"),
        ({"identifiers": "numeric"}, r"10, 11.*at most 9"),
        ({"strategy": "multipass", "step": 20}, "overlap"),
    ]:
        with pytest.raises(InputError, match=message):
            ListwiseReranker(model, tokenizer, **setting)
    with pytest.raises(InputError, match="top_k is 0"):
        ListwiseReranker(model, tokenizer).rank("q", ["x"], top_k=0)
    with pytest.raises(InputError, match="1 lists of documents for 2"):
        ListwiseReranker(model, tokenizer).rank_batch(["a", "b"], [["x"]])


def test_more_documents_than_letters_are_refused_in_one_call_and_fine_in_windows_or_numbers(tokenizer):
    documents = documents_of(range(30))
    with pytest.raises(InputError, match="letters name at most 26"):
        ListwiseReranker(Scripted(tokenizer), tokenizer, strategy="full").rank("q", documents)
    assert ids(ListwiseReranker(Scripted(tokenizer), tokenizer).rank("q", documents))[:10] == list(range(29, 19, -1))
    numbers = ListwiseReranker(
        Scripted(tokenizer), tokenizer, strategy="full", decode="permutation", identifiers="numeric"
    )
    assert ids(numbers.rank("q", documents)) == list(range(29, -1, -1))
    assert numbers.stats_.invalid_outputs == 0


def test_a_run_is_reranked_and_nothing_is_lost(tokenizer):
    reranker = ListwiseReranker(Scripted(tokenizer), tokenizer)
    corpus = {f"d{value}": f"{value} worth" for value in range(6)}
    run = {"q1": {"d1": 9.0, "d5": 8.0, "d3": 8.0, "d0": 7.0, "d4": 6.0}, "q2": {}}
    found = reranker.rank_run(run, {"q1": "a query", "q2": "another"}, corpus, depth=3)
    assert found == {"q1": {"d5": 5.0, "d3": 4.0, "d1": 3.0, "d0": 2.0, "d4": 1.0}, "q2": {}}
    with pytest.raises(InputError, match="query 'q1', which is not among"):
        reranker.rank_run(run, {}, corpus)
    with pytest.raises(InputError, match=r"names 1 documents that the corpus lacks, such as 'd7'"):
        reranker.rank_run({"q1": {"d7": 1.0}}, {"q1": "a"}, corpus)


def test_a_saved_reranker_ranks_as_before(tokenizer, model, tmp_path):
    wording = Prompt(system="Order texts.")
    reranker = ListwiseReranker(model, tokenizer, window=5, step=2, max_words=40, prompt=wording)
    reranker.save(tmp_path / "reranker")
    again = ListwiseReranker.load(tmp_path / "reranker", device="cpu", dtype="float32")
    assert again.settings() == reranker.settings()
    assert again.prompter.prompt == wording
    assert again.rank("red", texts(6, 8)) == reranker.rank("red", texts(6, 8))
    changed = ListwiseReranker.load(tmp_path / "reranker", device="cpu", strategy="full", decode="permutation")
    assert (changed.strategy, changed.decode, changed.window) == ("full", "permutation", 5)


def test_a_saved_adapter_ranks_as_before(tokenizer, tiny_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = ListwiseReranker.load(tiny_folder, device="cpu", max_length=4096)
    adapted = get_peft_model(base.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    reranker = ListwiseReranker(adapted, base.tokenizer, spec=str(tiny_folder), max_length=4096)
    reranker.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = ListwiseReranker.load(tmp_path / "adapter", device="cpu")
    mine, other = (one.rank("red", texts(6, 5)) for one in (reranker, again))
    assert mine == other
    with adapted.disable_adapter():
        assert [hit["logit"] for hit in reranker.rank("red", texts(6, 5))] != [hit["logit"] for hit in mine]


def test_saving_replaces_a_reranker_and_spares_other_folders(tokenizer, model, tmp_path):
    reranker = ListwiseReranker(model, tokenizer)
    reranker.save(tmp_path / "mine")
    ListwiseReranker(model, tokenizer, window=7, step=3).save(tmp_path / "mine")
    assert json.loads((tmp_path / "mine" / "reranker.json").read_text())["window"] == 7
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no saved reranker"):
        reranker.save(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_a_save_cut_off_leaves_the_old_reranker(tokenizer, model, tmp_path, monkeypatch):
    reranker = ListwiseReranker(model, tokenizer)
    reranker.save(tmp_path / "mine")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match="disk full"):
        ListwiseReranker(model, tokenizer, window=7, step=3).save(tmp_path / "mine")
    monkeypatch.undo()
    assert ListwiseReranker.load(tmp_path / "mine", device="cpu").window == 20


def test_damaged_folders_are_refused(tokenizer, model, tmp_path):
    folder = tmp_path / "mine"
    ListwiseReranker(model, tokenizer).save(folder)
    whole = json.loads((folder / "reranker.json").read_text())
    for change, message in [
        ({"format": 99}, "format 99"),
        ({"colour": "red"}, "colour"),
        ({"strategy": "bubble"}, "bubble"),
        ({"prompt": {"system": 3}}, "system=3"),
    ]:
        (folder / "reranker.json").write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=message):
            ListwiseReranker.load(folder, device="cpu")
    (folder / "reranker.json").write_text(json.dumps(whole))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        ListwiseReranker.load(folder, device="cpu")
    with pytest.raises(InputError, match="unknown model"):
        ListwiseReranker.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"peft_type": "IA3"}, "only plain LoRA"), ({"megatron_config": {"a": 1}}, "megatron_config")],
)
def test_adapters_that_could_run_code_are_refused(tiny_folder, tmp_path, change, message):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "reranker.json").write_text(json.dumps({"format": 1, "base_model": str(tiny_folder)}))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | change))
    with pytest.raises(InputError, match=message):
        ListwiseReranker.load(folder, device="cpu")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InputError, match=r"lacks adapter_model\.safetensors"):
        ListwiseReranker.load(folder, device="cpu")
    (folder / "adapter_model.safetensors").write_bytes(b"pickled, perhaps")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        ListwiseReranker.load(folder, device="cpu")


def test_trained_on_its_own_targets_a_model_ranks_as_it_was_taught(tokenizer, tiny_model):
    """Prompt, target and scored position fit together: decoding scores after the bracket that opens a target."""
    model = tiny_model(max_position_embeddings=4096)
    reranker = ListwiseReranker(model, tokenizer, prompt=Prompt(system="Rank.", intro="{query}\n", outro="Rank."))
    documents = ["sky", "fire", "stone"]
    prompt = reranker.prompter.build("q", documents).ids
    target = reranker.prompter.target([2, 0, 1])
    ids_, labels = torch.tensor([prompt + target.ids]), torch.tensor([[-100] * len(prompt) + target.ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(input_ids=ids_, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ids(reranker.rank("q", documents))[0] == 2
    writing = ListwiseReranker(model, tokenizer, prompt=reranker.prompter.prompt, decode="permutation")
    assert ids(writing.rank("q", documents)) == [2, 0, 1]
    assert writing.stats_.invalid_outputs == 0
    assert label_text([2, 0, 1], "alpha") == "[C] > [A] > [B]"
