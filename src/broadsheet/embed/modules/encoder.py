"""`CausalEncoder`: any causal LM as the first module of a `SentenceTransformer`.

Knows tokens, layers and attention masks. Does not know pooling (the next module), or how batches are chosen. The whole
model is kept, its head included: the model that embeds also generates, and methods train both on the same weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch
from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.embed.modules import masks
from broadsheet.embed.modules.layers import LeftEarly, decoder_layers, leave_after
from broadsheet.embed.modules.template import Template
from broadsheet.models import adapters
from broadsheet.models.attention import short_attention
from broadsheet.models.tokens import head, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Attention = Literal["causal", "bidirectional"]


class CausalEncoder(InputModule):
    """Texts → token embeddings of a causal language model.

    Args:
        model: the whole `…ForCausalLM`. Its config is never changed.
        tokenizer: with a pad token.
        attention: `"causal"`, or `"bidirectional"`: every token sees the whole text. The model's own mask is replaced
            for the forward pass alone, so the same weights still generate.
        layer: M returns the output of the first M layers, without the final norm, and later layers are not run.
            None, or all layers: the last one, with the final norm.
        template: prefix and suffix of each text.
        append: tokens, by their string, at the end of a row: an end-of-text token, or tokens of a method's own.
        max_seq_length: tokens of a row; None: the model's number of positions. Only the text is cut.
        truncate: of a text over the limit: `"cut"` at the end (counted in `truncated_`), or `"error"`.
        spec: the name the model was loaded by; an adapter's folder names it as its base.

    Attributes:
        texts_, truncated_, empty_: numbers of texts that `rows` has read, cut, and found without a token of their own.

    Raises:
        InputError: a token in `append` that the tokenizer does not have, a layer the model does not have, or a
            `max_seq_length` that leaves no room for text.

    Example:
        model, tokenizer = broadsheet.models.load("default")
        SentenceTransformer(modules=[CausalEncoder(model, tokenizer), Pooling(576, "mean")])
    """

    poolings: ClassVar[tuple[str, ...]] = ()  # modes of `Pooling` that a subclass allows after it; empty: any
    config_file_name = "encoder.json"
    config_keys: ClassVar[list[str]] = [  # type: ignore[misc]
        "attention",
        "layer",
        "template",
        "append",
        "max_seq_length",
        "truncate",
        "spec",
    ]
    save_in_root = True
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        attention: Attention = "causal",
        layer: int | None = None,
        template: Template | dict[str, Any] | None = None,
        append: Sequence[str] = (),
        max_seq_length: int | None = 512,
        truncate: Literal["cut", "error"] = "cut",
        spec: str = "",
    ) -> None:
        super().__init__()
        if attention not in ("causal", "bidirectional"):
            raise InputError(f"got attention {attention!r}; expected causal or bidirectional")
        if truncate not in ("cut", "error"):
            raise InputError(f"got truncate {truncate!r}; expected cut or error")
        self.model = model
        self.tokenizer = tokenizer
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise InputError("the tokenizer has neither a pad nor an end-of-text token; give it a pad_token")
            tokenizer.pad_token = tokenizer.eos_token
        self.attention: Attention = attention
        self.layer = layer
        self.template = Template.of(template)
        self.append = tuple(append)
        self.truncate = truncate
        self.spec = spec
        self.autocast: torch.dtype | None = None  # in training, the dtype of forward passes
        self.texts_ = self.truncated_ = self.empty_ = 0
        if layer is not None and not 1 <= layer <= len(self.layers):
            raise InputError(f"got layer {layer}; the model has layers 1 to {len(self.layers)}")
        limit = context_length(model, tokenizer)
        self.max_seq_length = limit if max_seq_length is None else min(max_seq_length, limit or max_seq_length)
        self._append_ids = [self.token_id(token) for token in self.append]
        self._prompt_lengths: dict[str | None, int] = {}

    # Parts

    @property
    def backbone(self) -> PreTrainedModel:
        """The model without its head."""
        return cast("PreTrainedModel", self.model.base_model)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        return decoder_layers(self.model)

    @property
    def processor(self) -> PreTrainedTokenizerBase:
        """The tokenizer, by the name that sentence-transformers' trainer uses."""
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def get_embedding_dimension(self) -> int:
        """Width of a token's vector."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def token_id(self, token: str) -> int:
        """The id of a token by its string.

        Raises:
            InputError: the tokenizer does not have it.
        """
        found = token_id(self.tokenizer, token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}; add it, or choose one of its tokens")
        return found

    # Texts to tokens

    def rows(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """Token ids of each text with its template, prompt and appended tokens, cut to `max_seq_length`; not padded.

        Template, prompt and appended tokens are never cut. A row without any token becomes one end-of-text token.

        Raises:
            InputError: a text is over the limit and `truncate` is `"error"`; or the limit leaves no room for text.
        """
        if not texts:
            return []
        if self.max_seq_length is not None and self.truncate == "cut":
            texts = [head(self.tokenizer, text, self.max_seq_length) for text in texts]
        before = self.template.prefix + (prompt or "")
        whole = [before + self.template.text(text) + self.template.suffix for text in texts]
        encoded = self.tokenizer(whole, return_attention_mask=False, verbose=False)
        rows: list[list[int]] = list(encoded["input_ids"])
        limit = None if self.max_seq_length is None else self.max_seq_length - len(self._append_ids)
        for i, row in enumerate(rows):
            if limit is not None and len(row) > limit:
                rows[i] = self._cut(row, i, encoded, len(whole[i]), len(before), limit)
                self.truncated_ += 1
        self.texts_ += len(rows)
        self.empty_ += sum(not text.strip() for text in texts)
        rows = [row + self._append_ids for row in rows]
        return [row or [self._end()] for row in rows]

    def _cut(self, row: list[int], i: int, encoded: Any, size: int, before: int, limit: int) -> list[int]:
        """`row` without the last tokens of its text that exceed the limit."""
        if self.truncate == "error":
            raise InputError(
                f"text {i + 1} has {len(row) + len(self._append_ids):,} tokens, the limit is {self.max_seq_length}; "
                "shorten it, raise max_seq_length, or allow truncate='cut'"
            )
        suffix = size - len(self.template.suffix)
        if encoded.is_fast:
            spans = encoded.encodings[i].offsets
            special = [end == 0 for _, end in spans]
            head = sum(begin < before and not last for (begin, _), last in zip(spans, special, strict=True))
            head += next((n for n, flag in enumerate(special) if not flag), len(row))
            tail = next((n for n, flag in enumerate(reversed(special)) if not flag), 0)
            tail += sum(end > suffix for _, end in spans)
        else:  # no offsets: a token that joins text and suffix is not known
            head, tail = before, len(self.tokenizer(self.template.suffix, add_special_tokens=False)["input_ids"])
        if head + tail >= limit:
            raise InputError(
                f"the template, prompt and appended tokens take {head + tail + len(self._append_ids)} tokens: "
                f"max_seq_length {self.max_seq_length} leaves no room for text; raise it"
            )
        return row[: limit - tail] + row[len(row) - tail :]

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(self.tokenizer.pad_token_id if end is None else end)

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Rows of ids to `input_ids` and `attention_mask`, (batch, length) each, padded on `tokenizer.padding_side`."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        left = self.tokenizer.padding_side == "left"
        for i, row in enumerate(rows):
            columns = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, columns] = torch.tensor(row)
            mask[i, columns] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Texts to padded features, as sentence-transformers wants them, with `prompt_length` if there is a prompt."""
        features: dict[str, Any] = dict(self.pad(self.rows([str(text) for text in inputs], prompt)))
        features["modality"] = "text"
        if prompt:
            features["prompt_length"] = self.prompt_length(prompt)
        return features

    def prompt_length(self, prompt: str | None) -> int:
        """Tokens before the text: a first special token, the template's prefix and the prompt."""
        if prompt not in self._prompt_lengths:
            before = self.template.prefix + (prompt or "")
            encoded = self.tokenizer(before + "x", verbose=False)  # a space at its end may be part of the text's word
            count = len(encoded["input_ids"]) - 1
            if encoded.is_fast:
                ends = [end for _, end in encoded.encodings[0].offsets]
                count = next(n for n, end in enumerate(ends) if end > len(before))
            self._prompt_lengths[prompt] = count
        return self._prompt_lengths[prompt]

    # Tokens to vectors

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings`, (batch, length, hidden)."""
        with self.around(features):
            features["token_embeddings"] = self.states(features["input_ids"], features.get("attention_mask"))
        return features

    def around(self, features: dict[str, Any]) -> AbstractContextManager[Any]:
        """The context of `forward`: a method that edits hidden states overrides this."""
        return nullcontext()

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, attention: Attention | None = None
    ) -> Tensor:
        """Hidden states after `layer` layers.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length) of 1 for real tokens; or boolean (batch, 1, length, length), [b, 0, i, j]
                whether i sees j; None: all are real.
            attention: instead of the encoder's own.

        Returns:
            (batch, length, hidden), in the model's dtype. Values at padding are arbitrary.
        """
        causal = (attention or self.attention) == "causal"
        given = self._arguments(self.backbone, input_ids, attention_mask, causal)
        with self.precision(), self._quick(), leave_after(self.layers, self.layer) as left:
            try:
                output = self.backbone(input_ids=input_ids, use_cache=False, **given)
            except LeftEarly:
                return left[0]
        return cast(Tensor, output.last_hidden_state)

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Next-token logits (batch, length, vocabulary) under causal attention, or under a mask of four dimensions."""
        given = self._arguments(self.model, input_ids, attention_mask, True)
        with self.precision():
            return cast(Tensor, self.model(input_ids=input_ids, use_cache=False, **given).logits)

    def precision(self) -> AbstractContextManager[Any]:
        """The context of forward passes: `autocast`, where one is set."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def _quick(self) -> AbstractContextManager[Any]:
        """Quick attention where no gradient is kept; in training, who trains decides for the backward pass too."""
        return nullcontext() if torch.is_grad_enabled() else short_attention(self.model)

    def _arguments(
        self, model: PreTrainedModel, ids: Tensor, attention_mask: Tensor | None, causal: bool
    ) -> dict[str, Tensor]:
        """Mask and positions for a forward pass; no mask wherever none is needed, which is the fastest path."""
        if attention_mask is not None and attention_mask.ndim == 4:
            return {"attention_mask": masks.attention_argument(attention_mask, self.model)}
        if attention_mask is None:
            if causal:
                return {}
            attention_mask = torch.ones_like(ids)
        real = attention_mask.bool()
        on_the_right = bool((real[:, :-1] >= real[:, 1:]).all())  # real tokens first: causal ones never see padding
        if causal and on_the_right:
            return {}
        given = {}
        if causal:
            given["attention_mask"] = attention_mask
        else:
            given["attention_mask"] = masks.attention_argument(masks.bidirectional(attention_mask), self.model)
        if not on_the_right and _takes_positions(type(model)):
            given["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return given

    # Folders

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as saved."""
        settings = super().get_config_dict()
        return settings | {"template": self.template.to_dict(), "append": list(self.append)}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the model (or its adapter), the tokenizer and `encoder.json`.

        The folder is an ordinary one for `AutoModelForCausalLM` too.
        """
        adapters.save(self.model, Path(output_path), self.spec)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read a folder that `save` wrote: safetensors only, and none of the folder's code.

        Raises:
            InputError: the folder is damaged, or its adapter was trained for another base.
        """
        where: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        settings = cls.load_config(model_name_or_path, **where)
        folder = Path(str(cls.load_dir_path(model_name_or_path, **where)))
        given = model_kwargs or {}
        options = {
            "dtype": given.get("dtype", given.get("torch_dtype")),
            "attn_implementation": given.get("attn_implementation"),
        }
        model, tokenizer = adapters.load(folder, options)
        try:
            return cls(model, tokenizer, **settings)
        except TypeError as error:
            raise InputError(f"{folder / cls.config_file_name} cannot be used: {error}; save it anew") from None


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The largest number of tokens that model and tokenizer take; None where neither has a limit."""
    known = [getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    limits = [int(limit) for limit in known if limit and limit < 1e9]
    return min(limits) if limits else None


_POSITIONS: dict[type, bool] = {}


def _takes_positions(kind: type) -> bool:
    if kind not in _POSITIONS:
        _POSITIONS[kind] = "position_ids" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    return _POSITIONS[kind]
