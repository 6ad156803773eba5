"""Queries and documents with a template each: the prompt before a text decides the suffix after it.

Knows templates and prompts. Does not know what a side is used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AsymmetricEncoder(CausalEncoder):
    """A causal encoder with a suffix of its own for each side: queries end differently from documents.

    Args:
        sides: templates by name. A text that comes with a side's prefix as its prompt gets that side's suffix too; any
            other prompt gets the encoder's own template.

    Raises:
        InputError: two sides have the same prefix and different suffixes, so that a prompt does not tell them apart.
    """

    config_keys: ClassVar[list[str]] = [*CausalEncoder.config_keys, "sides"]  # type: ignore[misc]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sides: Mapping[str, Template | dict[str, Any]],
        **settings: Any,
    ) -> None:
        super().__init__(model, tokenizer, **settings)
        self.sides = {name: Template.of(side) for name, side in sides.items()}
        self._by_prefix: dict[str, Template] = {}
        for name, side in self.sides.items():
            if self._by_prefix.setdefault(side.prefix, side) != side:
                raise InputError(
                    f"the side {name!r} begins like another and has another suffix; give it a prefix of its own"
                )

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as saved."""
        return super().get_config_dict() | {"sides": {name: side.to_dict() for name, side in self.sides.items()}}

    def rows(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """As `CausalEncoder.rows`, with the suffix of the side whose prefix the prompt is."""
        side = self._by_prefix.get(prompt or "")
        if side is None:
            return super().rows(texts, prompt)
        own = self.template
        self.template = replace(side, prefix=own.prefix)  # the side's prefix comes as the prompt
        try:
            return super().rows(texts, prompt)
        finally:
            self.template = own
