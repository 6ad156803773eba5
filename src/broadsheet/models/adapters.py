"""LoRA adapters in a model: putting one in, merging it, and folders that hold it beside the name of its base.

Knows peft and folders. Does not know what is trained. A folder's adapter must be plain LoRA in safetensors, and is
refused on another base than it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.models.loading import fingerprint
from broadsheet.models.loading import load as load_model
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import check_safetensors, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
# Fields that make peft import what the file names, or do more than add matrices.
_STRANGE = ("megatron_config", "corda_config", "eva_config")


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether there is an adapter in the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def add(
    model: PreTrainedModel,
    rank: int = 16,
    *,
    alpha: int | None = None,
    dropout: float = 0.0,
    modules: Sequence[str] = (),
) -> None:
    """Put LoRA matrices of `rank` into all linear layers but the head (or into `modules`); they alone are trained.

    Args:
        alpha: 2 × rank by default.

    Raises:
        InputError: peft is not installed, or the model has an adapter.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("an adapter needs peft: pip install 'broadsheet[embed]'") from None
    if has_adapter(model):
        raise InputError("the model has an adapter; go on with it, or merge it first")
    model.base_ = {"fingerprint": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
    targets: Any = list(modules) or "all-linear"
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha or 2 * rank, "lora_dropout": dropout}
    model.add_adapter(LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings))


def merge(model: PreTrainedModel) -> None:
    """Add the adapter's matrices to the weights and take it out; nothing happens where there is none."""
    if not has_adapter(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(model.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, part.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config


def save(model: PreTrainedModel, folder: Path, spec: str) -> None:
    """Write the model, or where it has an adapter that alone and what its base is.

    Raises:
        InputError: there is an adapter, and `spec` does not name its base.
    """
    with quiet():
        if not has_adapter(model):
            model.save_pretrained(folder)
            return
        if not spec:
            raise InputError("an adapter is saved beside its base's name, which is not known; merge it, or set spec")
        base = spec if spec == "default" or not Path(spec).exists() else str(Path(spec).resolve())
        model.save_pretrained(folder, save_embedding_layers=False)
        record = {"spec": base, **model.base_}
        (folder / BASE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def load(folder: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The model and tokenizer in `folder`; an adapter comes in its base.

    Args:
        options: of `models.load`.

    Raises:
        InputError: damaged or foreign files; an adapter that is no plain LoRA, lacks its base, or does not fit it.
    """
    if not (folder / ADAPTER).is_file():
        model, tokenizer = load_model(folder, **options)
        return model, tokenizer
    check(folder)
    if not (folder / BASE).is_file():
        raise InputError(f"{folder} is an adapter without {BASE}, so its base is not known; save it anew")
    record = read_json(folder / BASE)
    model, _ = load_model(record["spec"], **options | {"dtype": record["dtype"]})
    if (found := fingerprint(model)) != record["fingerprint"]:
        raise InputError(
            f"the adapter in {folder} was trained on another base: {record['spec']} has fingerprint {found}, "
            f"expected {record['fingerprint']}; give the base it was trained on"
        )
    attach(model, folder, record["spec"])
    if options.get("dtype") is not None:
        model.to(_dtype(options["dtype"]))
    model.base_ = {"fingerprint": record["fingerprint"], "dtype": record["dtype"]}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return model.eval(), tokenizer


def check(folder: Path) -> None:
    """See that `folder` holds a plain LoRA adapter in safetensors.

    Raises:
        InputError: it does not.
    """
    config = read_json(folder / ADAPTER)
    strange = [name for name in _STRANGE if config.get(name)]
    if config.get("peft_type") != "LORA" or strange:
        raise InputError(
            f"{folder / ADAPTER}: got {config.get('peft_type')} {' '.join(strange)}; only plain LoRA is read:"
            " merge it into its base model and save that"
        )
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} lacks {WEIGHTS}; adapters are read as safetensors only")
    check_safetensors(folder / WEIGHTS)


def attach(model: PreTrainedModel, folder: Path, spec: str) -> None:
    """Put the checked adapter in `folder` into `model`.

    Raises:
        InputError: peft is not installed, or shapes do not fit.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError(f"{folder} is an adapter, which needs peft: pip install 'broadsheet[embed]'") from None
    try:
        with quiet():
            model.load_adapter(str(folder), adapter_kwargs={"local_files_only": True})
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the adapter in {folder} does not fit {spec}: {reason}") from None


def _dtype(name: Any) -> Any:
    import torch

    return getattr(torch, name) if isinstance(name, str) else name
