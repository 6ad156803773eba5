"""The socket of the stage: every method is an `Embedder`, a `SentenceTransformer` around a causal LM.

Knows how an embedder is assembled, and the plain baselines by name. Does not know any paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from broadsheet import models
from broadsheet.console import InputError, say
from broadsheet.data import resources
from broadsheet.embed.modules.encoder import Attention, CausalEncoder
from broadsheet.embed.modules.template import PROMPT_EOL, Template
from broadsheet.models import card, hub
from broadsheet.models.sentences import MODULES, load_sentences

if TYPE_CHECKING:
    import torch

POOLINGS = {"mean": "mean", "weighted-mean": "weightedmean", "last-token": "lasttoken"}
BASELINES = ("mean", "weighted-mean", "last-token", "prompt-eol")


class Embedder(SentenceTransformer):
    """A `SentenceTransformer` whose first module is a `CausalEncoder`, and whose `encode` computes next to no padding.

    All else is sentence-transformers': `encode_query`, `encode_document`, `similarity`, prompts, losses, trainer,
    evaluators, `save`; MTEB takes it as it is. A saved folder is read back by `broadsheet.embed.load(folder)`, or by
    `SentenceTransformer(folder, trust_remote_code=True)` (the flag allows sentence-transformers to import a class of
    another package, this one), and by `AutoModelForCausalLM.from_pretrained(folder)` for generation.

    Example:
        embedder = broadsheet.embed.embedder("default", "mean")
        vectors = embedder.encode(["How are you?", "Fine, thanks."])
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        modules = list(self)
        allowed = modules[0].poolings if modules and isinstance(modules[0], CausalEncoder) else ()
        for module in modules[1:]:
            if allowed and isinstance(module, Pooling) and module.pooling_mode not in allowed:
                names = {mode: name for name, mode in POOLINGS.items()}
                raise InputError(
                    f"got pooling {names.get(module.pooling_mode, module.pooling_mode)!r} after "
                    f"{type(modules[0]).__name__}; expected {' or '.join(repr(names[mode]) for mode in allowed)}, the "
                    "vector that its template makes the embedding"
                )

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        """The library's own card in place of sentence-transformers', which knows neither paper nor verdict."""
        lm = self.transformers_model
        base = getattr(self[0], "spec", None) or (None if lm is None else lm.config.name_or_path)
        card.write(Path(path), paper=card.paper_of(self), base=base)

    @property
    def encoder(self) -> CausalEncoder:
        """The first module.

        Raises:
            InputError: it is another kind of module.
        """
        first = self[0]
        if not isinstance(first, CausalEncoder):
            raise InputError(f"the first module is a {type(first).__name__}; this needs a causal LM")
        return first

    def encode(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `SentenceTransformer.encode`, in batches of a token budget.

        Whatever the batch, vectors are the same to 2e-6 of their largest entry, in float32.

        `batch_size`, if given, is the largest number of texts in a batch. Anything but plain encoding of texts (token
        embeddings, other precisions, several devices) is left to sentence-transformers. The number of texts that were
        cut to the limit is reported.

        Returns:
            (texts, dimensions) as numpy or tensor, or a list of vectors; one vector for one text. float32 in numpy.
        """
        single = isinstance(inputs, str)
        texts = [inputs] if single else list(inputs)
        plain = output_value == "sentence_embedding" and precision == "float32" and not isinstance(device, list)
        plain = plain and all(value is None for key, value in kwargs.items() if key != "task")
        if not (plain and isinstance(self[0], CausalEncoder) and all(isinstance(text, str) for text in texts)):
            given = {"batch_size": batch_size} if batch_size is not None else {}
            encode: Any = super().encode
            return encode(
                inputs,
                prompt_name=prompt_name,
                prompt=prompt,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                precision=precision,
                convert_to_numpy=convert_to_numpy,
                convert_to_tensor=convert_to_tensor,
                device=device,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                **given,
                **kwargs,
            )
        from broadsheet.embed.modules.encode import encode_texts

        if device is not None:
            self.to(device)
        cut = self.encoder.truncated_
        vectors = encode_texts(
            self,
            texts,
            prompt=self._resolve_prompt(prompt, prompt_name),
            max_texts=batch_size,
            normalize=normalize_embeddings,
            dimensions=self.truncate_dim if truncate_dim is None else truncate_dim,
            progress=bool(show_progress_bar),
        )
        if (cut := self.encoder.truncated_ - cut) > 0:
            say(f"{cut:,} of {len(texts):,} texts were cut to {self.encoder.max_seq_length:,} tokens")
        if single:
            vectors = vectors[0]
        if convert_to_tensor:
            return vectors
        if convert_to_numpy:
            return vectors.float().cpu().numpy()
        return vectors if single else list(vectors)


def embedder(
    model: Any = "default",
    pooling: Literal["mean", "weighted-mean", "last-token"] | nn.Module = "mean",
    *,
    attention: Attention = "causal",
    layer: int | None = None,
    template: Template | None = None,
    append: Sequence[str] = (),
    prompts: Mapping[str, str] | None = None,
    normalize: bool = False,
    max_seq_length: int | None = 512,
    include_prompt: bool = True,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    encoder: type[CausalEncoder] = CausalEncoder,
    **settings: Any,
) -> Embedder:
    """A causal LM as an embedder.

    Args:
        model: a name for `models.load`, its result, or a model with its tokenizer.
        pooling: how token vectors become one: their `"mean"`, `"weighted-mean"` (weight = position, so that tokens
            that have seen more count more), the `"last-token"`'s; or a sentence-transformers module.
        attention, layer, template, append, max_seq_length: see `CausalEncoder`.
        prompts: by name; `encode_query` uses `"query"`, `encode_document` `"document"`.
        normalize: to unit length.
        include_prompt: whether the prompt's tokens are pooled too.
        device, dtype: of `models.load`; a model that is passed in is moved and converted.
        encoder, settings: another kind of first module, and its further arguments.

    Raises:
        InputError: a model or a setting that cannot be used.

    Example:
        embedder("default", "last-token", template=PROMPT_EOL).encode(["One sentence."])
    """
    if isinstance(model, str | Path):
        model = models.load(model, device=device, dtype=dtype)
    lm, tokenizer = model
    spec = settings.pop("spec", getattr(model, "spec", ""))
    if dtype is not None:
        import torch

        lm = lm.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    first = encoder(
        lm,
        tokenizer,
        attention=attention,
        layer=layer,
        template=template,
        append=append,
        max_seq_length=max_seq_length,
        spec=spec,
        **settings,
    )
    parts: list[nn.Module] = [first]
    if isinstance(pooling, nn.Module):
        parts.append(pooling)
    elif pooling in POOLINGS:
        mode: Any = POOLINGS[pooling]
        parts.append(Pooling(first.get_embedding_dimension(), mode, include_prompt=include_prompt))
    else:
        raise InputError(f"got pooling {pooling!r}; expected one of {', '.join(POOLINGS)}")
    if normalize:
        parts.append(Normalize())
    made = Embedder(modules=parts, prompts=dict(prompts or {}) or None, device=device or str(lm.device))
    return made.eval()


def baseline(name: str, model: Any = "default", **settings: Any) -> Embedder:
    """A plain way to embed, by name: the baselines of every method.

    `"mean"`, `"weighted-mean"` and `"last-token"` pool the last layer; `"prompt-eol"` asks for the sentence in one word
    and takes the last token (Jiang et al., 2023).

    Raises:
        InputError: no baseline of that name.
    """
    if name not in BASELINES:
        raise InputError(f"got baseline {name!r}; expected one of {', '.join(BASELINES)}")
    if name == "prompt-eol":
        return embedder(model, "last-token", **{"template": PROMPT_EOL} | settings)
    return embedder(model, name, **settings)  # type: ignore[arg-type]


def load(source: str | Path, *, device: str | None = None, dtype: str | torch.dtype | None = None) -> Embedder:
    """An embedder: a saved folder, any sentence-transformers model, or a causal LM by name (its mean baseline).

    `resource:minilm` is all-MiniLM-L6-v2, from a package.

    Raises:
        InputError: there is none of that name, or it cannot be read.

    Example:
        load("runs/gem").encode_query("what is a monad")
    """
    folder = resources.local(source)
    if not (folder / MODULES).is_file():
        if folder.is_dir() or str(source) == "default" or folder.suffix == ".gguf":
            return baseline("mean", str(source), device=device, dtype=dtype)
        if folder.exists():
            raise InputError(f"{source} is a file; an embedder is a folder or a model's name")
        if hub.is_id(str(source)) and not hub.has(str(source), MODULES):
            return baseline("mean", str(source), device=device, dtype=dtype)
    return load_sentences(folder if folder.is_dir() else source, Embedder, device=device, dtype=dtype)
