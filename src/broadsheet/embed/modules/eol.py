"""Templates that ask for one word, and an embedder that averages over several of them.

Knows: strings, encoders that share a model. Does not know: how an encoder reads a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

import torch
from sentence_transformers.base.modules.input_module import InputModule

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.template import PROMPT_EOL, Template

PRETENDED_COT = Template(f"After thinking step by step , this{PROMPT_EOL.prefix[4:]}", PROMPT_EOL.suffix, clean=True)
"""Pretended chain of thought (Zhang et al., 2024): PromptEOL, as if after reasoning."""

KNOWLEDGE = Template(
    "Who or what a sentence is about and what happens carry its meaning , descriptions add little to it . "
    f"With this in mind , this{PROMPT_EOL.prefix[4:]}",
    PROMPT_EOL.suffix,
    clean=True,
)
"""Knowledge enhancement (Zhang et al., 2024), in our words: PromptEOL after a remark on which parts carry meaning."""


def _task(preamble: str, word: str) -> Template:
    return Template(f'{preamble} This sentence : "', f'" {word} in one word:"', clean=True)


META_EOL = (
    _task("Sort texts by their topic , such as sports or politics .", "has the topic"),
    _task("Tell facts from opinions .", "states , as fact or opinion ,"),
    _task("Guess from a review how many stars of five the product gets .", "rates the product"),
    _task("Name the feeling that a text conveys .", "conveys the feeling"),
    _task("Say the same thing differently , with nothing lost .", "says the same as"),
    _task("Find a synonym that would fit the place of the main word .", "uses its main word to mean"),
    _task("Pick the one fact of a news item that readers should keep .", "reports above all"),
    _task("Find the thing that a scientific text is about .", "is a study of"),
)
"""MetaEOL's eight tasks (Lei et al., 2024), in our words; for `TemplateMean`."""

TEMPLATES: dict[str, tuple[Template, ...]] = {
    "prompt-eol": (PROMPT_EOL,),
    "pretended-cot": (PRETENDED_COT,),
    "knowledge": (KNOWLEDGE,),
    "meta-eol": META_EOL,
}


def variant(encoder: CausalEncoder, **changes: Any) -> Any:
    """The same model and tokenizer in an encoder of the same kind, under other settings."""
    return type(encoder)(encoder.model, encoder.tokenizer, **{**encoder.get_config_dict(), **changes})


class TemplateMean(InputModule):
    """Each text read in several templates; the mean of the last tokens' vectors is its embedding.

    It is a whole `SentenceTransformer` by itself: no pooling follows. It takes one forward pass a template.

    Args:
        encoder: a `CausalEncoder`, or a `TokenPrepending`; its own template is not used.
        templates: MetaEOL's eight by default.

    Raises:
        InputError: no templates.

    Example:
        model, tokenizer = broadsheet.models.load("default")
        SentenceTransformer(modules=[TemplateMean(TokenPrepending(model, tokenizer))]).encode(["A man plays."])

    Source: MetaEOL, arXiv:2402.18458; the tasks as described in arXiv:2412.11556, Sec. 4.
    """

    config_file_name = "templates.json"
    config_keys: ClassVar[list[str]] = ["templates"]  # type: ignore[misc]
    save_in_root = True

    def __init__(
        self, encoder: CausalEncoder, templates: Sequence[Template | dict[str, Any]] = META_EOL, **settings: Any
    ) -> None:
        super().__init__()
        if not templates:
            raise InputError("got no templates; expected one or more")
        self.templates = tuple(Template.of(template) for template in templates)
        self.encoder = encoder
        # In a plain list: they share the encoder's weights, which must be counted and saved once.
        self._encoders = [variant(encoder, template=template) for template in self.templates]

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        return self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        return self.encoder.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Width of an embedding."""
        return self.encoder.get_embedding_dimension()

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Padded features of each template, numbered."""
        features: dict[str, Any] = {"modality": "text"}
        for i, encoder in enumerate(self._encoders):
            made = encoder.pad(encoder.rows([str(text) for text in inputs], prompt))
            features |= {f"{name}_{i}": tensor for name, tensor in made.items()}
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, (batch, hidden)."""
        total = None
        for i, encoder in enumerate(self._encoders):
            made = encoder({name: features[f"{name}_{i}"] for name in ("input_ids", "attention_mask")})
            last = last_vectors(made["token_embeddings"], made["attention_mask"]).float()
            total = last if total is None else total + last
        assert total is not None
        features["sentence_embedding"] = total / len(self._encoders)
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as saved."""
        return {
            "templates": [template.to_dict() for template in self.templates],
            "encoder": f"{type(self.encoder).__module__}.{type(self.encoder).__name__}",
        }

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the encoder's folder, and `templates.json` beside it."""
        self.encoder.save(output_path, *args, **kwargs)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # type: ignore[override]
        """Read what `save` wrote.

        Raises:
            InputError: the folder names another encoder than those of this package.
        """
        where = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, **where)
        module, _, name = str(settings["encoder"]).rpartition(".")
        # No code but this package's is imported.
        kind = getattr(import_module(module), name, None) if module.startswith("broadsheet.embed.") else None
        if not (isinstance(kind, type) and issubclass(kind, CausalEncoder)):
            raise InputError(f"got encoder {settings['encoder']!r}; expected an encoder of broadsheet.embed")
        encoder = kind.load(model_name_or_path, subfolder=subfolder, **kwargs)
        return cls(encoder, settings["templates"])


def last_vectors(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The vector of each row's last real token: (batch, length, hidden) to (batch, hidden)."""
    last = states.shape[1] - 1 - attention_mask.long().flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), last.to(states.device)]
