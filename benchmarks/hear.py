"""How fast a model hears, answers and learns, beside plainer ways of the same work: `python benchmarks/hear.py`.

One run, one model, made-up clips (what is in them does not matter to the clock), each pair of ways in turns:

- encoding: seconds of audio a second, for each encoder, of a clip of 30 s, and of short clips together and one by one;
- the Q-Former over all windows of 30 s as one batch, against a loop over windows; how far their tokens lie apart;
- frames from the cache on disk, against encoding anew;
- answers of a fixed length: seconds of audio a second, encoding included, together and one by one;
- training steps a second with cached frames, against the plain loop that encodes its clips in every step; and the most
  memory that training takes.

`--record` keeps the result as evidence/hear.benchmark.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layer import least_seconds
from torch import Tensor

from broadsheet import models
from broadsheet.clock import measure
from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.data.mixing import wav_bytes
from broadsheet.hear.data.rows import Row
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training.fitting import fit
from broadsheet.page import evidence

SMALL = {"qformer_hidden": 384, "qformer_heads": 6, "qformer_layers": 2, "qformer_ffn": 1536}
LONG = 30.0  # seconds of the long clip


def waves(count: int, seconds: float, seed: int) -> list[Tensor]:
    """Clips of noise, each another one."""
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(round(seconds * base.SAMPLE_RATE), generator=generator) for _ in range(count)]


def encoding(part: base.AudioEncoder, long: Tensor, short: Sequence[Tensor], repeats: int) -> dict[str, float]:
    """Seconds of audio that an encoder hears in a second."""
    arms = {
        "short_together": lambda: part.encode_all(short),
        "short_one_by_one": lambda: [part.encode(each) for each in short],
    }
    if float(part.settings().get("context_seconds", LONG)) >= LONG:
        arms["long"] = lambda: [part.encode(long)]
    seconds = least_seconds(arms, repeats)
    heard = sum(map(len, short)) / base.SAMPLE_RATE
    return {name: (LONG if name == "long" else heard) / taken for name, taken in seconds.items()}


@torch.inference_mode()
def windows(model: SalmonnForConditionalGeneration, repeats: int) -> dict[str, float]:
    """The Q-Former on 30 s, all windows at once and one after another."""
    connector: Any = model.connector
    width = sum(norm.normalized_shape[0] for norm in model.synchronised.norms)  # type: ignore[union-attr,misc]
    frames = torch.randn(1, round(LONG * 50), width, device=model.device)

    def loop() -> Tensor:
        cut = connector.windows.cut(frames)
        read = [
            connector.qformer(query_embeds=connector.query, encoder_hidden_states=cut[:, place]).last_hidden_state
            for place in range(cut.shape[1])
        ]
        found: Tensor = connector.projection(torch.cat(read, dim=1))
        return found

    seconds = least_seconds({"batch": lambda: connector(frames), "loop": loop}, repeats)
    once, one_by_one = connector(frames), loop()
    return {
        "windows": model.windows.count(frames.shape[1]),
        "seconds": seconds["batch"],
        "seconds_of_loop": seconds["loop"],
        "apart": float((once - one_by_one).abs().max() / once.abs().max()),
    }


def cache(parts: Sequence[base.AudioEncoder], files: Sequence[str], folder: Path, repeats: int) -> dict[str, float]:
    """Seconds for the frames of all clips, from disk and anew."""
    kept, anew = AudioFeatures(parts, folder), AudioFeatures(parts, keep=False)
    kept.features_all(files)
    return least_seconds(
        {"cached": lambda: kept.features_all(files), "encoded": lambda: anew.features_all(files)}, repeats
    )


def answering(
    model: SalmonnForConditionalGeneration, files: Sequence[str], tokens: int, repeats: int
) -> dict[str, float]:
    """Seconds for answers to all clips, encoding included."""
    model.audio_features = AudioFeatures(model.audio_features.encoders, keep=False)
    requests = [(file, "What is said?") for file in files]
    how: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return least_seconds(
        {
            "together": lambda: model.answers(requests, **how),
            "one_by_one": lambda: model.answers(requests, batch_size=1, **how),
        },
        repeats,
    )


def training(
    model: SalmonnForConditionalGeneration, files: Sequence[str], folder: Path, steps: int, batch: int
) -> dict[str, float]:
    """Steps a second with cached frames and without, after a step that does not count, and peak memory."""
    rows = [Row("asr", (file,), "the old queen found my red lamp") for file in files]
    found: dict[str, float] = {"steps": steps, "batch": batch}
    for name, features in (
        ("cached", AudioFeatures(model.audio_features.encoders, folder)),
        ("encoded", AudioFeatures(model.audio_features.encoders, keep=False)),
    ):
        model.audio_features = features
        fit(model, rows, steps=1, batch_size=batch)
        fitted, _, peak = measure(lambda some: fit(model, some, steps=steps, batch_size=batch), rows)
        found |= {f"steps_per_second_{name}": fitted.steps / fitted.seconds, f"peak_bytes_{name}": peak}
    found["trained_parameters"] = sum(weight.numel() for weight in model.trained_parameters().values())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=36, help="short ones")
    parser.add_argument("--seconds", type=float, default=3.2, help="of a short clip")
    parser.add_argument("--batch", type=int, default=12, help="clips a training step")
    parser.add_argument("--steps", type=int, default=6, help="that are timed")
    parser.add_argument("--tokens", type=int, default=12, help="of an answer")
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed alone; the least counts")
    parser.add_argument("--encoders", nargs="+", default=["whisper:tiny.en", "speech-embedding"])
    parser.add_argument("--context", type=float, default=8.0, help="seconds of Whisper's context for short clips")
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    settings = [base.named(name) for name in arguments.encoders]
    cropped = {"context_seconds": arguments.context, "crop": True}
    short_settings = [{**each, **cropped} if each["kind"] == "whisper" else each for each in settings]
    try:
        full = [base.encoder(each) for each in settings]
        model = SalmonnForConditionalGeneration.build(
            arguments.model,
            short_settings,
            seed=arguments.seed,
            device=arguments.device,
            dtype=arguments.dtype,
            **SMALL,
        )
    except InputError as error:
        parser.error(str(error))
    short, [long] = waves(arguments.clips, arguments.seconds, arguments.seed), waves(1, LONG, arguments.seed + 1)
    rates: dict[str, dict[str, float]] = {}
    for part in [*full, *(each for each in model.audio_features.encoders if "context_seconds" in each.settings())]:
        context = part.settings().get("context_seconds")
        name = part.kind + (f", context of {context:g} s" if context else "")
        rates[name] = encoding(part, long, short, arguments.repeats)
        told = ", ".join(f"{key.replace('_', ' ')} {rate:,.0f}" for key, rate in rates[name].items())
        print(f"{name}: seconds of audio a second: {told}")

    read = windows(model, arguments.repeats)
    print(
        f"Q-Former over {read['windows']} windows of {LONG:g} s: {1000 * read['seconds']:.1f} ms as one batch, "
        f"{read['seconds_of_loop'] / read['seconds']:.1f} times as fast as a loop over windows; tokens at most "
        f"{read['apart']:.1e} of the largest apart"
    )
    with tempfile.TemporaryDirectory() as temporary:
        files = [str(Path(temporary) / f"{place}.wav") for place in range(arguments.clips)]
        for file, clip in zip(files, short, strict=True):
            Path(file).write_bytes(wav_bytes(np.asarray(clip, dtype=np.float32)))
        kept = cache(model.audio_features.encoders, files, Path(temporary) / "features", arguments.repeats)
        print(f"frames of {len(files)} clips from disk: {kept['encoded'] / kept['cached']:.0f} times as fast as anew")
        said = answering(model, files, arguments.tokens, max(1, arguments.repeats // 2))
        heard = arguments.clips * arguments.seconds
        print(
            f"answers of {arguments.tokens} tokens, encoding included: {heard / said['together']:.1f} seconds of audio "
            f"a second, {said['one_by_one'] / said['together']:.1f} times as fast as one by one"
        )
        trained = training(model, files, Path(temporary) / "features", arguments.steps, arguments.batch)
    ratio = trained["steps_per_second_cached"] / trained["steps_per_second_encoded"]
    print(
        f"training on {arguments.batch} clips a step: {trained['steps_per_second_cached']:.2f} steps/s from cached "
        f"frames, {ratio:.2f} times as fast as encoding in each step; peak memory "
        f"{trained['peak_bytes_cached'] / 1e9:.1f} GB, {trained['trained_parameters'] / 1e6:.1f} M weights trained"
    )
    if arguments.record:
        result = {
            "encoding": rates,
            "qformer": read,
            "cache": kept,
            "answering": said,
            "training": trained,
            "clips": arguments.clips,
            "seconds": arguments.seconds,
            "threads": torch.get_num_threads(),
            "command": "python benchmarks/hear.py --record",
            "provenance": evidence.provenance(
                model={"name": arguments.model, "fingerprint": models.fingerprint(model.llm)},
                encoders=[part.settings() for part in model.audio_features.encoders],
                seed=arguments.seed,
            ),
        }
        print(evidence.record("hear.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
