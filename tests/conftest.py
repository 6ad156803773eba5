"""Shared fixtures: tiny seeded models made in-process, and the default model, loaded once per run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from model_files import MERGES, SPECIAL, write_gguf

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from broadsheet.models import Loaded

# One thread a process, children included: as many workers as cores share them. Set before torch is imported.
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers library warns about it after a fork

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
pytest_plugins = ["attacks", "suite"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, instead of the user's."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BROADSHEET_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def default_model() -> Loaded:
    """The default model in float32 on CPU. Do not change its weights or config."""
    from broadsheet import models

    return models.load("default", device="cpu", dtype="float32")


@pytest.fixture
def first_layers(default_model: Loaded) -> Callable[[int], LlamaForCausalLM]:
    """`first_layers(8)`: a copy of the default model that ends after its first layers, to be trained in seconds."""

    def make(layers: int) -> LlamaForCausalLM:
        import copy

        whole = default_model.model
        kept = whole.model.layers
        try:
            whole.model.layers = kept[:layers]
            model = copy.deepcopy(whole)
        finally:
            whole.model.layers = kept
        model.config.num_hidden_layers = layers
        return model

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`tiny_tokenizer(chat=True)`: a new byte-level tokenizer of 272 tokens that reads any text; digits stand alone."""

    def make(chat: bool = True) -> PreTrainedTokenizerFast:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            unk_token="<|endoftext|>",
            pad_token="<|im_end|>",
            chat_template=CHAT_TEMPLATE if chat else None,
        )

    return make


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LlamaForCausalLM]:
    """`tiny_model(seed=0, **config)`: a new random two-layer float32 Llama for `tiny_tokenizer`, in eval mode."""

    def make(seed: int = 0, **config: object) -> LlamaForCausalLM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = {
            "vocab_size": len(SPECIAL) + 256 + len(MERGES),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,  # wide, so that the next-token distributions are far from uniform
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "attn_implementation": "sdpa",
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**settings | config)).eval()

    return make


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_model: Callable, tiny_tokenizer: Callable) -> Path:
    """A tiny model saved as an ordinary Hugging Face folder, anew for each test."""
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> Path:
    """The folder `tiny` of a model without an end of text: what it writes ends at a limit alone. Do not change it."""
    folder, tokenizer = tmp_path_factory.mktemp("endless") / "tiny", tiny_tokenizer()
    tiny_model(max_position_embeddings=8192, eos_token_id=None).save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> Path:
    """A tiny model as a GGUF file with Q8_0 weights, as llama.cpp's converter would write it. Do not change it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_model(), tiny_tokenizer())
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `broadsheet …` in this process; (exit status, stdout, stderr)."""

    from broadsheet.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["broadsheet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
