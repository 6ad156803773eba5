"""LoRA adapters in a model: putting one in, merging it, taking it out; folders that hold it beside its base's name.

Knows peft and folders. Does not know what is trained. A folder's adapter must be plain LoRA in safetensors, and is
refused on another base than it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.models.loading import fingerprint
from broadsheet.models.loading import load as load_model
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import check_safetensors, read_json
from broadsheet.models.tokens import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
# Fields that make peft import what the file names, or do more than add matrices.
_STRANGE = ("megatron_config", "corda_config", "eva_config")


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether there is an adapter in the model."""
    return hasattr(model, "peft_config")


def add(
    model: PreTrainedModel,
    rank: int = 16,
    *,
    alpha: int | None = None,
    dropout: float = 0.0,
    modules: Sequence[str] = (),
) -> None:
    """Put LoRA matrices of `rank` into all linear layers but the head (or into `modules`); they alone are trained.

    The model itself is changed: nothing is wrapped around it.

    Args:
        alpha: 2 × rank by default.

    Raises:
        InputError: peft is not installed, or the model has an adapter.
    """
    peft = _peft("an adapter")
    if has_adapter(model):
        raise InputError("the model has an adapter; train that one, or merge it first")
    targets: Any = list(modules) or "all-linear"
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha or 2 * rank, "lora_dropout": dropout}
    base = {"fingerprint": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
    _inject(model, peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings))
    model.base_ = base


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers that hold the adapter's matrices, by name."""
    if not has_adapter(model):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}


@contextmanager
def disabled(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes as its base does, without the adapter; gradients are as they were afterwards."""
    held = list(layers(model).values())
    before = [part._disable_adapters for part in held]
    for part in held:
        part._disable_adapters = True  # enable_adapters() would also switch which parameters are trained
    try:
        yield
    finally:
        for part, value in zip(held, before, strict=True):
            part._disable_adapters = value


def merge(model: PreTrainedModel) -> None:
    """Add the adapter's matrices to the weights and take it out; nothing happens where there is none."""
    for part in layers(model).values():
        part.merge()
    remove(model)


def remove(model: PreTrainedModel) -> None:
    """Take the adapter out, so that the model is its base again; nothing happens where there is none."""
    for name, part in layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, part.get_base_layer())
    if has_adapter(model):
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
        from safetensors.torch import save_file

        config = model.peft_config["default"]
        base = spec if spec == "default" or not Path(spec).exists() else str(Path(spec).resolve())
        config.base_model_name_or_path = base
        config.save_pretrained(str(folder))
        # Left to itself, peft asks the hub whether the embeddings have grown.
        weights = _peft("an adapter").get_peft_model_state_dict(model, save_embedding_layers=False)
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
        record = {"spec": base, **getattr(model, "base_", {})}  # a model that peft wrapped knows no fingerprint
        (folder / BASE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def load(folder: Path, options: dict[str, Any], base: str | None = None) -> tuple[PreTrainedModel, Any]:
    """The model and tokenizer in `folder`; an adapter comes in its base.

    Args:
        options: of `models.load`.
        base: the base of an adapter whose folder does not record it.

    Raises:
        InputError: damaged or foreign files; an adapter that is no plain LoRA, lacks its base, or does not fit it.
    """
    if not (folder / ADAPTER).is_file():
        model, tokenizer = load_model(folder, **options)
        return model, tokenizer
    check(folder)
    if not (base or (folder / BASE).is_file()):
        raise InputError(f"{folder} is an adapter without {BASE}, so its base is not known; save it anew")
    record: dict[str, Any] = read_json(folder / BASE) if (folder / BASE).is_file() else {"spec": base}
    trained_in = {"dtype": record["dtype"]} if "dtype" in record else {}
    model, tokenizer = load_model(record["spec"], **options | trained_in)
    found = {"fingerprint": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
    if found["fingerprint"] != record.get("fingerprint", found["fingerprint"]):
        raise InputError(
            f"the adapter in {folder} was trained on another base: {record['spec']} has fingerprint "
            f"{found['fingerprint']}, expected {record['fingerprint']}; give the base it was trained on"
        )
    attach(model, folder, record["spec"], layers=record.get("layers"))
    if options.get("dtype") is not None:
        model.to(_dtype(options["dtype"]))
    model.base_ = found
    if not (folder / "tokenizer_config.json").is_file():
        return model.eval(), tokenizer
    return model.eval(), read_tokenizer(folder)


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


def attach(model: PreTrainedModel, folder: Path, spec: str, *, layers: int | None = None) -> None:
    """Put the checked adapter in `folder` into `model`.

    Args:
        layers: that the adapter was trained on, from the first, where the base was cut down to them.

    Raises:
        InputError: peft is not installed, or it does not fit.
    """
    from safetensors.torch import load_file

    peft = _peft(f"{folder} is an adapter, which")
    prefix = "base_model.model."  # of the names in an adapter that peft saved around a model
    weights = {name.removeprefix(prefix): weight for name, weight in load_file(str(folder / WEIGHTS)).items()}
    try:
        config = peft.LoraConfig.from_pretrained(str(folder), local_files_only=True)
        if layers is not None:
            config.layers_to_transform = list(range(layers))
        _inject(model, config)
        result = peft.set_peft_model_state_dict(model, weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the adapter in {folder} does not fit {spec}: {reason}") from None
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise InputError(
            f"the adapter in {folder} does not fit {spec}: {len(missing)} matrices are missing and "
            f"{len(result.unexpected_keys)} have no place; give the base it was trained on"
        )


def _inject(model: PreTrainedModel, config: Any) -> None:
    """peft's layers in place, all but their matrices frozen; those are of float32 at least, as small updates need."""
    peft = _peft("an adapter")
    peft.inject_adapter_in_model(config, model)
    model.peft_config = {"default": config}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError:
        raise InputError(f"{what} needs peft: pip install peft") from None
    return peft


def _dtype(name: Any) -> Any:
    import torch

    return getattr(torch, name) if isinstance(name, str) else name
