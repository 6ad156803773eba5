"""The demo: a model writes a text token by token, and again with drafts, beside it, as it goes.

Knows: the stage's drafter, a model, a console. Does not know: trials; what it prints is three texts, not evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.console import say
from broadsheet.decode.ngram import NgramDrafter
from broadsheet.models.tokens import rendered

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REQUESTS = (
    "Write a Python class for a bank account that can deposit, withdraw and print its balance.",
    "Write this function again with type hints:\n\n"
    "def scale(values, low, high):\n"
    "    smallest, largest = min(values), max(values)\n"
    "    return [low + (high - low) * (value - smallest) / (largest - smallest) for value in values]",
    "Explain to a child, step by step, how rain is made.",
)
_LINES = 12  # of a text that are shown while it is written
_REFRESHED = 8  # times a second


@dataclass
class Writing:
    """A text while it is written; a streamer of `generate`.

    Attributes:
        tokens: written so far.
        seconds: from the start to the last token; nothing is measured before `start`.
    """

    shown: Callable[[], None] = lambda: None
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    _begin: float = 0.0
    _prompt: bool = True

    def start(self) -> None:
        """Begin anew."""
        self.tokens, self.seconds, self._prompt, self._begin = [], 0.0, True, time.perf_counter()

    def put(self, value: Any) -> None:
        """Called by `generate` with the prompt, then with each token."""
        if self._prompt:
            self._prompt = False
            return
        self.tokens += value.flatten().tolist()
        self.seconds = time.perf_counter() - self._begin
        self.shown()

    def end(self) -> None:
        """Called by `generate` at the end."""
        self.seconds = time.perf_counter() - self._begin


def show(console: Console, *, model: str = "default", tokens: int = 80, requests: Sequence[str] = REQUESTS) -> float:
    """Write each text twice and print what drafts saved.

    Returns:
        How many times as fast the drafted texts were written, all together.

    Raises:
        InputError: the model cannot be loaded, or cannot verify drafts.
    """
    from rich.markup import escape

    title = models.title(model)
    say(f"loading {title} …")
    loaded = models.load(model, dtype="float32")
    drafter = NgramDrafter()
    ids = [_prompt(loaded.tokenizer, request) for request in requests]
    _write(loaded.model, ids[0], 4, Writing(), None)  # what is slow once is over when the clock starts
    _write(loaded.model, ids[0], 24, Writing(), drafter)
    console.print(f"[bold]{len(requests)} texts, each written twice[/bold] by {title}\n")
    plain, drafted, same = 0.0, 0.0, 0
    for number, (request, prompt) in enumerate(zip(requests, ids, strict=True), start=1):
        console.print(f"[dim]{number} of {len(requests)}[/dim] {escape(request.splitlines()[0])}")
        both = _side_by_side(console, loaded, prompt, tokens, drafter.fork())
        equal = both[0].tokens == both[1].tokens
        plain, drafted, same = plain + both[0].seconds, drafted + both[1].seconds, same + equal
        console.print(
            f"  plain {both[0].seconds:.1f} s · with drafts {both[1].seconds:.1f} s · "
            f"[bold]{both[0].seconds / both[1].seconds:.1f}×[/bold] · {'the same text' if equal else 'ANOTHER text'}\n"
        )
    gain = plain / drafted
    how = f"{gain:.1f}× as fast" if gain >= 1.05 else f"not faster here ({gain:.2f}×)"
    console.print(f"[bold green]With drafts: {how}, the same text token for token: {same} of {len(requests)}.[/]")
    console.print("Drafts repeat what stood before in such a place; the model checks them all at once.\n")
    console.print("use it   from broadsheet.decode import NgramDrafter")
    console.print("         model.generate(**inputs, custom_generate=NgramDrafter())")
    console.print("measure  broadsheet try aded --quick    beside the paper it grew out of")
    console.print("go on    broadsheet advise              which of the 79 papers suits you")
    return gain


def _prompt(tokenizer: Any, request: str) -> Any:
    if tokenizer.chat_template is None:
        return tokenizer(f"{request}\n\n", return_tensors="pt").input_ids
    chat = rendered(tokenizer, [{"role": "user", "content": request}])
    return tokenizer(chat, return_tensors="pt", add_special_tokens=False).input_ids


def _write(model: Any, ids: Any, tokens: int, writing: Writing, drafter: NgramDrafter | None) -> None:
    import torch

    ids = ids.to(model.device)
    writing.start()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        streamer=writing,
        custom_generate=drafter,
    )


def _side_by_side(
    console: Console, loaded: Any, ids: Any, tokens: int, drafter: NgramDrafter
) -> tuple[Writing, Writing]:
    """Both ways to write one text: first plainly, then with drafts, each seen as it grows where there is a terminal."""
    from rich.live import Live

    plain, drafted = Writing(), Writing()

    def view() -> RenderableType:
        return _columns(loaded.tokenizer, plain, drafted)

    live = Live(get_renderable=view, console=console, refresh_per_second=_REFRESHED, transient=False)
    with live if console.is_terminal else nullcontext():
        _write(loaded.model, ids, tokens, plain, None)
        _write(loaded.model, ids, tokens, drafted, drafter)
    if not console.is_terminal:
        console.print(view())
    return plain, drafted


def _columns(tokenizer: Any, plain: Writing, drafted: Writing) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_edge=False, header_style="dim")
    for title, writing in (("token by token", plain), ("with drafts", drafted)):
        table.add_column(f"{title}, {writing.seconds:.1f} s", ratio=1, overflow="fold")
    texts = [tokenizer.decode(writing.tokens, skip_special_tokens=True) for writing in (plain, drafted)]
    table.add_row(*(Text("\n".join(text.strip().splitlines()[-_LINES:])) for text in texts))
    return table
