"""The notebooks as pages, run for the site: what stands under a cell is what this code prints.

Knows: notebooks. Does not know: what they show. It is a hook for mkdocs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.page.evidence import versions

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook to those that mkdocs found."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """A notebook, run from its top, as Markdown; run again when it or the code has changed.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    code = sorted((FOLDER.parent / "src").rglob("*.py"))
    key = fingerprint([versions(), path.read_text("utf-8"), *(each.read_text("utf-8") for each in code)])
    kept = home() / "notebooks" / f"{path.stem}-{key}.md"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = executed(path)
        with atomic_write(kept) as file:
            file.write(text)
    return (
        f"{linked(kept.read_text('utf-8'))}\n*This page is `notebooks/{path.name}`, run with the code of this site.*\n"
    )


def executed(path: Path) -> str:
    """A notebook with what its cells print, as Markdown."""
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.read(path, as_version=4)
    run = ExecutePreprocessor(timeout=600, kernel_name="python3", coalesce_streams=True)
    run.extra_arguments = ["--log-level=ERROR"]
    run.preprocess(book, {"metadata": {"path": str(FOLDER)}})
    for cell in book.cells:
        if cell.cell_type == "code":  # what is told on the way is not the answer
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    text: str = MarkdownExporter().from_notebook_node(book)[0]
    return text


def linked(text: str) -> str:
    """Links as the site has them: a notebook lies beside the docs, its page among them."""
    return text.replace("](../docs/", "](../")
