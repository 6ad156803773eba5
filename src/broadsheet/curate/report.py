"""What became of a corpus, as one HTML page: how many documents each step dropped or changed, why, and which.

Knows: counts, reasons, excerpts. Does not know: any rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from broadsheet.curate.running import StepCounts


def page(title: str, source: str, kept: int, written: int, counts: Sequence[StepCounts]) -> str:
    """The page; it loads nothing.

    Args:
        title: what curated the corpus.
        source: the corpus, as it was named.
        kept: documents that stay.
        written: these with their copies.
        counts: of all steps, in their order.
    """
    read = next((int(each.totals["documents"]) for each in counts if "documents" in each.totals), 0)
    steps = [
        each for each in counts if each.by_reason("dropped") or each.by_reason("changed") or each.totals.get("total")
    ]
    pages = Environment(
        loader=PackageLoader("broadsheet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template("curation.html.jinja").render(
        title=title, source=source, kept=kept, written=written, read=read, steps=steps
    )
