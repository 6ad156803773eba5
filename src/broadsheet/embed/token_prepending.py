"""Token Prepending (Fu et al., 2024, arXiv:2412.11556): sentence tokens that see the end of their sentence, untrained.

Knows: rows of tokens, the position of their placeholder, and the inputs of decoder layers. Does not know: pooling;
which layers are best (`sweep`); other templates than the default (`modules.eol`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.new_tokens import add_tokens
from broadsheet.embed.modules.template import PROMPT_EOL, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Position = Literal["before-quote", "inside-quote", "start"]
_NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_RESERVED = re.compile(r"unused|reserved|placeholder", re.IGNORECASE)


class TokenPrepending(CausalEncoder):
    """A placeholder <PST> before the sentence whose vector is overwritten by the last token's before each early layer.

        h_i[<PST>] ← h_i[last]   before layer i, for i in start … exit − 1

    In a causal model the first words of a sentence never see its end. With the overwrite every token of the sentence
    attends to the last token's vector, which summarises all of it so far. The row is one token longer, the weights
    are unchanged, and nothing is trained.

    Inputs: texts. Follow it with last-token pooling; an `Embedder` refuses any other, for the template's answer is in
        the last token's vector alone.
    Use when: a causal LM has to embed short texts, and there are no pairs to train it on.
    Prefer a trained embedder when: there are pairs. Prefer `CausalEncoder` with mean pooling when: texts are long, for
        a prompt asks for one word.
    Relation: without the placeholder it is the template alone (`CausalEncoder(template=PROMPT_EOL)`). The best `exit`
        and `layer` depend on model, template and task: `broadsheet.embed.sweep` finds both on pairs with scores. It
        does so for the template alone too, which needs its own best layer before the two can be compared.

    Args:
        model, tokenizer, and all other settings: as `CausalEncoder` takes them.
        template: around each text; PromptEOL's by default (`Template()` for none).
        start: the first layer whose input is changed, counted from 0 (the paper's 1: the embeddings stay).
        exit: the first layer whose input is unchanged again. By default 2 (or `start` + 1), which changes one layer:
            on the default model more of them hurt. Spearman on STS-B dev at the last of its 30 layers is 0.734 without
            the placeholder, 0.722 with exit 2, 0.715 with 3, 0.686 with 4 and 0.638 with 6 or 8
            (`evidence/token_prepending.json`). The paper's Llama-2-7B has 8 of 32 (Sec. 4: it changes the inputs of
            layers 1 to 7; its code stops one layer earlier). Larger models may want more: choose it with `sweep`.
        placeholder: the token, by its string; by default one that text does not hold (`rare_token`), for its own
            embedding matters only through the layers before `start`. `add_placeholder` makes a new one.
        placeholders: the number of them (Sec. 5: 1; two are as good, more are worse).
        position: before the quotation mark that opens the text, or right before the text where the template has none;
            `"inside-quote"`: after that mark; `"start"`: before everything (Table 3: 77.19, 76.71 and 76.35).

    Attributes:
        placeholder_id: its id.

    Raises:
        InputError: a placeholder that tokenizer or model do not have or that the template holds already, layers that
            the model does not have; in `forward`, a row without its placeholder.

    Example:
        from broadsheet.embed import TokenPrepending, embedder

        model = embedder("default", pooling="last-token", encoder=TokenPrepending, layer=28)
        vectors = model.encode(["A man plays the guitar.", "Somebody makes music."])

    Source: arXiv:2412.11556, Sec. 3; authors' code fuyuchenIfyw/token_prepending.
    """

    paper: ClassVar[str] = "token_prepending"
    poolings: ClassVar[tuple[str, ...]] = ("lasttoken",)
    config_keys: ClassVar[list[str]] = [  # type: ignore[misc]
        *CausalEncoder.config_keys,
        "start",
        "exit",
        "placeholder",
        "placeholders",
        "position",
    ]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template | dict[str, Any] | None = None,
        start: int = 1,
        exit: int | None = None,
        placeholder: str | None = None,
        placeholders: int = 1,
        position: Position = "before-quote",
        **settings: Any,
    ) -> None:
        super().__init__(model, tokenizer, template=PROMPT_EOL if template is None else template, **settings)
        depth = len(self.layers)
        self.start = start
        self.exit = min(depth, max(start + 1, 2)) if exit is None else exit
        if not 0 <= self.start <= self.exit <= depth:
            raise InputError(
                f"got start {self.start} and exit {self.exit}; expected 0 ≤ start ≤ exit ≤ {depth}, the model's layers"
            )
        if placeholders < 1:
            raise InputError(f"got {placeholders} placeholders; expected one or more (none: use CausalEncoder)")
        if position not in get_args(Position):
            raise InputError(f"got position {position!r}; expected one of {', '.join(get_args(Position))}")
        self.placeholders = placeholders
        self.position: Position = position
        self._head = self._ids(_lead_in(self.template.prefix, position))
        fixed = {*self._ids(self.template.prefix), *self._ids(self.template.suffix), *self._append_ids}
        rows = model.get_input_embeddings().weight.shape[0]
        self.placeholder = placeholder or rare_token(tokenizer, rows, avoid=fixed)
        self.placeholder_id = self.token_id(self.placeholder)
        if self.placeholder_id >= rows:
            raise InputError(
                f"the placeholder {self.placeholder!r} has id {self.placeholder_id}, but the model has {rows} "
                "embeddings; use add_placeholder(model, tokenizer)"
            )
        if self.placeholder_id in self._head:
            raise InputError(f"the placeholder {self.placeholder!r} is in the template; choose another token")

    def rows(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """As `CausalEncoder.rows`, with the placeholder's id inserted; the limit on tokens counts it."""
        limit = self.max_seq_length
        self.max_seq_length = None if limit is None else limit - self.placeholders
        try:
            rows = super().rows(texts, prompt)
        finally:
            self.max_seq_length = limit
        return [self._prepended(row) for row in rows]

    def prompt_length(self, prompt: str | None) -> int:
        """As `CausalEncoder.prompt_length`, with the placeholder."""
        return super().prompt_length(prompt) + self.placeholders

    def _prepended(self, row: list[int]) -> list[int]:
        # Where a tokenizer joins the end of the lead-in with the text in one token, the placeholder goes before that.
        shared = zip(self._head, row, strict=False)
        at = next((i for i, (one, other) in enumerate(shared) if one != other), min(len(self._head), len(row)))
        return [*row[:at], *[self.placeholder_id] * self.placeholders, *row[at:]]  # … : <PST> "text" …

    def _ids(self, text: str) -> list[int]:
        """Tokens of a row's beginning: with the special tokens before a text, without those after it."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        closing = len(ids) > 1 and ids[-1] in self.tokenizer.all_special_ids
        return ids[:-1] if closing else ids

    @contextmanager
    def around(self, features: dict[str, Any]) -> Iterator[None]:
        """Inside, the layers `start` to `exit − 1` read the last token's vector at the placeholder (Sec. 3).

        Raises:
            InputError: a row without its placeholders; gradient checkpointing, which would run layers again outside.
        """
        if self.model.training and torch.is_grad_enabled() and self.backbone.is_activation_checkpointing:
            raise InputError(
                "gradient checkpointing runs layers again without Token Prepending; switch it off "
                "(model.activation_checkpointing_disable())"
            )
        overwrite = self._overwrite(features["input_ids"], features.get("attention_mask"))
        end = self.exit if self.layer is None else min(self.exit, self.layer)
        handles = [
            layer.register_forward_pre_hook(overwrite, with_kwargs=True)
            for layer in list(self.layers)[self.start : end]  # start ≤ i < exit
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _overwrite(self, ids: Tensor, attention_mask: Tensor | None) -> Callable[..., tuple[Any, Any]]:
        """The hook that copies, for rows `ids` (batch, length), the last real token's vector to the placeholders."""
        rows, positions, last = self._positions(ids, attention_mask)

        def overwrite(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            given = args[0] if args else kwargs["hidden_states"]
            if given.shape[:-1] != ids.shape:
                raise InputError(
                    f"layers of {type(self.model).__name__} read vectors of shape {tuple(given.shape)}; "
                    "Token Prepending needs (batch, length, hidden)"
                )
            hidden = given.clone()  # (batch, length, hidden); the previous layer's output may be recorded elsewhere
            hidden[rows, positions] = given[rows, last]  # h_i[<PST>] ← h_i[last], before layer i runs
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return overwrite

    def _positions(self, ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Row, position and last real position of each inserted placeholder; one within a text does not count."""
        real = torch.ones_like(ids) if attention_mask is None else attention_mask.long()
        if real.shape != ids.shape:
            raise InputError(f"got an attention mask of shape {tuple(real.shape)}; expected {tuple(ids.shape)}")
        found = (ids == self.placeholder_id) & real.bool()
        ours = found & (found.cumsum(1) <= self.placeholders)
        if bool((missing := ours.sum(1) < self.placeholders).any()):
            raise InputError(
                f"row {int(missing.long().argmax()) + 1} of the batch lacks its placeholder {self.placeholder!r}; make "
                "rows with this encoder's own `rows`, and do not cut them"
            )
        rows, positions = ours.nonzero(as_tuple=True)
        last = ids.shape[1] - 1 - real.flip(1).argmax(1)
        return rows, positions, last[rows]


def rare_token(tokenizer: PreTrainedTokenizerBase, embeddings: int, avoid: Collection[int] = ()) -> str:
    """A token that text hardly ever holds, by its string.

    The last special token without a role of its own, those called reserved or unused first (`<empty_output>` for
    SmolLM2); where there is none, the last one of the vocabulary, which a tokenizer learned last.

    Args:
        embeddings: rows of the model's embedding matrix; no id beyond is chosen.
        avoid: ids that are not chosen.

    Raises:
        InputError: no token is left.
    """
    taken = {getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED} | set(avoid)
    added = tokenizer.added_tokens_decoder
    special = [
        (bool(_RESERVED.search(str(token))), number, str(token))
        for number, token in added.items()
        if token.special and number not in taken and number < embeddings
    ]
    if special:
        return max(special)[2]
    ordinary = [
        (number, token)
        for token, number in tokenizer.get_vocab().items()
        if number not in added and number not in taken and number < embeddings
    ]
    if not ordinary:
        raise InputError("the tokenizer has no token to spare for a placeholder; use add_placeholder(model, tokenizer)")
    return max(ordinary)[1]


def add_placeholder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token: str = "<PST>") -> str:
    """Add a special token to a tokenizer, and an embedding to its model where none is spare; returns the token.

    Its embedding is the mean of all others; so is its row of the head, where that is a matrix of its own. (Table 4:
    zeros, ones, noise or another token's embedding are as good.) A token that the tokenizer has is left as it is.

    Example:
        model, tokenizer = broadsheet.models.load("default")
        TokenPrepending(model, tokenizer, placeholder=add_placeholder(model, tokenizer))
    """
    if token in tokenizer.get_vocab():
        return token
    add_tokens(model, tokenizer, [token], noise=0.0, multiple=1)
    return token


def _lead_in(prefix: str, position: Position) -> str:
    """The part of a template's prefix before the placeholder."""
    if position == "start":
        return ""
    return prefix if position == "inside-quote" else prefix.rstrip().rstrip("\"'“‘«`").rstrip()
