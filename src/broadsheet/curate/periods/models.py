"""Models of a period: a tokenizer and a small Llama from nothing on its text alone, taught by two such models.

Knows: a period's texts, tokens, teachers' logits. Does not know: other periods, how models are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.seeds import seeded
from broadsheet.training.losses import token_losses
from broadsheet.training.objective import NextTokens
from broadsheet.training.scratch import SIZES, size

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAPERS = "345M"  # SmolLlama
MODEL_SIZES = (*SIZES, PAPERS)
PAD, BEGIN, END = "<pad>", "<s>", "</s>"


def period_tokenizer(texts: Iterable[str], vocabulary: int = 16_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a period's text alone: NFKC, merges that are seen twice or more.

    Args:
        vocabulary: tokens at most; 259 are the bytes and three special ones alone.

    Raises:
        InputError: fewer than 259 tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + 3:
        raise InputError(f"got a vocabulary of {vocabulary}; expected {len(alphabet) + 3} or more")
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, bos_token=BEGIN, eos_token=END)


def new_model(name: str, vocabulary: int, length: int, seed: int) -> LlamaForCausalLM:
    """A new Llama; the same weights for the same seed.

    Args:
        name: of `scratch.SIZES`, or "345M", the paper's.
        vocabulary: tokens.
        length: positions that it is made for.

    Raises:
        InputError: there is no such size.
    """
    if name not in MODEL_SIZES:
        raise InputError(f"got the size {name}; expected one of {', '.join(MODEL_SIZES)}")
    if name != PAPERS:
        return size(name).model(vocabulary, length, seed)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=max(256, length),
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with seeded(seed):
        return LlamaForCausalLM(config)


class ShiftedBlocks(Sequence[dict[str, Tensor]]):
    """A whole training's rows of a stream of tokens: in each epoch, block i begins a random offset after i · length.

    Args:
        stream: (tokens,); documents stand one after another, and attention reads across.
        length: of a row.
        count: rows of the training.
        seed: of offsets and orders.

    Raises:
        InputError: the stream holds no whole block and its offset.
    """

    in_order = True

    def __init__(self, stream: Tensor, length: int, count: int, seed: int = 0) -> None:
        blocks = len(stream) // length - 1  # an offset reaches into the next one
        if blocks < 1:
            raise InputError(f"got {len(stream):,} tokens; expected two blocks of {length:,} at least")
        self.stream, self.length = stream, length
        drawn = torch.Generator().manual_seed(seed)
        epochs = []
        for _ in range(-(-count // blocks)):
            offsets = torch.randint(length, (blocks,), generator=drawn)
            order = torch.randperm(blocks, generator=drawn)
            epochs.append((torch.arange(blocks) * length + offsets)[order])
        self.begins = torch.cat(epochs)[:count]

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, place: Any) -> Any:
        begin = int(self.begins[place])
        ids = self.stream[begin : begin + self.length]
        return {"input_ids": ids, "labels": ids}

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [self.length, fingerprint(self.stream.tolist()), fingerprint(self.begins.tolist())]


def distillation(
    logits: Tensor, teachers: Sequence[Tensor], labels: Tensor, alpha: float = 0.5, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The two-teacher loss and its parts, in nats.

    L = α · CE + (1 − α) · T² · KL(softmax(mean of z_j / T) ‖ softmax(z_s / T)). The cross-entropy is a mean over
    tokens; the divergence is summed over positions, the last one too, and divided by rows alone, as torch's
    `batchmean`. So it weighs about as many times more as a row has tokens.

    Args:
        logits: (batch, length, vocabulary) of the student.
        teachers: theirs, of the same shape; the mean is of logits, before softmax. No gradient goes there.
        labels: (batch, length), unshifted; -100 where nothing is asked.

    Returns:
        `loss`, `ce` and `kl`, the latter without T².

    Raises:
        InputError: a teacher's logits have another shape; there is none, and α is below 1.
    """
    losses, counts = token_losses(logits, labels)
    ce = losses.sum() / counts.sum().clamp(min=1)
    if alpha == 1:
        return {"loss": ce, "ce": ce, "kl": torch.zeros_like(ce)}
    shapes = [tuple(each.shape) for each in teachers]
    if not shapes or set(shapes) != {tuple(logits.shape)}:
        raise InputError(
            f"got teachers' logits of {shapes}, the student's of {tuple(logits.shape)}; expected one teacher or more, "
            "of the same tokenizer and vocabulary"
        )
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    said = torch.stack([each.detach().to(wide) for each in teachers]).mean(0)  # z̄ = mean of z_j
    kl = kl_div(log_softmax(logits.to(wide) / temperature, -1), softmax(said / temperature, -1), reduction="batchmean")
    return {"loss": alpha * ce + (1 - alpha) * temperature**2 * kl, "ce": ce, "kl": kl}


class TwoTeachers(NextTokens):
    """A student learns from the text, and from what its teachers expect on average; they read what it reads.

    Args:
        teachers: causal LMs of the same tokenizer; read without gradients, in evaluation mode.
        alpha, temperature: as in `distillation`.
        watched: as in `NextTokens`.

    Raises:
        InputError: α is no share, or the temperature is not above 0.
    """

    def __init__(
        self, teachers: Sequence[Any], alpha: float = 0.5, temperature: float = 1.0, watched: Any = None
    ) -> None:
        super().__init__(watched)
        if not 0 <= alpha <= 1 or not temperature > 0:
            raise InputError(f"got alpha {alpha}, temperature {temperature}; expected a share, and more than 0")
        self.teachers, self.alpha, self.temperature = list(teachers), alpha, temperature

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, and which teachers: what a training is told apart by."""
        from broadsheet.models import fingerprint as of_model

        teachers = [of_model(each) for each in self.teachers]
        return {"alpha": self.alpha, "temperature": self.temperature, "teachers": teachers}

    def prepare(self, model: Any) -> None:
        for each in self.teachers:
            each.to(model.device).eval()

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            said = [self.logits(each, batch) for each in self.teachers] if self.alpha < 1 else []
        found = distillation(self.logits(model, batch), said, batch["labels"], self.alpha, self.temperature)
        return found["loss"]


def stream(texts: Iterable[str], by: PreTrainedTokenizerFast) -> Tensor:
    """(tokens,) of texts one after another, each between `BEGIN` and `END`."""
    given = list(texts)
    rows = by(given, add_special_tokens=False, return_attention_mask=False)["input_ids"] if given else []
    whole = (token for row in rows for token in (by.bos_token_id, *row, by.eos_token_id))
    return torch.tensor(list(whole), dtype=torch.long)
