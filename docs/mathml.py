"""A hook for mkdocs: formulas as MathML, which browsers draw by themselves. No script, no font, no other host.

`pymdownx.arithmatex` (generic) marks the formulas; `latex2mathml` translates them.
"""

import html
import re

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>([.,;:)]*)', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """The page's HTML with its formulas translated; punctuation after one stays on its line."""
    content = _INLINE.sub(
        lambda found: f'<span class="formula">{_mathml(found[1], "inline")}{found[2]}</span>', content
    )
    return _BLOCK.sub(lambda found: f'<div class="formula">{_mathml(found[1], "block")}</div>', content)


def _mathml(formula: str, display: str) -> str:
    # latex2mathml sets \sim as the high accent of the keyboard.
    return convert(html.unescape(formula), display=display).replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")
