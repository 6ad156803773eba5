"""Reading a model and its tokenizer from a checked folder or GGUF file with transformers.

Knows transformers' traps: remote code, hub kernels named by a config, weights left at random values, tokenizers that a
GGUF file describes only in part. Does not know names, hubs or caches.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, say
from broadsheet.models import surgery
from broadsheet.models.safefiles import GGUFHeader, check_folder, read_gguf, read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Vocabularies whose merges were learned with every digit on its own; the names are llama.cpp's (`tokenizer.ggml.pre`).
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_PLAIN_BYTE_LEVEL = {"gpt-2", "gpt2", "default"}


def from_folder(
    folder: Path, *, device: torch.device, dtype: torch.dtype, attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a Hugging Face model folder; nothing is fetched and none of its code is run.

    Without an `attn_implementation`, sdpa is used where the model's class has it, and eager attention elsewhere.

    Raises:
        InputError: see `safefiles.check_folder`; the model is not a causal LM that transformers knows; weights or
            tokenizer do not belong to the config.
    """
    check_folder(folder)
    config = read_json(folder / "config.json")
    _check_model_type(folder / "config.json", config)
    if "auto_map" in config:
        say(f"{folder} comes with code of its own, which is not run: the class transformers has for it is used")
    with quiet():
        attention = attn_implementation or _attention(config["model_type"])
        reader = surgery.sized(config) if surgery.WIDTHS in config else None
        return _read(folder, str(folder), device, reader=reader, dtype=dtype, attn_implementation=attention)


def classifier_from_folder(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a folder of a model that classifies texts or pairs of them; as safely as `from_folder`.

    Raises:
        InputError: see `safefiles.check_folder`; transformers knows no such classifier; weights are missing.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    model, tokenizer = _of_kind(
        folder, AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "one that classifies sequences", device, dtype,
    )  # fmt: skip
    if model.config.pad_token_id is None:  # decoders read the class at the last token that is no padding
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def seq2seq_from_folder(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a folder of a model from sequence to sequence, such as T5; as safely as `from_folder`.

    Raises:
        InputError: see `safefiles.check_folder`; transformers knows no such model; weights are missing.
    """
    from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM

    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return _of_kind(folder, AutoModelForSeq2SeqLM, known, "one from sequence to sequence", device, dtype)


def _of_kind(
    folder: Path, reader: Any, known: Any, wanted: str, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a folder by a class of transformers, which knows such configs as `known` maps."""
    check_folder(folder)
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if (kind := _config_class(model_type)) not in known:
        raise InputError(f"{folder / 'config.json'}: model_type {model_type!r} is not {wanted}")
    attention = "sdpa" if known[kind]._supports_sdpa else "eager"
    with quiet():
        return _read(folder, str(folder), device, reader=reader, dtype=dtype, attn_implementation=attention)


def from_gguf(
    file: Path, *, device: torch.device, dtype: torch.dtype, attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file into a plain model of `dtype`: quantized weights are dequantized, and the model can be saved.

    Raises:
        InputError: see `safefiles.read_gguf`; transformers cannot read this architecture or tokenizer.
    """
    from transformers import GgufConfig

    header = read_gguf(file)
    # Read from an empty folder: beside the file may lie another model's tokenizer or adapter, which would be picked up.
    # Stderr is held back because the conversion shows a progress bar that has no switch. Dequantized, because packed
    # weights make transformers fetch a kernel from the hub, and the model cannot be saved.
    with TemporaryDirectory() as empty, quiet(), contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = _read(
            file,
            empty,
            device,
            gguf_file=str(file.resolve()),
            dtype=dtype,
            attn_implementation=attn_implementation or "sdpa",
            quantization_config=GgufConfig(dequantize=True),
        )
    model.config.name_or_path = tokenizer.name_or_path = str(file)
    for trace in ("vocab_file", "name_or_path", "is_local", "local_files_only"):  # of the empty folder
        tokenizer.init_kwargs.pop(trace, None)
    _mend_splitting(tokenizer, header, file)
    return model, tokenizer


def _read(
    source: Path,
    folder: str,
    device: torch.device,
    gguf_file: str | None = None,
    reader: Any = None,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    known = AutoModelForCausalLM if reader is None else reader
    safely: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "gguf_file": gguf_file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        model, loading = known.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options, **safely
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a foreign file can be wrong in any way: transformers raises whatever it trips over
        reason = " ".join(str(error).split())[:300]
        wanted = {
            "AutoModelForSequenceClassification": "classifier",
            "AutoModelForSeq2SeqLM": "model from sequence to sequence",
        }.get(known.__name__, "causal language model")
        raise InputError(f"cannot read {source} as a {wanted}: {reason}") from error
    # transformers fills weights that it does not find with random numbers
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{source} lacks {len(missing)} of the weights its config asks for, such as {missing[0]}")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(f"{source}: its tokenizer has {len(tokenizer)} tokens, its model {rows}: they do not match")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    generation = getattr(model, "generation_config", None)  # a classifier has none
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_packed)
    return model.to(device).eval(), tokenizer


def _packed(head: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """States that lie one behind the other in memory, for the head over the vocabulary.

    transformers gives it slices: the last position of each row, say. By a frozen weight torch multiplies a slice row by
    row, and copies the whole vocabulary for each: on a CPU in bfloat16, 16 rows took 2 s in place of 7 ms.
    """
    states = given[0]
    return (states.flatten(0, -2).contiguous().view(states.shape),)


def _config_class(model_type: Any) -> Any:
    """transformers' class of configs of that type; None where it knows none."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401 (it has no `get`)


def _check_model_type(path: Path, config: dict[str, Any]) -> None:
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    # These also hold what was registered, such as the models of `broadsheet.attend` once that is imported.
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{path}: model_type {model_type!r} is not one that transformers {transformers.__version__} knows"
            " (a model's own code is never run)"
        )
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{path}: model_type {model_type!r} is not a causal language model")


def _attention(model_type: str) -> str:
    """The fastest attention that every machine has, for this type of model. Never left to a config file to choose."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]._supports_sdpa else "eager"


def attention_of_base(config: dict[str, Any]) -> str:
    """The same for a model without a head.

    Raises:
        InputError: transformers knows no such model.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        raise InputError(f"model_type {model_type!r} is not one that transformers knows (its own code is never run)")
    kinds = MODEL_MAPPING[CONFIG_MAPPING[model_type]]
    first = kinds[0] if isinstance(kinds, list | tuple) else kinds
    return "sdpa" if first._supports_sdpa else "eager"


def _mend_splitting(tokenizer: PreTrainedTokenizerBase, header: GGUFHeader, file: Path) -> None:
    """Split text into words as the vocabulary was learned, where transformers' GGUF conversion leaves that out.

    For an unknown `tokenizer.ggml.pre` the conversion falls back to GPT-2's splitting without a word; a vocabulary that
    splits digits then gets other tokens than llama.cpp gives ("7 89": the space joins the digit's run).
    """
    from tokenizers import pre_tokenizers

    kind = header.metadata.get("tokenizer.ggml.pre", "default")
    backend = tokenizer.backend_tokenizer
    fell_back = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
    if not fell_back or kind in _PLAIN_BYTE_LEVEL:
        return
    if kind in _SINGLE_DIGITS:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        say(
            f"{file.name}: splits words by unknown rules ({kind}); GPT-2's are used, tokens may differ from llama.cpp's"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, log messages below errors, and warnings, for the time of a load."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
