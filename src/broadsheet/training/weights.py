"""Which weights a training changes, and in which precision it computes.

Knows: models, devices, PEFT's LoRA. Does not know: data, losses, time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from broadsheet.console import InputError

if TYPE_CHECKING:
    import torch

Method = Literal["full", "lora"]


def trainable(model: Any, method: Method = "full", rank: int = 16, *, task: str = "CAUSAL_LM") -> Any:
    """`model` with all weights in float32 and trainable; or with an adapter, new or the one that it has.

    Args:
        model: changed in place.
        method: `"full"`, or `"lora"`: adapters on all linear layers, the weights themselves stay. A PEFT model is
            trained on as it is.
        rank: of a new adapter; its α is twice that.
        task: PEFT's name of what the model does, `"FEATURE_EXTRACTION"` for one without a head.

    Returns:
        What to train: the model itself, or a PEFT model around it.

    Raises:
        InputError: peft is missing; or the model has an adapter, and all weights are asked for.
    """
    adapted = hasattr(model, "peft_config")
    if method == "full":
        if adapted:
            raise InputError("the model has an adapter; train it with method='lora', or merge it first")
        model.float().requires_grad_(True)
        return model
    if adapted:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("method='lora' needs peft: pip install peft, or use method='full'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task)
    return get_peft_model(model, config)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The type of forward passes that `"auto"`, `"bfloat16"` or `"none"` stands for; None for that of the weights.

    `"auto"` is bfloat16 where the device computes in it.
    """
    import torch

    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # Elsewhere on CPUs bfloat16 is emulated, at a loss.
    fast = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if fast else None
