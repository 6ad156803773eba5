"""SALMONN's oracle cases: windows, joined streams, a tiny Q-Former, learning rates, labels, scaling, token counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from broadsheet.hear.encoders.beats import BeatsEncoder
from broadsheet.hear.encoders.fbank import fbank_frames
from broadsheet.hear.processing import as_wave, assemble
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration, Synchronised, WindowQFormer
from broadsheet.hear.training.schedule import learning_rate
from broadsheet.hear.windows import Windows
from broadsheet.models import adapters


def run(case: dict[str, Any]) -> dict[str, Any]:
    return OPERATIONS[case["op"]](SimpleNamespace(**case))


def windows(case: Any) -> dict[str, Any]:
    cut = Windows(case.second_per_window, case.second_stride, case.frame_rate)
    frames = torch.arange(case.frames, dtype=torch.float64)[None, :, None]
    got = cut.cut(frames)[0, :, :, 0].int()
    ends = [[int(each[0]), int(each[-1])] for each in got]
    # frames that were made up to fill a window that is too short are zero
    return {
        "num_windows": cut.count(case.frames),
        "window": cut.window,
        "first_window": ends[0],
        "second_window": ends[min(1, len(ends) - 1)],
        "last_window": ends[-1],
        "frames_dropped": max(0, case.frames - (cut.step * (cut.count(case.frames) - 1) + cut.window)),
        "out_tokens": cut.count(case.frames),
    }


def sync_concat(case: Any) -> dict[str, Any]:
    streams = [torch.tensor(each, dtype=torch.float64) for each in (case.speech, case.audio)]
    joined = Synchronised([each.shape[1] for each in streams], [50.0, 50.0], eps=case.ln_eps).double()
    lengths = torch.tensor([[len(each) for each in streams]])
    return {"z": joined([each[None] for each in streams], lengths)[0][0].tolist()}


def window_qformer(case: Any) -> dict[str, Any]:
    frames = torch.tensor(case.frames, dtype=torch.float64)[None]
    query = torch.tensor(case.query, dtype=torch.float64)
    cut = Windows(case.window, case.stride, frame_rate=1.0)
    made = WindowQFormer(
        frames.shape[-1],
        case.hidden,
        cut,
        queries=len(query),
        hidden=case.hidden,
        heads=case.heads,
        layers=case.layers,
        ffn=case.ffn,
    )
    made = made.double().eval()
    weights = made.qformer.encoder.state_dict()
    for k, name in enumerate(case.param_order):
        own = name.replace("attention.self.", "attention.attention.")
        i = torch.arange(weights[own].numel(), dtype=torch.float64)
        values = torch.sin(1 + i + 7 * k) / 3
        values = 1 + values / 4 if name.endswith("LayerNorm.weight") else values
        weights[own] = values.reshape(weights[own].shape)
    made.qformer.encoder.load_state_dict(weights)
    made.query.data = query[None]
    made.projection = nn.Identity()
    with torch.no_grad():
        return {"tokens": made(frames)[0].tolist()}


def lr_schedule(case: Any) -> dict[str, Any]:
    rates = {
        str(step): learning_rate(
            step,
            epochs=case.max_epoch,
            steps_per_epoch=case.iters_per_epoch,
            warmup_steps=case.warmup_steps,
            peak=case.init_lr,
            minimum=case.min_lr,
            start=case.warmup_start_lr,
        )
        for step in case.steps
    }
    return {"lr": rates}


class Projection(PreTrainedModel):
    """A language model of one projection."""

    config_class = PreTrainedConfig

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(PreTrainedConfig())
        self.q_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        self.q_proj.weight.data = weight


def lora_scaling(case: Any) -> dict[str, Any]:
    model = Projection(torch.tensor(case.W, dtype=torch.float64))
    adapters.add(model, case.r, alpha=case.lora_alpha, modules=["q_proj"])
    layer: Any = model.q_proj
    layer.lora_A["default"].weight.data = torch.tensor(case.A, dtype=torch.float64)
    layer.lora_B["default"].weight.data = torch.tensor(case.B, dtype=torch.float64)
    default = layer.scaling["default"]
    hearing: Any = SimpleNamespace(llm=model)
    answers = {}
    for scale in case.scales:
        with torch.no_grad(), SalmonnForConditionalGeneration.scale_lora(hearing, scale / default):
            answers[str(scale)] = layer(torch.tensor(case.x, dtype=torch.float64)).tolist()
    return {"default_scaling": default, "y": answers}


def labels(case: Any) -> dict[str, Any]:
    prompt = [case.bos, *case.prompt_before, *[-1] * case.audio_tokens, *case.prompt_after]
    longest = (prompt, [0] * case.padded_target_len)  # the row of the batch that the other is filled up to
    made = assemble([(prompt, case.target_ids), longest], case.pad_id, "right")["labels"][0].tolist()
    return {
        "labels": made,
        "loss_positions": [place for place, label in enumerate(made) if label != -100],
        "total_len": len(made),
    }


def tokens_of_beats(case: Any) -> dict[str, Any]:
    """Where token 9 is: the first frame and the band of the spectrogram that change its patch and no other."""
    config = {"input_patch_size": 16, "embed_dim": 8, "encoder_layers": 1, "encoder_embed_dim": 16}
    encoder = BeatsEncoder.random({**config, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2})
    silence = torch.zeros(1, 48, 128)
    plain = encoder.patches(silence)
    places = []
    for frame in range(48):
        for band in range(8):
            sound = silence.clone()
            sound[0, frame, 16 * band] = 1.0
            changed = (encoder.patches(sound) != plain).any(-1)[0].nonzero().flatten().tolist()
            places += [(frame, band)] if changed == [9] else []
    frame, band = places[0]
    return {
        "fbank_frames": fbank_frames(case.samples, case.sr),
        "tokens": BeatsEncoder.frames_of(encoder.settings(), case.samples),
        "token_9_time_start_s": frame / 100,
        "token_9_band": band,
    }


def audio_prep(case: Any) -> dict[str, Any]:
    return {"samples": len(as_wave(tuple(torch.ones(samples) for samples in case.clip_samples)))}


OPERATIONS = {
    "windows": windows,
    "sync_concat": sync_concat,
    "window_qformer": window_qformer,
    "lr_schedule": lr_schedule,
    "lora_scaling": lora_scaling,
    "labels": labels,
    "beats_tokens": tokens_of_beats,
    "audio_prep": audio_prep,
}
