"""Token Prepending (Fu et al., 2024, arXiv:2412.11556): sentence tokens that see the end of their sentence, untrained.

Knows: rows of tokens, where their placeholder stands, and the inputs of decoder layers. Does not know: pooling; which
layers are best (`sweep`); other templates than the default (`eol`).
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
from broadsheet.embed.modules.template import PROMPT_EOL, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Position = Literal["before-quote", "inside-quote", "start"]
_NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_RESERVED = re.compile(r"unused|reserved|placeholder", re.IGNORECASE)


class TokenPrepending(CausalEncoder):
    """A placeholder before the sentence that takes over the last token's vector ahead of each early layer.

    In a causal model the first words of a sentence never see its end. Here, before each of the layers `start` to
    `exit − 1`, the vector at the placeholder is replaced by the one at the row's last token: what the layers so far
    made of the whole sentence, for every token of it to attend to. The row is one token longer, the weights stay as
    they are, and nothing is trained.

    Inputs: texts. Follow it with last-token pooling.
    Use when: a causal LM has to embed short texts, and there are no pairs to train it on.
    Prefer a trained embedder when: there are pairs. Prefer mean pooling when: texts are long, for a prompt asks for one
        word.
    Relation: without the placeholder it is the template alone (`CausalEncoder(template=PROMPT_EOL)`). The best `exit`
        and `layer` hang on model, template and task: `broadsheet.embed.sweep` finds both on pairs with scores, for the
        template alone likewise, which needs its own best layer before the two can be compared.

    Args:
        model, tokenizer, and all other settings: as `CausalEncoder` takes them.
        template: stands around each text; PromptEOL's by default (`Template()` for none).
        start: the first layer whose input is changed, counted from 0 (the paper's 1: the embeddings stay).
        exit: the first layer that is left alone again; by default a quarter of the model's depth (Sec. 4: of the 32
            layers of Llama-2-7B the paper changes the inputs of 1 to 7, `exit=8`; its code stops one layer earlier).
        placeholder: the token, by its string; by default one that text does not hold (`rare_token`), for its own
            embedding matters only as far as layers before `start` carry it. `add_placeholder` makes a new one.
        placeholders: how many of them (Sec. 5: 1; two are as good, more are worse).
        position: before the quotation mark that opens the text, or at once before the text where the template has
            none; `"inside-quote"`: after that mark; `"start"`: before everything (Table 3: 77.19, 76.71 and 76.35).

    Attributes:
        placeholder_id: its id.

    Raises:
        InputError: a placeholder that tokenizer or model do not have or that the template holds already, layers that
            the model does not have; in `forward`, a row without its placeholder.

    Example:
        from broadsheet.embed import TokenPrepending, embedder

        model = embedder("default", pooling="last-token", encoder=TokenPrepending, exit=6, layer=20)
        vectors = model.encode(["A man plays the guitar.", "Somebody makes music."])

    Source: arXiv:2412.11556, Sec. 3; authors' code fuyuchenIfyw/token_prepending.
    """

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
        self.exit = min(depth, max(start + 1, depth // 4)) if exit is None else exit
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
            raise InputError(f"the placeholder {self.placeholder!r} stands in the template; choose another token")

    def rows(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """As `CausalEncoder.rows`, with the placeholder put in by its id; the limit on tokens counts it."""
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
        place = next((i for i, (one, other) in enumerate(shared) if one != other), min(len(self._head), len(row)))
        return [*row[:place], *[self.placeholder_id] * self.placeholders, *row[place:]]

    def _ids(self, text: str) -> list[int]:
        """Tokens of the beginning of a row: with what the tokenizer puts before a text, without what it puts behind."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        closing = len(ids) > 1 and ids[-1] in self.tokenizer.all_special_ids
        return ids[:-1] if closing else ids

    @contextmanager
    def around(self, features: dict[str, Any]) -> Iterator[None]:
        """Inside, the layers `start` to `exit − 1` read the last token's vector at the placeholder.

        Raises:
            InputError: a row without its placeholders; gradient checkpointing, which would run layers again outside.
        """
        if self.model.training and torch.is_grad_enabled() and self.backbone.is_activation_checkpointing:
            raise InputError(
                "gradient checkpointing runs layers again without Token Prepending; switch it off "
                "(model.activation_checkpointing_disable())"
            )
        change = self._change(features["input_ids"], features.get("attention_mask"))
        end = self.exit if self.layer is None else min(self.exit, self.layer)
        handles = [
            layer.register_forward_pre_hook(change, with_kwargs=True) for layer in list(self.layers)[self.start : end]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change(self, ids: Tensor, attention_mask: Tensor | None) -> Callable[..., tuple[Any, Any]]:
        """The hook that copies, for rows `ids` (batch, length), the last real token's vector to the placeholders."""
        rows, places, last = self._places(ids, attention_mask)

        def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            given = args[0] if args else kwargs["hidden_states"]
            if given.shape[:-1] != ids.shape:
                raise InputError(
                    f"layers of {type(self.model).__name__} read vectors of shape {tuple(given.shape)}; "
                    "Token Prepending needs (batch, length, hidden)"
                )
            hidden = given.clone()  # what the layer before put out may be recorded elsewhere
            hidden[rows, places] = given[rows, last]
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return change

    def _places(self, ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Row, place and last real place of each placeholder: those put in, not one that a text happens to hold."""
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
        rows, places = ours.nonzero(as_tuple=True)
        last = ids.shape[1] - 1 - real.flip(1).argmax(1)
        return rows, places, last[rows]


def rare_token(tokenizer: PreTrainedTokenizerBase, embeddings: int, avoid: Collection[int] = ()) -> str:
    """A token that text hardly ever holds, by its string.

    The last special token without a role of its own, those called reserved or unused first (`<empty_output>` for
    SmolLM2); where there is none, the last one of the vocabulary, which a tokenizer learned last.

    Args:
        embeddings: rows of the model's embedding matrix; ids beyond are no choice.
        avoid: ids that are no choice.

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
    zeros, ones, noise or another token's embedding do the same.) A token that is there already is left as it is.

    Example:
        model, tokenizer = broadsheet.models.load("default")
        TokenPrepending(model, tokenizer, placeholder=add_placeholder(model, tokenizer))
    """
    if token in tokenizer.get_vocab():
        return token
    known = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    number = tokenizer.get_vocab()[token]
    if number >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(number + 1, mean_resizing=False)
    with torch.no_grad():
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            if part is not None:
                part.weight[number] = part.weight[:known].mean(0)
    return token


def _lead_in(prefix: str, position: Position) -> str:
    """What stands before the placeholder."""
    if position == "start":
        return ""
    return prefix if position == "inside-quote" else prefix.rstrip().rstrip("\"'“‘«`").rstrip()
