"""The architecture of a SALMONN as one picture, drawn from its config: what is frozen, what is trained, and how large.

Knows: a config, sizes that a config only names, SVG. Does not know: weights, where a picture is put.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.hear import base
from broadsheet.hear.encoders.audio_features import piece_seconds
from broadsheet.hear.windows import Windows

if TYPE_CHECKING:
    from broadsheet.hear.configuration import SalmonnConfig
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

_RATE = 50  # frames per second that encoders are synchronised to
_COLUMN, _MARGIN, _PAD = 290, 24, 14  # pixels
_STYLE = """
.page{fill:#fcfcfd;stroke:#d5dae1}.frozen{fill:#e9eff6;stroke:#71869c;stroke-dasharray:5 3}
.trained{fill:#ffedd6;stroke:#b86200;stroke-width:2}.plain{fill:#fff;stroke:#aab3be}
.line{stroke:#6b7683;fill:none}.tip{fill:#6b7683}text{font:13px system-ui,sans-serif;fill:#20262d}
.name{font-weight:600}.small{font-size:12px}.code{font:12px ui-monospace,monospace}
@media(prefers-color-scheme:dark){.page{fill:#171b21;stroke:#3a424d}.frozen{fill:#25303c;stroke:#8ba0b6}
.trained{fill:#46311a;stroke:#f0a24e}.plain{fill:#1e242c;stroke:#59636f}.line{stroke:#98a3b0}.tip{fill:#98a3b0}
text{fill:#e7eaee}}
""".strip()


@dataclass(frozen=True)
class Sizes:
    """What a config only names.

    Args:
        encoders: per encoder the width of a frame, frames per second, and frames of the longest piece of audio.
        llm: width of the language model's embeddings.
        connector: parameters of norms, connector and projection, in that order; None where they are not known.
        adapter, frozen, llm_parameters: parameters of LoRA, of each encoder, and of the language model without LoRA.
    """

    encoders: tuple[tuple[int, float, int], ...]
    llm: int
    connector: tuple[int, int, int] | None = None
    adapter: int | None = None
    frozen: tuple[int, ...] = ()
    llm_parameters: int | None = None

    @property
    def trained(self) -> int | None:
        """All that is trained, where it is known."""
        return None if self.connector is None or self.adapter is None else sum(self.connector) + self.adapter


def described(config: SalmonnConfig, llm: int, adapter: int | None = None) -> Sizes:
    """The sizes of a model that is not loaded.

    Args:
        llm: width of the language model's embeddings.
        adapter: parameters of LoRA in it.

    Raises:
        InputError: an encoder's width is in a file that is not there.
    """
    samples = round(piece_seconds(config.encoders) * base.SAMPLE_RATE)
    encoders = []
    for settings in config.encoders:
        kind = base.kind_of(settings)
        encoders.append((*kind.describe(settings), kind.frames_of(settings, samples)))
    return counted(config, Sizes(tuple(encoders), llm, adapter=adapter))


def counted(config: SalmonnConfig, sizes: Sizes) -> Sizes:
    """Sizes with the parameters of norms, connector and projection, from their shapes alone."""
    import torch

    from broadsheet.hear.connectors import StackLinear
    from broadsheet.hear.salmonn import WindowQFormer

    width = sum(encoder[0] for encoder in sizes.encoders)
    windows = Windows(config.window_seconds, config.stride_seconds)
    made: WindowQFormer | StackLinear
    with torch.device("meta"):
        if config.connector == "stack":
            made = StackLinear(width, sizes.llm, windows, queries=config.num_queries)
        else:
            made = WindowQFormer(
                width,
                sizes.llm,
                windows,
                queries=config.num_queries,
                hidden=config.qformer_hidden,
                heads=config.qformer_heads,
                layers=config.qformer_layers,
                ffn=config.qformer_ffn,
            )
    projection = _parameters(made.projection)
    parts = (2 * width, _parameters(made) - projection, projection)
    return replace(sizes, connector=parts)


def sizes_of(model: SalmonnForConditionalGeneration) -> Sizes:
    """The sizes of a model, counted in it."""
    samples = round(model.audio_features.piece_seconds * base.SAMPLE_RATE)
    encoders = [
        (each.width, each.frame_rate, each.frames_of(each.settings(), samples))
        for each in model.audio_features.encoders
    ]
    projection = _parameters(model.connector.projection)
    connector = (_parameters(model.synchronised), _parameters(model.connector) - projection, projection)
    adapter = sum(each.numel() for name, each in model.llm.named_parameters() if "lora_" in name)
    return Sizes(
        tuple(encoders),
        int(model.get_input_embeddings().weight.shape[1]),
        connector,
        adapter,
        tuple(_parameters(each) for each in model.audio_features.encoders),
        _parameters(model.llm) - adapter,
    )


def small() -> tuple[SalmonnConfig, Sizes]:
    """What `build` makes by default: no hub, minutes of training on two cores."""
    from broadsheet.hear.configuration import SalmonnConfig

    config = SalmonnConfig("default", ["whisper:tiny.en", "speech-embedding"])
    # SmolLM2-135M: 30 layers, q_proj 576 → 576, v_proj 576 → 192
    return config, described(config, 576, 30 * config.lora_rank * (2 * 576 + 576 + 192))


def paper() -> tuple[SalmonnConfig, Sizes]:
    """The paper's: Whisper-large-v2, BEATs, Vicuna-13B. Source: arXiv:2310.13289, Sec. 4.1."""
    from broadsheet.hear.configuration import SalmonnConfig

    beats = "beats:BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    config = SalmonnConfig("lmsys/vicuna-13b-v1.1", ["whisper:openai/whisper-large-v2", beats])
    # 40 layers, q_proj and v_proj both 5120 → 5120
    sizes = Sizes(((1280, 50.0, 1500), (768, 50.0, 1496)), 5120, adapter=40 * config.lora_rank * 4 * 5120)
    return config, counted(config, sizes)


def architecture_svg(config: SalmonnConfig, sizes: Sizes) -> str:
    """The architecture, from the wave down to the answer, as one SVG file that needs no other.

    Args:
        config: of the model.
        sizes: as `sizes_of`, `described`, `small` or `paper` give them.

    Example:
        Path("ears.svg").write_text(architecture_svg(model.config, sizes_of(model)))
    """
    count = len(sizes.encoders)
    drawing = _Drawing(max(2, count) * _COLUMN + 2 * _MARGIN)
    windows = Windows(config.window_seconds, config.stride_seconds)
    frames = max(number * round(_RATE / rate) for _, rate, number in sizes.encoders)
    tokens = windows.count(frames) * config.num_queries
    parts: Sequence[int | None] = sizes.connector or (None, None, None)

    drawing.legend()
    drawing.box("plain", [f"audio: 16 kHz, in pieces of at most {piece_seconds(config.encoders):g} s"])
    centres = [drawing.width / 2 + (place - (count - 1) / 2) * _COLUMN for place in range(count)]
    top = drawing.fan(centres)
    ends = []
    for place, (centre, settings) in enumerate(zip(centres, config.encoders, strict=True)):
        ends.append(_encoder(drawing, centre, top, settings, sizes, place))
    drawing.join(centres, max(ends))
    width = sum(each[0] for each in sizes.encoders)
    filled = ", the shorter filled up with zeros" if count > 1 else ""
    drawing.box("plain", [f"side by side{filled}: {width:,} wide, {_RATE} a second"])
    drawing.arrow()
    step = "" if windows.step == windows.window else f", one every {windows.step}"
    drawing.windows(
        f"windows of {windows.window} frames ({windows.window / _RATE:.2f} s){step}: "
        f"{windows.count(frames)} in a full piece",
        "a rest shorter than a window is dropped",
    )
    drawing.arrow()
    if config.connector == "stack":
        wide = windows.window * width
        drawing.box(
            "trained",
            [
                "stack and linear, no Q-Former",
                f"the frames of a window in one row: {wide:,} → {config.num_queries} × {sizes.llm:,}",
                _state("trained", parts[2]),
            ],
        )
    else:
        plural = "query" if config.num_queries == 1 else "queries"
        drawing.box(
            "trained",
            [
                "Q-Former, the same for every window",
                f"{config.qformer_layers} layers, {config.qformer_hidden} wide, {config.qformer_heads} heads; "
                f"N = {config.num_queries} {plural}",
                _state("trained", parts[1]),
            ],
        )
        drawing.arrow()
        drawing.box(
            "trained", [f"linear, {config.qformer_hidden} → {sizes.llm:,}", _state("trained", parts[2])], wide=300
        )
    drawing.arrow(f"{tokens} audio tokens, in the order of time")
    drawing.prompt()
    drawing.arrow()
    adapter = None
    if config.lora_rank:
        scale = config.lora_alpha / config.lora_rank
        adapter = [
            f"LoRA in {', '.join(config.lora_modules)}",
            f"rank {config.lora_rank}, scaling {config.lora_alpha}/{config.lora_rank} = {scale:g}",
            _state("trained", sizes.adapter),
        ]
    drawing.llm([_llm_name(config.llm), f"{sizes.llm:,} wide", _state("frozen", sizes.llm_parameters)], adapter)
    drawing.arrow()
    drawing.box("plain", ["the answer, in text"], wide=220)
    if sizes.trained is not None:
        whole = sizes.trained + sum(sizes.frozen) + (sizes.llm_parameters or 0)
        of_all = f" of {_number(whole)} ({sizes.trained / whole:.1%})" if sizes.llm_parameters else ""
        drawing.note(f"trained: {_number(sizes.trained)} parameters{of_all}")
    return drawing.svg(f"{_llm_name(config.llm)} with {', '.join(map(_encoder_name, config.encoders))}")


def _encoder(drawing: _Drawing, centre: float, top: float, settings: dict[str, Any], sizes: Sizes, place: int) -> float:
    """One encoder's column from `top`: its box, its rate made the common one, its norm. Where it ends."""
    width, rate, _ = sizes.encoders[place]
    wide = _COLUMN - 20
    state = _state("frozen", sizes.frozen[place] if sizes.frozen else None)
    lines = [_encoder_name(settings), f"{width:,} wide, {rate:g} frames a second", state]
    end = drawing.box("frozen", lines, wide, centre, top)
    repeat = round(_RATE / rate)
    said = f"× {repeat}: {_RATE} a second" if repeat > 1 else f"{_RATE} a second"
    end = drawing.arrow(said, centre, end)
    own = 2 * width if sizes.connector else None
    return drawing.box("trained", [f"LayerNorm, {width:,} wide", _state("trained", own)], wide, centre, end)


class _Drawing:
    """Boxes and arrows from top to bottom; `y` is where the next one goes."""

    def __init__(self, width: float) -> None:
        self.width, self.y = width, float(_MARGIN)
        self.shapes: list[str] = []

    def legend(self) -> None:
        for place, (kind, said) in enumerate((("frozen", "frozen"), ("trained", "trained"))):
            x = self.width - _MARGIN - 190 + 100 * place
            self.shapes.append(_rectangle(kind, x, self.y, 18, 14))
            self.text(said, x + 25, self.y + 12, anchor="start")
        self.y += 34

    def box(
        self, kind: str, lines: Sequence[str], wide: float = 520, centre: float | None = None, top: float | None = None
    ) -> float:
        """A box with a name and lines below it; where it ends."""
        x, y = self.width / 2 if centre is None else centre, self.y if top is None else top
        high = 18 * len(lines) + _PAD
        self.shapes.append(_rectangle(kind, x - wide / 2, y, wide, high))
        for place, line in enumerate(lines):
            style = "name" if place == 0 and len(lines) > 1 else ""
            self.text(_cut(line, wide, 8.5 if style else 7), x, y + 20 + 18 * place, style)
        if top is None:
            self.y = y + high
        return y + high

    def arrow(self, said: str = "", centre: float | None = None, top: float | None = None) -> float:
        """An arrow downwards with a word beside it; where it ends."""
        x, y = self.width / 2 if centre is None else centre, self.y if top is None else top
        end = y + 30
        self.shapes.append(f'<path class="line" d="M{x:g} {y:g}V{end - 5:g}"/>' + _tip(x, end))
        if said:
            self.text(said, x + 10, y + 18, "small", "start")
        if top is None:
            self.y = end
        return end

    def fan(self, centres: Sequence[float]) -> float:
        """From the middle to every column; where it ends."""
        y, end = self.y, self.y + 34
        for x in centres:
            line = f"M{self.width / 2:g} {y:g}V{y + 14:g}H{x:g}V{end - 5:g}"
            self.shapes.append(f'<path class="line" d="{line}"/>' + _tip(x, end))
        return end

    def join(self, centres: Sequence[float], top: float) -> None:
        """From the ends of all columns back to the middle."""
        end = top + 34
        for x in centres:
            self.shapes.append(f'<path class="line" d="M{x:g} {top:g}V{top + 16:g}H{self.width / 2:g}V{end - 5:g}"/>')
        self.shapes.append(_tip(self.width / 2, end))
        self.y = end

    def windows(self, *lines: str) -> None:
        """A row of cells, and what they are."""
        cells, side = 12, 34
        left = self.width / 2 - cells * side / 2
        for place in range(cells):
            self.shapes.append(_rectangle("plain", left + place * side, self.y, side - 3, 16, 2))
        for place, line in enumerate(lines):
            self.text(line, self.width / 2, self.y + 36 + 17 * place, "small" if place else "")
        self.y += 30 + 17 * len(lines)

    def prompt(self) -> None:
        """The prompt with the audio tokens in their place."""
        self.shapes.append(_rectangle("plain", self.width / 2 - 260, self.y, 520, 34))
        y = self.y + 22
        self.text("USER: <Speech>", self.width / 2 - 246, y, "code", "start")
        for place in range(6):
            self.shapes.append(_rectangle("trained", self.width / 2 - 130 + 15 * place, self.y + 10, 11, 14, 2))
        self.text("</Speech> What is said?  ASSISTANT:", self.width / 2 - 32, y, "code", "start")
        self.y += 34

    def llm(self, lines: Sequence[str], adapter: Sequence[str] | None) -> None:
        """The language model, with the adapter in it."""
        high = 18 * len(lines) + _PAD + 16
        wide = 520.0 if adapter else 300.0
        left = self.width / 2 - wide / 2
        self.shapes.append(_rectangle("frozen", left, self.y, wide, high))
        centre = left + (132 if adapter else wide / 2)
        for place, line in enumerate(lines):
            self.text(_cut(line, 250, 7 if place else 8.5), centre, self.y + 29 + 18 * place, "" if place else "name")
        if adapter:
            self.box("trained", adapter, 240, left + wide - 128, self.y + 8)
        self.y += high

    def note(self, said: str) -> None:
        self.text(said, self.width / 2, self.y + 26)
        self.y += 32

    def text(self, said: str, x: float, y: float, style: str = "", anchor: str = "middle") -> None:
        kind = f' class="{style}"' if style else ""
        self.shapes.append(f'<text{kind} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(said, quote=False)}</text>')

    def svg(self, title: str) -> str:
        high = self.y + _MARGIN
        size = f"{self.width:g} {high:g}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{self.width:g}" '
                f'height="{high:g}" role="img">',
                f"<title>{escape(f'SALMONN: {title}', quote=False)}</title>",
                f"<style>{_STYLE}</style>",
                _rectangle("page", 0.5, 0.5, self.width - 1, high - 1),
                *self.shapes,
                "</svg>\n",
            ]
        )


def _rectangle(kind: str, x: float, y: float, wide: float, high: float, round_: int = 6) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="{round_}"/>'


def _tip(x: float, y: float) -> str:
    return f'<path class="tip" d="M{x - 5:g} {y - 8:g}h10l-5 8z"/>'


def _cut(line: str, wide: float, letter: float = 7) -> str:
    """As much of a line as fits, by pixels per letter."""
    most = int((wide - 12) / letter)
    return line if len(line) <= most else line[: most - 1] + "…"


def _state(said: str, parameters: int | None) -> str:
    return f"{said}, {_number(parameters)} parameters" if parameters else said


def _number(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def _encoder_name(settings: dict[str, Any]) -> str:
    spec = str(settings.get("spec") or "")
    kind = str(settings["kind"])
    name = {"whisper": "Whisper", "beats": "BEATs", "speech-embedding": "Speech embedding"}.get(kind, kind)
    return f"{name}: {Path(spec).name}" if spec else name


def _llm_name(spec: str) -> str:
    return "SmolLM2-135M-Instruct" if spec == "default" else Path(spec).name or spec


def _parameters(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())
