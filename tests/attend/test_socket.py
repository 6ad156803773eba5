"""Every method of the stage through the same checks, on every architecture."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from attend_zoo import ALL_SLIDING, BASE, CONFIGS, make
from attending import layer
from torch import Tensor
from transformers import DynamicCache, StaticCache

from broadsheet.attend import FlexPrefill, InfLLM, LMInfinite, LongHeads, cache_bytes
from broadsheet.console import InputError

LENGTH = 40
# Methods that see everything at this length, and ones that must leave something out.
WIDE: dict[str, Callable[[], Any]] = {
    "LMInfinite": lambda: LMInfinite(n_global=2, n_local=64),
    "InfLLM": lambda: InfLLM(n_init=2, n_local=64, block_size=4, representatives=2, top_k=2, execution_block=8),
    "LongHeads": lambda: LongHeads(chunk_size=4, attention_length=64, begin=64),
    "FlexPrefill": lambda: FlexPrefill(gamma=1.0, block_size=4, min_budget=8),
}
NARROW: dict[str, Callable[[], Any]] = {
    "LMInfinite": lambda: LMInfinite(n_global=2, n_local=8),
    "InfLLM": lambda: InfLLM(n_init=2, n_local=8, block_size=2, representatives=1, top_k=2),
    "LongHeads": lambda: LongHeads(chunk_size=2, attention_length=8, begin=8),
    "FlexPrefill": lambda: FlexPrefill(gamma=0.3, block_size=4, min_budget=4),
}
MEMORIES = ["LMInfinite", "InfLLM", "LongHeads"]
# They differ from Llama in how queries and keys are made only, not in their positions, windows or scores.
PROJECTED = {"qwen2", "qwen3", "mistral", "gemma", "phi3"}


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name not in ALL_SLIDING])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make(name).double()  # so that only the rotary tables, which models make in float32, are inexact


@pytest.fixture
def llama() -> Any:
    return make("llama")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, BASE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def in_chunks(model: Any, ids: Tensor, cuts: list[int], **kwargs: Any) -> Tensor:
    """Logits of a text read piece by piece; `cuts` are where pieces begin."""
    cache, logits = None, []
    for start, end in zip(cuts, [*cuts[1:], ids.shape[1]], strict=True):
        given = {key: value[:, :end] for key, value in kwargs.items()}
        output = model(ids[:, start:end], cache=cache, use_cache=True, **given)
        cache = output.cache
        logits.append(output.logits)
    return torch.cat(logits, 1)


def padded(ids: Tensor, *lefts: int, width: int) -> tuple[Tensor, Tensor]:
    """The text with so much padding before it, a row each, and the rest after it; then a text that fills the width."""
    rows = torch.zeros(len(lefts), width, dtype=torch.long)
    mask = torch.zeros(len(lefts) + 1, width, dtype=torch.long)
    mask[-1] = 1
    for row, left in enumerate(lefts):
        rows[row, left : left + ids.shape[1]] = ids[0]
        mask[row, left : left + ids.shape[1]] = 1
    return torch.cat([rows, tokens(1, width, seed=7)]), mask


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", WIDE)
def test_nothing_left_out_is_the_stock_model(model: Any, method: str) -> None:
    ids = tokens()
    expected = model(ids).logits
    with WIDE[method]()(model):
        close(model(ids).logits, expected)
        close(in_chunks(model, ids, [0, 16, 17, 32]), expected)
        close(model(ids, use_cache=False).logits, expected)
    assert torch.equal(model(ids).logits, expected), "the model has changed"


PECULIAR = {
    "gives the mask by its name": lambda: hf.AfmoeConfig(
        **BASE,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        layer_types=["sliding_attention"] * (BASE["num_hidden_layers"] - 1) + ["full_attention"],
    ),
    "calls its head a decoder": lambda: hf.ModernBertDecoderConfig(**BASE),
}


@pytest.mark.parametrize("kind", PECULIAR)
@pytest.mark.parametrize("method", WIDE)
def test_a_model_of_peculiar_code_is_read_too(method: str, kind: str) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(PECULIAR[kind](), attn_implementation="eager").eval()
    ids = tokens()
    expected = model(ids).logits
    with WIDE[method]()(model):
        close(model(ids).logits, expected)


@pytest.mark.parametrize("method", NARROW)
def test_what_is_left_out_shows(model: Any, method: str) -> None:
    ids = tokens()
    dense = model(ids).logits
    with NARROW[method]()(model):
        sparse = model(ids).logits
    close(sparse[:, :2], dense[:, :2])
    assert (sparse - dense)[:, -8:].abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ALL_SLIDING | PROJECTED], indirect=True)
@pytest.mark.parametrize("method", MEMORIES)
def test_pieces_padding_and_later_tokens_change_nothing(model: Any, method: str) -> None:
    ids = tokens(1)
    with NARROW[method]()(model):
        whole = model(ids).logits
        close(in_chunks(model, ids, [0, 12, 16, 36]), whole)
        lefts = (5, 0, 3)
        rows, mask = padded(ids, *lefts, width=LENGTH + 5)
        kept = model(rows, attention_mask=mask).logits
        for row, left in enumerate(lefts):
            close(kept[row : row + 1, left : left + LENGTH], whole)
        ends = (13, 28)  # of what stays the same, in a text that is padded on both sides and in one that is not
        others = rows[2:].repeat(len(ends), 1)
        for i, end in enumerate(ends):
            others[2 * i : 2 * i + 2, end:] = (others[2 * i : 2 * i + 2, end:] + 1) % BASE["vocab_size"]
        changed = model(others, attention_mask=mask[2:].repeat(len(ends), 1)).logits
        for i, end in enumerate(ends):
            close(changed[2 * i, 3:end], kept[2, 3:end])
            close(changed[2 * i + 1, :end], kept[3, :end])
        both, mask = padded(ids, 8, width=LENGTH + 8)
        close(in_chunks(model, both, [0, 4, 12, 20], attention_mask=mask)[:1, 8:], whole)


@pytest.mark.parametrize("method", NARROW)
def test_generate(llama: Any, method: str) -> None:
    ids = tokens(1)
    both, mask = padded(ids, 4, width=LENGTH + 4)
    settings = {"max_new_tokens": 8, "do_sample": False}
    with NARROW[method]()(llama):
        alone = llama.generate(ids, **settings)[0, LENGTH:]
        batch = llama.generate(both, attention_mask=mask, **settings)[0, LENGTH + 4 :]
        if method in ("LMInfinite", "LongHeads"):  # the others look up by what is read together
            step = ids
            for _ in range(8):
                step = torch.cat([step, llama(step).logits[:, -1:].argmax(-1)], 1)
            assert torch.equal(step[0, LENGTH:], alone)
            reference = llama.generate(ids, num_beams=3, use_cache=False, **settings)
            assert torch.equal(llama.generate(ids, num_beams=3, **settings), reference)
        sampled = llama.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=3)
        pieces = llama.generate(ids, prefill_chunk_size=16, **settings)[0, LENGTH:]
    assert torch.equal(batch, alone)
    assert sampled.shape == (3, LENGTH + 4)
    if method in MEMORIES:
        assert torch.equal(pieces, alone)


@pytest.mark.parametrize("method", NARROW)
def test_a_finished_cache_is_read_on(llama: Any, method: str) -> None:
    ids = tokens(1)
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with NARROW[method]()(llama):
        first = llama.generate(ids[:, :20], **settings)
        more = torch.cat([first.sequences, ids[:, 20:]], 1)
        goes_on = llama.generate(more, cache=first.cache, **settings)
        assert goes_on.cache.get_seq_length() == more.shape[1] + 3
        logits = in_chunks(llama, goes_on.sequences, [0, *range(20, 24), *range(44, 48)])
        if method in MEMORIES:
            assert torch.equal(goes_on.sequences[0, -4:], logits[0, -5:-1].argmax(-1))


@pytest.mark.parametrize("method", NARROW)
def test_a_row_of_nothing_but_padding(llama: Any, method: str) -> None:
    ids = tokens(2)
    mask = torch.ones_like(ids)
    mask[0] = 0
    with NARROW[method]()(llama):
        logits = llama(ids, attention_mask=mask).logits
        close(logits[1:], llama(ids[1:]).logits)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("method", NARROW)
def test_the_model_is_what_it_was_also_when_the_body_raises(llama: Any, method: str) -> None:
    ids = tokens()
    before = llama(ids).logits
    names = [name for name, _ in llama.named_modules()]
    with pytest.raises(ZeroDivisionError), NARROW[method]()(llama):
        llama(ids)
        raise ZeroDivisionError
    assert torch.equal(llama(ids).logits, before)
    assert [name for name, _ in llama.named_modules()] == names
    assert llama.config._attn_implementation == "eager"
    assert not llama.model._forward_pre_hooks


@pytest.mark.parametrize("method", NARROW)
def test_the_state_dict_is_the_models_own(llama: Any, method: str) -> None:
    keys = list(llama.state_dict())
    with NARROW[method]()(llama):
        assert list(llama.state_dict()) == keys


@pytest.mark.parametrize("pad", [1, 2, 3])
def test_a_padding_token_that_is_embedded_as_zero_hides_no_rotation(pad: int) -> None:
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**BASE | {"pad_token_id": pad})).eval()
    with LMInfinite(n_global=1, n_local=64)(model):
        close(model(tokens()).logits, model(tokens(), use_cache=False).logits)


def test_install_and_remove_without_a_with(llama: Any) -> None:
    ids = tokens()
    before = llama(ids).logits
    method = LMInfinite(n_global=1, n_local=4)
    assert method.install(llama) is method
    assert not torch.allclose(llama(ids).logits, before)
    method.remove()
    assert torch.equal(llama(ids).logits, before)
    with pytest.raises(InputError, match="installed on 0 such models"):
        method.remove()


def test_nested_installs_are_refused(llama: Any) -> None:
    with (
        LMInfinite(n_global=1, n_local=4)(llama),
        pytest.raises(InputError, match=r"LMInfinite.*installed; expected that to be removed first"),
        FlexPrefill()(llama.model),
    ):
        pass


@pytest.mark.parametrize("method", MEMORIES)
def test_caches_that_do_not_fit_are_refused(llama: Any, method: str) -> None:
    ids = tokens(1)
    stock = llama(ids, use_cache=True).cache
    with NARROW[method]()(llama) as model:
        with pytest.raises(InputError, match="filled without the method"):
            model(ids, cache=stock)
        with pytest.raises(InputError, match="got a StaticCache"):
            model(ids, cache=StaticCache(config=llama.config, max_cache_len=64))
        mine = model(ids).cache
    with pytest.raises(ValueError, match="to be installed still"):
        llama(ids, cache=mine)
    with WIDE[method]()(llama), pytest.raises(InputError, match="filled with"):
        llama(ids, cache=mine)
    with NARROW[method]()(llama):
        llama(ids, cache=mine)  # an equal method reads on
    assert mine.get_seq_length() == 2 * LENGTH


@pytest.mark.parametrize("method", MEMORIES)
def test_an_empty_cache_becomes_the_methods(llama: Any, method: str) -> None:
    ids = tokens(1)
    cache = DynamicCache(config=llama.config)
    installed = NARROW[method]()
    with installed(llama):
        llama(ids, cache=cache)
        own = installed.cache(llama)
        llama(ids, cache=own)
    assert cache.get_seq_length() == own.get_seq_length() == LENGTH
    assert cache_bytes(cache) == cache_bytes(own)
    assert cache_bytes(cache).on_device > 0
    own.reset()
    assert own.get_seq_length() == 0


@pytest.mark.parametrize("method", MEMORIES)
def test_what_cannot_be_done_is_refused_in_one_line(llama: Any, method: str) -> None:
    ids = tokens(1)
    with NARROW[method]()(llama):
        with pytest.raises(InputError, match="mask of 4 dimensions"):
            llama(ids, attention_mask=torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
        with pytest.raises(InputError, match="position_ids that jump"):
            llama(ids, position_ids=torch.arange(LENGTH)[None] % 20)
        with pytest.raises(InputError, match="output_attentions"):
            llama(ids, output_attentions=True)
        with pytest.raises(InputError, match="no tokens to read"):
            llama(ids[:, :0])
        with pytest.raises(InputError, match="mask over 3 tokens"):
            cache = llama(ids).cache
            llama(ids[:, :3], attention_mask=torch.tensor([[0, 1, 1]]), cache=cache)
        with pytest.raises(ValueError, match="can be cropped"):
            llama.generate(ids.repeat(1, 2), prompt_lookup_num_tokens=4, max_new_tokens=8, do_sample=False)


COUNTED = {
    "LMInfinite": lambda: LMInfinite(n_global=3, n_local=12),
    "InfLLM": lambda: InfLLM(n_init=3, n_local=12, block_size=4, top_k=3, representatives=2),
    "InfLLM, shared": lambda: InfLLM(n_init=3, n_local=12, block_size=4, top_k=3, representatives=2, execution_block=5),
    "LongHeads": lambda: LongHeads(chunk_size=4, attention_length=20),
}


@pytest.mark.parametrize("method", COUNTED)
def test_the_most_keys_that_a_query_attends_to(method: str) -> None:
    n = 97
    made = COUNTED[method]()
    query, key = torch.randn(2, 1, 2, n, n, generator=torch.Generator().manual_seed(0)).double()
    value = torch.eye(n).double().expand(1, 2, n, n)  # an output is the weights that made it
    for cuts in ([0], list(range(n)), [0, 30, 31]):
        state = made.state(layer(2, 2, n + n % 2))
        wide = [torch.nn.functional.pad(each, (0, n % 2)) for each in (query, key, value)]
        ends = [*cuts[1:], n]
        read = [state.attend(*(x[:, :, a:b] for x in wide)) for a, b in zip(cuts, ends, strict=True)]
        attended = (torch.cat(read, 2)[..., :n] > 0).sum(-1)
        if "shared" in method:
            assert attended.max() <= made.most_keys
        else:
            assert attended.max() == made.most_keys


UNSUPPORTED = {
    "learned positions": (lambda: hf.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4), "0 rotary"),
    "biases": (lambda: hf.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4), "0 rotary"),
    "sinks": (lambda: hf.GptOssConfig(**BASE, head_dim=8, num_local_experts=2, num_experts_per_tok=1), "sinks"),
    "no attention": (lambda: hf.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2), "0 rotary"),
    "a compressed space": (
        lambda: hf.DeepseekV3Config(
            **BASE | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=2,
        ),
        "compressed space",
    ),
    "both directions": (lambda: hf.LlamaConfig(**BASE, is_causal=False), "both directions"),
    "shared keys": (
        lambda: hf.Gemma4TextConfig(
            **BASE,
            head_dim=8,
            num_kv_shared_layers=1,
            sliding_window=8,
            layer_types=["full_attention", "full_attention"],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=100,
        ),
        "shares keys between layers",
    ),
    "a mask of its own": (lambda: hf.DogeConfig(**BASE), "a mask of its own"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_models_that_are_not_supported_are_refused_and_left_alone(kind: str) -> None:
    config, reason = UNSUPPORTED[kind]
    model = hf.AutoModelForCausalLM.from_config(config(), attn_implementation="eager").eval()
    ids = tokens(1)
    before = model(ids).logits
    with pytest.raises(InputError, match=rf"{reason}.*expected a decoder-only model with rotary"):
        LMInfinite(n_global=1, n_local=4).install(model)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", ALL_SLIDING)
@pytest.mark.parametrize("method", NARROW)
def test_a_model_whose_layers_all_have_windows_of_their_own_is_refused(name: str, method: str) -> None:
    model = make(name)
    before = model(tokens()).logits
    with pytest.raises(InputError, match=rf"sliding window of its own, which {method} leaves as it is; expected"):
        NARROW[method]().install(model)
    assert torch.equal(model(tokens()).logits, before)


@pytest.mark.parametrize("kind", ["biases", "no attention", "both directions", "sinks"])
def test_what_flexprefill_refuses_for_other_reasons_than_positions(kind: str) -> None:
    model = hf.AutoModelForCausalLM.from_config(UNSUPPORTED[kind][0](), attn_implementation="eager").eval()
    with pytest.raises(InputError, match="expected a decoder-only model whose layers") as caught:
        FlexPrefill().install(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method", [LMInfinite(n_local=300), InfLLM(n_local=300), LongHeads(chunk_size=64, attention_length=512)]
)
def test_a_window_beyond_the_trained_positions_is_refused(llama: Any, method: Any) -> None:
    with pytest.raises(InputError, match="trained on 256 positions"):
        method.install(llama)


def test_training_with_dropout_is_refused() -> None:
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**BASE, attention_dropout=0.1)).train()
    with LMInfinite(n_global=1, n_local=4)(model), pytest.raises(InputError, match=r"expected model\.eval"):
        model(tokens())


def test_caches_are_let_go_while_the_method_is_installed(llama: Any) -> None:
    with LMInfinite(n_global=1, n_local=4)(llama):
        layer = weakref.ref(llama(tokens()).cache.layers[0])
        gc.collect()
        assert layer() is None


@pytest.mark.parametrize("method", NARROW)
def test_half_precision_is_close_to_single(llama: Any, method: str) -> None:
    ids = tokens()
    with WIDE[method]()(llama):
        single = llama(ids).logits.log_softmax(-1)
    half = make("llama").bfloat16()
    with WIDE[method]()(half):
        rounded = half(ids).logits.float().log_softmax(-1)
    stock = make("llama").bfloat16()(ids).logits.float().log_softmax(-1)
    assert (rounded - single).abs().max() < 2 * (stock - single).abs().max()
